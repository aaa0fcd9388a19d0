"""Image and trimap in, alpha out."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.image_io.images import DataError, as_colours, as_unit_floats
from data.trimap import UNKNOWN
from inference.defaults import float32_on_cpu
from inference.formats.model_folder import read_model_folder
from inference.inputs import Picture, image_pixels, trimap_values
from inference.network import TILE_PX, Network, TorchNetwork
from modeling.test_time_augmentation import AverageViews
from runtime.errors import ConfigError
from runtime.threads import check_not_forked

logger = logging.getLogger(__name__)

CONFIG_SUFFIXES = (".py", ".yaml", ".yml")


class Predictor:
    """Mattes images with a network. Several threads may share one.

    Args:
        network: a `TorchNetwork` or an `OnnxNetwork`.
        views: of each image, over which alpha is averaged; the image alone by default.
    """

    def __init__(self, network: Network, views: AverageViews | None = None) -> None:
        check_not_forked(torch.get_num_threads())
        self.network = network
        self.views = AverageViews() if views is None else views

    @classmethod
    def load(
        cls,
        source: str | Path,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        tile_px: int | None = None,
        max_memory_gb: float | None = None,
        is_compiled: bool = False,
        views: AverageViews | None = None,
        trusted_modules: Sequence[str] = (),
    ) -> "Predictor":
        """Read a network, and log where and how it runs.

        Args:
            source: a model folder as tools/export.py writes it, its `.onnx` file, or a config: `.py`, or a run's
                `config.yaml`. Only a config needs detectron2.
            weights: trained checkpoint of a config.
            device: see `inference.network.choose_device`.
            precision: see `inference.network.choose_precision`; an `.onnx` file has its own.
            tile_px, max_memory_gb, is_compiled: see `TorchNetwork`, whose tiles None takes; refused for an `.onnx`
                file, which takes images whole.
            views: see `Predictor`.
            trusted_modules: modules whose classes a `config.yaml` may name beside this project's; their code is run.

        Raises:
            FileNotFoundError: a file is not there.
            UserError: a file cannot be used, or there is no such device or precision.
            MissingExtraError: onnxruntime is not installed.
        """
        check_not_forked(torch.get_num_threads())  # before any tensor is made
        source = Path(source)
        if (source.suffix in CONFIG_SUFFIXES) != (weights is not None):
            raise ConfigError(f"{source}: a config (.py, .yaml) needs the weights of its checkpoint, nothing else does")
        network: Network
        if source.suffix.lower() == ".onnx":
            from inference.formats.onnx_network import OnnxNetwork

            if tile_px is not None or max_memory_gb is not None or is_compiled or precision == "bf16":
                raise ConfigError(
                    f"{source}: an .onnx file has no tiles, limit of memory, bf16 or compilation; a model folder has"
                )
            network = OnnxNetwork(source, device)
        else:
            if weights is not None:
                from engine.checkpoint.load_model import load_model  # the other ways work without detectron2

                with float32_on_cpu():
                    model = load_model(source, weights, trusted_modules)
            else:
                model = read_model_folder(source)
            tile_px = TILE_PX if tile_px is None else tile_px
            network = TorchNetwork(model, device, precision, tile_px, max_memory_gb, is_compiled)
        logger.info("%s runs on %s (asked for: %s, %s)", source, network.name, device, precision)
        return cls(network, views)

    def predict(self, image: Picture, trimap: Picture) -> NDArray[np.float32]:
        """Predict alpha, with known pixels pasted back; where all are known, no network runs.

        Args:
            image: array (H, W, 3) RGB, or grey or RGBA, whose alpha is ignored with a warning; uint8, uint16, or float
                in [0, 1]. Or a path, a Pillow image or a tensor, see `inference.inputs.image_pixels`.
            trimap: (H, W) in the same ways, with values that `data.trimap.trimap_for_matting` reads. Background alone
                and foreground alone are valid; a mask, which has both and nothing unknown, is refused.

        Returns: (H, W) float32 in [0, 1].

        Raises:
            UserError: the sizes differ, or the values are not those above.
            OSError: a path of no file.
        """
        pixels, known = check_pair(image, trimap)
        unknown = known == UNKNOWN
        if not unknown.any():
            return known
        check_not_forked(torch.get_num_threads())
        alpha = self.views(self.network.alpha, pixels[None], torch.from_numpy(known)[None, None])
        return np.where(unknown, alpha.float().cpu().numpy()[0, 0], known)


def check_pair(image: Picture, trimap: Picture) -> tuple[Tensor, NDArray[np.float32]]:
    """Bring an image and its trimap, as `Predictor.predict` takes them, to one form.

    Returns: (3, H, W) float32 RGB in [0, 1], and (H, W) of {0, 0.5, 1}.

    Raises:
        UserError: see `Predictor.predict`.
    """
    pixels, known = image_pixels(image), trimap_values(trimap)
    if pixels.shape[:2] != known.shape:
        raise DataError(
            f"expected an image (H, W, 3) and a trimap (H, W) of one size, got {pixels.shape} and {known.shape}"
        )
    colours = np.ascontiguousarray(as_unit_floats(as_colours(pixels)))
    return torch.from_numpy(colours).permute(2, 0, 1), known
