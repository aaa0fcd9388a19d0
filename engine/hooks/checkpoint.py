"""Write checkpoints: periodically, at the end, and when a run is stopped."""

from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

from engine.checkpoint.file import FINAL_NAME, Checkpointer
from engine.trainer import Trainer
from runtime.errors import ConfigError


class PeriodicCheckpointer(hooks.HookBase):
    """Writes checkpoints, and removes the oldest of those that this training wrote, before a resume as well.

    What it wrote is part of the trainer's state, hence it belongs in every process; the main one writes. Files that it
    did not write, those of an earlier training in the folder for instance, stay.

    Args:
        checkpointer: knows the weights and the folder.
        period: in iterations.
        max_to_keep: checkpoints on the way that stay, at least 1; None keeps all. The final one is not counted.

    Attributes:
        saved_iterations: that are in the newest checkpoint.

    Raises:
        ConfigError: for other numbers.
        OutputError: in training, where the folder cannot be written.
    """

    trainer: Trainer

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int | None = None) -> None:
        for key, number in (("period", period), ("max_to_keep", max_to_keep)):
            if number is not None and number < 1:
                raise ConfigError(f"train.checkpointer.{key} must be at least 1, got {number}")
        self._checkpointer = checkpointer
        self._period, self._max_to_keep = period, max_to_keep
        self._written: list[str] = []
        self.saved_iterations = 0

    def before_train(self) -> None:
        self.saved_iterations = self.trainer.start_iter
        # Killed between the last two files, perhaps, or a resume that has fewer iterations than are done.
        if self.trainer.next_iteration >= self.trainer.max_iter:
            last = comm.all_gather(Path(self._checkpointer.get_checkpoint_file()).stem)[0]
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
            self._checkpointer.save_weights(f"{FINAL_NAME}_ema", self.trainer.ema.module, iteration=done - 1)
        self._checkpointer.save(FINAL_NAME, iteration=done - 1)
        self.saved_iterations = done

    def save(self) -> None:
        """Write a checkpoint of the steps done, where there is none of them yet."""
        done = self.trainer.next_iteration
        if done == self.saved_iterations:
            return
        name = f"model_{done - 1:07d}"
        self._written = [*(earlier for earlier in self._written if earlier != name), name]
        self._checkpointer.save(name, iteration=done - 1)
        self.saved_iterations = done
        while self._max_to_keep and len(self._written) > self._max_to_keep:
            # After the new one is on the disk; a resume from that knows of the old ones, should it be killed here.
            self._checkpointer.remove(self._written[0])
            del self._written[0]

    def state_dict(self) -> dict[str, Any]:
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written = state_dict["written"]
