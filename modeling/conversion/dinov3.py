"""Convert what only DINOv3's weights have: a masked key bias, their published sizes, rope periods."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modeling.backbone import DINOV3_SIZES, ViT
from modeling.conversion.errors import ConversionError

PERIODS = "rope_embed.periods"


def plain(vit_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a ViT with the tensors of DINOv3 and none of ViTMatte."""
    return dict(vit_args) | dict(global_block_indexes=range(vit_args["depth"]), conv_residual_block_indexes=())


def fit_dinov3(tensors: dict[str, Tensor], layout: str, account: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Complete the tensors of a DINOv3 network and find its size.

    Args:
        tensors: under the official names; masks are applied, and tensors that a layout does not store are added.
        layout: name of the layout that they come from.
        account: receives what is added and what happens to the masks.

    Returns: key of `DINOV3_SIZES` or "unlisted", and arguments of `ViT`.

    Raises:
        ConversionError: a key bias that is not zero, or shapes that do not determine the size.
    """
    _fold_bias_mask(tensors, account)
    size, vit_args = detect_size(tensors)
    if layout == "timm" and vit_args.get("qkv_bias", True) and not _has_qkv_bias(tensors):
        for index in range(vit_args["depth"]):
            name = f"blocks.{index}.attn.qkv.bias"
            tensors[name] = torch.zeros(3 * vit_args["embed_dim"])
            account[name] = "added: zeros, timm's models without qkvb leave it out"
    if PERIODS not in tensors:
        periods = ViT(**plain(vit_args | {"depth": 1})).rope_embed.periods
        tensors[PERIODS] = periods.bfloat16().float()
        account[PERIODS] = f"added: computed and rounded to bfloat16 as in official files; not in the {layout} layout"
    return size, vit_args


def change_fate(account: dict[str, str], name: str, fate: str) -> None:
    """Update the account of the input key that was converted to a name."""
    account |= {key: fate for key, old in account.items() if old == f"converted: {name}"}


def _fold_bias_mask(tensors: dict[str, Tensor], account: dict[str, str]) -> None:
    """Multiply each qkv bias by its stored mask and check that no key bias is left."""
    for name in [key for key in tensors if key.endswith("qkv.bias_mask")]:
        mask, bias = tensors.pop(name), name.removesuffix("_mask")
        if bias not in tensors or tensors[bias].shape != mask.shape:
            raise ConversionError(f"{name} has no {bias} of the same shape")
        tensors[bias] = tensors[bias] * mask
        change_fate(account, name, f"converted: folded into {bias}")
    for name in [key for key in tensors if key.endswith("qkv.bias")]:
        values = tensors[name].flatten()
        key_third = values[len(values) // 3 : 2 * len(values) // 3]
        if key_third.any():
            raise ConversionError(
                f"{name}: the key third must be zero, as DINOv3 is trained; largest value {key_third.abs().max():.3g}"
            )


def _has_qkv_bias(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("qkv.bias") for name in tensors)


def count_blocks(tensors: Mapping[str, Tensor]) -> int:
    """Count the blocks and check that none is missing.

    Raises:
        ConversionError: one before the last is missing.
    """
    found = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    missing = next(index for index in range(len(found) + 1) if index not in found)
    if missing < len(found):
        raise ConversionError(f"missing blocks.{missing}, but there is blocks.{max(found)}: the file is not complete")
    return len(found)


def detect_size(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Find the published size of the shapes, or describe an unlisted one by its stored periods.

    Returns: key of `DINOV3_SIZES` or "unlisted", and arguments of `ViT`.

    Raises:
        ConversionError: the shapes contradict each other or do not determine the size.
    """
    ffn = "swiglu" if "blocks.0.mlp.w1.weight" in tensors else "mlp"
    first = "blocks.0.mlp.w1.weight" if ffn == "swiglu" else "blocks.0.mlp.fc1.weight"
    for name, dims in {"patch_embed.proj.weight": 4, first: 2}.items():
        if name not in tensors or tensors[name].dim() != dims:
            raise ConversionError(f"{name} is missing or has not {dims} dimensions: the size cannot be told")
    storage_tokens = tensors.get("storage_tokens", torch.empty(1, 0, 1))
    if storage_tokens.dim() != 3:
        raise ConversionError("storage_tokens has not 3 dimensions: the size cannot be told")
    tokens = {} if (count := storage_tokens.shape[1]) == 4 else {"num_storage_tokens": count}
    embed_dim = len(tensors["patch_embed.proj.weight"])
    hidden_dim = len(tensors[first])
    depth = count_blocks(tensors)
    for size, args in DINOV3_SIZES.items():
        with torch.device("meta"):
            template = ViT(**plain(args | {"depth": 1})).state_dict()
        same_ffn = first in template and len(template[first]) == hidden_dim
        if same_ffn and embed_dim == args["embed_dim"]:
            if depth != args["depth"]:
                raise ConversionError(f"the widths are those of {size}, which has {args['depth']} blocks, not {depth}")
            return size, dict(args) | tokens
    if PERIODS not in tensors:
        raise ConversionError(
            f"width {embed_dim}, depth {depth}, {ffn} of {hidden_dim} is no published DINOv3 size, and without "
            f"{PERIODS} the number of heads cannot be told"
        )
    num_periods = tensors[PERIODS].numel()
    if not num_periods or embed_dim % (4 * num_periods):
        raise ConversionError(f"{PERIODS}: {num_periods} periods fit no head width that divides {embed_dim}")
    args = dict(embed_dim=embed_dim, depth=depth, num_heads=embed_dim // (4 * num_periods), ffn_layer=ffn)
    args |= _ffn_args(ffn, hidden_dim, embed_dim) | tokens
    return "unlisted", args if _has_qkv_bias(tensors) else args | {"qkv_bias": False}


def _ffn_args(ffn: str, hidden_dim: int, embed_dim: int) -> dict[str, Any]:
    """Return arguments of `ViT` for a hidden width; see `build_ffn`."""
    if ffn == "mlp":
        return {"mlp_ratio": hidden_dim / embed_dim}
    if hidden_dim % 8:  # half a unit keeps rounding on the right side
        return {"mlp_ratio": 1.5 * (hidden_dim + 0.5) / embed_dim, "ffn_align": 1}
    return {"mlp_ratio": 1.5 * hidden_dim / embed_dim}
