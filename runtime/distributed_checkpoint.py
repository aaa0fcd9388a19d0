"""Read folders of torch.distributed.checkpoint without running code from them."""

import pickle
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from runtime.errors import UserError

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
"""The index notes where it was saved: read as text that no file system is asked about."""

DAMAGED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(OverflowError, MemoryError),
)
"""What the unpickler raises for an index that is cut off, is no pickle or uses the allowed classes wrongly."""


class IndexUnpickler(pickle.Unpickler):
    """Unpickles an index and refuses every class and function that an index does not need."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in PATHS:
            return PATHS[name]
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no index of tensors needs and may run code")


class SafeReader(dcp.FileSystemReader):
    """Reads a folder of torch.distributed.checkpoint for `dcp.load`: tensors only, without running code from it."""

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
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is no index of a distributed checkpoint, or is damaged: {reason}") from error
        if outside:
            raise UserError(f"{path} names {outside[0]!r}, which is no file of its folder: nothing else is read")
        return index


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a folder of torch.distributed.checkpoint, in one process, to the CPU.

    Args:
        folder: with `.metadata` and `.distcp` files.

    Returns: name, with dots between the keys of nested dicts -> tensor. Entries that are no tensors are left out.

    Raises:
        UserError: the folder is no such checkpoint, is damaged, or asks for code to be run.
    """
    reader = SafeReader(folder)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # reading in one process is meant
            dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise UserError(f"{folder} cannot be read: {first_failure(error)}") from error
    return tensors


def first_failure(error: CheckpointException) -> str:
    """Give what one of the processes met with, in one line."""
    return " ".join(str(next(iter(error.failures.values()))[0]).split())
