"""Evaluation during training, with the best weights kept."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.checkpoint import Checkpointer, read_checkpoint
from engine.config import ConfigError
from engine.launch import share_buffers

logger = logging.getLogger(__name__)

BEST_NAME = "model_best"

MODES: dict[str, Callable[[float, float], bool]] = {"min": lambda a, b: a < b, "max": lambda a, b: a > b}
"""Name -> whether metric a is better than metric b."""


def evaluate(model: nn.Module, test_loader: DataLoader, evaluator: DatasetEvaluator) -> dict[str, Any]:
    """Evaluate a network, every process on its part of the test set, and log the result.

    Args:
        model: bare, not wrapped for several processes; left in the mode that it is in.
        test_loader: of this process's part.
        evaluator: detectron2's interface; it is reset first.

    Returns: what the evaluator gives in this process, a nested dict of metrics.
    """
    share_buffers(model)
    results = inference_on_dataset(model, test_loader, evaluator)
    print_csv_format(results)
    return results


class EvaluateAndKeepBest(hooks.EvalHook):
    """Evaluates as detectron2's hook does, and keeps the weights of the best evaluation as model_best.pth.

    The file holds "model", "iteration" (counted as the periodic checkpoints do), "metric" and "value". These are all
    the memory that the hook has: a resume reads them back, and so knows of evaluations after the checkpoint that it
    starts from. A checkpoint is written before the evaluation at its iteration, and the training may have stopped
    between the two: a resume makes that evaluation first, unless it was the best and the file tells. A training that
    starts anew in the same folder sets the file of the one before aside. Of equal evaluations the first is kept.

    Args:
        eval_period: in iterations, 0 for none; the end of the training is evaluated in any case.
        evaluate: takes nothing and gives a nested dict of metrics, in the main process at least.
        checkpointer: knows the weights and the folder.
        metric: name in that dict, such as "group/name"; None keeps no best.
        mode: "min" or "max", what is better.

    Raises:
        ConfigError: another mode; at the first evaluation, a metric that it does not give.
    """

    def __init__(
        self,
        eval_period: int,
        evaluate: Callable[[], dict[str, Any]],
        checkpointer: Checkpointer,
        metric: str | None,
        mode: str,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"train.best_checkpoint.mode must be {' or '.join(MODES)}, got {mode!r}")
        # After the last iteration, the trainer's `iter` is one further.
        super().__init__(eval_period, lambda: self._evaluate_at(min(self.trainer.iter, self.trainer.max_iter - 1)))
        self._eval_period = eval_period
        self._evaluate = evaluate
        self._checkpointer = checkpointer
        self._path = Path(checkpointer.save_dir, f"{BEST_NAME}.pth")
        self._metric = metric
        self._is_better = MODES[mode]
        self._best: float | None = None

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if self._metric is None:
            return
        if start == 0:
            self._set_aside()
            return
        iteration = self._recall()
        is_due = self._eval_period > 0 and start % self._eval_period == 0 and start < self.trainer.max_iter
        if is_due and comm.all_gather(iteration)[0] != start - 1:
            logger.info("Evaluating at iteration %d, where the training stopped", start - 1)
            results = self._evaluate_at(start - 1)
            self.trainer.storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
            comm.synchronize()

    def after_train(self) -> None:
        super().after_train()
        del self._evaluate  # as detectron2's hook does with what it calls: it may hold the trainer

    def _set_aside(self) -> None:
        """Keep the best of an earlier training in the folder out of this one, in the main process."""
        if comm.is_main_process() and self._path.is_file():
            aside = self._path.with_name(f"{BEST_NAME}_of_earlier_training.pth")
            self._path.replace(aside)
            logger.info("%s is of an earlier training: moved to %s", self._path, aside)

    def _recall(self) -> int | None:
        """Read back the best evaluation so far, in the main process.

        Returns: its iteration; None where there is none by this metric.
        """
        if not (comm.is_main_process() and self._path.is_file()):
            return None
        kept = read_checkpoint(self._path)
        if kept.get("metric") != self._metric:
            return None
        self._best = kept["value"]
        logger.info("Best so far: %s %.5f at iteration %d", self._metric, self._best, kept["iteration"])
        return kept["iteration"]

    def _evaluate_at(self, iteration: int) -> dict[str, Any]:
        """Evaluate in every process; the main one keeps the weights where they are the best."""
        results = self._evaluate()
        if comm.is_main_process() and self._metric is not None:
            metrics = flatten_results_dict(results)
            if self._metric not in metrics:
                raise ConfigError(
                    f"train.best_checkpoint.metric is {self._metric!r}, but the evaluation gives {', '.join(metrics)}"
                )
            self._keep_if_best(float(metrics[self._metric]), iteration)
        return results

    def _keep_if_best(self, value: float, iteration: int) -> None:
        if not math.isfinite(value):
            logger.warning("%s is %s at iteration %d: never the best", self._metric, value, iteration)
        elif self._best is None or self._is_better(value, self._best):
            self._checkpointer.save_weights(BEST_NAME, iteration=iteration, metric=self._metric, value=value)
            before = "" if self._best is None else f", before {self._best:.5f}"
            logger.info("Best so far: %s %.5f at iteration %d%s", self._metric, value, iteration, before)
            self._best = value
