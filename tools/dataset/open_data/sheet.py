"""Draw a sheet of the eight procedural kinds."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.composition import composite
from data.image_io.images import read_image, to_uint8
from data.procedural import KINDS
from data.sources.sample_photos import find_photograph
from evaluation.output.report import join_cells, label_line

CELL_PX = 256
COLUMNS = 4
BACKGROUNDS = ("skimage/data/rocket.jpg", "skimage/data/coffee.png", "skimage/data/chelsea.png")


def write_sheet(path: Path, seed: int) -> None:
    """Write a sheet of each kind over a free photograph, with its alpha below, four kinds in a row.

    Args:
        path: an image file, JPEG for a small one.
        seed: of the images.
    """
    names, lines = list(KINDS), []
    for start in range(0, len(names), COLUMNS):
        labels, over, alphas = names[start : start + COLUMNS], [], []
        for number, kind in enumerate(labels, start=start // COLUMNS):  # another background below than above
            foreground, alpha = KINDS[kind](np.random.default_rng([seed, number]), CELL_PX)
            photograph: NDArray = read_image(find_photograph(BACKGROUNDS[number % len(BACKGROUNDS)]))
            side = min(photograph.shape[:2])
            background = cv2.resize(photograph[:side, :side], (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA)
            over.append(composite(alpha[..., None], foreground, np.asarray(background, np.float32)))
            alphas.append(np.repeat(alpha[..., None], 3, axis=2))
        lines += [label_line(labels, CELL_PX), join_cells(over), join_cells(alphas)]
    Image.fromarray(to_uint8(np.concatenate(lines))).save(path, quality=85)
