"""The test set as an evaluation draws it: workers are watched, and all processes draw equally many if they have to."""

from collections.abc import Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.batches import all_batches
from engine.distributed.fsdp import is_sharded


class EvenLoader:
    """A test loader that gives a certain number of batches, the first sample once more for those that it lacks.

    Args:
        loader: of single samples.
        num_batches: at least the loader's own.
        timeout_s: see `engine.batches.next_batch`.
    """

    def __init__(self, loader: DataLoader, num_batches: int, timeout_s: float) -> None:
        self._loader = loader
        self._num_batches = num_batches
        self._timeout_s = timeout_s

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            LoaderError: a worker died or stands still.
        """
        yield from all_batches(self._loader, "dataloader.test", self._timeout_s)
        for _ in range(self._num_batches - len(self._loader)):
            yield self._loader.collate_fn([self._loader.dataset[0]])


class FirstBatches(DatasetEvaluator):
    """An evaluator of this process's first batches, and not of those that an `EvenLoader` added.

    Its `evaluate` returns nothing: what the processes measured is put together once all of them have come so far.
    """

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


def in_step(
    model: nn.Module, loader: DataLoader, evaluator: DatasetEvaluator, timeout_s: float
) -> tuple[EvenLoader, FirstBatches]:
    """Prepare one process's part of an evaluation.

    Each pass of a sharded network gathers its parameters from all processes, which therefore make equally many.
    """
    num_batches = max(comm.all_gather(len(loader))) if is_sharded(model) else len(loader)
    return EvenLoader(loader, num_batches, timeout_s), FirstBatches(evaluator, len(loader))
