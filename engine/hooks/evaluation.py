"""Evaluate the network and its EMA during a run, and keep the best weights."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.batches import TIMEOUT_S, LoaderError
from engine.checkpoint.file import Checkpointer, CheckpointError, read_checkpoint
from engine.distributed.fsdp import is_sharded
from engine.distributed.padded_eval import MEMORY_ADVICE, Wrap, evaluate
from engine.interrupts import StopRequested, interruptible, write_text
from engine.out_of_memory import OutOfMemory
from engine.trainer import Trainer
from runtime.atomic_write import backup
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

BEST_NAME = "model_best"

MAX_TRIES = 3
"""Resumes that try a missing evaluation: if it ends the process each time, the run must still continue."""

TRIED = ", begun anew by resumes: "
"""In the record of the last evaluation: followed by the number of tries of an evaluation that is not made yet."""

MODES: dict[str, Callable[[float, float], bool]] = {"min": lambda a, b: a < b, "max": lambda a, b: a > b}
"""Name -> whether metric a is better than metric b."""


class IncompleteEvaluation(Exception):  # noqa: N818  it is handled, and ends nothing
    """Memory ran out in the evaluation of some networks, in any process. All processes raise it.

    Attributes:
        results: results of the other networks, see `evaluate_all`.
    """

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__(message)
        self.results = results


def evaluate_all(
    networks: Mapping[str, nn.Module],
    test_loader: DataLoader,
    evaluator: DatasetEvaluator,
    wrap: Wrap | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Evaluate each of several networks.

    Args:
        networks: name -> network. The metrics of "" keep their names.

    Returns: what `evaluate` returns for "", and under each other name what it returns for that network.

    Raises:
        IncompleteEvaluation: memory ran out for some of them.
        LoaderError, OutOfMemory: see `evaluate`; OutOfMemory only with a sharded network.
    """
    results: dict[str, Any] = {}
    failures = []
    for name, model in networks.items():
        if name:
            logger.info("Evaluating %s", name)
        try:
            found = evaluate(model, test_loader, evaluator, wrap, timeout_s)
        except OutOfMemory as stop:
            if not stop.is_shared:
                raise
            failures.append(f"{name or 'the network'}: {stop}")
            continue
        results.update({name: found} if name else found)
    if failures:
        raise IncompleteEvaluation("\n".join(failures), results)
    return results


def metric_names(networks: Iterable[str], evaluator: DatasetEvaluator) -> list[str] | None:
    """List what `evaluate_all` will return, such as "group/name" and "ema/group/name"; None if that is not known."""
    names = getattr(evaluator, "metric_names", None)
    return (
        None if names is None else [f"{network}/{name}" if network else name for network in networks for name in names]
    )


