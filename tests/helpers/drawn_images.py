"""Images of 8 or 16 bit that tests draw."""

import numpy as np
from numpy.typing import NDArray


def draw_noise(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> NDArray:
    """Draw noise (H, W, C), equal for equal sizes."""
    rng = np.random.default_rng(height * width)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def draw_waves(height: int, width: int) -> NDArray[np.uint8]:
    """Draw smooth colours (H, W, 3) from 0 to 255."""
    y, x = np.mgrid[:height, :width]
    waves = [127.5 + 127 * np.sin(x / 9 + channel) * np.cos(y / 13) for channel in range(3)]
    return np.rint(np.dstack(waves)).astype(np.uint8)


def draw_disc(size_px: int) -> NDArray[np.uint8]:
    """Draw a disc (S, S) of 2/3 of the image across, its edge 2 px wide."""
    y, x = np.mgrid[:size_px, :size_px] + 0.5 - size_px / 2
    return np.rint(255 * np.clip((size_px / 3 - np.hypot(x, y)) / 2 + 0.5, 0, 1)).astype(np.uint8)
