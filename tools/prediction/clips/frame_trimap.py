"""The trimap of a frame, functions that give it, and the frame that a file's name means."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError


class FrameTrimap(NamedTuple):
    """The trimap (H, W) of {0, 0.5, 1} of a frame, and what to report of it, or ""."""

    trimap: NDArray[np.float32]
    note: str = ""


TrimapOf = Callable[[int, NDArray[np.float32]], FrameTrimap]
"""Number and image (H, W, 3) of the next frame -> its trimap."""

TrimapSource = Callable[[Sequence[int]], TrimapOf]
"""Numbers of the frames to come -> their trimaps."""


def last_number(path: Path) -> int:
    """Return the last number in a file's name without suffix.

    Raises:
        DataError: there is none.
    """
    found = re.findall(r"\d+", path.stem)
    if not found:
        raise DataError(f"{path}: expected the number of a frame in its name, such as 000012{path.suffix}")
    return int(found[-1])
