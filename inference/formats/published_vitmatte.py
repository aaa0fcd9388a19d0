"""Convert published ViTMatte weights to this project's network: hustvl's .pth files and transformers' folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inference.formats.model_folder import network_of, read_model_folder
from inference.formats.transformers_settings import CONFIG_FILE, PublishedError, describe_transformers
from modeling.conversion import choose_file, read_checkpoint, take_copy
from runtime.errors import UserError
from runtime.network_files import read_json

BACKBONE: dict[str, Any] = dict(
    patch_size=16,
    in_chans=4,
    depth=12,
    mlp_ratio=4.0,
    norm_eps=1e-6,
    image_size=512,
    pretrain_image_size=224,
    window_size=14,
    global_block_indexes=[2, 5, 8, 11],
    conv_residual_block_indexes=[2, 5, 8, 11],
)
SIZES: dict[str, dict[str, Any]] = {
    "S": dict(embed_dim=384, num_heads=6),
    "B": dict(embed_dim=768, num_heads=12),
}
"""Size -> arguments of `ViTDet`, beside those of `BACKBONE`, which both sizes share."""

DECODER: dict[str, Any] = dict(image_chans=4, convstream_chans=[48, 96, 192], fusion_chans=[256, 128, 64, 32])

TRANSFORMERS_NAMES = {
    "backbone.embeddings.position_embeddings": "backbone.pos_embed",
    "backbone.embeddings.projection.": "backbone.patch_embed.proj.",
    "backbone.encoder.layer.": "backbone.blocks.",
    ".attention.": ".attn.",
    "decoder.fusion_blocks.": "decoder.fusion_blks.",
    ".batch_norm.": ".bn.",
}
"""Part of a name in transformers' `VitMatteForImageMatting` -> the same in hustvl's files, which is also ours."""

NORMALISATION: dict[str, dict[str, list[float]]] = {
    "hustvl": dict(pixel_mean=[0.485, 0.456, 0.406], pixel_std=[0.229, 0.224, 0.225]),  # ImageNet's
    "transformers": dict(pixel_mean=[0.5, 0.5, 0.5], pixel_std=[0.5, 0.5, 0.5]),
}
"""Layout -> mean and standard deviation by which its own code normalises RGB in [0, 1]."""

PADDING = {"hustvl": "zero_hustvl", "transformers": "zero"}
"""Layout -> how its own code pads an image; see `modeling.vitmatte.PADDINGS`."""


ANCHORS = ("backbone.pos_embed", "backbone.embeddings.position_embeddings")
"""Each ViTMatte has one of these names, in hustvl's or transformers' layout."""

PREFERENCE = ("", "teacher", "EMA", "student", "gram teacher")
"""Copies of the network in the checkpoint of a run, the preferred one first; see `take_copy`."""


class Published(NamedTuple):
    """Converted weights.

    Attributes:
        layout: "hustvl" or "transformers".
        size: key of `SIZES`, or "unlisted".
        description: of the network, as `inference.formats.model_folder.build` takes it.
        tensors: name -> tensor, all of the source's network.
        left: other key of the source -> why it is not used.
    """

    layout: str
    size: str
    description: dict[str, Any]
    tensors: dict[str, Tensor]
    left: dict[str, str]


def convert_published(state: Mapping[str, Any], folder: Path | None = None) -> Published:
    """Rename the tensors of a ViTMatte and describe the network that they belong to.

    None of the network's tensors is dropped or added. They are compared with the network when it is built.

    Args:
        state: name -> tensor, of either layout, or a run's checkpoint around them.
        folder: of transformers, whose settings are used; None uses those of the published networks.

    Raises:
        FileNotFoundError: the folder has no config.json.
        PublishedError: no ViTMatte, not a published size, or settings that this network does not have.
        ConversionError: two networks in one file.
    """
    left: dict[str, str] = {}
    copy = take_copy(state, ANCHORS, PREFERENCE, left)
    if copy is None or not any(name.startswith("decoder.") for name in copy.tensors):
        names = sorted(map(str, state))
        raise PublishedError(
            "expected a ViTMatte, with backbone.pos_embed and decoder. among its names, got "
            f"{len(names)} names such as {', '.join(names[:4])}"
        )
    layout = "transformers" if any(name.startswith("backbone.encoder.") for name in copy.tensors) else "hustvl"
    tensors: dict[str, Tensor] = {}
    for name, tensor in copy.tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise PublishedError(f"{name} is a sparse or quantised tensor: save it as a plain one")
        if layout == "transformers":
            for theirs, ours in TRANSFORMERS_NAMES.items():
                name = name.replace(theirs, ours)
        if name in tensors:
            raise PublishedError(f"two tensors are {name}, one of them under the other layout's name")
        tensors[name] = _as_stored(name, tensor)
    positions = tensors[ANCHORS[0]]
    if positions.dim() != 3:
        raise PublishedError(f"{ANCHORS[0]} has shape {tuple(positions.shape)}, expected three dimensions")
    embed_dim = positions.shape[2]
    size = next((size for size, arguments in SIZES.items() if arguments["embed_dim"] == embed_dim), "unlisted")
    if layout == "transformers" and folder is not None:
        return Published(layout, size, describe_transformers(folder), tensors, left)
    if size == "unlisted":
        widths = ", ".join(f"{size} {arguments['embed_dim']}" for size, arguments in SIZES.items())
        raise PublishedError(f"the backbone is {embed_dim} wide, which no published ViTMatte is ({widths})")
    description = {
        "type": "ViTMatte",
        "backbone": {"type": "ViTDet"} | BACKBONE | SIZES[size],
        "decoder": {"type": "DetailCapture", "in_chans": embed_dim} | DECODER,
        "size_divisibility": 32,
        "padding": PADDING[layout],
    } | NORMALISATION[layout]
    return Published(layout, size, description, tensors, left)


def is_published(folder: Path) -> bool:
    """Tell whether a folder is one of transformers that holds a ViTMatte."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, UserError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "vitmatte"


def read_published(folder: Path) -> nn.Module:
    """Build the network of a transformers folder, as `tools/export.py --from-vitmatte` and its model folder would.

    Returns: a `ViTMatte` in float32 on the CPU, in evaluation mode.

    Raises:
        UserError: see `convert_published` and `modeling.conversion.read_checkpoint`, or the tensors do not match.
    """
    weights, _ = choose_file(folder)
    published = convert_published(read_checkpoint(weights), folder)
    return network_of(published.description, published.tensors, weights.name)


def read_network(folder: Path) -> nn.Module:
    """Build the network of a model folder, or of a transformers folder of ViTMatte.

    Returns: a `ViTMatte` in float32 on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError, UserError: see `inference.formats.model_folder.read_model_folder` and `read_published`.
    """
    return read_published(folder) if is_published(folder) else read_model_folder(folder)


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    """Convert weights to float32 and counters to integers."""
    if name.endswith("num_batches_tracked"):
        return tensor.long()
    return tensor.float() if tensor.is_floating_point() else tensor
