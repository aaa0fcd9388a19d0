"""Matte images: alphas, cut-outs, or composites over another background.

    python tools/predict.py photo.jpg --auto
    python tools/predict.py photo.jpg --trimap trimap.png --model models/s --output alpha.png
    python tools/predict.py frames --trimap-dir trimaps --model models/s --output alphas --resume
    python tools/predict.py "photos/*.jpg" --mask masks --width-percent 2 --background '#20a040'

IMAGES are files, folders and quoted patterns. In folders, trimaps and masks belong to images by name without suffix. A
mask of another size than its image is resized, a trimap is not.

Without --output, results of a file are written beside it as NAME_alpha.png, NAME_cutout.png or NAME_composite.png.
Results of a folder, or a pattern in it, are written beside that folder as FOLDER_alpha/NAME.png and so on.

Alpha comes from a model folder or .onnx file of tools/export.py, or from a config with its checkpoint; without a
network from closed-form matting. Baseline "trivial" is 0.5 where unknown; "ramp" follows only the distances.

A bad file does not stop the command and is listed at the end. Existing files are an error, unless --overwrite replaces
or --resume skips them. `torchrun --nproc-per-node 2 tools/predict.py ...` divides the images among processes, each on
its own GPU.

Exit status: 0 all matted, 1 something is wrong with files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray
from tqdm import tqdm

# What loads torch, or takes an optional package, is imported where it is asked for.
from data.image_io.images import read_image
from inference.batch import matte_all
from inference.jobs import KINDS, Job, check_outputs, find_jobs
from runtime.command_line import refuse_existing
from runtime.processes import ALONE, TOLD_ERRORS, Ranks, RanksStartError, Terminated, find_ranks
from tools.prediction.command_line import parse
from tools.prediction.messages import list_failures, list_written, say
from tools.prediction.steps import load_matte, result_writer, trimap_source


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and matte.

    Returns: the exit status.
    """
    ranks = ALONE
    try:
        with find_ranks() as ranks:
            with ranks.first_speaks():
                options = parse(arguments, str(__doc__))
            ranks.limit_threads()
            if not ranks.is_first:
                set_log_level(logging.WARNING)
            return matte_images(options, ranks)
    except RanksStartError as error:
        status, line = 2, str(error)
    except TOLD_ERRORS as error:
        status, line = 1, str(error)
    except Terminated:
        status, line = 143, "ended by SIGTERM, as by torchrun where a process is killed; --resume makes what is missing"
    except KeyboardInterrupt:
        status, line = 130, "interrupted; the same command with --resume goes on"
    if ranks.is_first:
        say(line)
    return status


def matte_images(options: argparse.Namespace, ranks: Ranks) -> int:
    """Matte as the options say, each process its share; the first one lists what failed.

    Returns: the exit status, the same in all processes.

    Raises:
        OSError, UserError: nothing can be made, or nothing more; the message says why.
    """
    jobs = ranks.of_first(lambda: plan(options))
    share = ranks.share(jobs)
    failures: dict[Path, str] = {}
    try:
        error = matte_share(options, share, failures, ranks) if share else None
        reports = ranks.exchange((failures, "" if error is None else str(error)))
    except BaseException as ending:
        list_failures(failures, len(share))
        if isinstance(ending, Terminated) and ranks.is_first:
            list_missing(jobs)
        raise
    failures = {path: reason for found, _ in reports for path, reason in found.items()}
    if ranks.is_first:
        list_failures({job.image: failures[job.image] for job in jobs if job.image in failures}, len(jobs))
        if any(reason.startswith("out of memory") for reason in failures.values()):
            say("--max-memory GB limits a network's memory, and a smaller --tile-px lowers it")
    if error is not None and ranks.is_alone:
        raise error
    errors = ranks.attribute([reason for _, reason in reports])
    if errors and ranks.is_first:
        for line in errors:
            say(line)
        list_missing([job for job in jobs if job.image not in failures])
    elif ranks.is_first:
        list_written([job.output for job in jobs if job.image not in failures])
    return 1 if failures or errors else 0


def plan(options: argparse.Namespace) -> list[Job]:
    """List what is to be made, and refuse what cannot be begun; errors as `matte_images`."""
    kind = KINDS[options.kind]
    jobs = find_jobs(options.images, options.output, kind, f".{options.format}")
    _, files = trimap_source(options, len(jobs))
    if options.background:
        files.append(Path(options.background))
    check_outputs(jobs, files, kind, options.bits)
    if options.resume:
        num_all = len(jobs)
        jobs = [job for job in jobs if not job.output.is_file()]
        say(f"{num_all - len(jobs)} of {num_all} are there already")
    elif not options.overwrite:
        refuse_existing((job.output for job in jobs), can_resume=True)
    return jobs


def matte_share(
    options: argparse.Namespace, jobs: Sequence[Job], failures: dict[Path, str], ranks: Ranks
) -> Exception | None:
    """Matte the share of this process.

    Args:
        options: say how.
        jobs: at least one.
        failures: gets the images of which there is nothing, with their reasons.
        ranks: whose share it is.

    Returns: why not all could be tried, where that is so.
    """
    try:
        find_trimap, _ = trimap_source(options, len(jobs))
        write = result_writer(options)
        matte = load_matte(options, ranks)

        def read(job: Job) -> tuple[NDArray, NDArray]:
            image = read_image(job.image)
            return image, find_trimap(job.image, image)

        title = None if ranks.is_alone else f"rank 0 of {ranks.world_size}"
        with tqdm(desc=title, total=len(jobs), unit="image", disable=len(jobs) == 1 or not ranks.is_first) as bar:
            for job, failure in matte_all(jobs, read, matte, write, overlaps=options.max_memory is None):
                bar.set_postfix_str(job.image.name, refresh=False)
                bar.update()
                if failure:
                    failures[job.image] = failure.reason
    except TOLD_ERRORS as error:
        return error
    return None


def list_missing(jobs: Sequence[Job]) -> None:
    """Tell which files are not there."""
    missing = [job for job in jobs if not job.output.is_file()]
    if missing:
        say(f"{len(missing)} images were not reached, the same command with --resume makes them:")
        for job in missing:
            print(f"  {job.image}", file=sys.stderr)


def set_log_level(level: int) -> None:
    """Choose what the packages behind this command print."""
    for package in ("inference", "runtime"):
        logging.getLogger(package).setLevel(level)


if __name__ == "__main__":
    logging.basicConfig(format="predict.py: %(message)s")
    set_log_level(logging.INFO)  # where a network runs, what takes its time
    raise SystemExit(main())
