"""Warn when a run waits for the loader."""

import logging
import time

from detectron2.engine import hooks
from detectron2.utils import comm

from engine.trainer import Trainer
from runtime.threads import num_cores

logger = logging.getLogger(__name__)

MAX_WAITING_SHARE = 0.2
STEPS_JUDGED = 100  # workers hand over their batches in bursts, so that single steps say nothing
WARM_UP_STEPS = 20  # the first batches are waited for while workers start, and kernels are chosen
STEPS_BETWEEN_WARNINGS = 1000


class LoaderBottleneckWarning(hooks.HookBase):
    """Warns, with advice, where 100 steps spend more than 20 % of their time waiting for batches.

    A step is timed without the hooks, evaluation and checkpoints for instance. It ends with its losses read from the
    device, so a GPU's time for them and their gradients is in it. Of several processes the longest wait of each step
    counts. Belongs in the main process, which knows it, before hooks that take time.
    """

    trainer: Trainer

    def __init__(self) -> None:
        self._start = 0.0
        self._steps = 0
        self._step_s = self._waited_s = 0.0
        self._silent_until = 0

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self.trainer.start_iter
        if done <= WARM_UP_STEPS:
            return
        self._steps += 1
        self._step_s += time.perf_counter() - self._start
        self._waited_s += self.trainer.storage.latest()["data_time"][0]
        if self._steps < STEPS_JUDGED:
            return
        share = self._waited_s / self._step_s
        if share > MAX_WAITING_SHARE and done > self._silent_until:
            advice = speed_advice(self.trainer.data_loader.num_workers, num_cores(), comm.get_local_size())
            logger.warning(
                "The loader sets the pace: %.0f %% of the last %d steps was spent waiting for batches. %s",
                100 * share,
                STEPS_JUDGED,
                advice,
            )
            self._silent_until = done + STEPS_BETWEEN_WARNINGS
        self._steps = 0
        self._step_s = self._waited_s = 0.0


def speed_advice(num_workers: int, num_cores: int, num_processes: int) -> str:
    """Advise how to make the loader of one process faster."""
    share = max(1, num_cores // num_processes)
    owned = f"of {num_cores} cores, {share} for each training process"
    if num_workers < share:
        return f"Raise dataloader.train.num_workers from {num_workers} to {share} ({owned})"
    return (
        f"More workers than dataloader.train.num_workers={num_workers} would not help ({owned}). Make samples cheaper: "
        "pack the data set (tools/dataset/pack_dataset.py), keep it on a local disk, take smaller crops"
    )
