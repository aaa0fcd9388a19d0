"""Write and read model folders: a trained network, read without detectron2 and without running code from it.

- config.json: the description of the network, names from `CONSTRUCTORS` with plain arguments
- model.safetensors: all its parameters and buffers, in float32 or half precision (`round_to_half`)
- LICENSE.txt: the terms of the weights, for people
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.defaults import float32_on_cpu
from modeling import DetailCapture, ViTMatte
from modeling.backbone import DINOv2, ViT, ViTDet
from runtime.errors import UserError, few, first_line, list_mismatches
from runtime.network_files import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    ModelFolderError,
    read_description,
    read_json,
    read_safetensors,
    widened,
)

LICENSE_FILE = "LICENSE.txt"

CONSTRUCTORS: dict[str, dict[str, type[nn.Module]]] = {
    "model": {"ViTMatte": ViTMatte},
    "backbone": {"ViT": ViT, "ViTDet": ViTDet, "DINOv2": DINOv2},
    "decoder": {"DetailCapture": DetailCapture},
}
"""Part of a network -> its "type" in config.json -> class. Nothing else is ever built."""

MAX_INTEGER = 2**13
"""No size of a network is above it. Without a bound, a folder with a huge depth could block the reader for ever."""

MAX_NUMBER = 1e30
"""Largest number that is no integer: float32 holds far more, and a network needs far less."""

WORDS = {
    int: f"an integer of at most {MAX_INTEGER}",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}


def write_model_folder(
    folder: str | Path, description: dict[str, Any], tensors: Mapping[str, Tensor], source: str, licence: str
) -> None:
    """Write a network into a new folder, after checking that it can be built.

    Args:
        folder: must be absent or empty; parents are made.
        description: of the model; see `build`.
        tensors: name -> tensor, all of the network, stored as they are: float32, or float16 by `round_to_half`.
        source: where the weights come from, one line for people.
        licence: text of the licence note.

    Raises:
        ModelFolderError: the tensors do not match the description, or the folder is not empty.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    with float32_on_cpu():
        _check_fit(description, widened(tensors), source)
    write_weights(folder, tensors, licence)
    # Last, so that an incomplete folder lacks it and is reported.
    config = {"format": FORMAT, "source": source, "model": description}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_weights(folder: Path, tensors: Mapping[str, Tensor], licence: str) -> None:
    """Write weights and licence note into a new folder; arguments and errors as `write_model_folder`."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelFolderError(f"{folder} exists and is no empty folder: name a new one, nothing is overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS_FILE} cannot be written: {first_line(error)}") from error
    (folder / LICENSE_FILE).write_text(licence, encoding="utf-8")
    (folder / WEIGHTS_FILE).chmod((folder / LICENSE_FILE).stat().st_mode)  # safetensors lets only the owner read


def round_to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round matrices and convolution kernels to float16.

    Vectors stay as they are: biases, norms, LayerScale and the statistics of BatchNorm take few bytes, and their values
    may lie outside the range of float16.

    Raises:
        ModelFolderError: a weight is too large for float16.
    """
    rounded = {
        name: tensor.half() if tensor.dtype == torch.float32 and tensor.dim() > 1 else tensor
        for name, tensor in tensors.items()
    }
    if overflown := [
        name for name, tensor in tensors.items() if tensor.isfinite().all() > rounded[name].isfinite().all()
    ]:
        raise ModelFolderError(
            f"weights of {few(overflown, 4)} are above {torch.finfo(torch.float16).max:g}, the largest number of "
            "float16: store them as float32"
        )
    return rounded


def read_model_folder(folder: str | Path) -> nn.Module:
    """Build the network of a model folder with its weights.

    Returns: a `ViTMatte` in float32 on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ModelFolderError: a file is damaged or describes no network of this program, or the tensors do not match.
        Exception: whatever else a constructor raises, with a note that names config.json.
    """
    folder = Path(folder)
    if other := describe_other(folder):
        raise ModelFolderError(other)
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder}: no such model folder or .onnx file. tools/export.py makes one of published ViTMatte weights, "
            "or of a config and its checkpoint"
        )
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} is no model folder: it lacks {' and '.join(missing)}. tools/export.py makes one of a config and "
            "its checkpoint or of published ViTMatte weights"
        )
    description = read_description(folder / CONFIG_FILE)
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    try:
        return network_of(description, tensors, WEIGHTS_FILE)
    except ModelFolderError as error:
        raise ModelFolderError(f"{folder}: {error}") from error
    except Exception as error:
        error.add_note(f"The error was raised while the network of {folder / CONFIG_FILE} was built.")
        raise


