"""Predict the alpha of an image with a trained network."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.trimap import UNKNOWN
from inference.default_network import shipped_network
from inference.defaults import float32_on_cpu
from inference.formats.hub import find_source
from inference.formats.published_vitmatte import read_network
from inference.inputs import ImageLike, check_pair
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
        views: test-time augmentation; none by default.
    """

    def __init__(self, network: Network, views: AverageViews | None = None) -> None:
        check_not_forked(torch.get_num_threads())
        self.network = network
        self.views = AverageViews() if views is None else views

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        tile_px: int | None = None,
        max_memory_gb: float | None = None,
        is_compiled: bool = False,
        views: str | None = None,
        trusted_modules: Sequence[str] = (),
        backbone_px: int | str = "full",
    ) -> "Predictor":
        """Read a network, and log where and how it runs.

        Args:
            source: an exported model folder or `.onnx` file, a transformers folder of ViTMatte, or a config: `.py`, or
                a run's `config.yaml`. Only a config needs detectron2. OWNER/NAME or OWNER/NAME@REVISION is downloaded
                from the Hugging Face hub, unless there is such a path. None is the network that this project ships.
            weights: trained checkpoint of a config.
            device: see `runtime.devices.choose_device`.
            precision: see `inference.network.choose_precision`; an `.onnx` file has its own.
            tile_px, max_memory_gb, is_compiled, backbone_px: see `TorchNetwork`; tile_px None is its default. An
                `.onnx` file takes images whole and refuses these.
            views: test-time augmentation, see `AverageViews.parse`.
            trusted_modules: modules whose classes a `config.yaml` may name beside this project's; their code is run.

        Raises:
            FileNotFoundError: a file is not there.
            UserError: a file cannot be used, or there is no such device or precision.
            MissingExtraError: onnxruntime is not installed.
        """
        check_not_forked(torch.get_num_threads())  # before any tensor is made
        source = shipped_network() if source is None else Path(source)
        if (source.suffix in CONFIG_SUFFIXES) != (weights is not None):
            raise ConfigError(f"{source}: a config (.py, .yaml) needs the weights of its checkpoint, nothing else does")
        network: Network
        if source.suffix.lower() == ".onnx":
            from inference.formats.onnx_network import OnnxNetwork

            has_setting = tile_px is not None or max_memory_gb is not None or backbone_px != "full"
            if has_setting or is_compiled or precision == "bf16":
                raise ConfigError(
                    f"{source}: an .onnx file has no tiles, limit of memory, reduced backbone, bf16 or compilation; a "
                    "model folder has"
                )
            network = OnnxNetwork(source, device)
        else:
            if weights is not None:
                from engine.checkpoint.load_model import load_model  # the other ways work without detectron2

                with float32_on_cpu():
                    model = load_model(source, weights, trusted_modules)
            else:
                model = read_network(find_source(source))
            tile_px = TILE_PX if tile_px is None else tile_px
            network = TorchNetwork(model, device, precision, tile_px, max_memory_gb, is_compiled, backbone_px)
        logger.info("%s runs on %s (asked for: %s, %s)", source, network.name, device, precision)
        return cls(network, None if views is None else AverageViews.parse(views))

    def predict(self, image: ImageLike, trimap: ImageLike) -> NDArray[np.float32]:
        """Predict the alpha of an image.

        Args:
            image: array (H, W, 3) RGB, a path, a Pillow image or a tensor; see `inference.inputs.check_pair`. The
                transparency of RGBA is ignored with a warning.
            trimap: (H, W) in the same ways. Background alone and foreground alone are valid. A mask, which has both
                and nothing unknown, is refused.

        Returns: (H, W) float32 in [0, 1], with 0 and 1 where the trimap is known.

        Raises:
            UserError: different sizes, or other values.
            OSError: no such file.
        """
        return self.alpha(*check_pair(image, trimap))

    def alpha(self, image: NDArray[np.float32], trimap: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict as `predict`, of arrays in the form of `inference.inputs.check_pair`.

        If no pixel is unknown, no network runs.
        """
        unknown = trimap == UNKNOWN
        if not unknown.any():
            return trimap
        check_not_forked(torch.get_num_threads())
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        alpha = self.views(self.network.alpha, pixels[None], torch.from_numpy(trimap)[None, None])
        return np.where(unknown, alpha.float().cpu().numpy()[0, 0], trimap)
