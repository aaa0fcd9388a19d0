"""Tables, CSV files and image sheets, by what can be read back from them."""

import csv
import re

import numpy as np
import pytest

from data.image_io.images import read_image
from evaluation.metrics import METRICS
from evaluation.output.report import LABEL_PX, fit_image, format_table, image_sheet, sheet_row, write_csv

ROWS = [
    {"method": "trivial", "images": 3, "SAD": 12.34567, "MSE": 0.0061},
    {"method": "ours", "images": 3, "SAD": 1.0, "ratio": 0.5},
]


def test_a_table_shows_the_units_of_the_field():
    assert format_table(ROWS).splitlines() == [
        "method      images    SAD/1000    MSE x1e-3    ratio",
        "trivial          3      12.346        6.100        -",
        "ours             3       1.000            -    0.500",
    ]
    assert format_table(ROWS[:1], markdown=True).splitlines() == [
        "| method   |   images |   SAD/1000 |   MSE x1e-3 |",
        "|:---------|---------:|-----------:|------------:|",
        "| trivial  |        3 |     12.346 |       6.100 |",
    ]
    factors = {"SAD": 1, "MSE": 1000, "MAD": 1000, "Grad": 1, "Conn": 1}
    assert all(metric.shown_factor == factors[name] for name, metric in METRICS.items())


def test_a_csv_file_keeps_natural_units_at_full_precision(tmp_path):
    rows = [{"name": "a, b", "MSE": 1 / 3}, {"name": "c", "MSE": 2e-7}]
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [{**row, "MSE": float(row["MSE"])} for row in csv.DictReader(file)] == rows


def test_a_sheet_holds_every_image_in_its_cell(tmp_path):
    """Images of one colour: its cell shows it, also when wide, tall, larger or smaller than the cell."""
    colours = {"image": (1.0, 0.0, 0.0), "trimap": 0.2, "prediction": 0.4, "ground truth": 1.0, "error": 0.6}
    sizes = {"small": (4, 4), "wide": (50, 100), "tall": (100, 50)}
    rows = {}
    for label, size in sizes.items():
        trimap, pred_alpha, alpha = (np.full(size, colours[kind]) for kind in ("trimap", "prediction", "ground truth"))
        rows[label] = sheet_row(np.broadcast_to(colours["image"], (*size, 3)), trimap, pred_alpha, alpha)
    image_sheet(rows, tmp_path / "sheet.png", cell_px=64)
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] == 5 * 64 + 4 * 4
    assert sheet.shape[0] == LABEL_PX * 4 + 64 + 32 + 64
    tops = {"small": 2 * LABEL_PX, "wide": 3 * LABEL_PX + 64, "tall": 4 * LABEL_PX + 96}
    for label, (height, width) in {"small": (64, 64), "wide": (32, 64), "tall": (64, 32)}.items():
        for column, colour in enumerate(colours.values()):
            left = column * 68
            cell = sheet[tops[label] : tops[label] + height, left : left + 64]
            assert np.abs(cell[:, :width] - np.array(colour)).max() < 1 / 255
            assert (cell[:, width:] == 1).all()
    assert (sheet[:LABEL_PX] < 0.5).any(), "no column labels"


def test_a_image_sheet_refuses_rows_of_different_columns(tmp_path):
    grey = np.zeros((2, 2))
    with pytest.raises(ValueError, match=re.escape("[('a',), ('b',)]")):
        image_sheet({"one": {"a": grey}, "two": {"b": grey}}, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="no row"):
        image_sheet({}, tmp_path / "sheet.png")


def test_a_sheet_leaves_out_what_there_is_not():
    grey = np.full((2, 3), 0.5)
    assert list(sheet_row(None, None, grey, grey)) == ["prediction", "ground truth", "error"]
    assert list(sheet_row(None, grey, grey, grey)) == ["trimap", "prediction", "ground truth", "error"]


@pytest.mark.parametrize("size", [(3, 4), (64, 64), (200, 90), (1, 300)])
def test_a_fitted_image_stays_as_it_is(size, tmp_path):
    """So that large images can be fitted one by one: the sheet is the same to the byte."""
    image = np.random.default_rng(0).random(size, np.float32)
    fitted = fit_image(image, 64)
    assert max(fitted.shape[:2]) == 64 and (fit_image(fitted, 64) == fitted).all()
    for name, shown in (("whole", image), ("fitted", fitted)):
        image_sheet({"a": {"b": shown}}, tmp_path / f"{name}.png", cell_px=64)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "fitted.png").read_bytes()


@pytest.mark.parametrize("size", [(300, 200), (128, 128), (65, 3)])
def test_a_shrunk_image_is_averaged(size):
    """Each pixel stands for an area: the mean stays, where one pixel in each area would be drawn by chance."""
    image = np.random.default_rng(1).integers(0, 2, size).astype(np.float32)
    fitted = fit_image(image, 64)
    assert max(fitted.shape[:2]) == 64 and fitted.mean() == pytest.approx(image.mean(), abs=0.01)
    if size == (128, 128):
        assert fitted[:, :, 0] == pytest.approx(image.reshape(64, 2, 64, 2).mean(axis=(1, 3)), abs=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (5, 7), (63, 10)])
def test_an_enlarged_image_invents_no_value(size):
    image = np.random.default_rng(2).random(size, np.float32)
    assert (np.unique(fit_image(image, 64)) == np.unique(image)).all()


def test_the_error_is_shown_where_it_counts():
    pred_alpha, alpha = np.array([[0.25, 1, 0.5]]), np.array([[0.75, 0, 0.5]])
    region = np.array([[True, False, True]])
    assert sheet_row(None, None, pred_alpha, alpha, region)["error"].tolist() == [[0.5, 0, 0]]
    assert sheet_row(None, None, pred_alpha, alpha)["error"].tolist() == [[0.5, 1, 0]]
