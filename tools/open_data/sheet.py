"""A sheet of the eight procedural kinds, for the eye."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.composition import composite
from data.images import read_image, write_image
from data.photographs import find_photograph
from data.procedural import KINDS

CELL_PX = 320
COLUMNS = 4
BACKGROUNDS = (
    "skimage/data/coffee.png",
    "skimage/data/rocket.jpg",
    "skimage/data/grass.png",
    "skimage/data/chelsea.png",
)
SEEDS = {"hair": 5, "fur": 1, "feathers": 9, "foliage": 3, "lace": 2, "smoke": 4, "glass": 3, "drops": 1}  # fine ones


def write_sheet(path: Path, seed: int) -> None:
    """Write the kinds in four columns, each over a CC0 photograph and beside its alpha.

    Args:
        path: a picture file.
        seed: 0 gives the pictures of the docs.
    """
    cells = []
    for number, (kind, draw) in enumerate(KINDS.items()):
        foreground, alpha = draw(np.random.default_rng(SEEDS[kind] + seed), CELL_PX)
        photograph = read_image(find_photograph(BACKGROUNDS[number % len(BACKGROUNDS)]))
        side = min(photograph.shape[:2])
        background = cv2.resize(photograph[:side, :side], (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA)
        over: NDArray = composite(alpha[..., None], foreground, np.asarray(background, np.float32))
        cell = np.vstack([over, np.repeat(alpha[..., None], 3, 2)])
        cv2.putText(cell, kind, (8, CELL_PX + 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (1.0, 1.0, 1.0), 1, cv2.LINE_AA)
        cells.append(cell)
    rows = [np.hstack(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    write_image(path, np.vstack(rows))
