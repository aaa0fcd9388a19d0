"""Checkpoints of networks that are sharded over the processes: a folder, of which each process writes its own part."""

import logging
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from engine.checkpoint.file import FINAL_NAME, Checkpointer, CheckpointError, read_checkpoint
from engine.distributed.fsdp import gathered_weights, shard_like
from engine.interrupts import OutputError, output_file
from runtime.atomic_write import BEFORE, SUFFIX, synchronize
from runtime.distributed_checkpoint import SafeReader, first_failure

logger = logging.getLogger(__name__)

WHOLE_PART = "whole.pth"
"""What is not sharded, as the main process has it; in the place of a tensor that is, one without values."""

CHECKSUMS = "checksums"
"""Key in that part: name of each other file -> CRC-32 of its bytes."""

CHUNK_BYTES = 1 << 24

Keys = tuple[Any, ...]
"""What leads to a value in nested dicts and lists."""


class ShardedCheckpointer(Checkpointer):
    """Writes and reads, as folders, what `Checkpointer` has in files; another number of processes may read them.

    A folder is what torch.distributed.checkpoint writes, with `WHOLE_PART` beside it. Nothing in it is run when it is
    read. Every process has to call each function, and all have to see one and the same folder.
    """

    suffix = ""

    def save(self, name: str, **more: Any) -> None:
        """Write weights, what is tracked beside them and `more` to the folder NAME, from which a resume starts then.

        The final weights are written as a plain file too.

        Raises:
            OutputError: in all processes, where the folder cannot be written; what a resume starts from is as before.
        """
        path = Path(self.save_dir, name)
        logger.info("Saving %s", path)
        unfinished = path.with_name(name + SUFFIX)
        shards: dict[str, Tensor] = {}

        def take_out(keys: Keys, tensor: Tensor) -> Tensor:
            if not isinstance(tensor, DTensor):
                return tensor
            shards[_path(keys)] = tensor
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        tracked = {key: thing.state_dict() for key, thing in self.checkpointables.items()}
        content = _map_tensors(take_out, {"model": self.model.state_dict(), **tracked, **more})
        _in_main_process(lambda: _make_empty(unfinished))
        if shards:
            try:
                # Its own fsync would end the run where a file system has none; `_checksums` brings all to the disk.
                dcp.save(shards, storage_writer=dcp.FileSystemWriter(unfinished, sync_files=False))
            except CheckpointException as error:
                raise OutputError(f"cannot write {path}: {first_failure(error)}") from error
        content[CHECKSUMS] = _checksums(unfinished)

        def finish() -> None:
            with output_file(unfinished / WHOLE_PART) as part, part.open("wb") as file:
                torch.save(content, file)
            before = path.with_name(name + BEFORE)
            if path.exists():
                shutil.rmtree(before, ignore_errors=True)
                path.replace(before)
            unfinished.replace(path)
            synchronize(path.parent)
            self.tag_last_checkpoint(name)
            shutil.rmtree(before, ignore_errors=True)

        _in_main_process(finish)
        if name == FINAL_NAME:
            self.save_weights(name, iteration=more["iteration"])

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return gathered_weights(model)

    def remove(self, name: str) -> None:
        if self.save_to_disk:
            shutil.rmtree(Path(self.save_dir, name), ignore_errors=True)

    def damage(self, path: Path) -> str:
        return find_damage(path) if path.is_dir() else super().damage(path)

    def read(self, path: str) -> dict[str, Any]:
        """Read a folder of this class or a file of `Checkpointer`, sharded as network and optimiser are."""
        weights = self.model.state_dict()
        groups = self.checkpointables["trainer"].optimizer.param_groups if "trainer" in self.checkpointables else []
        parameters = [parameter for group in groups for parameter in group["params"]]

        def layout(keys: Keys) -> Tensor | None:
            match keys:
                case ("model", str(name)):
                    return weights.get(name)
                case ("ema", str(name)):
                    return weights.get(name.removeprefix("module."))
                case ("trainer", "optimizer", "state", int(index), _) if index < len(parameters):
                    return parameters[index]
            return None

        return read_folder(path, layout) if Path(path).is_dir() else _laid_out(read_checkpoint(path), layout, {})


def find_damage(path: Path) -> str:
    """Say in all processes what one of them finds wrong with a folder, of which each reads a part; "" for nothing."""
    report = ""
    try:
        expected = _read_whole_part(path)[CHECKSUMS]
        found = _own_checksums(path, expected)
        if wrong := [name for name in found if found[name] != expected[name]]:
            report = f"{path} is damaged: the bytes of {', '.join(wrong)} are not those that were written"
    except CheckpointError as error:
        report = str(error)
    except OSError as error:
        report = f"{path} is no whole checkpoint of a sharded network: {error}"
    return next(filter(None, comm.all_gather(report)), "")


