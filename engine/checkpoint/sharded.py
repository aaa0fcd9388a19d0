"""Checkpoints of sharded networks: a folder, to which each rank writes its own shards."""

import logging
import shutil
import zlib
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from engine.checkpoint.file import EMA, FINAL_NAME, Checkpointer, CheckpointError, read_checkpoint
from engine.distributed.fsdp import gathered_weights, is_sharded
from engine.interrupts import OutputError, output_file
from runtime.atomic_write import BEFORE, SUFFIX, synchronize
from runtime.errors import list_mismatches
from runtime.network_files import first_failure, load_tensors, one_process_suffices, read_index, read_tensors

logger = logging.getLogger(__name__)

WHOLE_PART = "whole.pth"
"""File with all values that are no tensors, and the checksums of the other files."""

CHECKSUMS = "checksums"
"""Key in that file: name of each other file -> CRC-32 of its bytes."""

OPTIMIZER = "optimizer"

CHUNK_BYTES = 1 << 24


class ShardedCheckpointer(Checkpointer):
    """Write and read checkpoints as folders, which another number of ranks can read too.

    A folder is what torch.distributed.checkpoint writes, with `WHOLE_PART` beside it. Reading one runs no code from it.
    Every rank has to call each method, and all have to see the same folder.
    """

    suffix = ""

    def save(self, name: str, **more: Any) -> None:
        """Write weights, tracked states and `more` to the folder NAME, and let a resume start from it.

        The final weights are also written as a plain file.

        Raises:
            OutputError: in all ranks, if the folder cannot be written; a resume starts from the one before.
        """
        path = Path(self.save_dir, name)
        logger.info("Saving %s", path)
        unfinished = path.with_name(name + SUFFIX)
        content = {key: {} if key == EMA else thing.state_dict() for key, thing in self.checkpointables.items()}
        if "trainer" in content:
            groups = self._optimizer_state()["param_groups"]
            content["trainer"][OPTIMIZER] = {"state": {}, "param_groups": groups}
        _in_main_process(lambda: _make_empty(unfinished))
        try:
            with one_process_suffices():
                # `_checksums` brings all to the disk; torch's own fsync fails on file systems that have none.
                dcp.save(self._tensors(), storage_writer=dcp.FileSystemWriter(unfinished, sync_files=False))
        except CheckpointException as error:
            raise OutputError(f"cannot write {path}: {first_failure(error)}") from error
        content |= {"model": {}, **more, CHECKSUMS: _checksums(unfinished)}

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
        """Read a folder of this class or a file of `Checkpointer`.

        Tensors of a folder go straight into the network, the EMA and the optimiser, so that no rank holds them twice.

        Raises:
            CheckpointError: the checkpoint is incomplete, or its tensors do not match this run.
        """
        if not Path(path).is_dir():
            content = read_checkpoint(path)
            if is_sharded(self.model) and "trainer" in content.keys() & self.checkpointables.keys():
                self._shard_optimizer_state(content["trainer"][OPTIMIZER])
            return content
        content = _read_whole_part(Path(path))
        del content[CHECKSUMS]
        saved, own = read_index(path), self._tensors()
        parts = {"model"} | ({*map(_part, saved)} & {*map(_part, own)})  # EMA and moments may be new, or not wanted now
        saved, own = ({name: side[name] for name in side if _part(name) in parts} for side in (saved, own))
        if faults := list_mismatches(saved, own):
            raise CheckpointError(
                f"{path} does not match this run. {'; '.join(faults)}. Leave the network, its frozen blocks and the "
                "optimiser's groups as they were, or start anew from its weights (tools/runs/gather_checkpoint.py)"
            )
        load_tensors(own, path)
        content["model"] = self.model.state_dict()
        if EMA in parts:
            content[EMA] = self.checkpointables[EMA].state_dict()
        if OPTIMIZER in parts:
            content["trainer"][OPTIMIZER]["state"] = self.checkpointables["trainer"].optimizer.state_dict()["state"]
        return content

    def _tensors(self) -> dict[str, Any]:
        """Name the tensors of network, EMA and optimiser, which `dcp.load` fills in place."""
        tensors = {f"model.{name}": tensor for name, tensor in get_model_state_dict(self.model).items()}
        if EMA in self.checkpointables:
            average = get_model_state_dict(self.checkpointables[EMA])
            tensors |= {f"{EMA}.{name}": tensor for name, tensor in average.items()}
        for name, state in self._optimizer_state()["state"].items():
            tensors |= {f"{OPTIMIZER}.{name}.{key}": tensor for key, tensor in state.items()}
        return tensors

    def _optimizer_state(self) -> dict[str, Any]:
        """Return the optimiser's state by names of parameters; it makes moments if there are none."""
        if "trainer" not in self.checkpointables:
            return {"state": {}, "param_groups": []}
        return get_optimizer_state_dict(self.model, self.checkpointables["trainer"].optimizer)

    def _shard_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Replace a plain checkpoint's moments by this rank's shards; the trainer reports groups that do not match."""
        now = self._optimizer_state()["param_groups"]
        names = [*chain.from_iterable(group["params"] for group in now)]
        if sum(len(group["params"]) for group in saved["param_groups"]) == len(names):
            optimizer = self.checkpointables["trainer"].optimizer
            state = {names[index]: values for index, values in saved["state"].items()}
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_optimizer_state_dict(self.model, optimizer, {"state": state, "param_groups": now}, options=options)
            saved["state"] = optimizer.state_dict()["state"]


def find_damage(path: Path) -> str:
    """Describe in all ranks how a folder is damaged, of which each rank reads a part; "" if it is complete."""
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


def read_folder(path: Path, only: Iterable[str] = ()) -> dict[str, Any]:
    """Read the folder of a `ShardedCheckpointer` to the CPU, unsharded, in one process.

    Args:
        path: the folder.
        only: keys of what to read; all if empty.

    Returns: what `Checkpointer` has in a file.

    Raises:
        UserError: the folder is none of these, is incomplete, or asks for code to be run.
    """
    content = _read_whole_part(path)
    del content[CHECKSUMS]
    content = {key: content[key] for key in only or content}
    for part in {"model", EMA} & content.keys():
        content[part] = read_tensors(path, f"{part}.")
    if "trainer" in content:
        saved = content["trainer"][OPTIMIZER]
        names = chain.from_iterable(group["params"] for group in saved["param_groups"])
        indexes = {name: index for index, name in enumerate(names)}
        for name, tensor in read_tensors(path, f"{OPTIMIZER}.").items():
            parameter, _, key = name.rpartition(".")
            saved["state"].setdefault(indexes[parameter], {})[key] = tensor
        for group in saved["param_groups"]:
            group["params"] = [indexes[name] for name in group["params"]]
    return content


def _read_whole_part(folder: Path) -> dict[str, Any]:
    """Read the plain values and the checksums of the other files.

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
    if content["model"]:
        raise CheckpointError(
            f"{folder} was written by an earlier version of this program, whose folders are not read: make a plain "
            "file of all of it with that version's tools/gather_checkpoint.py, from which a sharded run resumes too"
        )
    return content


def _part(name: str) -> str:
    """Return the first part of a tensor's name: network, EMA or optimiser."""
    return name.partition(".")[0]


def _checksums(folder: Path) -> dict[str, int]:
    """Flush each file of a folder to disk and return its CRC-32; each rank takes some of the files.

    Raises:
        OutputError: in all ranks, if one cannot read what was written.
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
    """Compute the CRC-32 of this rank's share of the files."""
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
    """Call a function in the main process; if the disk fails, all ranks raise OutputError."""
    failure = ""
    if comm.is_main_process():
        try:
            function()
        except (OSError, OutputError) as error:
            failure = str(error)
    if failure := comm.all_gather(failure)[0]:
        raise OutputError(failure)
