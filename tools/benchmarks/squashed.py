"""Matte as rembg does: the image squashed to a square of fixed size, its alpha resized back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.formats.model_folder import read_model_folder
from inference.formats.onnx_export import write_onnx
from runtime.optional_packages import import_extra

SQUASHED_PX = 1024
"""Side of the square in rembg 2.0.86."""


def import_matting() -> Any:
    """Import `rembg.matting`.

    Raises:
        MissingExtraError: rembg is not installed.
    """
    return import_extra("rembg.matting", "rembg's way", "requirements-dev.txt")


def write_squashed(model_folder: Path, home: Path) -> None:
    """Write the network of a model folder as an ONNX file of fixed size, where rembg looks for its ViTMatte.

    Args:
        model_folder: with a `ViTMatte`.
        home: rembg's folder, to be given to `load_squashed`.

    Raises:
        OSError, UserError: see `import_matting`, `read_model_folder` and `write_onnx`.
    """
    matting = import_matting()
    path = home / "models" / "vitmatte" / matting.VARIANTS[matting.DEFAULT_VARIANT]["fname"]
    model: Any = read_model_folder(model_folder)
    write_onnx(model, path, "for measuring", "", "pixel_values", SQUASHED_PX)


def load_squashed(home: Path) -> Callable[[NDArray, NDArray], Callable[[], NDArray]]:
    """Let rembg load the file of `write_squashed`, as it loads its own: onnxruntime with its defaults.

    Returns: as `tools.benchmarks.networks.load`. Alpha is in steps of 1 / 255, cut off, and known pixels are as the
        network and the resizing leave them.
    """
    matting = import_matting()
    os.environ.pop("U2NET_HOME", None)  # an older name of the variable, which wins
    os.environ["REMBG_HOME"] = str(home)
    matting._get_session(matting.DEFAULT_VARIANT)

    def prepare(image: NDArray, trimap: NDArray) -> Callable[[], NDArray]:
        picture, mask = Image.fromarray(image), Image.fromarray(trimap)
        # With an erosion of one pixel, rembg's trimap of this mask is the trimap itself.
        return lambda: np.asarray(matting.vitmatte_alpha(picture, mask, erode_size=1)) / np.float32(255)

    return prepare
