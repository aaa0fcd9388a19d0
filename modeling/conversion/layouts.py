"""The layouts of published vision transformers: how to detect each, and how to rename its tensors."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modeling.conversion.errors import ConversionError
from runtime.errors import few

BLOCK = r"(blocks\.\d+)\."
LAYER = r"(?:model\.)?layer\.(\d+)\."  # transformers has "model." in memory and not in files
AFFINE = r"(weight|bias)"


BESIDE = {
    r"(head|heads|classifier|fc|linear_head|linear)\..*": "classification head",
    r"(fc_norm|head_norm|pooler)\..*": "of a classification head",
    r"n_averaged": "how many weights were averaged",
}
PRETRAINING_ONLY = {
    r"mask_token": "used in pre-training only",
    r"(local_)?cls_norm\..*": "norm of cls and storage tokens after the last block, which matting does not read",
    r"(dino|ibot)_head\..*": "projection head of pre-training",
}
WITHOUT_PREFIX = {
    r"(embeddings\.)?cls_token": "ViTDet has no cls token; its position is kept in pos_embed, and nobody reads it",
    r"(norm|layernorm)\..*": "ViTDet has no norm after the last block",
    r"decoder.*": "decoder of masked pre-training",
    r"(embeddings\.)?mask(ed)?_(token|embed)": "used in pre-training only",
}
NOT_IN_VITDET = {
    r".*\.gamma_[12]": "LayerScale without the names of DINOv2",
    r"(embeddings\.)?(reg_token|register_tokens|dist_token|distillation_token)": "register or distillation tokens",
}

SHARED_NAMES = {
    rf"patch_embed\.proj\.{AFFINE}": r"patch_embed.proj.\1",
    rf"{BLOCK}(norm[12]|attn\.proj|mlp\.fc[12])\.{AFFINE}": r"\1.\2.\3",
    rf"{BLOCK}attn\.qkv\.weight": r"\1.attn.qkv.weight",
}
DINOV3_NAMES = SHARED_NAMES | {r"cls_token": "cls_token", rf"norm\.{AFFINE}": r"norm.\1"}
PATCH_WEIGHT = "patch_embed.proj.weight"

# transformers' names of DINOv2 and of the plain ViT.
TRANSFORMERS_NAMES = {
    r"embeddings\.position_embeddings": "pos_embed",
    rf"embeddings\.patch_embeddings\.projection\.{AFFINE}": r"patch_embed.proj.\1",
    rf"encoder\.layer\.(\d+)\.attention\.attention\.query\.{AFFINE}": r"blocks.\1.attn.qkv.\2#0",
    rf"encoder\.layer\.(\d+)\.attention\.attention\.key\.{AFFINE}": r"blocks.\1.attn.qkv.\2#1",
    rf"encoder\.layer\.(\d+)\.attention\.attention\.value\.{AFFINE}": r"blocks.\1.attn.qkv.\2#2",
    rf"encoder\.layer\.(\d+)\.attention\.output\.dense\.{AFFINE}": r"blocks.\1.attn.proj.\2",
}
TRANSFORMERS_PATCH_WEIGHT = "embeddings.patch_embeddings.projection.weight"


class Layout(NamedTuple):
    """One way of naming the tensors of a vision transformer.

    Attributes:
        name: name in messages.
        signature: patterns; a file of this layout has a name for at least one.
        names: pattern of a name -> name in the network; "#0", "#1" or "#2" at the end marks the query, key or value
            third.
        network: the class that takes the converted weights: "ViT", which has RoPE, "DINOv2" or "ViTDet".
        patch_weight: name of the patch embedding's weight.
        dropped: pattern of a name -> why the network does not take it.
        refused: pattern of a name -> what it is; without it the network would compute something else.
    """

    name: str
    signature: tuple[str, ...]
    names: Mapping[str, str]
    network: str = "ViT"
    patch_weight: str = PATCH_WEIGHT
    dropped: Mapping[str, str] = PRETRAINING_ONLY | BESIDE
    refused: Mapping[str, str] = {}


# The first match is taken: DINOv3's official files before DINOv2's, which have no name of their own, and those before
# plain transformers.
LAYOUTS = (
    Layout(
        name="official",
        signature=(r"storage_tokens", r"rope_embed\.periods"),
        names=DINOV3_NAMES
        | {
            r"storage_tokens": "storage_tokens",
            r"rope_embed\.periods": "rope_embed.periods",
            rf"{BLOCK}attn\.qkv\.(bias|bias_mask)": r"\1.attn.qkv.\2",
            rf"{BLOCK}ls([12])\.gamma": r"\1.ls\2.gamma",
            rf"{BLOCK}mlp\.(w[123])\.{AFFINE}": r"\1.mlp.\2.\3",
        },
    ),
    # The official files and timm's.
    Layout(
        name="DINOv2",
        network="DINOv2",
        signature=(r"blocks\.0\.ls1\.gamma",),
        names=DINOV3_NAMES
        | {
            r"pos_embed": "pos_embed",
            r"register_tokens|reg_token": "register_tokens",
            rf"{BLOCK}attn\.qkv\.bias": r"\1.attn.qkv.bias",
            rf"{BLOCK}ls([12])\.gamma": r"\1.ls\2.gamma",
            rf"{BLOCK}mlp\.w12\.{AFFINE}": r"\1.mlp.fc1.\2",
            rf"{BLOCK}mlp\.w3\.{AFFINE}": r"\1.mlp.fc2.\2",
        },
    ),
    Layout(
        name="transformers DINOv2",
        network="DINOv2",
        patch_weight=TRANSFORMERS_PATCH_WEIGHT,
        signature=(r"encoder\.layer\.0\.layer_scale1\.lambda1",),
        names=TRANSFORMERS_NAMES
        | {
            r"embeddings\.cls_token": "cls_token",
            r"embeddings\.register_tokens": "register_tokens",
            r"embeddings\.mask_token": "mask_token",
            rf"layernorm\.{AFFINE}": r"norm.\1",
            rf"encoder\.layer\.(\d+)\.norm([12])\.{AFFINE}": r"blocks.\1.norm\2.\3",
            rf"encoder\.layer\.(\d+)\.mlp\.(?:fc1|weights_in)\.{AFFINE}": r"blocks.\1.mlp.fc1.\2",
            rf"encoder\.layer\.(\d+)\.mlp\.(?:fc2|weights_out)\.{AFFINE}": r"blocks.\1.mlp.fc2.\2",
            r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
        },
    ),
    Layout(
        name="plain ViT",
        network="ViTDet",
        signature=("pos_embed",),
        names=SHARED_NAMES | {r"pos_embed": "pos_embed", rf"{BLOCK}attn\.qkv\.bias": r"\1.attn.qkv.bias"},
        dropped=BESIDE | WITHOUT_PREFIX,
        refused=NOT_IN_VITDET,
    ),
    Layout(
        name="transformers ViT",
        network="ViTDet",
        patch_weight=TRANSFORMERS_PATCH_WEIGHT,
        signature=(r"embeddings\.position_embeddings",),
        names=TRANSFORMERS_NAMES
        | {
            rf"encoder\.layer\.(\d+)\.layernorm_before\.{AFFINE}": r"blocks.\1.norm1.\2",
            rf"encoder\.layer\.(\d+)\.layernorm_after\.{AFFINE}": r"blocks.\1.norm2.\2",
            rf"encoder\.layer\.(\d+)\.intermediate\.dense\.{AFFINE}": r"blocks.\1.mlp.fc1.\2",
            rf"encoder\.layer\.(\d+)\.output\.dense\.{AFFINE}": r"blocks.\1.mlp.fc2.\2",
        },
        dropped=BESIDE | WITHOUT_PREFIX,
        refused=NOT_IN_VITDET,
    ),
    Layout(
        name="timm",
        signature=(r"reg_token", r"blocks\.0\.gamma_1"),
        names=DINOV3_NAMES
        | {
            r"reg_token": "storage_tokens",
            rf"{BLOCK}attn\.q_bias": r"\1.attn.qkv.bias#0",
            rf"{BLOCK}attn\.v_bias": r"\1.attn.qkv.bias#2",
            rf"{BLOCK}gamma_([12])": r"\1.ls\2.gamma",
            rf"{BLOCK}mlp\.fc1_g\.{AFFINE}": r"\1.mlp.w1.\2",
            rf"{BLOCK}mlp\.fc1_x\.{AFFINE}": r"\1.mlp.w2.\2",
        },
    ),
    Layout(
        name="transformers",
        patch_weight="embeddings.patch_embeddings.weight",
        signature=(r"embeddings\.register_tokens", r"embeddings\.cls_token"),
        names={
            r"embeddings\.cls_token": "cls_token",
            r"embeddings\.register_tokens": "storage_tokens",
            r"embeddings\.mask_token": "mask_token",
            rf"embeddings\.patch_embeddings\.{AFFINE}": r"patch_embed.proj.\1",
            rf"norm\.{AFFINE}": r"norm.\1",
            rf"{LAYER}norm([12])\.{AFFINE}": r"blocks.\1.norm\2.\3",
            rf"{LAYER}attention\.q_proj\.{AFFINE}": r"blocks.\1.attn.qkv.\2#0",
            rf"{LAYER}attention\.k_proj\.weight": r"blocks.\1.attn.qkv.weight#1",
            rf"{LAYER}attention\.v_proj\.{AFFINE}": r"blocks.\1.attn.qkv.\2#2",
            rf"{LAYER}attention\.o_proj\.{AFFINE}": r"blocks.\1.attn.proj.\2",
            rf"{LAYER}layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
            rf"{LAYER}mlp\.gate_proj\.{AFFINE}": r"blocks.\1.mlp.w1.\2",
            rf"{LAYER}mlp\.up_proj\.{AFFINE}": r"blocks.\1.mlp.up.\2",
            rf"{LAYER}mlp\.down_proj\.{AFFINE}": r"blocks.\1.mlp.down.\2",
        },
    ),
)
ANCHORS = tuple(dict.fromkeys(layout.patch_weight for layout in LAYOUTS))
"""Each vision transformer has one of these names."""

# Names that mean another thing where the feed-forward network is gated: (plain, gated) in the official layout.
FFN_NAMES = {
    "timm": {"mlp.fc2.": ("mlp.fc2.", "mlp.w3.")},
    "transformers": {"mlp.up.": ("mlp.fc1.", "mlp.w2."), "mlp.down.": ("mlp.fc2.", "mlp.w3.")},
}


def detect_layout(source: Mapping[str, Tensor]) -> Layout:
    """Detect the layout by names that no other layout has.

    Raises:
        ConversionError: none of them is there.
    """
    for layout in LAYOUTS:
        has_signature = any(re.fullmatch(pattern, name) for pattern in layout.signature for name in source)
        if layout.patch_weight in source and has_signature:
            return layout
    signatures = "; ".join(f"{layout.name}: {' or '.join(layout.signature)}" for layout in LAYOUTS)
    raise ConversionError(
        "this is a vision transformer, but none that is known here: expected names that tell its layout "
        f"({signatures.replace(chr(92), '')}), found {few(source)}"
    )


def rename(source: Mapping[str, Tensor], layout: Layout, account: dict[str, str]) -> dict[str, Tensor]:
    """Rename the tensors of a layout and make them float32.

    Args:
        source: name -> tensor.
        layout: of the names.
        account: receives what happened to each name.

    Returns: name in the network -> tensor; the thirds of a qkv are still separate, marked #0 to #2.

    Raises:
        ConversionError: a name that the layout does not have, a second tensor of a name, values that are not finite.
    """
    gated = any(re.search(r"\.mlp\.(w1|fc1_g|gate_proj)\.", key) for key in source)
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in source.items():
        if what := _first_match(layout.refused, key):
            raise ConversionError(
                f"{key}: this network has {what}, which the backbone of the *_original configs (ViTDet) has not"
            )
        matches = ((re.fullmatch(pattern, key), target) for pattern, target in layout.names.items())
        name = next((match.expand(target) for match, target in matches if match), None)
        if reason := _first_match(layout.dropped, name or key):
            account[key] = f"dropped: {reason}"
            continue
        if name is None:
            unknown.append(key)
            continue
        for part, (plain, with_gate) in FFN_NAMES.get(layout.name, {}).items():
            name = name.replace(part, with_gate if gated else plain)
        if name in tensors:
            raise ConversionError(f"{key}: a second {name}")
        tensors[name] = _as_float32(key, value)
        account[key] = f"converted: {name}"
    if unknown:
        raise ConversionError(f"unknown keys for the {layout.name} layout: {few(sorted(unknown))}")
    return tensors


def _first_match(table: Mapping[str, str], name: str) -> str | None:
    """Look up a name in a table of patterns."""
    return next((text for pattern, text in table.items() if re.fullmatch(pattern, name)), None)


def _as_float32(key: str, value: Tensor) -> Tensor:
    """Convert a tensor to float32; a mask may have integers or booleans."""
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        raise ConversionError(f"{key} is a sparse, quantised, complex or empty tensor: save plain weights")
    if not (value.is_floating_point() or key.endswith("bias_mask")):
        raise ConversionError(f"{key} holds {value.dtype}, quantised weights perhaps: save them as floats")
    value = value.float()
    if not value.isfinite().all():
        raise ConversionError(f"{key} holds values that are not finite")
    return value
