"""Image and trimap in, alpha out."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data.images import to_float
from data.trimap import decode_trimap


class Predictor:
    """Mattes single images with a network in evaluation mode.

    Args:
        model: a `ViTMatte`; it is moved to the device and put into evaluation mode.
        device: "cpu", "cuda" ...
    """

    def __init__(self, model: nn.Module, device: str | torch.device = "cpu") -> None:
        self.model = model.to(device).eval()

    def predict(self, image: NDArray, trimap: NDArray) -> NDArray[np.float32]:
        """Predict alpha, with known pixels pasted back.

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
        batch = {
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None],
            "trimap": torch.from_numpy(decode_trimap(trimap))[None, None],
        }
        with torch.inference_mode():
            return self.model(batch)["pred_alpha"][0, 0].cpu().numpy()
