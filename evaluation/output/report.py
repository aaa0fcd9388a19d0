"""Tables, CSV files and image sheets of results."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from data.image_io.images import to_float, write_image
from evaluation.metrics import METRICS
from evaluation.video import VIDEO_METRICS

SHOWN = {**{name: (metric.label, metric.shown_factor) for name, metric in METRICS.items()}, **VIDEO_METRICS}

Row = Mapping[str, str | float]

CELL_PX = 256
LABEL_PX = 24  # height of a line of labels
GAP_PX = 4
FONT = cv2.FONT_HERSHEY_SIMPLEX


def format_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """Format results as aligned text; metrics are shown in the units of `SHOWN`, with the unit in the column's name.

    Args:
        rows: one mapping per line, such as {"method": "trivial", "SAD": 0.04, "MSE": 0.006}: texts, counts, ratios and
            metrics as `evaluation.metrics` returns them. Columns are in order of first appearance; "-" where absent.
        markdown: draw a Markdown table.

    Returns: lines without a closing newline.
    """
    columns = _columns(rows)
    heads = [SHOWN[column][0] if column in SHOWN else column for column in columns]
    cells = [[_shown(column, row.get(column, "-")) for column in columns] for row in rows]
    sides = ["left" if all(isinstance(row.get(column, ""), str) for row in rows) else "right" for column in columns]
    style = "pipe" if markdown else "plain"
    return tabulate(cells, heads, style, colalign=sides, disable_numparse=True)


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write results at full precision in natural units; columns as in `format_table`."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _columns(rows))
        writer.writeheader()
        writer.writerows(rows)


def sheet_row(
    image: NDArray | None,
    trimap: NDArray | None,
    pred_alpha: NDArray,
    alpha: NDArray,
    region: NDArray | None = None,
) -> dict[str, NDArray]:
    """Make the usual columns of an image sheet; the error is |prediction - ground truth| in the region, else 0.

    Args:
        image: (H, W, 3) RGB in [0, 1]; None omits the column.
        trimap: (H, W) in {0, 0.5, 1}; None omits the column.
        pred_alpha: (H, W) in [0, 1].
        alpha: (H, W) in [0, 1].
        region: (H, W) boolean, True for pixels that count; None for all.
    """
    error = np.abs(pred_alpha - alpha)
    if region is not None:
        error = np.where(region, error, 0)
    columns = {"image": image, "trimap": trimap, "prediction": pred_alpha, "ground truth": alpha, "error": error}
    return {kind: array for kind, array in columns.items() if array is not None}


def image_sheet(
    rows: Mapping[str, Mapping[str, NDArray]], path: str | Path, cell_px: int = CELL_PX
) -> NDArray[np.float32]:
    """Draw images in a table and write it to a file: a labelled column per kind, a labelled row per sample.

    Args:
        rows: label of the row -> label of the column -> (H, W) grey or (H, W, 3) RGB float in [0, 1], of any size; see
            `sheet_row`. All rows have the same columns in the same order.
        path: of the file, for example .png.
        cell_px: longer side of each image after `fit_image`.

    Returns: the sheet, (H, W, 3) RGB in [0, 1].

    Raises:
        ValueError: no row, or rows whose columns differ.
    """
    kinds = {tuple(row) for row in rows.values()}
    if len(kinds) != 1:
        raise ValueError(f"expected rows of the same columns, got {sorted(kinds) if kinds else 'no row'}")
    lines = [label_line(list(kinds.pop()), cell_px)]
    for label, row in rows.items():
        cells = [fit_image(image, cell_px) for image in row.values()]
        height = max(cell.shape[0] for cell in cells)
        lines += [label_line([label], cell_px * len(cells) + GAP_PX * (len(cells) - 1))]
        margins = [((0, height - cell.shape[0]), (0, cell_px - cell.shape[1]), (0, 0)) for cell in cells]
        lines += [join_cells([np.pad(c, m, constant_values=1) for c, m in zip(cells, margins, strict=True)])]
    sheet = np.concatenate(lines)
    write_image(path, sheet)
    return sheet


def fit_image(image: NDArray, cell_px: int = CELL_PX) -> NDArray[np.float32]:
    """Scale an image to the size of a cell, as RGB; enlarged pixels stay square blocks.

    An image of the right size stays as it is. So a caller with many large images can scale each when it is read.

    Args:
        image: (H, W) grey or (H, W, 3) RGB float in [0, 1].
        cell_px: length of the longer side afterwards.
    """
    height, width = image.shape[:2]
    scale = cell_px / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    rgb = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(rgb.astype(np.float32), size, interpolation=interpolation))


def join_cells(cells: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join images (H, W, 3) of one height side by side, with white gaps of `GAP_PX`."""
    gap = np.ones((cells[0].shape[0], GAP_PX, 3), np.float32)
    return np.concatenate([piece for cell in cells for piece in (gap, cell)][1:], axis=1)


def label_line(labels: Sequence[str], width_px: int) -> NDArray[np.float32]:
    """Draw labels, black on white, in cells of one width: a line (`LABEL_PX`, W, 3) above images of `join_cells`."""
    cells = [np.full((LABEL_PX, width_px, 3), 255, np.uint8) for _ in labels]
    for cell, label in zip(cells, labels, strict=True):
        cv2.putText(cell, label, (2, LABEL_PX - 8), FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return join_cells([to_float(cell) for cell in cells])


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _shown(column: str, value: str | float) -> str:
    if isinstance(value, str | Integral):
        return str(value)
    return f"{value * SHOWN[column][1] if column in SHOWN else value:.3f}"
