"""Turn a published DINOv3 checkpoint into the 4-channel initial checkpoint of a matting network.

    python preprocess.py --checkpoint dinov3_vits16_pretrain.pth --output checkpoints/dinov3_vits16_4ch.pth

Takes the official .pth, timm's and transformers' layouts of every ViT size, as a file or a folder, .pth or safetensors,
and training checkpoints around them. Every key of the input is accounted for, and the result is proven to load.
The DINOv3 License travels with the weights and with what is derived from them.
"""

import runtime.openmp  # noqa: F401  # first: it sets what torch reads when it is loaded

import argparse
import json
import os
import pickle
import re
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeling.backbone import DINOV3_SIZES, ViT
from runtime.errors import UserError


class ConversionError(UserError):
    """The input is no DINOv3 vision transformer, or not one that can be converted without loss."""


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint and how it came about.

    Attributes:
        model: parameter name with prefix "backbone." -> float32 tensor.
        layout: "official", "timm" or "transformers".
        size: key of `DINOV3_SIZES`, or "unlisted".
        vit_args: arguments of `ViT` that the weights fit.
        account: every key of the input without its wrapping, and each one added -> what became of it, "fate: detail".
    """

    model: dict[str, Tensor]
    layout: str
    size: str
    vit_args: dict[str, Any]
    account: dict[str, str]


PRETRAINING_ONLY = {
    r"mask_token": "used in pre-training only",
    r"local_cls_norm\..*": "used for the local crops of pre-training only",
    r"(dino|ibot)_head\..*": "projection head of pre-training",
}

# Pattern of a source key -> name in the official layout; "#0", "#1", "#2" behind it: the query, key or value third.
BLOCK = r"(blocks\.\d+)\."
AFFINE = r"(weight|bias)"
SHARED_NAMES = {
    r"cls_token": "cls_token",
    rf"patch_embed\.proj\.{AFFINE}": r"patch_embed.proj.\1",
    rf"norm\.{AFFINE}": r"norm.\1",
    rf"{BLOCK}(norm[12]|attn\.proj|mlp\.fc[12])\.{AFFINE}": r"\1.\2.\3",
    rf"{BLOCK}attn\.qkv\.weight": r"\1.attn.qkv.weight",
}
LAYOUTS: dict[str, dict[str, str]] = {
    "official": SHARED_NAMES
    | {
        r"storage_tokens": "storage_tokens",
        r"rope_embed\.periods": "rope_embed.periods",
        rf"{BLOCK}attn\.qkv\.(bias|bias_mask)": r"\1.attn.qkv.\2",
        rf"{BLOCK}ls([12])\.gamma": r"\1.ls\2.gamma",
        rf"{BLOCK}mlp\.(w[123])\.{AFFINE}": r"\1.mlp.\2.\3",
    },
    "timm": SHARED_NAMES
    | {
        r"reg_token": "storage_tokens",
        rf"{BLOCK}attn\.q_bias": r"\1.attn.qkv.bias#0",
        rf"{BLOCK}attn\.v_bias": r"\1.attn.qkv.bias#2",
        rf"{BLOCK}gamma_([12])": r"\1.ls\2.gamma",
        rf"{BLOCK}mlp\.fc1_g\.{AFFINE}": r"\1.mlp.w1.\2",
        rf"{BLOCK}mlp\.fc1_x\.{AFFINE}": r"\1.mlp.w2.\2",
    },
    "transformers": {
        r"embeddings\.cls_token": "cls_token",
        r"embeddings\.register_tokens": "storage_tokens",
        r"embeddings\.mask_token": "mask_token",
        rf"embeddings\.patch_embeddings\.{AFFINE}": r"patch_embed.proj.\1",
        rf"norm\.{AFFINE}": r"norm.\1",
        rf"(?:model\.)?layer\.(\d+)\.norm([12])\.{AFFINE}": r"blocks.\1.norm\2.\3",
        rf"(?:model\.)?layer\.(\d+)\.attention\.q_proj\.{AFFINE}": r"blocks.\1.attn.qkv.\2#0",
        r"(?:model\.)?layer\.(\d+)\.attention\.k_proj\.weight": r"blocks.\1.attn.qkv.weight#1",
        rf"(?:model\.)?layer\.(\d+)\.attention\.v_proj\.{AFFINE}": r"blocks.\1.attn.qkv.\2#2",
        rf"(?:model\.)?layer\.(\d+)\.attention\.o_proj\.{AFFINE}": r"blocks.\1.attn.proj.\2",
        r"(?:model\.)?layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
        rf"(?:model\.)?layer\.(\d+)\.mlp\.gate_proj\.{AFFINE}": r"blocks.\1.mlp.w1.\2",
        rf"(?:model\.)?layer\.(\d+)\.mlp\.up_proj\.{AFFINE}": r"blocks.\1.mlp.up.\2",
        rf"(?:model\.)?layer\.(\d+)\.mlp\.down_proj\.{AFFINE}": r"blocks.\1.mlp.down.\2",
    },
}
# Names that mean another thing where the feed-forward network is gated: (plain, gated) in the official layout.
FFN_NAMES = {
    "timm": {"mlp.fc2.": ("mlp.fc2.", "mlp.w3.")},
    "transformers": {"mlp.up.": ("mlp.fc1.", "mlp.w2."), "mlp.down.": ("mlp.fc2.", "mlp.w3.")},
}


def convert(state: Mapping[str, Any], *, keep_prefix: bool = False, trimap_init: str = "zero") -> Conversion:
    """Convert a DINOv3 state dict of any layout.

    Args:
        state: parameters by name, or a training checkpoint with "teacher", "student", "model" or "state_dict".
        keep_prefix: keep cls and storage tokens; the report's recipe drops them.
        trimap_init: weights of the fourth channel: "zero", or "mean" of the three colours.

    Raises:
        ConversionError: naming the keys that are unknown, missing, of a wrong shape or not finite.
    """
    if trimap_init not in ("zero", "mean"):
        raise ConversionError(f'trimap_init must be "zero" or "mean", got {trimap_init!r}')
    account: dict[str, str] = {}
    source = _unwrap(state, account)
    layout = _detect_layout(source)
    tensors = _rename(source, layout, account)
    _join_qkv(tensors)
    _fold_bias_mask(tensors, account)
    size, vit_args = _detect_size(tensors)
    if layout == "timm" and vit_args.get("qkv_bias", True) and not any(k.endswith("qkv.bias") for k in tensors):
        _add_zero_biases(tensors, vit_args, account)
    if "rope_embed.periods" not in tensors:
        periods = ViT(**_plain(vit_args | {"depth": 1})).rope_embed.periods
        tensors["rope_embed.periods"] = periods
        account["rope_embed.periods"] = f"added: computed, the {layout} layout does not store it"
    _inflate(tensors, trimap_init, account)
    vit_args["keep_prefix_tokens"] = keep_prefix
    if not keep_prefix:
        for name in ("cls_token", "storage_tokens"):
            tensors.pop(name, None)
            _change_fate(account, name, "dropped: prefix token, kept by --keep-prefix")
    _check(tensors, vit_args)
    return Conversion({f"backbone.{k}": v for k, v in tensors.items()}, layout, size, vit_args, account)


def _unwrap(state: Mapping[str, Any], account: dict[str, str]) -> dict[str, Tensor]:
    """Leave the wrappings of a training checkpoint: nested dicts, then prefixes of names."""
    for wrapper in ("teacher", "student", "model", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            for key in state.keys() - {wrapper}:
                account[key] = f'dropped: beside "{wrapper}", which was taken'
            return _unwrap(state[wrapper], account)
    source: dict[str, Tensor] = {}
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ConversionError(f"{key!r} names no tensor but a {type(value).__name__}: this is no DINOv3 checkpoint")
        name = re.sub(r"^((module|_orig_mod|backbone)\.)+", "", key)
        if name in source:
            raise ConversionError(f"{key}: without its prefix this is a second {name}")
        source[name] = value
    return source


def _detect_layout(source: Mapping[str, Tensor]) -> str:
    """Name the layout by keys that no other layout has."""
    if any(re.match(r"(model\.)?(stages|downsample_layers)\.", key) for key in source):
        raise ConversionError("this is a DINOv3 ConvNeXt: only the vision transformers can be converted")
    signatures = {
        "official": ("storage_tokens", "patch_embed.proj.weight"),
        "timm": ("reg_token", "patch_embed.proj.weight"),
        "transformers": ("embeddings.register_tokens", "embeddings.patch_embeddings.weight"),
    }
    if "pos_embed" not in source:  # DINOv2, DeiT and others have one; DINOv3 has RoPE instead
        for layout, keys in signatures.items():
            if all(key in source for key in keys):
                return layout
    raise ConversionError(
        f"this is no DINOv3 vision transformer: expected the keys {' or '.join(str(k) for k in signatures.values())} "
        f"and no pos_embed, found {len(source)} keys such as {sorted(source)[:5]}"
    )


def _rename(source: Mapping[str, Tensor], layout: str, account: dict[str, str]) -> dict[str, Tensor]:
    """Names of the official layout; thirds of a qkv still apart, marked #0 to #2."""
    gated = any(re.search(r"\.mlp\.(w1|fc1_g|gate_proj)\.", key) for key in source)
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in source.items():
        matches = ((re.fullmatch(pattern, key), target) for pattern, target in LAYOUTS[layout].items())
        name = next((match.expand(target) for match, target in matches if match), None)
        reasons = (why for pattern, why in PRETRAINING_ONLY.items() if re.fullmatch(pattern, name or key))
        if reason := next(reasons, None):
            account[key] = f"dropped: {reason}"
            continue
        if name is None:
            unknown.append(key)
            continue
        for part, (plain, with_gate) in FFN_NAMES.get(layout, {}).items():
            name = name.replace(part, with_gate if gated else plain)
        if not torch.isfinite(value).all():
            raise ConversionError(f"{key} holds values that are not finite")
        if name in tensors:
            raise ConversionError(f"{key}: a second {name}")
        tensors[name] = value.float()
        account[key] = f"converted: {name}"
    if unknown:
        raise ConversionError(f"unknown keys for the {layout} layout: {', '.join(sorted(unknown))}")
    return tensors


