"""Write, find and load checkpoint files; every tensor has to match."""

import logging
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from engine.distributed.fsdp import is_sharded
from engine.interrupts import output_file, write_text
from engine.out_of_memory import is_out_of_memory
from runtime.atomic_write import backup
from runtime.errors import UserError, few, list_mismatches

logger = logging.getLogger(__name__)

UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
    *(EOFError, RuntimeError, OSError, LookupError, ValueError),
)
"""What `torch.load` and zipfile raise for files that are empty, cut off, damaged, text or other pickles."""

FINAL_NAME = "model_final"

EMA = "ema"
"""Key of the averaged network, the only tracked state that may be missing on a resume."""

NUMBERED = re.compile(r"model_\d{7}")
"""Name of a periodic checkpoint by its last iteration, without suffix."""


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a folder has a checkpoint that a resume could start from, complete or damaged."""
    names = [path.name.removesuffix(".pth") for path in folder.glob("model_*")]
    has_any = any(name == FINAL_NAME or NUMBERED.fullmatch(name) for name in names)
    return has_any or (folder / "last_checkpoint").is_file()


class CheckpointError(UserError):
    """A checkpoint that does not match; the message names the file and the tensors."""


def read_checkpoint(path: str | Path, is_mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running code from it, and compare each part with its checksum.

    Args:
        path: the file.
        is_mapped: leave tensors in the file until they are used; the file must not change meanwhile.

    Returns: a dict with "model" (name -> tensor) and, for the checkpoint of a run, "trainer" and "iteration".

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or holds something else.
    """
    if Path(path).is_dir():
        raise CheckpointError(
            f"{path} is a folder, and neither a checkpoint nor a model folder: name a file such as model_final.pth in "
            "a run's folder. Of a sharded checkpoint tools/runs/gather_checkpoint.py makes a file, or --resume goes on "
            "from it with train.sharded_blocks as it was"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {str(path)!r} (seen from {Path.cwd()}). The initial one is made from a published "
            "DINOv3 checkpoint by preprocess.py; train.init_checkpoint=FILE names another, and an empty FILE starts "
            "from random weights"
        )
    try:
        damaged = _damaged_part(path)
        content = None if damaged else torch.load(path, "cpu", weights_only=True, mmap=is_mapped)
    except UNREADABLE as error:
        if is_out_of_memory(error):  # the file is not damaged
            raise
        # Only the first sentence: in the next ones torch advises to run the code that a file may hold.
        sentence = " ".join(str(error).partition(". ")[0].split())
        reason = ": ".join(filter(None, (type(error).__name__, sentence)))
        raise CheckpointError(f"{path} is no checkpoint of tensors and plain values, or cut off: {reason}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the bytes of {damaged} in it are not those that were written")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(
            f"{path}: expected a dict with 'model', as preprocess.py and the training write it. Published weights: "
            f"convert them first with preprocess.py"
        )
    return content


