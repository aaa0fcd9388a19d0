"""Matte images and clips: alphas, cut-outs, or composites over another background.

    python tools/predict.py photo.jpg --auto
    python tools/predict.py photo.jpg --trimap trimap.png --model models/s --output alpha.png
    python tools/predict.py frames --trimap-dir trimaps --model models/s --output alphas --resume
    python tools/predict.py "photos/*.jpg" --mask masks --width-percent 2 --background '#20a040'
    python tools/predict.py photo.jpg --points '[[420,300,1],[30,40,0]]'
    python tools/predict.py - --auto < photo.jpg > cut.png
    python tools/predict.py inbox --auto --watch --output cutouts
    python tools/predict.py clip.mp4 --auto --output clip.mov

IMAGES are files, folders and quoted patterns. In folders, trimaps and masks belong to images by name without suffix. A
mask of another size than its image is resized, a trimap is not. - reads an image from standard input, and writes the
result to standard output. --watch mattes the images of a folder as they appear.

Without --output, results of a file are written beside it as NAME_alpha.png, NAME_cutout.png or NAME_composite.png.
Results of a folder, or a pattern in it, are written beside that folder as FOLDER_alpha/NAME.png and so on.

A clip is matted frame by frame, with the times of its frames (docs/video.md). Without --output, the result is written
beside it, as NAME_cutout.mov and so on. A folder as --output gets images.

Alpha comes from a model folder or .onnx file of tools/export.py, or from a config with its checkpoint; by default from
models/open, the network of this project. Baselines need no network: "closed-form" is closed-form matting, "trivial" is
0.5 where unknown, "ramp" follows only the distances.

A bad file does not stop the command and is listed at the end. Existing files are an error, unless --overwrite replaces
or --resume skips them. `torchrun --nproc-per-node 2 tools/predict.py ...` divides the images among processes, each on
its own GPU.

Exit status: 0 all matted, 1 something is wrong with files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from numpy.typing import NDArray
from tqdm import tqdm

# What loads torch, or takes an optional package, is imported where it is asked for.
from data.image_io.formats import MATTED
from data.trimap_check import MASK_ADVICE
from inference.batch import OUT_OF_MEMORY, Failure, matte_all
from inference.jobs import KINDS, Job, check_outputs, find_jobs
from runtime.command_line import refuse_existing
from runtime.dist_env import RANKS
from runtime.processes import ALONE, TOLD_ERRORS, Ranks, RanksError, RanksStartError, Terminated, find_ranks
from tools.prediction.clips.command_line import is_clip
from tools.prediction.command_line import parse
from tools.prediction.light import check_layers
from tools.prediction.messages import list_failures, list_written, say
from tools.prediction.steps import Trimaps, list_trimaps, load_predict, read_background, read_pair, write_result
from tools.prediction.streams import STREAM, matte_stream, with_stream_named
from tools.prediction.watch import watched_jobs

PACKAGES = ("inference", "runtime")
"""Their log is shown: where a network runs, and what takes its time."""

ADVICE = {
    OUT_OF_MEMORY: "--max-memory GB limits a network's memory, and a smaller --tile-px lowers it",
    MASK_ADVICE: "give a mask by --mask FILE --width-px N, or make a trimap of it by tools/make_trimap.py",
}
"""Words of a failure -> the options that help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and matte.

    Returns: the exit status.
    """
    ranks = ALONE
    try:
        if not any(os.environ.get(name) for name in RANKS):  # torchrun sets them
            return run(parse(arguments, str(__doc__)))
        with find_ranks() as ranks:
            with ranks.first_speaks():
                options = parse(arguments, str(__doc__))
            return run(options) if ranks.world_size == 1 else matte_in_ranks(options, ranks)
    except RanksStartError as error:
        status, line = 2, str(error)
    except TOLD_ERRORS as error:
        status, line = 1, str(error)
    except Terminated:
        status, line = 143, "ended by SIGTERM, as by torchrun where a process is killed; --resume makes what is missing"
    except KeyboardInterrupt:
        status, line = 130, "interrupted; the same command with --resume goes on"
    if ranks.rank == 0:
        say(line)
    return status


def run(options: argparse.Namespace) -> int:
    """Matte in this process: the image of standard input, what appears in a folder, a clip, or images.

    Returns: the exit status.

    Raises:
        OSError, UserError: no image can be matted, or no further one.
    """
    if options.images == [STREAM]:
        return matte_stream(options, matte)
    if any(map(is_clip, options.images)):
        from tools.prediction.clips.run import matte_clip

        return matte_clip(options, load_predict)
    return matte_forever(options) if options.watch else matte(options)


def matte_forever(options: argparse.Namespace) -> NoReturn:
    """Matte what appears in a folder, and print each file that is written, or why not, at once.

    Raises:
        OSError, UserError: no image can be matted, or no further one.
    """
    jobs = watched_jobs(
        Path(options.images[0]),
        options.trimap_dir or options.mask,
        options.output,
        KINDS[options.kind],
        f".{options.format}",
        options.bits,
    )
    list_trimaps(options, num_images=1)  # to find a wrong folder at once
    # Trimaps may appear later too, so they are listed anew for each image.
    for job, failure in matted(options, jobs, lambda job: read_pair(options, list_trimaps(options, 1), job), False):
        if failure:
            list_failures({job.image: failure.reason}, 1, advice=ADVICE)
        else:
            print(f"wrote {job.output}", flush=True)
    raise AssertionError("images are awaited forever")


def matte(options: argparse.Namespace) -> int:
    """Matte all images in this process.

    Returns: the exit status.

    Raises:
        OSError, UserError: no image can be matted, or no further one.
    """
    jobs, trimaps = plan(options)
    failures: dict[Path, str] = {}
    try:
        matte_images(options, jobs, trimaps, failures)
    finally:
        list_failures(with_stream_named(failures), len(jobs), advice=ADVICE)
    list_written([job.output for job in jobs if job.image not in failures])
    return 1 if failures else 0


def matte_in_ranks(options: argparse.Namespace, ranks: Ranks) -> int:
    """Matte this rank's share of the images. The first rank plans for all and reports for all.

    Returns: the exit status, the same in all ranks.

    Raises:
        OSError, UserError: no image can be matted, or the ranks have lost each other.
    """
    if options.watch or options.images == [STREAM] or any(map(is_clip, options.images)):
        raise RanksStartError(f"{STREAM}, --watch and clips run in one process: start it without torchrun")
    jobs, trimaps = ranks.broadcast(lambda: plan(options))
    share = ranks.share(jobs)
    failures: dict[Path, str] = {}
    error = ""
    if ranks.rank > 0:
        for package in PACKAGES:
            logging.getLogger(package).setLevel(logging.WARNING)
    try:
        try:
            if options.model or options.config_file:
                from runtime.devices import device_of_rank

                device = options.device or "auto"
                options.settings["device"] = device_of_rank(device, ranks.local_rank, ranks.local_size)
            title = f"rank 0 of {ranks.world_size}"
            matte_images(options, share, trimaps, failures, title, is_silent=ranks.rank > 0)
        except TOLD_ERRORS as met:
            error = str(met)
        reports = ranks.all_gather((failures, error))
    except (KeyboardInterrupt, RanksError) as ending:
        list_failures(failures, len(share), advice=ADVICE)
        if ranks.rank == 0 and isinstance(ending, Terminated | RanksError):
            list_missing(jobs)
        raise
    failures = {path: reason for found, _ in reports for path, reason in found.items()}
    errors = ranks.attribute([reason for _, reason in reports])
    if ranks.rank == 0:
        failures = {job.image: failures[job.image] for job in jobs if job.image in failures}  # in this order
        list_failures(failures, len(jobs), advice=ADVICE)
        for line in errors:
            say(line)
        done = [job for job in jobs if job.image not in failures]
        list_missing(done) if errors else list_written([job.output for job in done])
    return 1 if failures or errors else 0


def plan(options: argparse.Namespace) -> tuple[list[Job], Trimaps]:
    """List the images with their result files, and the trimaps; nothing is written yet.

    Raises:
        OSError, UserError: something is missing, or a result cannot be written.
    """
    kind = KINDS[options.kind]
    jobs = find_jobs(options.images, options.output, kind, f".{options.format}", MATTED)
    for job in jobs:
        check_layers(options, job.output.suffix)
    trimaps = list_trimaps(options, len(jobs))
    places = (options.trimap, options.trimap_dir, options.mask, options.scribbles, options.background)
    inputs = [Path(place) for place in places if place]
    check_outputs(jobs, [*inputs, *(path for paths in trimaps.values() for path in paths)], kind, options.bits)
    if options.resume:
        num_all = len(jobs)
        jobs = [job for job in jobs if not job.output.is_file()]
        say(f"{num_all - len(jobs)} of {num_all} are there already")
    elif not options.overwrite:
        refuse_existing((job.output for job in jobs), can_resume=True)
    if jobs and not (options.model or options.config_file or options.baseline):
        say("no network given: closed-form matting")
    return jobs, trimaps


def matte_images(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    trimaps: Trimaps,
    failures: dict[Path, str],
    title: str | None = None,
    is_silent: bool = False,
) -> None:
    """Matte images with a progress bar.

    Args:
        options: of the command line.
        jobs: images to matte.
        trimaps: see `list_trimaps`.
        failures: gets the images without a result, and the reasons.
        title: of the progress bar.
        is_silent: without a progress bar.

    Raises:
        OSError, UserError: no image can be matted, or no further one.
    """
    if not jobs:
        return
    overlaps = options.max_memory_gb is None
    images = matted(options, jobs, partial(read_pair, options, trimaps), overlaps)
    with tqdm(desc=title, total=len(jobs), unit="image", disable=is_silent or len(jobs) == 1) as bar:
        for job, failure in images:
            bar.set_postfix_str(job.image.name, refresh=False)
            bar.update()
            if failure:
                failures[job.image] = failure.reason


def matted(
    options: argparse.Namespace,
    jobs: Iterable[Job],
    read: Callable[[Job], tuple[NDArray, NDArray]],
    overlaps: bool,
) -> Iterator[tuple[Job, Failure | None]]:
    """Load the network or choose the baseline, then matte; arguments and result as of `inference.batch.matte_all`.

    Raises:
        OSError, UserError: no image can be matted, or no further one.
    """
    background = read_background(options.background) if options.background else None
    predict = load_predict(options)
    return matte_all(jobs, read, predict, partial(write_result, options, background), overlaps)


def list_missing(jobs: Sequence[Job]) -> None:
    """Print the images without a result file."""
    missing = [job for job in jobs if not job.output.is_file()]
    if missing:
        say(f"{len(missing)} images were not reached, the same command with --resume makes them:")
        for job in missing:
            print(f"  {job.image}", file=sys.stderr)


if __name__ == "__main__":
    logging.basicConfig(format="predict.py: %(message)s")
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    raise SystemExit(main())