class EvaluateAndKeepBest(hooks.HookBase):
    """Evaluates periodically and at the end, and keeps the weights of the best evaluation as model_best.pth.

    The file holds "model", "iteration" (counted as the periodic checkpoints do), "metric" and "value". A resume reads
    it, so it also knows evaluations that came after its checkpoint. A new run in the folder backs it up. Of equal
    evaluations the first is kept.

    A checkpoint is written before the evaluation of its iteration. If the run stopped between the two, a resume first
    makes that evaluation, unless the file last_evaluation says that it was made.

    Args:
        eval_period: in iterations; 0 only evaluates the end.
        evaluate: takes nothing and returns a nested dict of metrics, at least in the main process.
        checkpointer: knows the folder.
        networks: name -> network that is evaluated. The weights of the network with the best metric are kept.
        metric: name in that dict, such as "group/name", or "ema/group/name" of a network "ema"; None keeps no best.
        mode: "min" or "max", what is better.
        metrics: all such names, if they are known beforehand.
        write: called in the main process when the metrics are in the trainer's storage. It writes them: after the file
            last_evaluation no resume would make them again.

    Raises:
        ConfigError: another mode, or a metric that the evaluation does not give (at the first one, if `metrics` is
            None).
        LoaderError: in training, see `evaluate`. Out of memory is logged, counts as evaluated, and training continues.
    """

    trainer: Trainer

    def __init__(
        self,
        eval_period: int,
        evaluate: Callable[[], dict[str, Any]],
        checkpointer: Checkpointer,
        networks: Mapping[str, nn.Module],
        metric: str | None = None,
        mode: str = "min",
        metrics: Collection[str] | None = None,
        write: Callable[[], None] = lambda: None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"train.best_checkpoint.mode must be {' or '.join(MODES)}, got {mode!r}")
        self._eval_period = eval_period
        self._evaluate = evaluate
        self._checkpointer = checkpointer
        first_name = (metric or "").partition("/")[0]
        self._measured = networks[first_name if first_name in networks else ""]
        self._path = Path(checkpointer.save_dir, f"{BEST_NAME}.pth")
        self._record = self._path.with_name("last_evaluation")
        self._metric, self._mode = metric, mode
        self._is_better = MODES[mode]
        self._best: float | None = None
        self._write = write
        if metrics is not None:
            self._check_metric(metrics)

    def before_train(self) -> None:
        if self._metric is None:
            logger.info("No best weights are kept: train.best_checkpoint names no metric")
        start = self.trainer.start_iter
        if start == 0:
            if comm.is_main_process():
                self._record.unlink(missing_ok=True)
                if self._path.is_file():
                    backup(self._path, "an earlier training")
            return
        self._recall()
        self._best = comm.all_gather(self._best)[0]
        if start == self.trainer.max_iter or self._is_due(start):
            self._make_up(start)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done < self.trainer.max_iter and self._is_due(done):
            self._evaluate_now()

    def after_train(self) -> None:
        # After an error in the last step, iter is one less. A run that was finished before has nothing to evaluate.
        if self.trainer.start_iter < self.trainer.iter == self.trainer.max_iter:
            self._evaluate_now()
        del self._evaluate, self._write  # as detectron2's hook does: they may hold the trainer

    def _make_up(self, start: int) -> None:
        """Make the evaluation at the iteration that a resume starts with, unless it was made or tried too often."""
        # All processes act by the main process's record.
        recorded = comm.all_gather(self._recorded() if comm.is_main_process() else "")[0]
        position = self._position()
        if recorded == position:
            return
        tries = recorded.removeprefix(f"{position}{TRIED}")
        num_tries = int(tries) if tries != recorded and tries.isdigit() else 0
        if num_tries >= MAX_TRIES:
            logger.warning(
                "The evaluation after iteration %d is left out: it was begun %d times, and each time the process ended "
                "in it. Where memory runs out: %s",
                *(start - 1, num_tries, MEMORY_ADVICE),
            )
            return
        logger.info("Making up the evaluation after iteration %d, of which there is no record", start - 1)
        self._write_record(f"{position}{TRIED}{num_tries + 1}")
        try:
            self._evaluate_now(None if start == self.trainer.max_iter else start - 1)
        except (StopRequested, LoaderError):  # it may succeed the next time
            self._write_record(recorded)
            raise

    def _write_record(self, record: str) -> None:
        """Write the record of the last evaluation, in the main process; "" removes it."""
        if not comm.is_main_process():
            return
        if record:
            write_text(self._record, record)
        else:
            self._record.unlink(missing_ok=True)

    def _recorded(self) -> str:
        """Read which evaluation was made last; "" if that is not known."""
        if not self._record.is_file():
            return ""
        try:
            return self._record.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("%s cannot be read, as if no evaluation was made: %s", self._record, error)
            return ""

    def _is_due(self, iterations: int) -> bool:
        """Whether an evaluation is due after a number of iterations before the end."""
        return self._eval_period > 0 and iterations % self._eval_period == 0

    def _position(self) -> str:
        """Identify an evaluation, for any number of processes."""
        return f"{self._metric} after {self.trainer.samples_seen} samples"

    def _recall(self) -> None:
        """Read the best evaluation so far, in the main process. Back up a file that is damaged or has another metric or
        mode.
        """
        if not (comm.is_main_process() and self._metric is not None and self._path.is_file()):
            return
        try:
            kept = read_checkpoint(self._path)
        except CheckpointError as error:
            logger.warning("The best weights so far cannot be compared with: %s", error)
            backup(self._path, "no use")
            return
        if (kept.get("metric"), kept.get("mode")) != (self._metric, self._mode):
            backup(self._path, "another metric or mode")
        else:
            self._best = kept["value"]
            logger.info("Best so far: %s %.5f at iteration %d", self._metric, self._best, kept["iteration"])

    def _evaluate_now(self, iteration: int | None = None) -> None:
        """Evaluate in every process. The main process keeps the weights if they are the best, and writes the record.

        Args:
            iteration: iteration of the numbers, if it is not the trainer's.
        """
        is_complete = True
        # All processes save a sharded network, so they stop together: at the next draw.
        with nullcontext() if is_sharded(self.trainer.model) else interruptible():
            try:
                results = self._evaluate()
            except IncompleteEvaluation as error:
                logger.error("Not evaluated, and training goes on: %s", error)
                results, is_complete = error.results, False
        if torch.cuda.is_available() and not is_complete:
            torch.cuda.empty_cache()  # fragments that could leave too little free memory for a step
        metrics = flatten_results_dict(results)
        if comm.is_main_process() and is_complete:
            self._check_metric(metrics)
        if self._metric is not None:
            # All act by the main process's number, since the weights of a sharded network come from all.
            value = comm.all_gather(metrics.get(self._metric))[0]
            if value is not None:
                self._keep_if_best(float(value), self.trainer.next_iteration - 1)
        self.trainer.storage.put_scalars(**metrics, smoothing_hint=False, cur_iter=iteration)
        if comm.is_main_process():
            self._write()
        self._write_record(self._position())
        comm.synchronize()  # as detectron2's hook does: evaluations may take different times

    def _check_metric(self, metrics: Collection[str]) -> None:
        """Raise a ConfigError if the evaluation gives other metrics."""
        if self._metric is not None and self._metric not in metrics:
            raise ConfigError(
                f"train.best_checkpoint.metric is {self._metric!r}, but the evaluation gives {', '.join(metrics)}"
            )

    def _keep_if_best(self, value: float, iteration: int) -> None:
        if not math.isfinite(value):
            logger.warning("%s is %s at iteration %d: never the best", self._metric, value, iteration)
        elif self._best is None or self._is_better(value, self._best):
            kept = {"iteration": iteration, "metric": self._metric, "mode": self._mode, "value": value}
            self._checkpointer.save_weights(BEST_NAME, self._measured, **kept)
            before = "" if self._best is None else f", before {self._best:.5f}"
            logger.info("Best so far: %s %.5f at iteration %d%s", self._metric, value, iteration, before)
            self._best = value