def _damaged_part(path: str | Path) -> str | None:
    """Name the part of a checkpoint whose checksum is wrong: torch writes a zip archive and does not check it."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str, may_lack: Iterable[str] = ()) -> None:
    """Load weights into a model, sharded or not, if every name and shape matches.

    Args:
        model: not wrapped in DistributedDataParallel.
        weights: name -> tensor.
        source: where they come from, for messages.
        may_lack: tensors of the model whose names contain one of these may be missing and keep their fresh values.

    Raises:
        CheckpointError: naming tensors that the model does not have, that are missing, or that have another shape.
    """
    own = model.state_dict()
    fresh = [name for name in own if name not in weights]
    allowed = tuple(may_lack)
    expected = {name: own[name] for name in own if name in weights or not any(part in name for part in allowed)}
    if faults := list_mismatches(weights, expected):
        raise CheckpointError(
            f"{source} does not fit the model. {'; '.join(faults)}. Convert it again for this config (preprocess.py, "
            "with or without prefix tokens: the head of the config's file has the command), or set the config that it "
            "was made for"
        )
    if is_sharded(model):
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(model, dict(weights), options=options)
    else:
        model.load_state_dict(weights, strict=False)
    logger.info("%s: %d of %d tensors loaded, fresh: %s", source, len(weights), len(own), few(fresh) or "none")


class Checkpointer(DetectionCheckpointer):
    """Write complete checkpoint files and load them with every tensor checked, by detectron2's interface.

    It writes {"model", "trainer", "iteration"} files, with "ema" if there is an average, and `last_checkpoint`. Only
    the main process writes.
    """

    suffix = ".pth"
    """End of a checkpoint's name."""

    def save(self, name: str, **more: Any) -> None:
        """Write weights, tracked states and `more` to NAME.pth, and let a resume start from it.

        Raises:
            OutputError: the folder cannot be written; `last_checkpoint` and its file are as before.
        """
        if self.save_to_disk:
            tracked = {name: thing.state_dict() for name, thing in self.checkpointables.items()}
            self.save_weights(name, **tracked, **more)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, model: nn.Module | None = None, **more: Any) -> None:
        """Write {"model", **more} to NAME.pth as an atomic write; unlike `save`, no resume starts from it.

        Args:
            name: of the file, without suffix.
            model: network whose weights are written; None is the trained one.
            more: plain values to store beside the weights.

        Raises:
            OutputError: the folder cannot be written.
        """
        weights = self.weights(self.model if model is None else model)
        if not self.save_to_disk:
            return
        path = Path(self.save_dir, f"{name}.pth")
        logger.info("Saving %s", path)
        with output_file(path) as unfinished, unfinished.open("wb") as file:
            torch.save({"model": weights, **more}, file)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of a network that are written."""
        return model.state_dict()

    def remove(self, name: str) -> None:
        """Remove a checkpoint if it is still there, in the main process only."""
        if self.save_to_disk:
            Path(self.save_dir, f"{name}.pth").unlink(missing_ok=True)

    def backup(self) -> None:
        """Rename the checkpoints of an earlier run, so that no resume takes them; in the main process only."""
        comm.synchronize()  # other ranks may still read their initial weights
        if not self.save_to_disk:
            return
        folder = Path(self.save_dir)
        (folder / "last_checkpoint").unlink(missing_ok=True)
        for path in sorted(folder.glob("model_*")):
            if NUMBERED.fullmatch(name := path.name.removesuffix(".pth")) or name in (FINAL_NAME, f"{FINAL_NAME}_ema"):
                backup(path, "an earlier training")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the file that a resume starts from."""
        write_text(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """Return the path that `last_checkpoint` names; "" if there is none, or it is damaged."""
        path = Path(self.save_dir, "last_checkpoint")
        if not path.is_file():
            return ""
        name = path.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"[\w.-]{1,99}", name, re.ASCII):
            logger.warning("%s is damaged, it names no checkpoint: %.20r", path, name)
            return ""
        return str(path.with_name(name))

    def find_last(self) -> str:
        """Find the newest complete checkpoint that a resume can start from.

        A checkpoint that is damaged or gone is logged, and the one before it is taken.

        Returns: the path that the main process finds, in all ranks; "" if the folder has none.

        Raises:
            CheckpointError: there are checkpoints, and none is complete.
        """
        reports: list[str] = []
        for path in comm.all_gather([*self._candidates()])[0]:
            report = self.damage(path)
            if not report:
                for reason in reports:
                    logger.warning("Not resumed from the last checkpoint: %s", reason)
                return str(path)
            reports.append(report)
        if reports:
            raise CheckpointError(
                f"no checkpoint in {self.save_dir} is whole: {'; '.join(reports)}. To start anew, leave out --resume "
                "or take another train.output_dir"
            )
        return ""

    def _candidates(self) -> Iterator[Path]:
        """Yield the paths that a resume may start from, `last_checkpoint` first, then from new to old.

        A resume on more ranks counts fewer iterations for the same samples, so higher numbers may be earlier steps.
        """
        folder = Path(self.save_dir)
        last = Path(self.get_checkpoint_file())
        if last.name:
            yield last
        elif (final := folder / f"{FINAL_NAME}{self.suffix}").exists():
            yield final
        paths = folder.glob(f"model_*{self.suffix}")
        numbered = [path for path in paths if path != last and NUMBERED.fullmatch(path.name.removesuffix(self.suffix))]
        yield from sorted(numbered, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def damage(self, path: Path) -> str:
        """Describe in all ranks how the main process finds a checkpoint damaged; "" if it is complete."""
        report = ""
        if comm.is_main_process():
            try:
                read_checkpoint(path)
            except (FileNotFoundError, CheckpointError) as error:
                report = str(error) if path.exists() else f"{path} is gone"
        return comm.all_gather(report)[0]

    def read(self, path: str) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`."""
        return read_checkpoint(path)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model and the tracked states.

        Args:
            path: file that this class saved, or one with weights only.
            checkpointables: names of the states to load beside the model; all tracked ones by default.

        Returns: the other values of the file.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: a tensor or tracked state is missing or does not match; an average may be missing.
        """
        content = self.read(path)
        names = list(self.checkpointables) if checkpointables is None else checkpointables
        lacking = [name for name in names if name not in content]
        if set(lacking) - {EMA}:
            raise CheckpointError(f"{path} lacks {', '.join(lacking)}: a run cannot be resumed from it")
        load_weights(self.model, content.pop("model"), str(path))
        for name in lacking:
            logger.warning("%s has no average of weights, as train.ema_decay is new: it starts from the weights", path)
            self.checkpointables[name].update_parameters(self.model)
        for name in (name for name in names if name not in lacking):
            thing, state = self.checkpointables[name], content.pop(name)
            try:
                if isinstance(thing, nn.Module):
                    load_weights(thing, state, str(path))
                else:
                    thing.load_state_dict(state)
            except (CheckpointError, ValueError, RuntimeError, LookupError) as error:
                raise CheckpointError(
                    f"{path}: its {name} does not fit this training ({' '.join(str(error).split())}). Leave settings "
                    "such as frozen blocks and the optimiser's groups as they were, or start anew from its weights by "
                    f"train.init_checkpoint={path} in another train.output_dir"
                ) from error
        return content
