"""Image and trimap in, alpha out."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.images import to_float
from data.trimap import UNKNOWN, decode_trimap
from inference.model_folder import read_model_folder
from inference.tiling import decode_tiled
from modeling import ViTMatte

logger = logging.getLogger(__name__)

TILE_PX = 256
"""Measured in docs/performance.md: 512 takes longer and, at 1024 x 1024, twice the memory."""


class Predictor:
    """Mattes single images with a network in evaluation mode.

    Args:
        model: a `ViTMatte`; it is moved to the device and put into evaluation mode.
        device: "cpu", "cuda" ...
        tile_px: side of the tiles that the decoder takes in turn, at least 1. It changes memory and time, not alpha.

    Raises:
        TypeError: the model is something else.
        ValueError: no such tiles.
    """

    def __init__(self, model: nn.Module, device: str | torch.device = "cpu", tile_px: int = TILE_PX) -> None:
        if not isinstance(model, ViTMatte):
            raise TypeError(f"expected a ViTMatte, got a {type(model).__name__}")
        if tile_px < 1:
            raise ValueError(f"expected tiles of at least 1 px, got tile_px {tile_px}; {TILE_PX} is a good choice")
        self.model = model.to(device).eval()
        self.tile_px = tile_px

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", tile_px: int = TILE_PX) -> "Predictor":
        """Read a model folder, as tools/export.py writes it; detectron2 is not needed.

        Args:
            folder: see `inference.model_folder`.
            device: see `choose_device`.
            tile_px: see the class.

        Raises:
            FileNotFoundError: the folder or a file of it is not there.
            ValueError: a file cannot be used, or there is no such device.
        """
        chosen = choose_device(device)
        model = read_model_folder(folder)
        logger.info("%s runs on %s (asked for: %s)", folder, chosen, device)
        return cls(model, chosen, tile_px)

    def predict(self, image: NDArray, trimap: NDArray) -> NDArray[np.float32]:
        """Predict alpha, with known pixels pasted back; where all are known, no network runs.

        Args:
            image: (H, W, 3) RGB, uint8 or uint16, or float in [0, 1].
            trimap: (H, W), in any way that `data.trimap.decode_trimap` reads.

        Returns: (H, W) float32 in [0, 1].

        Raises:
            ValueError: the sizes differ, or the values are not those above.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != trimap.shape[:2]:
            raise ValueError(
                f"expected an image (H, W, 3) and a trimap (H, W) of one size, got {image.shape} and {trimap.shape}"
            )
        pixels = image if np.issubdtype(image.dtype, np.floating) else to_float(image)
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError(f"expected float colours in [0, 1], got {pixels.min():.4g} to {pixels.max():.4g}")
        known = decode_trimap(trimap)
        if not (known == UNKNOWN).any():
            return known
        with torch.inference_mode():
            return self._alpha(
                torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None],
                torch.from_numpy(known)[None, None],
            )

    def _alpha(self, image: Tensor, trimap: Tensor) -> NDArray[np.float32]:
        """What `ViTMatte.forward` gives for one image, its decoder run on tiles: (H, W)."""
        image, trimap = image.to(self.model.device), trimap.to(self.model.device)
        network_input = self.model.network_input(image, trimap)
        features = self.model.backbone(network_input)
        # The padding is known, so that its tokens are decoded for no one.
        is_needed = network_input[:, 3:] == UNKNOWN
        alpha = decode_tiled(self.model.decoder, features, network_input, is_needed, self.tile_px)
        alpha = alpha[..., : image.shape[-2], : image.shape[-1]]
        if not alpha.isfinite().all():
            raise ValueError("the network gives values that are not finite: its weights or settings cannot be used")
        return torch.where(trimap == UNKNOWN, alpha, trimap)[0, 0].float().cpu().numpy()


def choose_device(name: str = "auto") -> torch.device:
    """Find the device of a name.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" ...; "auto" is the first of cuda, mps and cpu that is there.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try cpu") from error
