"""Read JSON files beside DINO weights: settings that change no shape, and the normalisation of images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from modeling.conversion.checkpoint_files import MODEL_FILES
from modeling.conversion.convert import Conversion
from modeling.conversion.errors import ConversionError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""Mean and standard deviation of the configs, in [0, 1]."""

SATELLITE = ([0.430, 0.411, 0.296], [0.213, 0.156, 0.143])
"""Mean and standard deviation of DINOv3's satellite images (SAT-493M)."""


def check_settings(checkpoint: Path, result: Conversion) -> None:
    """Compare transformers' config.json with the published networks.

    Raises:
        ConversionError: a setting differs, so this project's network would compute something else.
    """
    config = _read(checkpoint, "config.json")
    expected = {"num_attention_heads": result.vit_args["num_heads"]}
    match config.get("model_type"), result.network:
        case "dinov3_vit", "ViT":
            hidden_act = "silu" if config.get("use_gated_mlp") else "gelu"
            expected |= {"rope_theta": 100.0, "layer_norm_eps": 1e-5, "hidden_act": hidden_act}
        case "dinov2" | "dinov2_with_registers", "DINOv2":
            expected |= {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}
        case _:
            return
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ConversionError(f"config.json: {name} is {config[name]!r}, the network here has {value!r} alone")


def find_normalisation(checkpoint: Path, result: Conversion) -> tuple[list[float], list[float]] | None:
    """Find the mean and standard deviation for images; None if they are ImageNet's.

    A folder of transformers or timm states them. DINOv3's satellite weights are detected by the name of their file or
    folder. Size L of them is also detected by its norm for local crops, which the L for photographs does not have.
    """
    for name, section, keys in (
        ("preprocessor_config.json", "", ("image_mean", "image_std")),
        ("config.json", "pretrained_cfg", ("mean", "std")),
    ):
        content: Any = _read(checkpoint, name)
        content = content.get(section) if section else content
        mean, std = (content.get(key) if isinstance(content, Mapping) else None for key in keys)
        if _are_three_numbers(mean) and _are_three_numbers(std):
            return None if (mean, std) == IMAGENET else (mean, std)
    parts = checkpoint.absolute().parts
    names = [*parts[-2:], *(part for part in parts if part.startswith("models--"))]  # the cache of a hub
    is_satellite_l = result.size == "vitl16" and any(key.startswith("local_cls_norm.") for key in result.account)
    return SATELLITE if is_satellite_l or any("sat493m" in name.lower() for name in names) else None


def _read(checkpoint: Path, name: str) -> Mapping[str, Any]:
    """Read a JSON object beside weights; an empty one if there is none."""
    if not checkpoint.is_dir() and checkpoint.name not in MODEL_FILES:
        return {}
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _are_three_numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and [type(item) in (int, float) for item in value] == [True] * 3