def network_of(description: Any, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the network of a description with its weights, in float32 on the CPU and in evaluation mode.

    Args:
        description: of the model; see `build`.
        tensors: name -> float32 tensor, all of the network.
        source: of the tensors, for messages.

    Raises:
        ModelFolderError: it describes no network of this program, or the tensors do not match.
    """
    with float32_on_cpu():
        _check_fit(description, tensors, source)
        model = build("model", description)
    model.load_state_dict(tensors)
    return model.eval()


def describe_other(source: Path) -> str:
    """Describe a source that is mistaken for a model folder, with advice; empty if it may be a model folder."""
    convert = "tools/export.py --from-vitmatte {} --output models/NAME"
    if source.is_file():
        return (
            f"{source} is a file, expected a model folder or an .onnx file. Of a run's checkpoint give "
            f"--config-file and --weights; of published ViTMatte weights make a folder: {convert.format(source)}"
        )
    try:
        config = read_json(source / CONFIG_FILE)
    except (OSError, ModelFolderError):  # reported by the reader of model folders
        return ""
    if isinstance(config, dict) and ("model_type" in config or "architectures" in config):
        kind = config.get("model_type")
        if kind == "vitmatte":
            return f"{source} is a transformers folder; make a model folder of it: {convert.format(source)}"
        return (
            f"{source} is a transformers folder of the kind {_shown(kind)}: only vitmatte can be converted. For DINOv3 "
            "weights see preprocess.py, which makes what a run starts from"
        )
    return ""


def build(part: str, description: Any) -> nn.Module:
    """Build a part of a network with fresh weights from a description, which is checked first.

    Args:
        part: key of `CONSTRUCTORS`.
        description: {"type": name of a constructor, argument: value ...} from JSON. Parts are descriptions themselves.
            A criterion is not allowed.

    Raises:
        ModelFolderError: an unknown name, or an argument that is missing, unknown, ill-typed or out of range.
    """
    kind = description.get("type") if isinstance(description, dict) else None
    known = CONSTRUCTORS[part]
    if not isinstance(kind, str) or kind not in known:
        raise ModelFolderError(
            f'{CONFIG_FILE}: expected the {part} to have the "type" {" or ".join(known)}, got {_shown(kind)}; '
            "nothing else is built"
        )
    hints = get_type_hints(known[kind].__init__)
    hints = {name: hint for name, hint in hints.items() if name not in ("return", "criterion")}
    arguments = {name: value for name, value in description.items() if name != "type"}
    for name, value in arguments.items():
        if name not in hints:
            raise ModelFolderError(
                f"{CONFIG_FILE}: {kind} has no argument {_shown(name)}: remove it, or export the folder again"
            )
        if name in CONSTRUCTORS:
            arguments[name] = build(name, value)
        elif not _fits(value, hints[name]):
            expected = _in_words(hints[name])
            raise ModelFolderError(f"{CONFIG_FILE}: {name} of {kind} must be {expected}, got {_shown(value)}")
    parameters = signature(known[kind]).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise ModelFolderError(f"{CONFIG_FILE}: {kind} lacks its {missing[0]}: export the folder again")
    try:
        return known[kind](**arguments)
    except UserError as error:
        raise ModelFolderError(f"{CONFIG_FILE}: no {kind} can be built with these arguments: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a JSON value is valid for an argument of a type."""
    if isinstance(hint, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) in (Iterable, Sequence):
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= MAX_NUMBER  # false for NaN, which JSON may have
    return type(value) is hint and (hint is not int or abs(value) <= MAX_INTEGER)


def _in_words(hint: Any) -> str:
    """Describe what `_fits` expects."""
    if isinstance(hint, UnionType):
        return " or ".join(map(_in_words, get_args(hint)))
    if get_origin(hint) in (Iterable, Sequence):
        return f"a list of which each is {_in_words(get_args(hint)[0])}"
    return WORDS[hint]


def _check_fit(description: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Compare tensors with the described network, which is built without memory for its tensors.

    Raises:
        ModelFolderError: tensors are missing, unexpected, of another shape or type, or not finite; or the network pads
            to sides that are no multiple of its patches.
    """
    with torch.device("meta"):
        model: Any = build("model", description)
    patch_px = model.backbone.patch_embed.patch_size
    if model.size_divisibility % patch_px:
        raise ModelFolderError(
            f"{CONFIG_FILE}: size_divisibility of ViTMatte must be a multiple of the backbone's patch_size {patch_px}, "
            f"got {model.size_divisibility}"
        )
    own = model.state_dict()
    found = list_mismatches(tensors, own)
    others = {
        "of another type": [
            f"{name} {tensor.dtype}, expected {own[name].dtype}"
            for name, tensor in tensors.items()
            if name in own and tensor.dtype != own[name].dtype
        ],
        "with values that are not finite": [
            name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()
        ],
    }
    found += [f"{len(names)} {fault} ({few(names, 4)})" for fault, names in others.items() if names]
    if found:
        raise ModelFolderError(
            f"{source}: {len(tensors)} tensors do not fit the {len(own)} of the network: {'; '.join(found)}. Use the "
            "weights that belong to this configuration"
        )


def _shown(value: Any) -> str:
    """Return a value on one short line, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
