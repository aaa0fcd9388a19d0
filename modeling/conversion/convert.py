"""Turn the tensors of a published vision transformer into the initial checkpoint of a matting network."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeling.backbone import DINOv2, ViT, ViTDet
from modeling.conversion.copies import take_copy
from modeling.conversion.dinov2 import fit_dinov2, resample_patches
from modeling.conversion.dinov3 import change_fate, count_blocks, fit_dinov3, plain
from modeling.conversion.errors import ConversionError
from modeling.conversion.layouts import ANCHORS, PATCH_WEIGHT, detect_layout, rename
from runtime.errors import few, list_mismatches

PATCH_PX = 16
"""Side of a patch: the decoder takes only feature maps at 1/16 of the image."""

DINOV2_PATCH_PX = 14
"""Side of a patch of the published DINOv2 networks, which is resampled."""

NETWORKS: dict[str, type[nn.Module]] = {"ViT": ViT, "ViTDet": ViTDet, "DINOv2": DINOv2}
"""Name in `Layout` and `Conversion` -> class that takes the weights."""

PREFERENCE = ("teacher", "", "EMA", "student", "gram teacher")
"""Copies of the network in the checkpoint of a run, the preferred one first; see `take_copy`."""

HEAD_WIDTH = 64
"""Width of a head in the published DINO and MAE transformers with 16 px patches."""

VITDET_SIZES = {192: ("vitt16", 12), 384: ("vits16", 12), 768: ("vitb16", 12), 1024: ("vitl16", 24)}
"""Width of a plain vision transformer -> its name and depth."""


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint and a report of the conversion.

    Attributes:
        model: parameter name with prefix "backbone." -> float32 tensor.
        layout: name of the input's layout.
        size: name of the published size, or "unlisted".
        network: key of `NETWORKS`, the class that takes the weights.
        vit_args: arguments of that class for these weights.
        copy: which copy of the network was taken, such as 'teacher, under "teacher.backbone."'; "" if there is one.
        account: every key of the input or added key -> what happened to it, "fate: detail". Keys of the network have no
            prefix and wrappers, other keys are as in the file.
    """

    model: dict[str, Tensor]
    layout: str
    size: str
    network: str
    vit_args: dict[str, Any]
    copy: str
    account: dict[str, str]


def convert(state: Mapping[str, Any], *, keep_prefix: bool = False, patch_px: int = PATCH_PX) -> Conversion:
    """Convert the state dict of a DINOv3, DINOv2, DINO or MAE vision transformer, of any layout.

    Args:
        state: parameters by name, or a run's checkpoint around them.
        keep_prefix: keep DINOv3's cls and storage tokens; the recipe of the report drops them. DINOv2's always stay.
        patch_px: side of a patch of the result; 14 leaves DINOv2's as they are, which no decoder takes.

    Raises:
        ConversionError: naming the keys that are unknown, missing, of a wrong shape or not finite.
    """
    account: dict[str, str] = {}
    copy = take_copy(state, ANCHORS, PREFERENCE, account)
    if copy is None:
        raise ConversionError(_no_transformer(account))
    layout = detect_layout(copy.tensors)
    tensors = rename(copy.tensors, layout, account)
    _join_qkv(tensors)
    sides = {PATCH_PX, DINOV2_PATCH_PX} if layout.network == "DINOv2" else {PATCH_PX}
    _check_patch(tensors, sides)
    if patch_px not in sides:
        raise ConversionError(f"patches of {patch_px} px: the {layout.name} layout is converted to 16 px alone")
    resampled = ""
    if layout.network == "ViT":
        size, vit_args = fit_dinov3(tensors, layout.name, account)
        vit_args["keep_prefix_tokens"] = keep_prefix
        if not keep_prefix:
            for name in ("cls_token", "storage_tokens"):
                tensors.pop(name, None)
                change_fate(account, name, "dropped: prefix token, kept by --keep-prefix")
    elif layout.network == "DINOv2":
        size, vit_args = fit_dinov2(tensors, layout.name, account)
        resampled = resample_patches(tensors, patch_px)
        if patch_px != PATCH_PX:
            vit_args["patch_size"] = patch_px
    elif keep_prefix:
        raise ConversionError(f"{layout.name}: the backbone of these weights, ViTDet, takes no prefix tokens to keep")
    else:
        size, vit_args = _fit_vitdet(tensors)
    weight = tensors[PATCH_WEIGHT]
    tensors[PATCH_WEIGHT] = torch.cat((weight, torch.zeros_like(weight[:, :1])), dim=1)
    change_fate(account, PATCH_WEIGHT, f"inflated: {PATCH_WEIGHT}, fourth channel zero{resampled}")
    check_fit(tensors, layout.network, vit_args)
    model = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    taken = ", ".join(filter(None, (copy.kind, f'under "{copy.prefix}"' if copy.prefix else "")))
    return Conversion(model, layout.name, size, layout.network, vit_args, taken, account)


