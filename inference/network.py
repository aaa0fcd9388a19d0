"""A ViTMatte made ready to matte: its device, its precision, and its decoder on tiles."""

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from data.image_io.images import DataError
from data.trimap import FLOAT_TOLERANCE, UNKNOWN
from inference.memory import plan_tile
from inference.tiling import HALO_TOKENS, decode_tiled, needed_tokens
from modeling import DetailCapture, ViTMatte
from runtime.devices import choose_device, warn_of_emulation
from runtime.errors import ConfigError, UserError

TILE_PX = 256
"""Measured in docs/performance_prediction.md: 512 takes longer and, at 1024 x 1024, twice the memory."""

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
"""Precision -> type in which convolutions, linear layers and attention compute; norms and sums keep the model's own."""

BF16_CAPABILITY = (8, 0)
"""Of CUDA devices: the first that multiplies bf16 natively."""


class Network(Protocol):
    """What an `inference.predictor.Predictor` runs."""

    name: str
    """One line for people: where and how it runs."""

    def alpha(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Predict alpha.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1], of any size.
            trimap: (B, 1, H, W) float32 of {0, 0.5, 1}, see `decode_inputs`.

        Returns: (B, 1, H, W) in [0, 1]; undefined on known pixels.

        Raises:
            DataError: other values.
        """
        ...


def decode_inputs(image: Tensor, trimap: Tensor) -> Tensor:
    """Check the values of what a network is given and set the trimap to exactly 0, 0.5 and 1.

    Args:
        image: (B, 3, H, W) in [0, 1] within `FLOAT_TOLERANCE`: interpolation overshoots by rounding.
        trimap: (B, 1, H, W), 0, 0.5 or 1 within `FLOAT_TOLERANCE`, which includes 128 / 255.

    Returns: the decoded trimap.

    Raises:
        DataError: other values, NaN included.
    """
    least, most = image.aminmax()
    if not (least >= -FLOAT_TOLERANCE and most <= 1 + FLOAT_TOLERANCE):
        raise DataError(f"expected an image in [0, 1], got {least:.4g} to {most:.4g}: divide 8-bit values by 255")
    decoded = (2 * trimap).round().clamp(0, 2) / 2
    if not ((trimap - decoded).abs() <= FLOAT_TOLERANCE).all():
        least, most = trimap.aminmax()
        raise DataError(
            f"expected a trimap of 0, 0.5 and 1, got other values between {least:.4g} and {most:.4g}: "
            "decode it with data.trimap.decode_trimap"
        )
    return decoded


class TorchNetwork:
    """A `ViTMatte` in evaluation mode on a device.

    Args:
        model: it is copied; its decoder's BatchNorms become part of the convolutions, which alters alpha by rounding.
        device: see `runtime.devices.choose_device`; None leaves the model where it is.
        precision: see `choose_precision`. In float32 on CUDA, convolutions no longer round to TF32 in this process.
        tile_px: side of the tiles that the decoder takes in turn, at least 1. It changes memory and time, not alpha.
        max_memory_gb: what may be in use during a prediction, see `inference.memory.plan_tile`: tiles become smaller
            where needed, and what cannot fit is refused. None is no limit.
        is_compiled: whether torch.compile makes code of blocks and decoder, at the first prediction, which then takes
            minutes.
        backbone_px: longer side of the copy that the backbone sees, in pixels, rounded to a multiple of its patches;
            the decoder sees all pixels. No image is enlarged. "full" is the image's own size, which alone is exact.

    Raises:
        TypeError: the model is something else.
        ConfigError: no such device, precision, tiles, limit or backbone_px.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None = None,
        precision: str = "float32",
        tile_px: int = TILE_PX,
        max_memory_gb: float | None = None,
        is_compiled: bool = False,
        backbone_px: int | str = "full",
    ) -> None:
        if not isinstance(model, ViTMatte):
            raise TypeError(f"expected a ViTMatte, got a {type(model).__name__}")
        check_tile(tile_px)
        if max_memory_gb is not None and not max_memory_gb > 0:
            raise ConfigError(f"expected a limit of memory above 0 GB, got {max_memory_gb}")
        if backbone_px != "full" and not (isinstance(backbone_px, int) and backbone_px > 0):
            raise ConfigError(f"backbone_px must be full or a number of pixels from 1, got {backbone_px!r}")
        self.device = model.device if device is None else choose_device(str(device))
        self.precision = choose_precision(precision, self.device)
        if self.device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # of the process: per call, threads would undo it for each other
        self.model = prepared(model, DTYPES[self.precision]).to(self.device)
        self.tile_px, self.max_memory_gb, self.backbone_px = tile_px, max_memory_gb, backbone_px
        self.name = f"{self.device}, {self.precision}{', compiled' if is_compiled else ''}"
        if is_compiled:
            for part in (*self.model.backbone.blocks, self.model.decoder):
                part.compile(dynamic=True)

    def alpha(self, image: Tensor, trimap: Tensor) -> Tensor:
        """See `Network.alpha`.

        Raises:
            MemoryLimitError: the images do not fit into `max_memory_gb`.
            DataError: see `decode_inputs`.
            UserError: weights or settings that give values that are not finite.
        """
        trimap = decode_inputs(image, trimap)
        if not (trimap == UNKNOWN).any():
            return trimap
        height, width = image.shape[-2:]
        tile_px, scale = self.tile_px, self.backbone_scale(height, width)
        if self.max_memory_gb is not None:
            tile_px = plan_tile(self.model, height, width, tile_px, self.max_memory_gb, len(image), scale)
        image, trimap = image.to(self.device), trimap.to(self.device)
        dtype = DTYPES[self.precision]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=self.precision != "float32"):
            alpha = alpha_by_tiles(self.model, self.model.network_input(image, trimap), tile_px, scale)
        if not alpha.isfinite().all():
            raise UserError("the network gives values that are not finite: its weights or settings cannot be used")
        return alpha[..., :height, :width]

    def backbone_scale(self, height: int, width: int) -> float:
        """Return the size of the copy of an image of these sides that the backbone sees, above 0 to 1."""
        if isinstance(self.backbone_px, str):  # "full"
            return 1.0
        stride = self.model.decoder.stride
        px = max(1, round(self.backbone_px / stride)) * stride
        return min(1.0, px / max(self.model.padded_size(height, width)))


