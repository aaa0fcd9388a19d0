"""What a `Predictor` is given, as arrays: paths, Pillow images, tensors and arrays."""

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.image_io.decoding import pixels_of
from data.image_io.images import DataError, read_raw_image
from data.trimap import read_trimap, trimap_for_matting

Picture: TypeAlias = NDArray | Tensor | Image.Image | str | os.PathLike
CHANNELS = (1, 3, 4)


def image_pixels(image: Picture) -> NDArray:
    """Bring an image to (H, W) or (H, W, C), values as they are.

    Args:
        image: path of a file; Pillow image, turned upright by its EXIF; tensor (C, H, W), (H, W, C) or (H, W) on any
            device, C being 1, 3 or 4, where a tensor that can be read both ways is (C, H, W); or array, returned as it
            is.

    Raises:
        DataError: something else, or a file that cannot be used.
        OSError: no such file.
    """
    if isinstance(image, str | os.PathLike):
        return read_raw_image(Path(image))
    return _array(image, "the image")


def trimap_values(trimap: Picture) -> NDArray[np.float32]:
    """Decode a trimap, given in any way that `image_pixels` takes, to (H, W) in {0, 0.5, 1}.

    Raises:
        DataError: as `image_pixels` and `data.trimap.trimap_for_matting`.
        OSError: no such file.
    """
    if isinstance(trimap, str | os.PathLike):
        return read_trimap(Path(trimap))
    return trimap_for_matting(_array(trimap, "the trimap"))


def _array(picture: Picture, name: str) -> NDArray:
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, Tensor):
        return _of_tensor(picture, name)
    if isinstance(picture, Image.Image):
        return pixels_of(picture)
    raise DataError(
        f"{name} is a {type(picture).__name__}: expected an array, a tensor, a Pillow image or the path of a file"
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
