"""Evaluate a network on several ranks. All make the same number of passes if they have to; loaders are watched."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.batches import TIMEOUT_S, LoaderError, all_batches
from engine.distributed.fsdp import is_sharded
from engine.distributed.launch import share_buffers
from engine.out_of_memory import OutOfMemory
from engine.stops import as_stop
from runtime.errors import UserError

logger = logging.getLogger(__name__)

MEMORY_ADVICE = (
    "Lower dataloader.test_network.tile_px or reduce the test images; or set dataloader.test=null and evaluate the "
    "checkpoints by --eval-only on a machine with more memory"
)

Wrap = Callable[[nn.Module], nn.Module]
"""Network -> what is evaluated instead, with the same tensors."""


def uncompiled() -> AbstractContextManager[None]:
    """Run networks uncompiled in the block: test images have many sizes, and each would be compiled."""
    return torch.compiler.set_stance("force_eager")


class EvenLoader:
    """A test loader that gives a certain number of batches. It repeats the first sample for those that it lacks.

    Args:
        loader: gives single samples.
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
            LoaderError: a worker died or is stuck.
        """
        yield from all_batches(self._loader, "dataloader.test", self._timeout_s)
        for _ in range(self._num_batches - len(self._loader)):
            yield self._loader.collate_fn([self._loader.dataset[0]])


class FirstBatches(DatasetEvaluator):
    """An evaluator of this process's first batches, without those that an `EvenLoader` added.

    Its `evaluate` returns nothing: the processes join their measurements after all of them have finished.
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


def evaluate(
    model: nn.Module,
    test_loader: DataLoader,
    evaluator: DatasetEvaluator,
    wrap: Wrap | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Evaluate a network, each rank on its shard of the test set, and log the result.

    Args:
        model: bare, not wrapped for several processes; its mode stays as it is.
        test_loader: loads this rank's shard.
        evaluator: detectron2's interface; it is reset first.
        wrap: returns what runs instead of the model; None runs the model itself.
        timeout_s: see `engine.batches.next_batch`.

    Returns: what the evaluator gives in this process, a nested dict of metrics.

    Raises:
        LoaderError: images vanished or changed, or a worker died or is stuck. Every process raises it; with a sharded
            network, only the process that it happens to.
        OutOfMemory: likewise.
    """
    share_buffers(model)
    is_training, is_alone = model.training, is_sharded(model)
    # Each pass of a sharded network gathers its parameters from all processes. So all make the same number of passes.
    num_batches = max(comm.all_gather(len(test_loader))) if is_alone else len(test_loader)
    loader, first = EvenLoader(test_loader, num_batches, timeout_s), FirstBatches(evaluator, len(test_loader))
    try:
        with uncompiled():
            _together(partial(inference_on_dataset, wrap(model) if wrap else model, loader, first), is_alone)
    finally:
        model.train(is_training)  # detectron2 leaves it in evaluation mode after an error
    results = _together(evaluator.evaluate, is_alone) or {}
    print_csv_format(results)
    return results


def _together(work: Callable[[], Any], is_alone: bool) -> Any:
    """Do this process's part of an evaluation. What stops one process is raised in all of them.

    Args:
        work: waits for no other process, except with a sharded network.
        is_alone: raise it in this process alone. The others are in the middle of a pass and wait for its shard.
    """
    result, stop = None, None
    try:
        result = work()
    except (LoaderError, Exception) as error:
        stop = as_stop(error, MEMORY_ADVICE)
        if stop is None and isinstance(error, OSError | UserError):  # of images that vanished or changed
            logger.exception("The evaluation failed")
            # The last line: an error of a worker begins with its traceback.
            stop = LoaderError(f"the evaluation failed: {str(error).strip().splitlines()[-1]}")
        if not isinstance(stop, LoaderError | OutOfMemory):
            raise
    if is_alone and stop is not None:
        stop.is_shared = comm.get_world_size() == 1
        raise stop
    stops = [] if is_alone else [each for each in comm.all_gather(stop) if each is not None]
    for each in sorted(stops, key=lambda each: isinstance(each, OutOfMemory)):
        each.is_shared = True
        raise each
    return result
