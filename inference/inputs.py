"""Read what a `Predictor` takes: paths, Pillow images, tensors and arrays."""

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.image_io.decoding import pixels_of
from data.image_io.images import DataError, as_colours, as_unit_floats, read_image
from data.trimap import read_trimap, trimap_for_matting

ImageLike: TypeAlias = NDArray | Tensor | Image.Image | str | os.PathLike
CHANNELS = (1, 3, 4)


def check_pair(image: ImageLike, trimap: ImageLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bring an image and its trimap to the form that a network takes.

    Args:
        image: path of a file, whose colours are converted to sRGB; Pillow image, turned upright by its EXIF; array
            (H, W, C) or (H, W); or tensor (C, H, W), (H, W, C) or (H, W) on any device. C is 1, 3 or 4. A tensor that
            matches both forms is read as (C, H, W). Values are uint8, uint16, or float in [0, 1].
        trimap: in the same ways, (H, W) with values for `data.trimap.trimap_for_matting`.

    Returns: (H, W, 3) RGB in [0, 1], and (H, W) of {0, 0.5, 1}.

    Raises:
        DataError: another type, other values, different sizes, or a file that cannot be used.
        OSError: no such file.
    """
    pixels = read_image(Path(image)) if isinstance(image, str | os.PathLike) else _array(image, "the image")
    if isinstance(trimap, str | os.PathLike):
        known = read_trimap(Path(trimap))
    else:
        known = trimap_for_matting(_array(trimap, "the trimap"))
    if pixels.shape[:2] != known.shape:
        raise DataError(
            f"expected an image (H, W, 3) and a trimap (H, W) of one size, got {pixels.shape} and {known.shape}"
        )
    return as_unit_floats(as_colours(pixels)), known


def _array(image: NDArray | Tensor | Image.Image, name: str) -> NDArray:
    """Bring to (H, W) or (H, W, C), with the same values."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Tensor):
        return _of_tensor(image, name)
    if isinstance(image, Image.Image):
        return pixels_of(image)
    raise DataError(
        f"{name} is a {type(image).__name__}: expected an array, a tensor, a Pillow image or the path of a file"
    )


def _of_tensor(tensor: Tensor, name: str) -> NDArray:
    """Bring a tensor to (H, W) or (H, W, C) on the CPU."""
    is_chw = tensor.ndim == 3 and tensor.shape[0] in CHANNELS
    if tensor.ndim != 2 and not is_chw and not (tensor.ndim == 3 and tensor.shape[2] in CHANNELS):
        raise DataError(
            f"{name} is a tensor of shape {tuple(tensor.shape)}: expected one image, (3, H, W) or (H, W, 3), or (H, W)"
        )
    if tensor.is_meta:
        raise DataError(f"{name} is a tensor on the device meta, which holds no values: give one on another device")
    values = tensor.detach().cpu()
    if values.dtype == torch.bfloat16:  # which numpy does not know
        values = values.float()
    return (values.permute(1, 2, 0) if is_chw else values).numpy()