def read_folder(
    path: str | Path, layout: Callable[[Keys], Tensor | None] = lambda keys: None, only: Iterable[str] = ()
) -> dict[str, Any]:
    """Read the folder of a `ShardedCheckpointer`.

    Args:
        path: the folder.
        layout: keys of a tensor -> the tensor like which it is to be sharded, on its device; None reads all of it to
            the CPU.
        only: keys of what to read; all where there are none.

    Returns: what `Checkpointer` has in a file.

    Raises:
        CheckpointError: where the folder is none of these or incomplete, or lacks something asked for.
    """
    content = _read_whole_part(Path(path))
    del content[CHECKSUMS]
    if lacking := [key for key in only if key not in content]:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; it has {', '.join(content)}")
    shards: dict[str, Tensor] = {}
    content = _laid_out({key: content[key] for key in only or content}, layout, shards)
    if shards:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # reading in one process is meant
                dcp.load(shards, storage_reader=SafeReader(path))
        except CheckpointException as error:
            raise CheckpointError(f"{path} cannot be read: {first_failure(error)}") from error
    return content


def _read_whole_part(folder: Path) -> dict[str, Any]:
    """Read what is not sharded, and the checksums of the other files.

    Raises:
        CheckpointError: the folder is none of these, or this part is damaged.
    """
    if not (folder / WHOLE_PART).is_file():
        raise CheckpointError(f"{folder} is no checkpoint of a sharded network: there is no {WHOLE_PART} in it")
    content = read_checkpoint(folder / WHOLE_PART)
    if not isinstance(content.get(CHECKSUMS), dict):
        raise CheckpointError(
            f"{folder} is no checkpoint of a sharded network: its {WHOLE_PART} lacks the checksums of the files beside "
            "it, it is a plain checkpoint"
        )
    return content


def _laid_out(content: Any, layout: Callable[[Keys], Tensor | None], shards: dict[str, Tensor]) -> Any:
    """Shard tensors; those without values get memory instead, which `shards` names."""

    def place(keys: Keys, tensor: Tensor) -> Tensor:
        like = layout(keys)
        if like is not None and like.shape != tensor.shape:
            like = None
        if not tensor.is_meta:
            return tensor if like is None else shard_like(tensor, like)
        fresh = torch.empty_like(tensor, device="cpu") if like is None else torch.empty_like(like, dtype=tensor.dtype)
        return shards.setdefault(_path(keys), fresh)

    return _map_tensors(place, content)


def _map_tensors(function: Callable[[Keys, Tensor], Tensor], node: Any, keys: Keys = ()) -> Any:
    """Copy nested dicts and lists with each tensor replaced by `function(keys that lead to it, tensor)`."""
    if isinstance(node, Tensor):
        return function(keys, node)
    if isinstance(node, dict):
        return {key: _map_tensors(function, value, (*keys, key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_map_tensors(function, value, (*keys, index)) for index, value in enumerate(node)]
    return node


def _path(keys: Keys) -> str:
    """Name of a tensor among the shards."""
    return "/".join(map(str, keys))


def _checksums(folder: Path) -> dict[str, int]:
    """Bring each file of a folder to the disk and give its CRC-32; the processes share the files out among themselves.

    Raises:
        OutputError: in all processes, where one cannot read what was written.
    """
    own: dict[str, int] = {}
    failure = ""
    try:
        own = _own_checksums(folder, (path.name for path in folder.iterdir()))
        for name in own:
            synchronize(folder / name)
    except OSError as error:
        failure = f"cannot write {folder} and read it back: {error}"
    parts = comm.all_gather((own, failure))
    if failure := next(filter(None, (failure for _, failure in parts)), ""):
        raise OutputError(failure)
    return {name: checksum for part, _ in parts for name, checksum in part.items()}


def _own_checksums(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """CRC-32 of the files that are this process's to check."""
    checksums = {}
    for name in sorted(names)[comm.get_rank() :: comm.get_world_size()]:
        checksums[name] = 0
        with (folder / name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                checksums[name] = zlib.crc32(chunk, checksums[name])
    return checksums


def _make_empty(folder: Path) -> None:
    if folder.exists():  # a process was killed while it wrote
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _in_main_process(function: Callable[[], None]) -> None:
    """Call a function in the main process; where the disk fails it, all processes raise OutputError."""
    failure = ""
    if comm.is_main_process():
        try:
            function()
        except (OSError, OutputError) as error:
            failure = str(error)
    if failure := comm.all_gather(failure)[0]:
        raise OutputError(failure)
