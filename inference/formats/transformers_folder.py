"""Write a network as a folder of transformers' ViTMatte: the way back from `published_vitmatte`."""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from inference.formats.model_folder import write_weights
from inference.formats.published_vitmatte import TRANSFORMERS_NAMES
from inference.formats.transformers_settings import CONFIG_FILE, PREPROCESSOR_FILE, PublishedError
from modeling import DetailCapture, ViTMatte
from modeling.backbone import ViTDet


def write_transformers_folder(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], licence: str
) -> None:
    """Write a folder that `VitMatteForImageMatting` and `VitMatteImageProcessor` of transformers load.

    The processor gets the network's normalisation and side to pad to. It pads with zeros: where a network pads
    otherwise, alpha differs at sizes that are no multiples of that side.

    Args:
        folder: must be absent or empty; parents are made.
        description: of the network, as `inference.formats.model_folder.build` takes it.
        tensors: name -> tensor, all of the network.
        licence: text of the licence note.

    Raises:
        PublishedError: transformers has no such network.
        ModelFolderError: the folder is not empty.
        OSError: it cannot be written.
    """
    config, preprocessor = settings_of(description)
    write_weights(folder, {transformers_name(name): tensor for name, tensor in tensors.items()}, licence)
    for file, content in ((PREPROCESSOR_FILE, preprocessor), (CONFIG_FILE, config)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def transformers_name(name: str) -> str:
    """Return the name of a tensor in transformers' layout."""
    for theirs, ours in TRANSFORMERS_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def settings_of(description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the contents of config.json and preprocessor_config.json; see `transformers_settings.describe_transformers`.

    Raises:
        PublishedError: transformers has no such network.
    """
    kind = description["backbone"]["type"]
    if kind != "ViTDet":
        raise PublishedError(
            f"the backbone is {kind}, and transformers has ViTMatte on ViTDet alone (configs/*_original.py)"
        )
    parts = (ViTMatte, description), (ViTDet, description["backbone"]), (DetailCapture, description["decoder"])
    whole, vit, decoder = (
        {name: parameter.default for name, parameter in signature(constructor).parameters.items()} | dict(given)
        for constructor, given in parts
    )
    if whole["backbone_scale_range"][1] < 1:
        raise PublishedError(
            f"backbone_scale_range is {list(whole['backbone_scale_range'])}, and transformers shows its backbone no "
            "reduced copy"
        )
    if vit["mlp_ratio"] != int(vit["mlp_ratio"]):
        raise PublishedError(f"mlp_ratio is {vit['mlp_ratio']}, and transformers takes whole numbers alone")
    blocks = range(vit["depth"])
    backbone = dict(
        model_type="vitdet",
        hidden_size=vit["embed_dim"],
        num_hidden_layers=vit["depth"],
        num_attention_heads=vit["num_heads"],
        mlp_ratio=int(vit["mlp_ratio"]),
        layer_norm_eps=vit["norm_eps"],
        image_size=vit["image_size"],
        pretrain_image_size=vit["pretrain_image_size"],
        patch_size=vit["patch_size"],
        num_channels=4,
        window_size=vit["window_size"],
        window_block_indices=[index for index in blocks if index not in vit["global_block_indexes"]],
        residual_block_indices=list(vit["conv_residual_block_indexes"]),
        use_absolute_position_embeddings=True,
        use_relative_position_embeddings=True,
        qkv_bias=True,
        hidden_act="gelu",
        out_features=[f"stage{vit['depth']}"],
    )
    config = dict(
        architectures=["VitMatteForImageMatting"],
        model_type="vitmatte",
        hidden_size=vit["embed_dim"],
        batch_norm_eps=1e-5,
        convstream_hidden_sizes=list(decoder["convstream_chans"]),
        fusion_hidden_sizes=list(decoder["fusion_chans"]),
        backbone_config=backbone,
    )
    preprocessor = dict(
        image_processor_type="VitMatteImageProcessor",
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(whole["pixel_mean"]),
        image_std=list(whole["pixel_std"]),
        do_pad=True,
        size_divisor=whole["size_divisibility"],
    )
    return config, preprocessor
