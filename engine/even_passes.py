"""Evaluation of a sharded network: as many passes in every process, since each pass gathers its parameters from all."""

from collections.abc import Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.sharding import is_sharded


class EvenLoader:
    """A loader that gives every process as many batches as the longest gives: each pass of a sharded network needs all.

    What it adds is the first sample once more.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._num_batches = max(comm.all_gather(len(loader)))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Any]:
        yield from self._loader
        for _ in range(self._num_batches - len(self._loader)):
            yield self._loader.collate_fn([self._loader.dataset[0]])


class FirstBatches(DatasetEvaluator):
    """An evaluator that is given the first so many batches, and not those that an `EvenLoader` added."""

    def __init__(self, evaluator: DatasetEvaluator, num_batches: int) -> None:
        self._evaluator = evaluator
        self._num_batches = self._num_left = num_batches

    def reset(self) -> None:
        self._num_left = self._num_batches
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        if self._num_left:
            self._num_left -= 1
            self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        return self._evaluator.evaluate()


def in_step(
    model: nn.Module, loader: DataLoader, evaluator: DatasetEvaluator
) -> tuple[DataLoader | EvenLoader, DatasetEvaluator]:
    """Make an evaluation of a sharded network one of as many passes in every process; of another it stays as it is."""
    if not is_sharded(model):
        return loader, evaluator
    return EvenLoader(loader), FirstBatches(evaluator, len(loader))
