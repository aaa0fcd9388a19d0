"""Read the tensors of a file or folder without running code from it."""

import argparse
import json
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modeling.conversion.errors import ConversionError
from runtime.errors import first_line
from runtime.network_files import INDEX, read_tensors

UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError),
    *(LookupError, TypeError, AttributeError, struct.error),  # of torch's unpickler, where text resembles its opcodes
)

MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names of a model in transformers and timm, in the order in which transformers looks for them."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")

PART_SUFFIX = ".distcp"
"""End of the name of a rank's file in the folder of a distributed checkpoint."""

TRAINER_FILES = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|sampler)[._-].*", re.I)
"""Other files that trainers write beside a model with the same suffixes."""


def choose_file(path: Path) -> tuple[Path, list[str]]:
    """Choose the checkpoint of a folder; a file or the folder of a distributed checkpoint is returned unchanged.

    Args:
        path: file or folder.

    Returns: the checkpoint, which may be an index of shards; and the names of other weight files, which are not read.

    Raises:
        ConversionError: nothing is there, or several checkpoints and none has the name of a model.
    """
    if not path.exists():
        raise ConversionError(
            f"{path} does not exist: correct the path. DINOv3 weights are gated: README.md links where to request them"
        )
    if not path.is_dir() or (path / INDEX).is_file():
        return path, []
    weights = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES and file.is_file())
    named = [name for name in MODEL_FILES if (path / name).is_file()]
    models = named or [name for name in weights if name.endswith(".safetensors")]
    models = models or [name for name in weights if not TRAINER_FILES.fullmatch(name)]
    if not named and len(models) != 1:
        if any(path.glob(f"*{PART_SUFFIX}")):
            raise ConversionError(f"{path}: a distributed checkpoint without its {INDEX}: copy the whole folder")
        found = models or weights or "none"
        raise ConversionError(f"{path}: expected one checkpoint in the folder, found {found}: name the file itself")
    chosen = path / models[0]
    parts = {chosen.name, *(_weight_map(chosen).values() if chosen.suffix == ".json" else ())}
    return chosen, [name for name in weights if name not in parts]


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a .safetensors or pickled file, an index with its shards, or a folder that holds a checkpoint.

    Args:
        path: file or folder; see `choose_file`.

    Returns: the content, normally name -> tensor on the CPU.

    Raises:
        UserError: naming the file that is missing, damaged or of another kind; mostly `ConversionError`.
    """
    path, _ = choose_file(path)
    if path.is_dir():
        return read_tensors(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == PART_SUFFIX or path.name == INDEX:
        raise ConversionError(f"{path} is a part of a distributed checkpoint: name the folder that holds it")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain values: how DINO, MAE and timm keep args
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConversionError(f"{path} cannot be read as a checkpoint of tensors: {_reason(error)}") from error
    if not isinstance(state, Mapping):
        raise ConversionError(f"{path} holds a {type(state).__name__}, expected a dict of tensors")
    return state


def _reason(error: BaseException) -> str:
    """Describe in one line why a file cannot be read, without torch's advice to run code from it."""
    name = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
    if name:
        return f"it names {name[1]}, and nothing in it is run. Save its tensors alone: torch.save(state_dict, FILE)"
    return f"{type(error).__name__}: {first_line(error)}".partition(". ")[0]


def _weight_map(index: Path) -> dict[str, str]:
    """Read which shard, a file beside the index, holds each tensor."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        if all(Path(shard).name == shard for shard in weight_map.values()):
            return weight_map
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ConversionError(f"{index}: expected JSON with a weight_map of tensor to file in the same folder")


def _read_shards(index: Path) -> dict[str, Any]:
    """Read each tensor from the shard that the index names."""
    state: dict[str, Any] = {}
    weight_map = _weight_map(index)
    for shard in sorted(set(weight_map.values())):
        tensors = read_checkpoint(index.with_name(shard))
        names = [name for name, file in weight_map.items() if file == shard]
        if missing := [name for name in names if name not in tensors]:
            raise ConversionError(f"{index.with_name(shard)} lacks {missing[0]}, which {index.name} says it holds")
        state |= {name: tensors[name] for name in names}
    return state
