"""Convert what only DINOv2's weights have: patches of 14 px, stored positions, a packed SwiGLU."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from torch import Tensor

from modeling.backbone import DINOV2_SIZES
from modeling.conversion.dinov3 import change_fate, count_blocks
from modeling.conversion.errors import ConversionError

HEAD_WIDTH = 64
"""Width of a head in every published size."""

POSITION_GRID_SIZE = 37
"""Default of `DINOv2`."""

PATCH_WEIGHT, POSITIONS, REGISTERS = "patch_embed.proj.weight", "pos_embed", "register_tokens"


def fit_dinov2(tensors: dict[str, Tensor], layout: str, account: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Complete the tensors of a DINOv2 network and find its size.

    Args:
        tensors: under the official names; a packed SwiGLU is split, and a missing position of the cls token added.
        layout: name of the layout that they come from.
        account: what became of each key of the input; changed with the tensors.

    Returns: key of `DINOV2_SIZES` or "unlisted", and arguments of `DINOv2`.

    Raises:
        ConversionError: the shapes do not determine the size, or the positions are not those of a square.
    """
    side = _complete_positions(tensors, account)
    size, vit_args = _detect_size(tensors, account)
    if REGISTERS in tensors:
        vit_args["num_register_tokens"] = tensors[REGISTERS].shape[1]
    if side != POSITION_GRID_SIZE:
        vit_args["position_grid_size"] = side
    # timm smooths the positions of every network. Official files differ from timm's by their mask token.
    is_timm = layout == "DINOv2" and "mask_token" not in account
    if REGISTERS in tensors or is_timm:
        vit_args["position_interpolation"] = "bicubic_antialias"
    return size, vit_args


def resample_patches(tensors: dict[str, Tensor], patch_px: int) -> str:
    """Resample the patch embedding, so that an enlarged patch gives the same output (arXiv:2212.08013).

    Returns: a note for the account; "" if it had that size.
    """
    weight = tensors[PATCH_WEIGHT]
    if len(weight[0, 0]) == patch_px:
        return ""
    tensors[PATCH_WEIGHT] = resample_patch_embed(weight, [patch_px, patch_px])
    return f", patches resampled from {len(weight[0, 0])} to {patch_px} px"


def _complete_positions(tensors: dict[str, Tensor], account: dict[str, str]) -> int:
    """Add a zero position for the cls token if it is missing, and return the side of the grid in patches."""
    positions = tensors.get(POSITIONS, torch.empty(0))
    count = positions.shape[1] if positions.dim() == 3 else 0
    if (side := math.isqrt(count)) ** 2 == count > 0:
        tensors[POSITIONS] = F.pad(positions, (0, 0, 1, 0))
        change_fate(account, POSITIONS, f"converted: {POSITIONS}, with a zero for the cls token, which holds its own")
    elif (side := math.isqrt(max(count - 1, 0))) ** 2 != count - 1:
        raise ConversionError(
            f"{POSITIONS} {tuple(positions.shape)}: expected (1, 1 + n * n, D), for a cls token and a square grid"
        )
    return side


def _detect_size(tensors: dict[str, Tensor], account: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Find the published size of the shapes, and split the SwiGLUs of a gated network."""
    first, second = (tensors.get(f"blocks.0.mlp.{name}.weight", torch.empty(0)) for name in ("fc1", "fc2"))
    if first.dim() != 2 or second.dim() != 2:
        raise ConversionError("the feed-forward weights of block 0 are missing or have not 2 dimensions")
    embed_dim, hidden_dim = len(tensors[PATCH_WEIGHT]), second.shape[1]
    if embed_dim % HEAD_WIDTH:
        raise ConversionError(f"width {embed_dim} is no multiple of {HEAD_WIDTH}, the width of a head of DINOv2")
    depth = count_blocks(tensors)
    is_gated = len(first) == 2 * hidden_dim
    if is_gated:
        _split_swiglu(tensors, account)
    for size, args in DINOV2_SIZES.items():
        if args["embed_dim"] == embed_dim:
            if depth != args["depth"]:
                raise ConversionError(f"the width is that of {size}, which has {args['depth']} blocks, not {depth}")
            return size, dict(args)
    args = dict(embed_dim=embed_dim, depth=depth, num_heads=embed_dim // HEAD_WIDTH)
    if is_gated:
        return "unlisted", args | dict(ffn_layer="swiglu", mlp_ratio=1.5 * hidden_dim / embed_dim)
    return "unlisted", args | dict(mlp_ratio=hidden_dim / embed_dim)


def _split_swiglu(tensors: dict[str, Tensor], account: dict[str, str]) -> None:
    """Split the packed first layer of each gated feed-forward network: gate, then value."""
    for name in [name for name in tensors if ".mlp.fc1." in name]:
        gate, value = (name.replace(".fc1.", part) for part in (".w1.", ".w2."))
        tensors[gate], tensors[value] = tensors.pop(name).chunk(2)
        change_fate(account, name, f"converted: {gate} and {value}")
    for name in [name for name in tensors if ".mlp.fc2." in name]:
        closing = name.replace(".fc2.", ".w3.")
        tensors[closing] = tensors.pop(name)
        change_fate(account, name, f"converted: {closing}")
