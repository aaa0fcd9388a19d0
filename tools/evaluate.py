"""Compute the metrics of predicted alphas on a test set, or compare two evaluations.

    python tools/evaluate.py --pred-dir PRED --label-dir alpha_copy --trimap-dir trimaps --output RESULT
    python tools/evaluate.py --pred-dir PRED --dataset Composition-1k --config-file CONFIG --weights WEIGHTS
    python tools/evaluate.py --pred-dir PRED --dataset my_folder --model MODEL
    python tools/evaluate.py --video --pred-dir PRED --label-dir clips/alpha --image-dir clips/image
    python tools/evaluate.py --compare RESULT_A RESULT_B

Files belong together by name without suffix. A missing, extra, unreadable or misshapen file is an error, and one run
lists all of them. --output gets summary.json, per_image.csv and worst.png, the images with the largest SAD.
--video measures clips: each folder holds a subfolder for each clip, with its frames. It adds dtSSD and, with
--image-dir, MESSDdt; --output gets per_clip.csv.
`torchrun --nproc-per-node 2 tools/evaluate.py ...` divides the images among processes, each on its own GPU.

Exit status: 0 evaluated, 1 something is wrong with the files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Worker processes import this file too: what loads torch is imported where a network runs.
from data.sources.layouts import TestSet, find_test_set
from evaluation.folders import evaluate_folders
from evaluation.metrics import PROTOCOLS
from evaluation.output.report import Row, format_table, write_csv
from evaluation.output.result_folder import PER_CLIP, prepare_output, write_output
from evaluation.output.summary import Summary, compare, interval_rows, read_summary, stored_foregrounds, summarise
from evaluation.video import average_clips, evaluate_clips
from runtime.command_line import add_trust_option, integer_from
from runtime.processes import ALONE, TOLD_ERRORS, Ranks, RanksStartError, Terminated, find_ranks
from runtime.worker_pool import default_workers
from tools.prediction.command_line import add_network_options, network_settings, views
from tools.prediction.test_set import Network, predict_test_set, progress_bar


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and evaluate or compare.

    Returns: the exit status.
    """
    ranks = ALONE
    try:
        with find_ranks() as ranks:
            with ranks.first_speaks():
                options = parse(arguments, max(1, default_workers() // ranks.local_size))
            if options.video:
                ranks.broadcast(lambda: evaluate_video(options))
            elif options.compare:
                ranks.broadcast(lambda: print_comparison(*options.compare))
            else:
                evaluate(options, ranks)
        return 0
    except RanksStartError as error:
        status, line = 2, str(error)
    except TOLD_ERRORS as error:
        status, line = 1, str(error)
    except Terminated:
        status, line = 143, "ended by SIGTERM, as by torchrun where a process is killed"
    except KeyboardInterrupt:
        status, line = 130, "interrupted"
    if ranks.rank == 0:
        print(f"evaluate.py: {line}", file=sys.stderr)
    return status


def parse(arguments: Sequence[str] | None, num_workers: int) -> argparse.Namespace:
    """Read the command line; options that contradict each other end the process with status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred-dir", type=Path, help="predicted alphas, 8- or 16-bit grey")
    parser.add_argument("--label-dir", type=Path, help="ground truth alphas; their names are the list of images")
    parser.add_argument("--trimap-dir", type=Path, help="trimaps with only 0, 128 and 255")
    parser.add_argument("--image-dir", type=Path, help="images, for worst.png")
    parser.add_argument("--dataset", help="name of a test set, or folder with image/ alpha/ trimap/")
    parser.add_argument("--config-file", type=Path, help="network to run first, with --dataset and --pred-dir")
    parser.add_argument("--weights", type=Path, help="trained checkpoint of the config")
    add_trust_option(parser)
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder, .onnx file or OWNER/NAME on the Hugging Face hub, instead of --config-file and --weights",
    )
    add_network_options(parser, "float32")
    parser.add_argument(
        "--tta", type=views, metavar="VIEWS", dest="views", help="augmentations: flips,rotations,0.75,1,1.25"
    )
    parser.add_argument("--video", action="store_true", help="the folders hold a folder of frames for each clip")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, help="which pixels count, and rounding (default: dim, with --video whole)"
    )
    parser.add_argument("--workers", type=integer_from(1), default=num_workers, help="processes (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for JSON, CSV and worst.png")
    parser.add_argument("--group", action="store_true", help="average within each foreground as well")
    parser.add_argument(
        "--foreground",
        type=read_pattern,
        metavar="PATTERN",
        help="regular expression; its first group in an image's name is the foreground (default: NAME_0, NAME_1 ... "
        "are composites of NAME)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="skip images without a prediction")
    parser.add_argument("--num-worst", type=integer_from(0), default=8, help="images in worst.png (default: 8)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="--output folders of two evaluations")
    options = parser.parse_args(arguments)
    if options.compare:
        if len(arguments) != 3:
            parser.error("--compare reads what was measured: it goes with no other option")
        return options
    options.protocol = options.protocol or ("whole" if options.video else "dim")
    if options.video and options.dataset is not None:
        parser.error("--video measures folders of clips: give --label-dir instead of --dataset")
    if options.video and (options.group or options.foreground or options.allow_missing):
        parser.error("--video averages over clips: leave --group, --foreground and --allow-missing out")
    if options.pred_dir is None or (options.label_dir is None) == (options.dataset is None):
        parser.error("give --pred-dir, and either --label-dir or --dataset")
    if options.dataset is not None and (options.trimap_dir or options.image_dir):
        parser.error("--dataset knows its trimaps and images: leave --trimap-dir and --image-dir out")
    if options.dataset is None and options.trimap_dir is None and not PROTOCOLS[options.protocol].is_whole:
        parser.error(f"--protocol {options.protocol} counts unknown pixels: give --trimap-dir")
    if (options.config_file is None) != (options.weights is None):
        parser.error("--config-file and --weights belong together")
    if options.config_file is not None and options.model is not None:
        parser.error("give --config-file with --weights, or --model")
    has_network = options.config_file is not None or options.model is not None
    if has_network and options.dataset is None:
        parser.error("a network runs on a --dataset; tools/predict.py runs it on other folders")
    options.settings = network_settings(options)
    if options.settings and not has_network:
        parser.error(
            "--device, --precision, --max-memory, --tile-px, --backbone-px and --tta are for the network of "
            "--config-file or --model"
        )
    return options


def read_pattern(text: str) -> str:
    """Check a regular expression of the command line."""
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:  # the latter for a count that is too large
        raise argparse.ArgumentTypeError(f"{text} is no regular expression: {error}") from error
    return text


def evaluate(options: argparse.Namespace, ranks: Ranks) -> None:
    """Measure as the options say; the first process prints, and writes what --output asks for.

    Raises:
        OSError, UserError: something is wrong with files; the message says what.
    """
    protocol = PROTOCOLS[options.protocol]
    network = None
    if options.model is not None or options.config_file is not None:
        source = options.model or options.config_file
        network = Network(source, options.weights, options.settings, options.trust_module)

    def prepare() -> TestSet | None:
        test_set, folders = None, [options.label_dir, options.trimap_dir, options.image_dir]
        if options.dataset is not None:
            test_set = find_test_set(options.dataset, needs_trimaps=network is not None or not protocol.is_whole)
            folders = [test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir]
        if options.output is not None:
            prepare_output(options.output, [options.pred_dir, *folders])
        return test_set

    test_set = ranks.broadcast(prepare)
    label_dir, trimap_dir, image_dir, radius_px = options.label_dir, options.trimap_dir, options.image_dir, None
    if test_set is not None:
        label_dir, trimap_dir, image_dir = test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir
        radius_px = test_set.trimap_radius_px
    predictions: dict[str, Any] = dict.fromkeys(("config_file", "weights", "weights_sha256", "torch"))
    if network is not None and test_set is not None:
        predictions = predict_test_set(test_set, network, options.pred_dir, options.workers, ranks)
    evaluation = evaluate_folders(
        options.pred_dir,
        label_dir,
        trimap_dir,
        image_dir,
        trimap_radius_px=radius_px,
        protocol=protocol,
        num_workers=options.workers,
        allow_missing=options.allow_missing,
        track=progress_bar("metrics", ranks),
        ranks=ranks,
    )
    if ranks.rank > 0:
        return
    places = {"label_dir": label_dir, "trimap_dir": trimap_dir, "image_dir": image_dir}
    names = {name: None if place is None else str(place) for name, place in places.items()}
    summary = summarise(
        evaluation,
        protocol,
        {"dataset": options.dataset, **names, "trimap_radius_px": radius_px},
        {"dir": str(options.pred_dir), **predictions},
        pattern=options.foreground,
        is_grouped=options.group,
    )
    print_summary(summary)
    if network is not None:
        print(f"wrote {len(evaluation.rows)} alphas to {options.pred_dir}")
    if options.output is not None:
        write_output(options.output, summary, evaluation, radius_px, options.num_worst)
        print(f"wrote the results to {options.output}")


def evaluate_video(options: argparse.Namespace) -> None:
    """Measure clips, print a row for each and the mean, and write what --output asks for.

    Raises:
        OSError, UserError: something is wrong with files; the message says what.
    """
    folders = [options.pred_dir, options.label_dir, options.trimap_dir, options.image_dir]
    protocol = PROTOCOLS[options.protocol]
    if options.output is not None:
        prepare_output(options.output, folders)
    rows = evaluate_clips(*folders, protocol=protocol, num_workers=options.workers)
    print(f"Protocol {protocol.description}")
    table: list[Row] = [{"clip": name, **row} for name, row in rows.items()]
    mean: Row = {"clip": "mean over clips", **average_clips(rows)}
    print(format_table([*table, mean]))
    if options.output is not None:
        write_csv(table, options.output / PER_CLIP)
        print(f"wrote the results to {options.output}")


def print_summary(summary: Summary) -> None:
    """Print protocol, counts, what is missing, and the averages with their intervals."""
    print(f"Protocol {summary['description']}")
    test_set, missing = summary["test_set"], summary["missing"]
    if test_set["dataset"] is not None:
        print(f"Data set {test_set['dataset']}")
    if test_set["trimap_radius_px"] is not None:
        radius = test_set["trimap_radius_px"]
        print(f"Trimaps made from the ground truth: trimap_from_alpha(alpha, {radius}, {radius})")
    print(f"{summary['images']} images, {summary['foregrounds']} foregrounds: {summary['foreground_rule']}")
    if summary["empty_regions"]:
        print(f"{summary['empty_regions']} of the images have no pixel that counts: 0 in each metric")
    if missing:
        print(f"{len(missing)} predictions are missing, the averages are over the rest: {', '.join(missing)}")
    rows = [{"": "mean over images", **summary["averages"]}, *interval_rows(summary["intervals"])]
    if "per_foreground" in summary:
        print(
            format_table([{"foreground": name, **row} for name, row in summary["per_foreground"].items()]), end="\n\n"
        )
        rows.append({"": "mean over foregrounds", **summary["averages_over_foregrounds"]})
        rows += interval_rows(summary["intervals_over_foregrounds"])
    print(format_table(rows))
    if summary["intervals"] is None:
        print("No interval: it takes two foregrounds; --foreground says which images are of one")


def print_comparison(path_a: Path, path_b: Path) -> None:
    """Print the table of `evaluation.output.summary.compare` and what it is about."""
    a, b = read_summary(path_a), read_summary(path_b)
    table = format_table(compare(a, b))
    print(f"Protocol {a['description']}")
    print(f"A {path_a}\nB {path_b}")
    print(f"{len(a['per_image'])} images, {len(stored_foregrounds(a))} foregrounds: {a['foreground_rule']}")
    if a["missing"]:
        print(f"{len(a['missing'])} images of the test set are missing in both: {', '.join(a['missing'])}")
    print(table)


if __name__ == "__main__":
    raise SystemExit(main())
