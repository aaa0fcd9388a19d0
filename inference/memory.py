"""How much memory a prediction takes: an estimate, and the largest tiles that a limit allows."""

import gc
import math
import mmap
import sys
from pathlib import Path
from typing import Any

import torch

from inference.tiling import HALO_TOKENS
from modeling import ViTMatte
from modeling.backbone.layers import PIECE_TOKENS
from runtime.errors import UserError
from runtime.threads import release_unused

GB = 1e9

SMALLEST_TILE_PX = 64
"""With its halo such a tile takes a fourth of the memory of one of 256 px; smaller ones save next to nothing."""

PIXEL_BYTES = 48
"""Of the whole image: its colours, trimap and known pixels, and the network's input twice over."""

TOKEN_FLOATS = 8
"""Of the whole grid, times the width: a block's input and output, its norm, queries, keys, values, attended values."""

PIECE_FLOATS = 12
"""Of the tokens that pass an MLP at once, times the width: three tensors of its hidden width."""

WORKSPACE_BYTES = 2**27
"""Of attention's pieces and of the libraries."""


class MemoryLimitError(UserError):
    """A prediction that does not fit into the memory it may take; the message gives the estimate."""


def estimate_bytes(
    model: ViTMatte, height: int, width: int, tile_px: int, batch_size: int = 1, backbone_scale: float = 1.0
) -> int:
    """Estimate what a prediction takes at its peak beyond the loaded network, from above (test_inference_memory.py).

    In bfloat16 it is less. The size of what is unknown is not looked at.

    Args:
        model: one of the project's backbones and a `DetailCapture`.
        height: of the image, in pixels.
        width: of the image, in pixels.
        tile_px: side of the decoder's tiles.
        batch_size: number of such images that go through the network together.
        backbone_scale: size of the copy that the backbone sees.
    """
    decoder: Any = model.decoder
    backbone: Any = model.backbone
    stride, embed_dim = decoder.stride, backbone.embed_dim
    height, width = model.padded_size(height, width)
    num_tokens = (height // stride) * (width // stride)
    features_bytes = 4 * embed_dim * num_tokens
    backbone_tokens = math.ceil(backbone_scale**2 * num_tokens)
    backbone_floats = TOKEN_FLOATS * backbone_tokens + PIECE_FLOATS * min(backbone_tokens, PIECE_TOKENS)
    backbone_bytes = 4 * embed_dim * backbone_floats + (features_bytes if backbone_scale < 1 else 0)
    side_px = max(tile_px // stride, 1) * stride + 2 * HALO_TOKENS * stride
    tile_bytes = min(side_px, height) * min(side_px, width) * _decoder_bytes_per_pixel(decoder)
    whole_bytes = PIXEL_BYTES * height * width
    return round(WORKSPACE_BYTES + batch_size * (whole_bytes + max(backbone_bytes, features_bytes + tile_bytes)))


def _decoder_bytes_per_pixel(decoder: Any) -> float:
    """The largest fusion: both inputs, joined, and the output; beside it the stream's maps."""
    stream = sum(conv.conv.out_channels / 4 ** (level + 1) for level, conv in enumerate(decoder.convstream.convs))
    num_fusions = len(decoder.fusion_blks)
    fusions = [
        (2 * fusion.conv.conv.in_channels + fusion.conv.conv.out_channels) / 4 ** (num_fusions - 1 - level)
        for level, fusion in enumerate(decoder.fusion_blks)
    ]
    return 4 * (stream + max(fusions))


def used_bytes(device: torch.device) -> int:
    """Tell what is in use: of a CUDA device what torch has allocated, else this process's resident memory.

    What the last prediction has left unused is given back to the system first, where the C library can (glibc). Where
    the system does not tell what is resident (macOS), it is the most that ever was.

    Raises:
        MemoryLimitError: on Windows, where Python's own modules do not tell it.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "win32":
        raise MemoryLimitError("Python on Windows does not tell how much memory is in use: set no limit of memory")
    gc.collect()
    release_unused()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * mmap.PAGESIZE
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plan_tile(
    model: ViTMatte,
    height: int,
    width: int,
    tile_px: int,
    limit_gb: float,
    batch_size: int = 1,
    backbone_scale: float = 1.0,
) -> int:
    """Choose the tile with which a prediction stays within a limit.

    Args:
        model: see `estimate_bytes`.
        height: of the image, in pixels.
        width: of the image, in pixels.
        tile_px: the largest tile to choose; it is halved as far as needed, to `SMALLEST_TILE_PX`.
        limit_gb: of all that is then in use (see `used_bytes`), in units of 1e9 bytes.
        batch_size, backbone_scale: see `estimate_bytes`.

    Returns: side of the tiles in pixels.

    Raises:
        MemoryLimitError: the image does not fit; see also `used_bytes`.
    """
    used = used_bytes(model.device)
    while True:
        estimate = estimate_bytes(model, height, width, tile_px, batch_size, backbone_scale)
        if used + estimate <= limit_gb * GB:
            return tile_px
        if tile_px <= SMALLEST_TILE_PX:
            several = f"{batch_size} images of " if batch_size > 1 else ""
            raise MemoryLimitError(
                f"{several}{width} x {height} px need an estimated {estimate / GB:.2f} GB beside the "
                f"{used / GB:.2f} GB in use, more than the {limit_gb:g} GB allowed: reduce the image, or raise "
                "the limit"
            )
        tile_px = max(tile_px // 2, SMALLEST_TILE_PX)
