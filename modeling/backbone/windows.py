"""Cut a patch grid into windows; a ragged grid has narrower windows at its right and lower edge, never padding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _spans(length: int, window: int) -> list[tuple[int, int, int]]:
    """List (start, stop, window length) of the complete windows, then of the ragged rest, along one axis."""
    whole = length - length % window
    return [span for span in ((0, whole, window), (whole, length, length - whole)) if span[0] < span[1]]


def partition(x: Tensor, window_h: int, window_w: int) -> Tensor:
    """Cut (B, H, W, C), sides multiples of the window, into (B * windows, window_h * window_w, C), in row order."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // window_h, window_h, W // window_w, window_w, C)
    return x.transpose(2, 3).reshape(-1, window_h * window_w, C)


def unpartition(windows: Tensor, window_h: int, window_w: int, H: int, W: int) -> Tensor:
    """Undo `partition`: (B * windows, window_h * window_w, C) -> (B, H, W, C)."""
    C = windows.shape[-1]
    x = windows.reshape(-1, H // window_h, W // window_w, window_h, window_w, C)
    return x.transpose(2, 3).reshape(-1, H, W, C)


def map_windows(function: Callable[..., Tensor], grids: Sequence[Tensor], window: int) -> Tensor:
    """Apply a function to every window of one grid or several and put the results back in place.

    Windows of one shape go through one call: a ragged grid takes up to four (whole, right, lower, corner), so that no
    padded token is ever computed or attended.

    Args:
        function: takes (B * windows, tokens, C) of each grid and gives (B * windows, tokens, C'); windows of one image
            lie side by side.
        grids: tensors (B, H, W, C).
        window: side of a window in patches.

    Returns: (B, H, W, C').
    """
    _, H, W, _ = grids[0].shape
    rows = []
    for top, bottom, window_h in _spans(H, window):
        row = []
        for left, right, window_w in _spans(W, window):
            mapped = function(*(partition(x[:, top:bottom, left:right], window_h, window_w) for x in grids))
            row.append(unpartition(mapped, window_h, window_w, bottom - top, right - left))
        rows.append(torch.cat(row, dim=2) if len(row) > 1 else row[0])
    return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