def _change_fate(account: dict[str, str], name: str, fate: str) -> None:
    """Write down what became in the end of the input key that was converted to a name."""
    account |= {key: fate for key, old in account.items() if old == f"converted: {name}"}


def _join_qkv(tensors: dict[str, Tensor]) -> None:
    """Put query, key and value back into one tensor; a key bias that is not there is zero."""
    for name in {key.split("#")[0] for key in tensors if "#" in key}:
        thirds = [tensors.pop(f"{name}#{part}", None) for part in range(3)]
        if name.endswith("bias") and thirds[0] is not None:
            thirds[1] = torch.zeros_like(thirds[0])
        missing = [part for part, third in zip(("query", "key", "value"), thirds, strict=True) if third is None]
        if missing:
            raise ConversionError(f"{name}: the {' and '.join(missing)} part is missing")
        parts = [third for third in thirds if third is not None]
        if len({part.shape for part in parts}) > 1 or not parts[0].dim():
            shapes = [tuple(part.shape) for part in parts]
            raise ConversionError(f"{name}: query, key and value must be of one shape, got {shapes}")
        tensors[name] = torch.cat(parts)


def _fold_bias_mask(tensors: dict[str, Tensor], account: dict[str, str]) -> None:
    """Multiply each qkv bias by its stored mask and see that no key bias is left."""
    for name in [key for key in tensors if key.endswith("qkv.bias_mask")]:
        mask, bias = tensors.pop(name), name.removesuffix("_mask")
        if bias not in tensors or tensors[bias].shape != mask.shape:
            raise ConversionError(f"{name} has no {bias} of the same shape")
        tensors[bias] = tensors[bias] * mask
        _change_fate(account, name, f"converted: folded into {bias}")
    for name in [key for key in tensors if key.endswith("qkv.bias")]:
        values = tensors[name].flatten()
        key_third = values[len(values) // 3 : 2 * len(values) // 3]
        if key_third.any():
            raise ConversionError(
                f"{name}: the key third must be zero, as DINOv3 is trained; largest value {key_third.abs().max():.3g}"
            )


def _detect_size(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The published size that the shapes belong to; an unlisted one where the stored periods tell the heads."""
    ffn = "swiglu" if "blocks.0.mlp.w1.weight" in tensors else "mlp"
    first = "blocks.0.mlp.w1.weight" if ffn == "swiglu" else "blocks.0.mlp.fc1.weight"
    for name, dims in {"patch_embed.proj.weight": 4, "storage_tokens": 3, first: 2}.items():
        if name not in tensors or tensors[name].dim() != dims:
            raise ConversionError(f"{name} is missing or has not {dims} dimensions: the size cannot be told")
    embed_dim, _, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    hidden_dim = len(tensors[first])
    depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    for size, args in DINOV3_SIZES.items():
        with torch.device("meta"):
            template = ViT(**_plain(args | {"depth": 1})).state_dict()
        same_ffn = first in template and len(template[first]) == hidden_dim
        if patch_size == 16 and same_ffn and embed_dim == args["embed_dim"]:
            if depth != args["depth"]:
                raise ConversionError(f"the widths are those of {size}, which has {args['depth']} blocks, not {depth}")
            return size, dict(args)
    if "rope_embed.periods" not in tensors:
        raise ConversionError(
            f"width {embed_dim}, depth {depth}, {ffn} of {hidden_dim} is no published DINOv3 size, and without "
            "rope_embed.periods the number of heads cannot be told"
        )
    ratio = hidden_dim / embed_dim * (1.5 if ffn == "swiglu" else 1.0)
    num_periods = tensors["rope_embed.periods"].numel()
    if not num_periods or embed_dim % (4 * num_periods):
        raise ConversionError(f"rope_embed.periods: {num_periods} periods fit no head width that divides {embed_dim}")
    return "unlisted", dict(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // (4 * num_periods),
        ffn_layer=ffn,
        mlp_ratio=ratio,
        patch_size=patch_size,
        num_storage_tokens=tensors["storage_tokens"].shape[1],
    )


def _add_zero_biases(tensors: dict[str, Tensor], vit_args: Mapping[str, Any], account: dict[str, str]) -> None:
    """Timm's models without "qkvb" leave out query and value biases, which are zero in the released files."""
    for index in range(vit_args["depth"]):
        name = f"blocks.{index}.attn.qkv.bias"
        tensors[name] = torch.zeros(3 * vit_args["embed_dim"])
        account[name] = "added: zeros, timm's models without qkvb leave it out"


def _inflate(tensors: dict[str, Tensor], trimap_init: str, account: dict[str, str]) -> None:
    """Give the patch embedding its fourth input channel, the trimap's."""
    name = "patch_embed.proj.weight"
    rgb = tensors[name]
    if rgb.shape[1] != 3:
        raise ConversionError(f"{name}: expected 3 input channels, got {rgb.shape[1]} (converted already?)")
    mean = rgb.mean(dim=1, keepdim=True)
    tensors[name] = torch.cat((rgb, mean if trimap_init == "mean" else torch.zeros_like(mean)), dim=1)
    _change_fate(account, name, f"inflated: {name}, fourth channel {trimap_init}")


def _plain(vit_args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a ViT that holds what DINOv3 holds and nothing of ViTMatte."""
    return dict(vit_args) | dict(global_block_indexes=range(vit_args["depth"]), conv_residual_block_indexes=())


def _check(tensors: Mapping[str, Tensor], vit_args: Mapping[str, Any]) -> None:
    """Compare names and shapes with the network's, and load them."""
    with torch.device("meta"):
        vit = ViT(**_plain(vit_args))
    expected = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name}: expected shape {expected[name]}, got {found[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if problems:
        raise ConversionError("the checkpoint does not fit the network: " + "; ".join(problems))
    vit.load_state_dict(dict(tensors), strict=True, assign=True)


UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError),
    *(LookupError, TypeError, AttributeError, struct.error),  # of torch's unpickler, where text resembles its opcodes
)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a .safetensors or pickled file, or a folder that holds one (in shards or whole), executing nothing.

    Raises:
        ConversionError: naming the file that is missing, damaged or of another kind.
    """
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        if index.exists():
            try:
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConversionError(f"{index}: expected JSON with a weight_map of tensor to file") from error
            return {key: value for shard in shards for key, value in read_checkpoint(path / shard).items()}
        candidates = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt"))
        if len(candidates) != 1:
            found = [candidate.name for candidate in candidates]
            raise ConversionError(f"{path}: expected one checkpoint in the folder, found {found or 'none'}")
        return read_checkpoint(candidates[0])
    if not path.exists():
        raise ConversionError(f"{path} does not exist; DINOv3 weights are gated, and a user brings the file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        # The first sentence: in the next ones torch advises to run the code that a file may hold.
        reason = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
        raise ConversionError(f"{path} cannot be read as a checkpoint of tensors: {reason}") from error
    if not isinstance(state, Mapping):
        raise ConversionError(f"{path} holds a {type(state).__name__}, expected a dict of tensors")
    return state


def _can_write(path: Path) -> bool:
    """Tell as far as the file system says whether a file can be written, its folder being there or to be made."""
    if path.exists():
        return not path.is_dir() and os.access(path, os.W_OK)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file or folder with DINOv3 weights")
    parser.add_argument("--output", type=Path, required=True, help="the .pth file to write")
    parser.add_argument("--keep-prefix", action="store_true", help="keep cls and storage tokens (report: dropped)")
    parser.add_argument("--trimap-init", choices=("zero", "mean"), default="zero", help="fourth channel's weights")
    args = parser.parse_args(argv)
    if not _can_write(args.output):
        print(f"preprocess.py: --output {args.output}: expected a file name in a writable folder", file=sys.stderr)
        return 1
    try:
        result = convert(read_checkpoint(args.checkpoint), keep_prefix=args.keep_prefix, trimap_init=args.trimap_init)
    except ConversionError as error:
        print(f"preprocess.py: {args.checkpoint}: {error}", file=sys.stderr)
        return 1
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": result.model}, args.output)
    except (OSError, RuntimeError) as error:  # torch's writer raises both
        print(f"preprocess.py: --output {args.output} cannot be written: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    _check({k.removeprefix("backbone."): v for k, v in read_checkpoint(args.output)["model"].items()}, result.vit_args)
    fates = Counter(fate.split(":")[0] for fate in result.account.values())
    print(f"{result.layout} layout, size {result.size}: " + ", ".join(f"{n} {fate}" for fate, n in fates.items()))
    for key, fate in result.account.items():
        if not fate.startswith("converted"):
            print(f"  {key}: {fate}")
    print(f"wrote {args.output}: {len(result.model)} tensors; read again, all load into ViT({result.vit_args})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
