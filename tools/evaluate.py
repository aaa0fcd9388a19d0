"""Measure a folder of predicted alphas on a test set, or compare two measured ones.

    python tools/evaluate.py --pred-dir PRED --label-dir alpha_copy --trimap-dir trimaps --output RESULT
    python tools/evaluate.py --pred-dir PRED --dataset Composition-1k --config-file CONFIG --weights WEIGHTS
    python tools/evaluate.py --compare A/summary.json B/summary.json

Files belong together by name without suffix. A missing, extra, unreadable or misshapen file is an error, and one run
lists all of them. --output takes summary.json, per_image.csv and worst.png, the images of largest SAD.
Exit status: 0 evaluated, 1 something is wrong with the files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

# Worker processes import this file too: what loads torch is imported where a network runs.
from data.images import IMAGE_SUFFIXES, DataError, read_alpha, read_image, write_alpha
from data.layouts import TestSet, find_test_set
from data.trimap import read_strict_trimap, trimap_from_alpha
from data.workers import default_workers
from evaluation.folders import Evaluation, check_test_set, evaluate_folders
from evaluation.metrics import METRICS, PROTOCOLS
from evaluation.report import fit_picture, format_table, picture_sheet, sheet_row, write_csv
from evaluation.summary import Summary, compare, interval_rows, read_summary, summarise, write_summary

SUMMARY, PER_IMAGE, PER_FOREGROUND, SHEET = "summary.json", "per_image.csv", "per_foreground.csv", "worst.png"


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
    except (OSError, ValueError) as error:  # DataError, CheckpointError and ConfigError are ValueErrors
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; options that contradict each other end the process with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred-dir", type=Path, help="predicted alphas, 8- or 16-bit grey")
    parser.add_argument("--label-dir", type=Path, help="true alphas; their names are the list of images")
    parser.add_argument("--trimap-dir", type=Path, help="trimaps of 0, 128 and 255 alone")
    parser.add_argument("--image-dir", type=Path, help="images, for the picture sheet")
    parser.add_argument("--dataset", help="instead of these three: a known data set, or a folder image/ alpha/ trimap/")
    parser.add_argument("--config-file", type=Path, help="with --dataset: network that first writes to --pred-dir")
    parser.add_argument("--weights", type=Path, help="its trained checkpoint")
    parser.add_argument("--device", help="its device, cpu, cuda ...; the config's by default")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="dim", help="what counts, and how it is rounded")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for JSON, CSV and picture sheet")
    parser.add_argument("--group", action="store_true", help="average within each foreground as well")
    parser.add_argument("--allow-missing", action="store_true", help="leave out images without a prediction")
    parser.add_argument("--num-worst", type=int, default=8, help="images in the picture sheet (default: 8)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="summary.json of two evaluations")
    options = parser.parse_args(arguments)
    if options.compare:
        others = [name for name in vars(options) if getattr(options, name) != parser.get_default(name)]
        if others != ["compare"]:
            parser.error("--compare reads what was measured: it goes with no other option")
        return options
    folders = {name: getattr(options, f"{name}_dir") for name in ("pred", "label", "trimap", "image")}
    if options.pred_dir is None or (options.label_dir is None) == (options.dataset is None):
        parser.error("give --pred-dir, and either --label-dir or --dataset")
    if options.dataset is not None and (options.trimap_dir or options.image_dir):
        parser.error("--dataset knows its trimaps and images: leave --trimap-dir and --image-dir out")
    if options.dataset is None and options.trimap_dir is None and not PROTOCOLS[options.protocol].is_whole:
        parser.error(f"--protocol {options.protocol} counts unknown pixels: give --trimap-dir")
    if (options.config_file is None) != (options.weights is None):
        parser.error("--config-file and --weights belong together")
    if options.config_file is not None and options.dataset is None:
        parser.error("a network runs on a --dataset; tools/predict.py runs it on other folders")
    if options.device is not None and options.config_file is None:
        parser.error("--device is for the network of --config-file")
    if options.workers < 1 or options.num_worst < 0:
        parser.error("expected --workers of at least 1 and --num-worst of at least 0")
    if options.output is not None and options.output.resolve() in [d.resolve() for d in folders.values() if d]:
        parser.error(f"--output {options.output} holds pictures to evaluate: name another folder")
    return options


def evaluate(options: argparse.Namespace) -> None:
    """Measure as the options say, print, and write what --output asks for.

    Raises:
        OSError, ValueError: something is wrong with files; the message says what.
    """
    label_dir, trimap_dir, image_dir, radius_px = options.label_dir, options.trimap_dir, options.image_dir, None
    if options.dataset is not None:
        test_set = find_test_set(options.dataset)
        label_dir, trimap_dir, image_dir = test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir
        radius_px = test_set.trimap_radius_px
    if options.output is not None:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write --output: {error}") from error
    if options.config_file is not None:
        network = (options.config_file, options.weights, options.device)
        predict_test_set(test_set, network, options.pred_dir, options.workers)
    protocol = PROTOCOLS[options.protocol]
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
    places = {"label_dir": label_dir, "trimap_dir": trimap_dir, "image_dir": image_dir, "pred_dir": options.pred_dir}
    names = {name: None if place is None else str(place) for name, place in places.items()}
    source = {"dataset": options.dataset, **names, "trimap_radius_px": radius_px}
    summary = summarise(evaluation, protocol, source, options.group)
    print_summary(summary)
    if options.output is not None:
        write_output(options.output, summary, evaluation, radius_px, options.num_worst)


def predict_test_set(
    test_set: TestSet, network: tuple[Path, Path, str | None], pred_dir: Path, num_workers: int
) -> None:
    """Run a network over the images of a test set and write its alphas as NAME.png.

    Args:
        test_set: whose files are all checked before.
        network: config file, weights and device.
        pred_dir: folder to write; it must not hold pictures, of whatever network.
        num_workers: processes that check the files.

    Raises:
        OSError, ValueError: something is wrong with files; the message says what.
    """
    if pred_dir.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in pred_dir.iterdir()):
        raise DataError(
            f"{pred_dir} holds pictures already: evaluate them without --config-file, or name another folder"
        )
    from engine.model import load_model
    from inference.predictor import Predictor

    model = load_model(*network)
    predictor = Predictor(model, next(model.parameters()).device)
    folders = (test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir)
    checked = check_test_set(*folders, num_workers=num_workers, track=progress_bar("files"))
    pred_dir.mkdir(parents=True, exist_ok=True)
    for name, files in tqdm(checked.items(), "network", unit="image", disable=None):
        trimap = read_or_make_trimap(files, test_set.trimap_radius_px)
        assert trimap is not None, "a layout names one of the two"
        write_alpha(pred_dir / f"{name}.png", predictor.predict(read_image(files["image"]), trimap))


def progress_bar(title: str) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """Make what `evaluate_folders` tracks images by; nothing is drawn where there is no terminal."""
    return lambda items, num_images: tqdm(items, title, num_images, unit="image", disable=None)


def read_or_make_trimap(files: Mapping[str, Path], radius_px: int | None) -> NDArray | None:
    """Read the trimap of an image, or make it from the truth by the radius; None where there is neither."""
    if "trimap" in files:
        return read_strict_trimap(files["trimap"])
    return None if radius_px is None else trimap_from_alpha(read_alpha(files["label"]), radius_px, radius_px)


def print_summary(summary: Summary) -> None:
    """Print protocol, counts, what is missing, and the averages with their intervals."""
    print(f"Protocol {summary['description']}")
    test_set, missing = summary["test_set"], summary["missing"]
    if test_set["dataset"] is not None:
        print(f"Data set {test_set['dataset']}")
    if test_set["trimap_radius_px"] is not None:
        print("Trimaps made from the truths: trimap_from_alpha(alpha, {0}, {0})".format(test_set["trimap_radius_px"]))
    print(f"{summary['images']} images, {summary['foregrounds']} foregrounds")
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
        print("No interval: it takes two foregrounds, and images named NAME_0, NAME_1 ... count as composites of one")


def write_output(
    output: Path, summary: Summary, evaluation: Evaluation, trimap_radius_px: int | None, num_worst: int
) -> None:
    """Write the files of --output, and remove what an earlier evaluation left there."""
    for name in (SUMMARY, PER_IMAGE, PER_FOREGROUND, SHEET):
        (output / name).unlink(missing_ok=True)
    write_summary(summary, output / SUMMARY)
    write_csv([{"name": name, **row} for name, row in summary["per_image"].items()], output / PER_IMAGE)
    if "per_foreground" in summary:
        rows = [{"foreground": name, **row} for name, row in summary["per_foreground"].items()]
        write_csv(rows, output / PER_FOREGROUND)
    sads = {name: row["SAD"] for name, row in evaluation.rows.items()}
    pictures = {}
    for name in sorted(sads, key=lambda name: (-sads[name], name))[:num_worst]:
        files = evaluation.files[name]
        image = read_image(files["image"]) if "image" in files else None
        trimap = read_or_make_trimap(files, trimap_radius_px)
        row = sheet_row(image, trimap, read_alpha(files["pred"]), read_alpha(files["label"]))
        label = f"{name}   {METRICS['SAD'].label} {sads[name] * METRICS['SAD'].shown_factor:.3f}"
        pictures[label] = {kind: fit_picture(picture) for kind, picture in row.items()}
    if pictures:
        picture_sheet(pictures, output / SHEET)


def print_comparison(path_a: Path, path_b: Path) -> None:
    """Print the table of `evaluation.summary.compare` and what it is about."""
    a, b = read_summary(path_a), read_summary(path_b)
    table = format_table(compare(a, b))
    print(f"Protocol {a['description']}")
    print(f"A {path_a}\nB {path_b}")
    print(f"{len(a['per_image'])} images, {a['foregrounds']} foregrounds")
    if a["missing"]:
        print(f"{len(a['missing'])} images of the test set are missing in both: {', '.join(a['missing'])}")
    print(table)


if __name__ == "__main__":
    raise SystemExit(main())
