"""Exact tiled decoding: the decoder on parts of an image, where its memory goes, with the alpha of the whole.

A tile is cut with a halo of tokens around it, but never beyond the image, whose true borders the convolutions must see.

Why two tokens are enough, for any number of fusions: count cells of a map outwards from the tile, -1 being the first
cell outside it. The cut falsifies token -3 and all beyond, so the enlarged map (bilinear, which reads one cell further)
from cell -4 on, and the fusion's 3x3 convolution of it from -3 on: the same again on the next finer map. At stride 1
the head's 3x3 brings it to pixel -2, outside the tile. The image's own stride-2 convolutions are false from cell -4 on
at every stride but the first, since the cut lies on a multiple of all strides.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALO_TOKENS = 2


def decode_tiled(
    decoder: nn.Module,
    features: Tensor,
    network_input: Tensor,
    is_needed: Tensor,
    tile_px: int,
) -> Tensor:
    """Decode only tiles with a needed pixel, and of each only the part around its needed pixels.

    Args:
        decoder: a `DetailCapture` in evaluation mode; in training, BatchNorm would see each tile for itself.
        features: (B, D, h, w) from the backbone.
        network_input: (B, 4, H, W), sides that many whole tokens as `features` has.
        is_needed: (B, 1, H, W) bool, where alpha is asked for.
        tile_px: side of a tile without halo, rounded down to whole tokens, at least one.

    Returns: (B, 1, H, W) alpha in [0, 1], at needed pixels that of `decoder(features, network_input)` up to rounding;
        elsewhere that too or 0.
    """
    height, width = features.shape[-2:]
    stride = network_input.shape[-1] // width
    shape = (len(network_input), 1, *network_input.shape[-2:])
    alpha = network_input.new_zeros(shape, dtype=torch.promote_types(network_input.dtype, torch.float32))
    for top, bottom, left, right in needed_boxes(needed_tokens(is_needed, stride).cpu(), max(tile_px // stride, 1)):
        first, last = max(top - HALO_TOKENS, 0), min(bottom + HALO_TOKENS, height)
        start, end = max(left - HALO_TOKENS, 0), min(right + HALO_TOKENS, width)
        cut = network_input[..., first * stride : last * stride, start * stride : end * stride]
        decoded = decoder(features[..., first:last, start:end], cut)
        rows = slice((top - first) * stride, (bottom - first) * stride)
        columns = slice((left - start) * stride, (right - start) * stride)
        alpha[..., top * stride : bottom * stride, left * stride : right * stride] = decoded[..., rows, columns]
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


def needed_boxes(is_needed: Tensor, tile: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a grid into tiles and yield the bounding box of the needed cells of each tile that has any.

    Args:
        is_needed: (h, w) bool.
        tile: side of a tile in cells; the last ones may be smaller.

    Yields: top, bottom, left and right in cells; bottom and right are the first outside.
    """
    for top in range(0, is_needed.shape[0], tile):
        for left in range(0, is_needed.shape[1], tile):
            cells = is_needed[top : top + tile, left : left + tile].nonzero()
            if len(cells):
                (first_row, first_column), (last_row, last_column) = cells.amin(0).tolist(), cells.amax(0).tolist()
                yield top + first_row, top + last_row + 1, left + first_column, left + last_column + 1
