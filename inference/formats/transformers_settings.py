"""Describe this project's network by the settings of a transformers ViTMatte folder; each is used or refused."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.formats.model_folder import MAX_INTEGER
from runtime.errors import UserError
from runtime.network_files import read_json

CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"


class PublishedError(UserError):
    """Weights that are not ViTMatte's, or settings that this network does not have; the message names them."""


class Settings:
    """Read the values of a JSON object; missing ones have the default of transformers' class.

    Args:
        values: of the object.
        place: file and section of the values, for messages.
    """

    def __init__(self, values: Any, place: str) -> None:
        if not isinstance(values, Mapping):
            raise PublishedError(f"{place}: expected a JSON object, got a {type(values).__name__}: download it again")
        self.values = values
        self.place = place

    def refuse(self, name: str, reason: str) -> PublishedError:
        """Return the error of a value that cannot be used."""
        return PublishedError(f"{self.place}{name} is {self.values.get(name)!r}: {reason}")

    def expect(self, name: str, *expected: Any) -> None:
        """Refuse every value except those of the network here; the first is the default."""
        value = self.values.get(name, expected[0])
        if not any(value == known and type(value) in (type(known), float) for known in expected):
            raise self.refuse(name, f"the network here has {' or '.join(map(repr, expected))} alone")

    def read(self, name: str, default: Any) -> Any:
        """Read a value of the default's type: true or false, an integer, a number or a list of integers."""
        value = self.values.get(name, default)
        expected, is_valid = {
            bool: ("true or false", type(value) is bool),
            int: (f"an integer from 0 to {MAX_INTEGER}", type(value) is int and 0 <= value <= MAX_INTEGER),
            float: ("a number", type(value) in (int, float) and math.isfinite(value)),
            list: ("a list of integers", isinstance(value, list) and all(type(item) is int for item in value)),
        }[type(default)]
        if not is_valid:
            raise self.refuse(name, f"expected {expected}")
        return value

    def side(self, name: str, default: int) -> int:
        """Read the side of a square, given as an integer or as [height, width]."""
        value = self.values.get(name, default)
        sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
        if any(type(side) is not int or not 1 <= side <= MAX_INTEGER for side in sides):
            raise self.refuse(name, f"expected an integer from 1 to {MAX_INTEGER}, or two")
        if sides[0] != sides[1]:
            raise self.refuse(name, "the network here takes squares alone")
        return sides[0]

    def colour(self, name: str, default: float) -> list[float]:
        """Read three numbers, or one for all three colours."""
        value = self.values.get(name, default)
        value = [value] * 3 if type(value) in (int, float) else value
        is_colour = isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value)
        if not is_colour or not all(map(math.isfinite, value)):
            raise self.refuse(name, "expected three numbers")
        return list(map(float, value))


def describe_transformers(folder: Path) -> dict[str, Any]:
    """Describe the network of a transformers folder, as `inference.formats.model_folder.build` takes it.

    Settings that act only in training (`dropout_prob`, `drop_path_rate`, `initializer_range`) are not read.

    Args:
        folder: with `CONFIG_FILE`, and `PREPROCESSOR_FILE` if it states other values than the processor's defaults.

    Raises:
        FileNotFoundError: there is no `CONFIG_FILE`.
        PublishedError: a setting that this project's network does not have.
    """
    config_file, preprocessor_file = folder / CONFIG_FILE, folder / PREPROCESSOR_FILE
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file} is missing: a transformers folder has it beside its weights")
    description = describe_network(read_json(config_file), f"{config_file}: ")
    preprocessor = read_json(preprocessor_file) if preprocessor_file.is_file() else {}
    patch_px = description["backbone"]["patch_size"]
    return description | describe_preprocessing(preprocessor, f"{preprocessor_file}: ", patch_px)


