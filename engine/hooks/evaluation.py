"""Evaluation during training, of the network and its average, with the best weights kept."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.batches import TIMEOUT_S, LoaderError
from engine.checkpoint.file import Checkpointer, CheckpointError, read_checkpoint
from engine.distributed.fsdp import is_sharded
from engine.distributed.launch import share_buffers
from engine.distributed.padded_eval import in_step
from engine.interrupts import StopRequested, interruptible, write_text
from engine.out_of_memory import OutOfMemory, stop_on_out_of_memory
from engine.trainer import Trainer
from runtime.atomic_write import backup
from runtime.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

BEST_NAME = "model_best"

MAX_TRIES = 3
"""Resumes that begin a missing evaluation anew: one that ends the process each time must not stop the run for ever."""

TRIED = ", begun anew by resumes: "
"""In the record of the last evaluation: what follows is a number, and the evaluation is not made yet."""

MEMORY_ADVICE = (
    "Lower dataloader.test_network.tile_px or reduce the test images; or set dataloader.test=null and evaluate the "
    "checkpoints by --eval-only on a machine with more memory"
)

Wrap = Callable[[nn.Module], nn.Module]
"""Network -> what is evaluated in its place, with the same tensors."""

MODES: dict[str, Callable[[float, float], bool]] = {"min": lambda a, b: a < b, "max": lambda a, b: a > b}
"""Name -> whether metric a is better than metric b."""


def uncompiled() -> AbstractContextManager[None]:
    """In the block networks run as they are written: what is evaluated is of many sizes, each to be compiled for."""
    return torch.compiler.set_stance("force_eager")


class IncompleteEvaluation(Exception):  # noqa: N818  it is handled, and ends nothing
    """Networks that could not be evaluated for want of memory, in any process; all raise it.

    Attributes:
        results: of the other networks, see `evaluate_all`.
    """

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__(message)
        self.results = results


def evaluate(
    model: nn.Module,
    test_loader: DataLoader,
    evaluator: DatasetEvaluator,
    wrap: Wrap | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Evaluate a network, every process on its part of the test set, and log the result.

    Args:
        model: bare, not wrapped for several processes; left in the mode that it is in.
        test_loader: of this process's part.
        evaluator: detectron2's interface; it is reset first.
        wrap: gives what runs in the model's place; None runs the model itself.
        timeout_s: see `engine.batches.next_batch`.

    Returns: what the evaluator gives in this process, a nested dict of metrics.

    Raises:
        LoaderError: images went or changed, or a worker died or stands still. As all, it is raised in every process;
            where the network is sharded, in the one that it happens to alone.
        OutOfMemory: there is not enough.
    """
    share_buffers(model)
    is_training, is_alone = model.training, is_sharded(model)
    part = in_step(model, test_loader, evaluator, timeout_s)
    try:
        with uncompiled():
            _together(partial(inference_on_dataset, wrap(model) if wrap else model, *part), is_alone)
    finally:
        model.train(is_training)  # detectron2 leaves it in evaluation mode after an error
    results = _together(evaluator.evaluate, is_alone) or {}
    print_csv_format(results)
    return results


def _together(work: Callable[[], Any], is_alone: bool) -> Any:
    """Do this process's part of an evaluation; what stops a process is raised in all of them.

    Args:
        work: waits for no other process, but those of a sharded network.
        is_alone: raise it in this process alone: the others, in the middle of a pass, wait for its part of the network.
    """
    result, stop = None, None
    try:
        with stop_on_out_of_memory(MEMORY_ADVICE):
            result = work()
    except (LoaderError, OutOfMemory) as error:
        stop = error
    except (OSError, UserError) as error:  # of images that went or changed since the start
        logger.exception("The evaluation failed")
        # The last line: an error of a worker begins with its traceback.
        stop = LoaderError(f"the evaluation failed: {str(error).strip().splitlines()[-1]}")
    if is_alone and stop is not None:
        stop.is_shared = comm.get_world_size() == 1
        raise stop
    stops = [] if is_alone else [each for each in comm.all_gather(stop) if each is not None]
    for each in sorted(stops, key=lambda each: isinstance(each, OutOfMemory)):
        each.is_shared = True
        raise each
    return result


