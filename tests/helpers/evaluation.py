"""A test set of known errors, and command lines of tools/evaluate.py."""

import json
import os
from pathlib import Path

import cv2
import numpy as np

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

RULE = "NAME_0 ... NAME_(k-1) without a gap are composites of NAME"


def write_test_set(folder: Path) -> Path:
    """Write two images in pred/, label/, trimap/: `a` off by 51 of 255 on 100 unknown pixels, `b` off by 102 on 50."""
    for name, error, unknown_rows in (("a", 51, 10), ("b", 102, 5)):
        trimap = np.full((20, 10), 255, np.uint8)
        trimap[:unknown_rows] = 128
        trimap[-2:] = 0
        images = {"label": np.full_like(trimap, 100), "pred": np.full_like(trimap, 100 + error), "trimap": trimap}
        for kind, image in images.items():
            (folder / kind).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{name}.png"), image)
    return folder


def evaluate_arguments(folder: Path, *more: object) -> list[str]:
    """Options for the folders of a test set in this process; more are appended."""
    folders = [part for name in ("pred", "label", "trimap") for part in (f"--{name}-dir", str(folder / name))]
    return [*folders, "--workers", "1", *map(str, more)]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def add_composites(folder: Path, errors: dict[str, int]) -> None:
    """Add images of 4 x 5 unknown pixels, each off by so many of 255."""
    for name, error in errors.items():
        images = {"label": 100, "pred": 100 + error, "trimap": 128}
        for kind, value in images.items():
            cv2.imwrite(str(folder / kind / f"{name}.png"), np.full((4, 5), value, np.uint8))
