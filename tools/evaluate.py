"""Measure a folder of predicted alphas on a test set, or compare two measured ones.

    python tools/evaluate.py --pred-dir PRED --label-dir alpha_copy --trimap-dir trimaps --output RESULT
    python tools/evaluate.py --pred-dir PRED --dataset Composition-1k --config-file CONFIG --weights WEIGHTS
    python tools/evaluate.py --pred-dir PRED --dataset my_folder --model MODEL
    python tools/evaluate.py --compare RESULT_A RESULT_B

Files belong together by name without suffix. A missing, extra, unreadable or misshapen file is an error, and one run
lists all of them. --output takes summary.json, per_image.csv and worst.png, the images of largest SAD.
Exit status: 0 evaluated, 1 something is wrong with the files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from tqdm import tqdm

# Worker processes import this file too: what loads torch is imported where a network runs.
from data.images import IMAGE_SUFFIXES, DataError, read_image, write_alpha
from data.layouts import TestSet, find_test_set
from data.workers import default_workers
from evaluation.folders import check_test_set, evaluate_folders
from evaluation.metrics import PROTOCOLS
from evaluation.report import format_table
from evaluation.results import prepare_output, read_or_make_trimap, write_output
from evaluation.summary import Summary, compare, interval_rows, read_summary, stored_foregrounds, summarise
from inference.extras import MissingExtraError

UNFINISHED = "unfinished_predictions"


class Network(NamedTuple):
    """Where a network comes from: a config file and its weights, or a model folder or .onnx file (weights are None)."""

    source: Path
    weights: Path | None
    device: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and evaluate or compare.

    Returns: the exit status.
    """
    options = parse(arguments)
    try:
        if options.compare:
            print_comparison(*options.compare)
        else:
            evaluate(options)
    except (OSError, ValueError, MissingExtraError) as error:  # DataError and the like are ValueErrors
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; options that contradict each other end the process with status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred-dir", type=Path, help="predicted alphas, 8- or 16-bit grey")
    parser.add_argument("--label-dir", type=Path, help="true alphas; their names are the list of images")
    parser.add_argument("--trimap-dir", type=Path, help="trimaps of 0, 128 and 255 alone")
    parser.add_argument("--image-dir", type=Path, help="images, for the picture sheet")
    parser.add_argument("--dataset", help="instead of these three: a known data set, or a folder image/ alpha/ trimap/")
    parser.add_argument("--config-file", type=Path, help="with --dataset: network that first writes to --pred-dir")
    parser.add_argument("--weights", type=Path, help="its trained checkpoint")
    parser.add_argument("--model", type=Path, help="instead of these two: model folder or .onnx file")
    parser.add_argument("--device", help="its device, cpu, cuda ...; default: the config's, or the best there is")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="dim", help="what counts, and how it is rounded")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for JSON, CSV and picture sheet")
    parser.add_argument("--group", action="store_true", help="average within each foreground as well")
    parser.add_argument(
        "--foreground",
        type=read_pattern,
        metavar="PATTERN",
        help="regular expression, whose first group in an image's name is its foreground (default: NAME_0, NAME_1 ... "
        "are composites of NAME)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="leave out images without a prediction")
    parser.add_argument("--num-worst", type=int, default=8, help="images in the picture sheet (default: 8)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="--output of two evaluations")
    options = parser.parse_args(arguments)
    if options.compare:
        if len(arguments) != 3:
            parser.error("--compare reads what was measured: it goes with no other option")
        return options
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
    if options.device is not None and not has_network:
        parser.error("--device is for the network of --config-file or --model")
    if options.workers < 1 or options.num_worst < 0:
        parser.error("expected --workers of at least 1 and --num-worst of at least 0")
    return options


def read_pattern(text: str) -> str:
    """Check a regular expression of the command line."""
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:  # the latter for a count that is too large
        raise argparse.ArgumentTypeError(f"{text} is no regular expression: {error}") from error
    return text


def evaluate(options: argparse.Namespace) -> None:
    """Measure as the options say, print, and write what --output asks for.

    Raises:
        OSError, ValueError: something is wrong with files; the message says what.
    """
    protocol = PROTOCOLS[options.protocol]
    network = None
    if options.model is not None or options.config_file is not None:
        network = Network(options.model or options.config_file, options.weights, options.device)
    label_dir, trimap_dir, image_dir, radius_px = options.label_dir, options.trimap_dir, options.image_dir, None
    if options.dataset is not None:
        test_set = find_test_set(options.dataset, needs_trimaps=network is not None or not protocol.is_whole)
        label_dir, trimap_dir, image_dir = test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir
        radius_px = test_set.trimap_radius_px
    if options.output is not None:
        prepare_output(options.output, [options.pred_dir, label_dir, trimap_dir, image_dir])
    predictions: dict[str, str | None] = dict.fromkeys(("config_file", "weights", "weights_sha256", "torch"))
    if network is not None:
        predictions = predict_test_set(test_set, network, options.pred_dir, options.workers)
    evaluation = evaluate_folders(
        options.pred_dir,
        label_dir,
        trimap_dir,
        image_dir,
        trimap_radius_px=radius_px,
        protocol=protocol,
        num_workers=options.workers,
        allow_missing=options.allow_missing,
        track=progress_bar("metrics"),
    )
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
    if options.output is not None:
        write_output(options.output, summary, evaluation, radius_px, options.num_worst)


def predict_test_set(test_set: TestSet, network: Network, pred_dir: Path, num_workers: int) -> dict[str, str | None]:
    """Run a network over the images of a test set and write its alphas as NAME.png.

    Until all are written they lie in a folder of their own, which the next run writes anew if this one is interrupted.

    Args:
        test_set: whose files are all checked before.
        network: what runs.
        pred_dir: folder to write; it must not hold pictures, of whatever network.
        num_workers: processes that check the files.

    Returns: what a summary says of the network.

    Raises:
        OSError, ValueError: something is wrong with files; the message says what.
    """
    if pred_dir.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in pred_dir.iterdir()):
        raise DataError(
            f"{pred_dir} holds pictures already: evaluate them without a network, remove them, or name another folder"
        )
    import torch

    predict, config_file, weights = load_network(network)
    folders = (test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir)
    checked = check_test_set(*folders, num_workers=num_workers, track=progress_bar("files"))
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unfinished = pred_dir / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    for name, files in tqdm(checked.items(), "network", unit="image", disable=None):
        trimap = read_or_make_trimap(files, test_set.trimap_radius_px)
        assert trimap is not None, "a layout names one of the two"
        write_alpha(unfinished / f"{name}.png", predict(read_image(files["image"]), trimap))
    for name in checked:
        (unfinished / f"{name}.png").rename(pred_dir / f"{name}.png")
    shutil.rmtree(unfinished)
    config_name = None if config_file is None else str(config_file)
    names = {"config_file": config_name, "weights": str(weights)}
    return {**names, "weights_sha256": digest, "torch": str(torch.__version__)}


def load_network(network: Network) -> tuple[Callable[[NDArray, NDArray], NDArray], Path | None, Path]:
    """Load what gives alphas; what loads torch is imported here.

    Returns: image and trimap -> alpha, and the files of its config and its weights; an .onnx file is both in one.
    """
    from inference.model_folder import CONFIG_FILE, WEIGHTS_FILE
    from inference.predictor import Predictor

    source, weights, device = network
    predictor = Predictor.load(source, weights, device or "auto", precision="float32")
    if weights is not None:
        return predictor.predict, source, weights
    if source.is_dir():
        return predictor.predict, source / CONFIG_FILE, source / WEIGHTS_FILE
    return predictor.predict, None, source


def progress_bar(title: str) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """Make what `evaluate_folders` tracks images by; nothing is drawn where there is no terminal."""
    return lambda items, num_images: tqdm(items, title, num_images, unit="image", disable=None)


def print_summary(summary: Summary) -> None:
    """Print protocol, counts, what is missing, and the averages with their intervals."""
    print(f"Protocol {summary['description']}")
    test_set, missing = summary["test_set"], summary["missing"]
    if test_set["dataset"] is not None:
        print(f"Data set {test_set['dataset']}")
    if test_set["trimap_radius_px"] is not None:
        print("Trimaps made from the truths: trimap_from_alpha(alpha, {0}, {0})".format(test_set["trimap_radius_px"]))
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
    """Print the table of `evaluation.summary.compare` and what it is about."""
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