def describe_network(config: Any, place: str) -> dict[str, Any]:
    """Describe backbone and decoder of a config.json; arguments and errors as `describe_transformers`."""
    top = Settings(config, place)
    top.expect("model_type", "vitmatte")
    top.expect("batch_norm_eps", 1e-5)
    for name in ("backbone", "use_timm_backbone", "use_pretrained_backbone"):
        top.expect(name, None, False)
    vit = Settings(top.values.get("backbone_config", {}), f"{place}backbone_config.")
    vit.expect("model_type", "vitdet")
    vit.expect("hidden_act", "gelu")
    for name in ("qkv_bias", "use_absolute_position_embeddings"):
        vit.expect(name, True)
    if not vit.read("use_relative_position_embeddings", False):
        raise vit.refuse("use_relative_position_embeddings", "the network here has relative positions")
    if vit.read("num_channels", 3) != 4:
        raise vit.refuse("num_channels", "the network here takes RGB and a trimap, 4 channels")
    embed_dim, depth = vit.read("hidden_size", 768), vit.read("num_hidden_layers", 12)
    if top.read("hidden_size", 384) != embed_dim:
        raise top.refuse("hidden_size", f"the backbone is {embed_dim} wide")
    for name, last in (("out_features", f"stage{depth}"), ("out_indices", depth)):
        given = vit.values.get(name)
        if given is not None and (not isinstance(given, list) or given[-1:] != [last]):
            raise vit.refuse(name, f"the decoder takes the last block's map, {last!r}")
    window_size, windowed = vit.read("window_size", 0), vit.read("window_block_indices", [])
    residual = vit.read("residual_block_indices", [])
    patch_px = vit.side("patch_size", 16)
    fusion_chans = top.read("fusion_hidden_sizes", [256, 128, 64, 32])
    if 2 ** len(fusion_chans) != patch_px:
        raise top.refuse("fusion_hidden_sizes", f"each doubles the map, but patch_size is {patch_px}")
    backbone = dict(
        type="ViTDet",
        patch_size=patch_px,
        in_chans=4,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=vit.read("num_attention_heads", 12),
        mlp_ratio=vit.read("mlp_ratio", 4.0),
        norm_eps=vit.read("layer_norm_eps", 1e-6),
        image_size=vit.side("image_size", 224),
        pretrain_image_size=vit.side("pretrain_image_size", 224),
        window_size=window_size,
        global_block_indexes=[index for index in range(depth) if not window_size or index not in windowed],
        conv_residual_block_indexes=[index for index in range(depth) if index in residual],
    )
    decoder = dict(
        type="DetailCapture",
        in_chans=embed_dim,
        image_chans=4,
        convstream_chans=top.read("convstream_hidden_sizes", [48, 96, 192]),
        fusion_chans=fusion_chans,
    )
    return {"type": "ViTMatte", "backbone": backbone, "decoder": decoder}


def describe_preprocessing(preprocessor: Any, place: str, patch_px: int) -> dict[str, Any]:
    """Describe normalisation and padding of a preprocessor_config.json; errors as `describe_transformers`.

    Args:
        preprocessor: content of the file.
        place: its name, for messages.
        patch_px: side of the network's patches; without padding, sides must be multiples of it.
    """
    given = Settings(preprocessor, place)
    kind = given.values.get("image_processor_type", "VitMatteImageProcessor")
    if not str(kind).startswith("VitMatteImageProcessor"):
        raise given.refuse("image_processor_type", "expected ViTMatte's own processor")
    # Another scale would apply to the trimap too, which is always 0, 0.5 and 1 here.
    given.expect("do_rescale", True)
    if not math.isclose(given.read("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise given.refuse("rescale_factor", "the network here takes images and trimaps in [0, 1], which is 1 / 255")
    if given.read("do_normalize", True):
        mean, std = given.colour("image_mean", 0.5), given.colour("image_std", 0.5)
    else:
        mean, std = [0.0] * 3, [1.0] * 3
    side = given.read("size_divisor", given.read("size_divisibility", 32))
    if not given.read("do_pad", True):
        side = patch_px
    return {"pixel_mean": mean, "pixel_std": std, "size_divisibility": side, "padding": "zero"}
