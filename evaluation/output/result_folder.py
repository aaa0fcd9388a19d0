"""Write the folder of one evaluation's results: summary, tables and a sheet of the worst images."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from numpy.typing import NDArray

from data.image_io.images import DataError, read_alpha, read_image
from data.trimap import read_strict_trimap, trimap_from_alpha, unknown_mask
from evaluation.folders import Evaluation
from evaluation.metrics import METRICS, PROTOCOLS
from evaluation.output.report import fit_image, image_sheet, sheet_row, write_csv
from evaluation.output.summary import SUMMARY, Summary

PER_IMAGE, PER_FOREGROUND, PER_CLIP = "per_image.csv", "per_foreground.csv", "per_clip.csv"
SHEET = "worst.png"


def prepare_output(output: Path, inputs: Iterable[Path | None]) -> None:
    """Make the folder of --output, and remove the results of an earlier evaluation.

    Raises:
        DataError: the folder is one of the inputs.
        OSError: the folder cannot be written.
    """
    if output.resolve() in [folder.resolve() for folder in inputs if folder is not None]:
        raise DataError(f"{output} holds images to evaluate: name another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, PER_IMAGE, PER_FOREGROUND, PER_CLIP, SHEET):
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"the results cannot be written: {error}") from error


def write_output(
    output: Path, summary: Summary, evaluation: Evaluation, trimap_radius_px: int | None, num_worst: int
) -> None:
    """Write summary, tables and the sheet of the worst images."""
    (output / SUMMARY).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_csv([{"name": name, **row} for name, row in summary["per_image"].items()], output / PER_IMAGE)
    if "per_foreground" in summary:
        rows = [{"foreground": name, **row} for name, row in summary["per_foreground"].items()]
        write_csv(rows, output / PER_FOREGROUND)
    sads = {name: row["SAD"] for name, row in evaluation.rows.items()}
    sheet = {}
    for name in sorted(sads, key=sads.__getitem__, reverse=True)[:num_worst]:
        files = evaluation.files[name]
        image = read_image(files["image"]) if "image" in files else None
        trimap = read_or_make_trimap(files, trimap_radius_px)
        region = None if trimap is None or PROTOCOLS[summary["protocol"]].is_whole else unknown_mask(trimap)
        row = sheet_row(image, trimap, read_alpha(files["pred"]), read_alpha(files["label"]), region)
        one_line = " ".join(name.splitlines())
        label = f"{METRICS['SAD'].label} {sads[name] * METRICS['SAD'].shown_factor:.3f}   {one_line}"
        sheet[label] = {kind: fit_image(array) for kind, array in row.items()}
    if sheet:
        image_sheet(sheet, output / SHEET)


def read_or_make_trimap(files: Mapping[str, Path], radius_px: int | None) -> NDArray | None:
    """Read the trimap of an image, or make it from the ground truth by the radius; None if there is neither."""
    if "trimap" in files:
        return read_strict_trimap(files["trimap"])
    return None if radius_px is None else trimap_from_alpha(read_alpha(files["label"]), radius_px, radius_px)