def _no_transformer(account: Mapping[str, str]) -> str:
    """Describe a file that holds no vision transformer."""
    names = list(account)
    if any(".stages." in f".{name}" or "downsample_layers." in name for name in names):
        return "this is a ConvNeXt: only the vision transformers of DINOv3 can be converted"
    if any("flat_param" in name for name in names):
        return "the parameters are FSDP's flat ones: save a full state dict"
    if any(f"{name}".startswith("decoder.") for name in names):
        return "this is a whole network with a decoder: tools/export.py converts published ViTMattes"
    return (
        f"this is no vision transformer: expected a key {' or '.join(ANCHORS)}, found {len(names)} keys: {few(names)}"
    )


def _join_qkv(tensors: dict[str, Tensor]) -> None:
    """Join query, key and value into one tensor; a missing key bias is zero."""
    for name in {key.split("#")[0] for key in tensors if "#" in key}:
        thirds = [tensors.pop(f"{name}#{part}", None) for part in range(3)]
        if name.endswith("bias") and thirds[0] is not None and thirds[1] is None:
            thirds[1] = torch.zeros_like(thirds[0])
        missing = [part for part, third in zip(("query", "key", "value"), thirds, strict=True) if third is None]
        if missing:
            raise ConversionError(f"{name}: the {' and '.join(missing)} part is missing")
        parts = [third for third in thirds if third is not None]
        if len({part.shape for part in parts}) > 1 or not parts[0].dim():
            shapes = [tuple(part.shape) for part in parts]
            raise ConversionError(f"{name}: query, key and value must be of one shape, got {shapes}")
        tensors[name] = torch.cat(parts)


def _check_patch(tensors: Mapping[str, Tensor], sides: Collection[int]) -> None:
    """Raise a ConversionError if the patches have other sides in pixels."""
    name, shape = PATCH_WEIGHT, tuple(tensors[PATCH_WEIGHT].shape)
    if len(shape) != 4:
        raise ConversionError(f"{name} has not 4 dimensions: the size cannot be told")
    if shape[1] != 3:
        raise ConversionError(
            f"{name}: expected 3 input channels, got {shape[1]} (converted already? Name it by train.init_checkpoint)"
        )
    if shape[2] != shape[3] or shape[2] not in sides:
        raise ConversionError(
            f"{name}: patches of {shape[2]} x {shape[3]} px cannot be used, the decoder takes maps at 1/{PATCH_PX} of "
            f"the image: take the weights of a network with {PATCH_PX} px patches"
        )


def _fit_vitdet(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Find the `ViTDet` that a plain vision transformer matches.

    Returns: name of the size, and arguments of `ViTDet`.

    Raises:
        ConversionError: the shapes do not determine it, or the positions are not those of a square and a cls token.
    """
    embed_dim = len(tensors[PATCH_WEIGHT])
    positions, first = tensors["pos_embed"], tensors.get("blocks.0.mlp.fc1.weight", torch.empty(0))
    count = positions.shape[1] - 1 if positions.dim() == 3 else 0
    side = round(count**0.5)
    if count < 1 or side * side != count:
        raise ConversionError(
            f"pos_embed {tuple(positions.shape)}: expected (1, 1 + n * n, D), for a cls token and a square grid"
        )
    if first.dim() != 2:
        raise ConversionError("blocks.0.mlp.fc1.weight is missing or has not 2 dimensions: the size cannot be told")
    if embed_dim % HEAD_WIDTH:
        raise ConversionError(f"width {embed_dim} is no multiple of {HEAD_WIDTH}, the width of a head of DINO and MAE")
    depth = count_blocks(tensors)
    size, published = VITDET_SIZES.get(embed_dim, ("unlisted", depth))
    if depth != published:
        raise ConversionError(f"the width is that of {size}, which has {published} blocks, not {depth}")
    vit_args = dict(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // HEAD_WIDTH,
        mlp_ratio=len(first) / embed_dim,
        pretrain_image_size=side * PATCH_PX,
    )
    return size, vit_args


def check_fit(tensors: Mapping[str, Tensor], network: str, vit_args: Mapping[str, Any]) -> None:
    """Check that names and shapes match the network, and load them once.

    Args:
        tensors: name without "backbone." -> tensor.
        network: key of `NETWORKS`; ViTDet's relative positions may be missing and start fresh.
        vit_args: its arguments.

    Raises:
        ConversionError: naming what is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        vit = NETWORKS[network](**plain(vit_args))
    own = vit.state_dict()
    if mismatches := list_mismatches(tensors, {name: own[name] for name in own if ".rel_pos_" not in name}):
        raise ConversionError(f"the checkpoint does not fit the network: {'; '.join(mismatches)}")
    relative = {name: tensor for name, tensor in own.items() if ".rel_pos_" in name}
    vit.load_state_dict(dict(tensors) | relative, strict=True, assign=True)
