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
    the memory that the hook has: a resume reads them back, so that it matters neither that a checkpoint is written
    before the evaluation at its iteration, nor that the training went on after it. A training that starts anew in the
    same folder sets the file of the one before aside. Of equal evaluations the first is kept.

    Args:
        eval_period: in iterations; the end of the training is evaluated in any case.
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
        super().__init__(eval_period, self._evaluate_and_keep)
        self._evaluate = evaluate
        self._checkpointer = checkpointer
        self._path = Path(checkpointer.save_dir, f"{BEST_NAME}.pth")
        self._metric = metric
        self._is_better = MODES[mode]
        self._best: float | None = None

    def before_train(self) -> None:
        if not (comm.is_main_process() and self._metric and self._path.is_file()):
            return
        if self.trainer.start_iter == 0:
            aside = self._path.with_name(f"{BEST_NAME}_of_earlier_training.pth")
            self._path.replace(aside)
            logger.info("%s is of an earlier training: moved to %s", self._path, aside)
            return
        kept = read_checkpoint(self._path)
        if kept.get("metric") == self._metric:
            self._best = kept["value"]
            logger.info("Best so far: %s %.5f at iteration %d", self._metric, self._best, kept["iteration"])

    def after_train(self) -> None:
        super().after_train()
        del self._evaluate  # as detectron2's hook does with what it calls: it may hold the trainer

    def _evaluate_and_keep(self) -> dict[str, Any]:
        """Evaluate in every process; the main one keeps the weights where they are the best."""
        results = self._evaluate()
        if comm.is_main_process() and self._metric:
            metrics = flatten_results_dict(results)
            if self._metric not in metrics:
                raise ConfigError(
                    f"train.best_checkpoint.metric is {self._metric!r}, but the evaluation gives {', '.join(metrics)}"
                )
            self._keep_if_best(float(metrics[self._metric]))
        return results

    def _keep_if_best(self, value: float) -> None:
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)  # after the last one, `iter` is one further
        if not math.isfinite(value):
            logger.warning("%s is %s at iteration %d: never the best", self._metric, value, iteration)
        elif self._best is None or self._is_better(value, self._best):
            self._checkpointer.save_weights(BEST_NAME, iteration=iteration, metric=self._metric, value=value)
            before = "" if self._best is None else f", before {self._best:.5f}"
            logger.info("Best so far: %s %.5f at iteration %d%s", self._metric, value, iteration, before)
            self._best = value
