"""Write checkpoints: periodically, at the end, and when a run is stopped."""

from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

from engine.checkpoint.file import FINAL_NAME, Checkpointer
from engine.trainer import Trainer
from runtime.errors import ConfigError


class PeriodicCheckpointer(hooks.HookBase):
    """Writes checkpoints, and removes the oldest of those that this run wrote, including those before a resume.

    The list of what it wrote is part of the trainer's state. So every process has this hook; the main one writes. Files
    that it did not write, such as those of an earlier run in the folder, stay.

    Args:
        checkpointer: knows the weights and the folder.
        period: in iterations.
        max_to_keep: number of periodic checkpoints to keep, at least 1; None keeps all. The final one is not counted.

    Attributes:
        checkpointer: as given.
        saved_iterations: completed iterations in the newest checkpoint.

    Raises:
        ConfigError: for other numbers.
        OutputError: in training: the folder cannot be written.
    """

    trainer: Trainer

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int | None = None) -> None:
        for key, number in (("period", period), ("max_to_keep", max_to_keep)):
            if number is not None and number < 1:
                raise ConfigError(f"train.checkpointer.{key} must be at least 1, got {number}")
        self.checkpointer = checkpointer
        self._period, self._max_to_keep = period, max_to_keep
        self._written: list[str] = []
        self.saved_iterations = 0

    def before_train(self) -> None:
        self.saved_iterations = self.trainer.start_iter
        # The run was killed between its last two files, or the resume asks for fewer iterations than are done.
        if self.trainer.next_iteration >= self.trainer.max_iter:
            last = comm.all_gather(Path(self.checkpointer.get_checkpoint_file()).stem)[0]
            if last and last != FINAL_NAME:
                self._save_final()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0:
            self.save()
        if done == self.trainer.max_iter:
            self._save_final()

    def _save_final(self) -> None:
        """Write the EMA weights, then the final checkpoint, which marks the run as finished."""
        done = self.trainer.next_iteration
        if self.trainer.ema is not None:
            self.checkpointer.save_weights(f"{FINAL_NAME}_ema", self.trainer.ema.module, iteration=done - 1)
        self.checkpointer.save(FINAL_NAME, iteration=done - 1)
        self.saved_iterations = done

    def save(self) -> None:
        """Write a checkpoint of the completed steps, unless there is one already."""
        done = self.trainer.next_iteration
        if done == self.saved_iterations:
            return
        name = f"model_{done - 1:07d}"
        self._written = [*(earlier for earlier in self._written if earlier != name), name]
        self.checkpointer.save(name, iteration=done - 1)
        self.saved_iterations = done
        while self._max_to_keep and len(self._written) > self._max_to_keep:
            # After the new one is on the disk: if the run is killed here, a resume from it knows the old ones.
            self.checkpointer.remove(self._written[0])
            del self._written[0]

    def state_dict(self) -> dict[str, Any]:
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written = state_dict["written"]