def evaluate_all(
    networks: Mapping[str, nn.Module],
    test_loader: DataLoader,
    evaluator: DatasetEvaluator,
    wrap: Wrap | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Evaluate each of several networks.

    Args:
        networks: name -> network; "" is the one whose metrics keep their names.

    Returns: what `evaluate` gives for "", and under each other name what it gives for that network.

    Raises:
        IncompleteEvaluation: there is not enough memory for some of them.
        LoaderError, OutOfMemory: see `evaluate`; the latter of a sharded network alone.
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
    """Name what `evaluate_all` will give, such as "group/name" and "ema/group/name"; None where that is not known."""
    names = getattr(evaluator, "metric_names", None)
    return (
        None if names is None else [f"{network}/{name}" if network else name for network in networks for name in names]
    )


class EvaluateAndKeepBest(hooks.HookBase):
    """Evaluates every so often and at the end, and keeps the weights of the best evaluation as model_best.pth.

    The file holds "model", "iteration" (counted as the periodic checkpoints do), "metric" and "value"; a resume reads
    it back, and so knows of evaluations after the checkpoint that it starts from. A checkpoint is written before the
    evaluation at its iteration, and the training may have stopped between the two: a resume makes that evaluation
    first, that of a finished training as well, unless the file last_evaluation tells that it was made. A training that
    starts anew in the same folder sets the best of those before aside. Of equal evaluations the first is kept.

    Args:
        eval_period: in iterations, 0 for none; the end of the training is evaluated in any case.
        evaluate: takes nothing and gives a nested dict of metrics, in the main process at least.
        checkpointer: knows the folder.
        networks: name -> network, what is evaluated: the weights kept are those that the metric is of.
        metric: name in that dict, such as "group/name", or "ema/group/name" of a network "ema"; None keeps no best.
        mode: "min" or "max", what is better.
        metrics: all such names, where they are known beforehand.
        is_recorded_later: `write_record` is called when the metrics are written, lest a kill in between loses them.

    Raises:
        ConfigError: another mode; a metric that the evaluation does not give, at the first one where `metrics` is None.
        LoaderError: in training, see `evaluate`. Out of memory is logged, counts as evaluated, and training goes on.
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
        is_recorded_later: bool = False,
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
        self._is_recorded_later = is_recorded_later
        self._unrecorded = ""
        if metrics is not None:
            self._check_metric(metrics)

    def before_train(self) -> None:
        if self._metric is None:
            logger.info("No best weights are kept: train.best_checkpoint names no metric")
        start = self.trainer.start_iter
        if start == 0:
            self._set_aside()
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
        # An error in the last step stands one before; this does not concern a run that was finished before.
        if self.trainer.start_iter < self.trainer.iter == self.trainer.max_iter:
            self._evaluate_now()
        del self._evaluate  # as detectron2's hook does with what it calls: it may hold the trainer

    @property
    def is_unrecorded(self) -> bool:
        """Whether `write_record` has something to write."""
        return bool(self._unrecorded)

    def write_record(self) -> None:
        """Write down that the last evaluation was made, if that is not done yet; in the main process."""
        if self._unrecorded:
            write_text(self._record, self._unrecorded)
            self._unrecorded = ""

    def _make_up(self, start: int) -> None:
        """Make the evaluation at the iteration that a resume starts with, unless it was made or tried too often."""
        # What the main process has on record, all act by.
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
        self._write(f"{position}{TRIED}{num_tries + 1}")
        try:
            self._evaluate_now(None if start == self.trainer.max_iter else start - 1)
        except (StopRequested, LoaderError):  # it may succeed the next time
            self._write(recorded)
            raise

    def _write(self, record: str) -> None:
        """Write the record of the last evaluation, in the main process; "" removes it."""
        if not comm.is_main_process():
            return
        if record:
            write_text(self._record, record)
        else:
            self._record.unlink(missing_ok=True)

    def _recorded(self) -> str:
        """Read which evaluation was made last; "" where that is not known."""
        if not self._record.is_file():
            return ""
        try:
            return self._record.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("%s cannot be read, as if no evaluation was made: %s", self._record, error)
            return ""

    def _is_due(self, iterations: int) -> bool:
        """Whether an evaluation belongs after so many iterations on the way."""
        return self._eval_period > 0 and iterations % self._eval_period == 0

    def _position(self) -> str:
        """What tells one evaluation from the others, for any number of processes."""
        return f"{self._metric} after {self.trainer.samples_seen} samples"

    def _set_aside(self) -> None:
        """Keep what earlier trainings in the folder left out of this one, in the main process."""
        if comm.is_main_process():
            self._record.unlink(missing_ok=True)
            if self._path.is_file():
                backup(self._path, "an earlier training")

    def _recall(self) -> None:
        """Read back the best evaluation so far, in the main process; a damaged one is moved aside, and one by another
        metric or mode.
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
        """Evaluate in every process; the main one keeps the weights where they are the best, and then the record.

        Args:
            iteration: to which the numbers belong, where it is not the trainer's.
        """
        is_complete = True
        # A sharded network is saved by all processes, and so stops with all of them: at the next draw.
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
            # What the main process measured, all act by: the weights of a sharded network come from all.
            value = comm.all_gather(metrics.get(self._metric))[0]
            if value is not None:
                self._keep_if_best(float(value), self.trainer.next_iteration - 1)
        if comm.is_main_process():
            self._unrecorded = self._position()
            if not self._is_recorded_later:
                self.write_record()
        self.trainer.storage.put_scalars(**metrics, smoothing_hint=False, cur_iter=iteration)
        comm.synchronize()  # as detectron2's hook does: evaluations may take unlike times

    def _check_metric(self, metrics: Collection[str]) -> None:
        """Raise a ConfigError where the evaluation gives other metrics."""
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
