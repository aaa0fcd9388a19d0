"""Log metrics and draw sample images during a run."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import Tensor, nn

from engine.distributed.fsdp import is_sharded
from engine.distributed.padded_eval import uncompiled
from engine.interrupts import OutputError
from engine.logging.writers import WINDOW, ProgressWriter
from engine.trainer import Trainer
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

PICTURES = "pictures"

Arrays = dict[str, Any]
"""Name -> numpy array."""


class WriteMetrics(hooks.HookBase):
    """Writes what trainer and hooks put into the storage: periodically, at the end, and when `write` is called.

    It adds each group's learning rate as lr/NAME, by the group's "name", images per second over all processes, this
    process's resident memory (on Linux) and its GPU's peak, both in 10^9 bytes. No progress is logged for a step that
    was cut off by a stop.

    Args:
        period: in iterations.

    Attributes:
        writers: in order; the run adds them when it knows its first iteration.

    Raises:
        OutputError: in training: a writer cannot write.
    """

    trainer: Trainer

    def __init__(self, period: int) -> None:
        self.writers: list[EventWriter] = []
        self._period = period
        self._rates: dict[str, float] = {}

    def before_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            # The scheduler sets the next step's rates before this hook's turn after the step.
            for index, group in enumerate(self.trainer.optimizer.param_groups):
                self._rates[f"lr/{group.get('name', f'group {index}')}"] = group["lr"]

    def after_step(self) -> None:
        if self._rates:
            self.write()

    def after_train(self) -> None:
        self._rates = {}
        if self.trainer.iter < self.trainer.max_iter:  # the batch that stopped the run may have brought some
            self.trainer.storage.put_scalar("faulty_samples", self.trainer.faulty_samples, smoothing_hint=False)
        try:
            self.write()
        finally:
            for writer in self.writers:
                try:
                    writer.close()
                except OSError as error:
                    logger.warning("The last metrics may not be written: %s", error)

    def write(self) -> None:
        """Write what is new in the storage. In a due step, once, add the metrics of this hook and log progress."""
        is_due = bool(self._rates)
        if is_due:
            self._add_metrics()
        for writer in [*self.writers]:
            if isinstance(writer, ProgressWriter) and not is_due:
                continue
            try:
                writer.write()
            except OSError as error:
                self.writers.remove(writer)  # it would fail again at the end
                with suppress(OSError):
                    writer.close()
                raise OutputError(f"cannot write metrics: {error}") from error

    def _add_metrics(self) -> None:
        storage = self.trainer.storage
        metrics, self._rates = self._rates, {}
        if "time" in storage.latest():
            step_s = storage.history("time").median(storage.count_samples("time", WINDOW))
            metrics["images_per_second"] = self.trainer.samples_per_iteration / step_s
        if (resident_gb := resident_memory_gb()) is not None:
            metrics["memory_gb"] = resident_gb
        device = next(self.trainer.model.parameters()).device
        if device.type == "cuda":
            metrics["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        storage.put_scalars(**metrics, smoothing_hint=False)


class DrawSamples(hooks.HookBase):
    """Periodically draws samples of the last batch with the networks' outputs in evaluation mode.

    Every process has this hook, before `WriteMetrics`. A sharded network runs in all of them, any other only in the
    main process. Weights, BatchNorm's statistics and the random numbers of later steps do not change.

    Args:
        draw: takes the samples' arrays by name, the same of each network's outputs, and the path of the image to
            write. It returns the image, (H, W, 3) float in [0, 1].
        networks: name -> bare network.
        folder: folder of the run.
        period: in iterations, 0 for none.
        num_samples: largest number of samples of a batch.

    Raises:
        ConfigError: other numbers.
        OutputError: in training: the image cannot be written.
    """

    trainer: Trainer

    def __init__(
        self,
        draw: Callable[[Arrays, dict[str, Arrays], Path], Any],
        networks: Mapping[str, nn.Module],
        folder: str | Path,
        period: int,
        num_samples: int,
    ) -> None:
        for name, value, least in (("period", period, 0), ("num_samples", num_samples, 1)):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"train.pictures.{name} must be a whole number of at least {least}, got {value!r}")
        self._draw = draw
        self._networks = networks
        self._folder = Path(folder, PICTURES)
        self._period, self._num_samples = period, num_samples

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_due = self._period > 0 and (done % self._period == 0 or done == self.trainer.max_iter)
        if not is_due or not (comm.is_main_process() or is_sharded(self.trainer.model)):
            return
        batch = {name: tensor[: self._num_samples] for name, tensor in self.trainer.batches[-1].items()}
        outputs = {name: _arrays(self._compute(network, batch)) for name, network in self._networks.items()}
        if not comm.is_main_process():
            return
        try:
            self._folder.mkdir(exist_ok=True)
            picture = self._draw(_arrays(batch), outputs, self._folder / f"iter_{self.trainer.iter:07d}.jpg")
        except OSError as error:
            raise OutputError(f"cannot write sample pictures: {error}") from error
        self.trainer.storage.put_image("samples", picture.transpose(2, 0, 1))

    @staticmethod
    @torch.no_grad()
    def _compute(network: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        with uncompiled(), inference_context(network):
            return network(batch)


def resident_memory_gb() -> float | None:
    """Return the resident memory of this process in 10^9 bytes; None if the system has no /proc."""
    try:
        num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return None
    return num_pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def _arrays(tensors: Mapping[str, Any]) -> Arrays:
    """Return the tensors among some values as numpy arrays."""
    return {name: value.float().cpu().numpy() for name, value in tensors.items() if isinstance(value, Tensor)}