class TiledEvaluation:
    """Evaluates a network during training as a `TorchNetwork` runs it: the decoder on tiles, in bounded memory.

    Args:
        tile_px: side of the tiles in pixels, at least 1. It changes memory and time, and alpha by rounding alone.

    Raises:
        ConfigError: a tile_px below 1.
    """

    def __init__(self, tile_px: int = TILE_PX) -> None:
        check_tile(tile_px)
        self.tile_px = tile_px

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a network with the same tensors that predicts by tiles in evaluation mode.

        Tiles are exact for this project's decoder alone: a network of another kind is returned as it is.
        """
        is_exact = isinstance(model, ViTMatte) and isinstance(model.decoder, DetailCapture)
        return _Tiled(model, self.tile_px) if is_exact else model


class _Tiled(nn.Module):
    """A `ViTMatte` whose decoder runs on tiles.

    It goes through the network's own `forward`, so that the hooks of a sharded network run, and makes one pass of the
    backbone for every batch: all processes must make equally many.
    """

    def __init__(self, model: nn.Module, tile_px: int) -> None:
        super().__init__()
        self.model = model
        self._compute = partial(alpha_by_tiles, tile_px=tile_px)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict as `ViTMatte` does in evaluation mode."""
        return self.model(batch, self._compute)


def alpha_by_tiles(model: Any, network_input: Tensor, tile_px: int, backbone_scale: float = 1.0) -> Tensor:
    """Run the backbone on the whole image, and the decoder on tiles that hold unknown pixels.

    Args:
        model: a `ViTMatte` in evaluation mode whose decoder is a `DetailCapture`. A backbone without the argument
            `query_mask` computes all features.
        network_input: (B, 4, H, W), see `ViTMatte.network_input`.
        tile_px: side of the tiles in pixels, at least 1.
        backbone_scale: see `ViTMatte.features`.

    Returns: (B, 1, H, W) alpha in [0, 1]; where the trimap is known, anything.
    """
    # The padding is known, so that its tokens are decoded for no one.
    is_needed = network_input[:, 3:] == UNKNOWN
    # A backbone of a user's own may give all features alone: to leave some out only saves time.
    query_mask = None
    if "query_mask" in inspect.signature(model.backbone.forward).parameters:
        query_mask = needed_tokens(is_needed, model.decoder.stride, HALO_TOKENS)
    features = model.features(network_input, query_mask, backbone_scale)
    return decode_tiled(model.decoder, features, network_input, is_needed, tile_px)


def check_tile(tile_px: int) -> None:
    """Raise a ConfigError where a tile's side is no whole number of at least 1 px."""
    if not isinstance(tile_px, int) or tile_px < 1:
        raise ConfigError(f"expected tiles of at least 1 px, got tile_px {tile_px}; {TILE_PX} is a good choice")


def prepared(model: ViTMatte, dtype: torch.dtype) -> Any:
    """Copy a network for evaluation.

    Each BatchNorm that follows a convolution becomes part of it. In bfloat16 the weights of convolutions and linear
    layers are rounded, once instead of at each call.
    """
    model = copy.deepcopy(model).eval()  # what is fused must be in evaluation mode
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, module), (next_name, following) in zip(children[:-1], children[1:], strict=True):
            if isinstance(module, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(module, following))
                setattr(parent, next_name, nn.Identity())
    if dtype != torch.float32:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
    return model.eval().requires_grad_(False)


def choose_precision(name: str, device: torch.device) -> str:
    """Find the precision of a name.

    Args:
        name: "float32", "bf16", or "auto": bf16 on CUDA from compute capability 8.0 on, float32 elsewhere.
        device: where the network runs.

    Returns: a key of `DTYPES`.

    Raises:
        ConfigError: there is no such precision.
    """
    if name == "auto":
        is_native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
        return "bf16" if is_native else "float32"
    if name not in DTYPES:
        raise ConfigError(f"precision must be auto, {' or '.join(DTYPES)}, got {name!r}")
    warn_of_emulation(name, device)
    return name
