"""Exact tiled decoding: the decoder on parts of an image, where its memory goes, with the alpha of the whole.

A tile is cut with a halo of tokens around it, but never beyond the image, whose true borders the convolutions must see.

Why two tokens are enough, for any number of fusions: count cells of a map outwards from the tile, -1 being the first
cell outside it. The cut falsifies token -3 and all beyond, so the enlarged map (bilinear, which reads one cell further)
from cell -4 on, and the fusion's 3x3 convolution of it from -3 on: the same again on the next finer map. At stride 1
the head's 3x3 brings it to pixel -2, outside the tile. The image's own stride-2 convolutions are false from cell -4 on
at every stride but the first, since the cut lies on a multiple of all strides.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALO_TOKENS = 2


class Box(NamedTuple):
    """Part of a grid, in its cells; `bottom` and `right` are the first outside."""

    top: int
    bottom: int
    left: int
    right: int

    def widened(self, margin: int, height: int, width: int) -> "Box":
        """The box with a margin on each side, as far as the grid goes."""
        return Box(
            max(self.top - margin, 0),
            min(self.bottom + margin, height),
            max(self.left - margin, 0),
            min(self.right + margin, width),
        )

    def slices(self, stride: int = 1) -> tuple[slice, slice]:
        """Rows and columns of the box in a map with `stride` times as many cells."""
        return slice(self.top * stride, self.bottom * stride), slice(self.left * stride, self.right * stride)


def decode_tiled(
    decoder: nn.Module,
    features: Tensor,
    network_input: Tensor,
    is_needed: Tensor,
    tile_px: int,
    halo_tokens: int = HALO_TOKENS,
) -> Tensor:
    """Decode tile by tile; only tiles with a needed pixel, and of those only the part around needed pixels.

    Args:
        decoder: a `DetailCapture` in evaluation mode; in training, BatchNorm would see each tile for itself.
        features: (B, D, h, w) from the backbone.
        network_input: (B, 4, H, W), sides that many whole tokens as `features` has.
        is_needed: (B, 1, H, W) bool, where alpha is asked for.
        tile_px: side of a tile without halo, rounded down to whole tokens, at least one.
        halo_tokens: around a tile. Fewer than `HALO_TOKENS` change alpha, more change nothing.

    Returns: (B, 1, H, W) alpha in [0, 1], at needed pixels that of `decoder(features, network_input)` up to rounding;
        elsewhere that too or 0.
    """
    height, width = features.shape[-2:]
    stride = network_input.shape[-1] // width
    shape = (len(network_input), 1, *network_input.shape[-2:])
    alpha = network_input.new_zeros(shape, dtype=torch.promote_types(network_input.dtype, torch.float32))
    for box in needed_boxes(needed_tokens(is_needed, stride).cpu(), max(tile_px // stride, 1)):
        cut = box.widened(halo_tokens, height, width)
        decoded = decoder(features[..., *cut.slices()], network_input[..., *cut.slices(stride)])
        inner = Box(box.top - cut.top, box.bottom - cut.top, box.left - cut.left, box.right - cut.left)
        alpha[..., *box.slices(stride)] = decoded[..., *inner.slices(stride)]
    return alpha


def needed_tokens(is_needed: Tensor, stride: int, halo_tokens: int = 0) -> Tensor:
    """Find the tokens that hold a needed pixel of any image, and those within a halo of these.

    With `HALO_TOKENS`, these are the tokens whose features the needed pixels depend on.

    Args:
        is_needed: (B, 1, H, W) bool.
        stride: side of a token in pixels.

    Returns: (H / stride, W / stride) bool.
    """
    tokens = F.max_pool2d(is_needed.to(torch.float32), stride).amax(dim=0, keepdim=True)
    return F.max_pool2d(tokens, 2 * halo_tokens + 1, stride=1, padding=halo_tokens)[0, 0] > 0


def needed_boxes(is_needed: Tensor, tile: int) -> Iterator[Box]:
    """Cut a grid into tiles and yield, of each that has a needed cell, the bounding box of these.

    Args:
        is_needed: (h, w) bool.
        tile: side of a tile in cells; the last ones may be smaller.
    """
    for top in range(0, is_needed.shape[0], tile):
        for left in range(0, is_needed.shape[1], tile):
            cells = is_needed[top : top + tile, left : left + tile].nonzero()
            if len(cells):
                (first_row, first_column), (last_row, last_column) = cells.amin(0).tolist(), cells.amax(0).tolist()
                yield Box(top + first_row, top + last_row + 1, left + first_column, left + last_column + 1)
