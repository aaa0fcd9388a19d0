"""Read files of networks without running code from them: model folders, folders of torch.distributed.checkpoint."""

import json
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from runtime.errors import UserError, first_line, one_line

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Files of a model folder: the description of its network, and all its tensors."""

FORMAT = 1
"""Of config.json; a reader refuses what it does not know."""

INDEX = ".metadata"
"""Pickled index of a folder: which file holds which part of which tensor."""

ALLOWED = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}
"""Module -> names that an index may use, beside the dtypes of torch and paths."""

PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
"""An index stores the path where it was saved. It is read as text and never looked up."""

DAMAGED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(OverflowError, MemoryError),
)
"""What the unpickler raises for an index that is cut off, is no pickle or uses the allowed classes wrongly."""


class ModelFolderError(UserError):
    """A model folder that cannot be used or written; the message names the file and what to do."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ModelFolderError: it is damaged or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(
            f"{path} is damaged or no JSON ({first_line(error)}): download or export it again"
        ) from error


def read_description(path: Path) -> Any:
    """Read the description of a network from the config.json of a model folder; its content is not checked.

    Raises:
        ModelFolderError: it is damaged, or not what tools/export.py writes.
    """
    config = read_json(path)
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT or "model" not in config:
        raise ModelFolderError(
            f'{path}: expected "format": {FORMAT} and a "model", got format {found!r:.60}: export the folder again '
            "with this version of the program; published ViTMatte weights become such a folder by tools/export.py"
        )
    return config["model"]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name, and log if some are stored in half precision.

    Returns: name -> tensor; see `widened`.

    Raises:
        ModelFolderError: it is damaged or something else.
    """
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ModelFolderError(
            f"{path} is damaged or no safetensors file ({first_line(error)}): copy or export it again"
        ) from error
    if any(tensor.dtype == torch.float16 for tensor in stored.values()):
        logger.info("%s: weights of half precision, used as float32", path)
    return widened(stored)


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name with float16 ones as float32, in which networks run; the others are the same objects."""
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


class IndexUnpickler(pickle.Unpickler):
    """Unpickle an index and refuse every class and function that an index does not need."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in PATHS:
            return PATHS[name]
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no index of tensors needs and may run code")


class SafeReader(dcp.FileSystemReader):
    """Read a folder of torch.distributed.checkpoint for `dcp.load`: tensors only, without running code from it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index; entries that are no tensors, which torch would unpickle, are left out.

        Raises:
            UserError: the index is missing, damaged, uses other classes, or names files outside the folder.
        """
        path = Path(self.path, INDEX)
        try:
            with path.open("rb") as file:
                index = IndexUnpickler(file).load()
            if not isinstance(index, Metadata):
                raise ValueError(f"it holds a {type(index).__name__}")
            entries = index.state_dict_metadata.items()
            index.state_dict_metadata = {name: of for name, of in entries if isinstance(of, TensorStorageMetadata)}
            files = {info.relative_path for info in index.storage_data.values()}
            outside = sorted(name for name in files if Path(name).name != name or name == ".." or "\\" in name)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except DAMAGED as error:
            found = f"is no index of a distributed checkpoint, or is damaged: {one_line(error)}"
            raise UserError(f"{path} {found}") from error
        if outside:
            raise UserError(f"{path} names {outside[0]!r}, which is no file of its folder: nothing else is read")
        return index


def read_index(folder: str | Path) -> dict[str, Tensor]:
    """List the tensors of a folder of torch.distributed.checkpoint, without their values.

    Args:
        folder: with `.metadata` and `.distcp` files.

    Returns: name, with dots between the keys of nested dicts -> "meta" tensor. Other entries are left out.

    Raises:
        UserError: the folder is no such checkpoint, is damaged, or asks for code to be run.
    """
    entries = SafeReader(folder).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_tensors(tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Fill tensors, sharded or not, with those of the same names and shapes in a folder; every rank has to call it.

    Raises:
        UserError: as `read_index`.
    """
    try:
        with one_process_suffices():
            dcp.load(dict(tensors), storage_reader=SafeReader(folder))
    except CheckpointException as error:
        raise UserError(f"{folder} cannot be read: {first_failure(error)}") from error


def read_tensors(folder: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors of a folder of torch.distributed.checkpoint whose names have a prefix to the CPU.

    Returns: name without the prefix -> tensor.

    Raises:
        UserError: as `read_index`.
    """
    index = read_index(folder)
    tensors = {name: torch.empty_like(index[name], device="cpu") for name in index if name.startswith(prefix)}
    load_tensors(tensors, folder)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


@contextmanager
def one_process_suffices() -> Iterator[None]:
    """Let a single process write or read a folder without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def first_failure(error: CheckpointException) -> str:
    """Return what one of the ranks raised, in one line."""
    return one_line(next(iter(error.failures.values()))[0])
