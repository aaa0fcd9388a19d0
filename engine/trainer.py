"""The training step: precision, accumulation, clipping, skipped steps, and the position in the sample order."""

import logging
import math
import random
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader

from engine.batches import TIMEOUT_S, Batches
from engine.checkpoint.file import CheckpointError
from engine.distributed.fsdp import is_sharded, whole
from engine.ema import Ema
from engine.interrupts import TrainingStopped
from runtime.devices import warn_of_emulation
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

MAX_SKIPPED_IN_A_ROW = 5


class NonFiniteError(TrainingStopped):
    """Losses or gradients were not finite in too many steps in a row.

    Args:
        message: the values of the last step.
        batches: this process's batches of the last step.
    """

    status = 4

    def __init__(self, message: str, batches: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.batches = batches


def step_seed(seed: int, iteration: int, rank: int, part: int = 0) -> int:
    """Return the seed of one batch of a step in one process, in [0, 2**32): torch's CPU generator uses 32 bits."""
    return random.Random(f"{seed} {iteration} {rank}{f' {part}' if part else ''}").getrandbits(32)


class Trainer(SimpleTrainer):
    """detectron2's trainer in several precisions, on the CPU and on CUDA, with bit-exact resumes.

    The random numbers of a step depend on (seed, iteration, rank) alone, and its samples on `samples_seen` alone. So a
    checkpoint needs no generator states. A resume with another batch size, accumulation or number of processes
    continues the sample order, at the point of the schedule that belongs to `samples_seen`.

    If losses or gradients are not finite in any process, all processes skip the step, count it and pass over its
    samples. An overflow in fp16 is left to the scaler: it lowers the scale and skips the step uncounted, as long as the
    scale is above 1.

    Args:
        model: gives a dict of scalar losses, means over the samples, in training mode; bare or wrapped for several
            processes.
        data_loader: endless, of dicts that `Batches` draws. Its sampler has the attribute `start`: the number of
            samples that all processes together have drawn before.
        optimizer: optimiser of the model's parameters.
        precision: "float32", "tf32" (see `set_float32_products`), "bf16" or "fp16" (autocast; fp16 with a scaled loss).
        seed: seed of what the model draws.
        accumulation: batches of each process in a step. Their mean equals one large batch, except for BatchNorm's
            statistics of each batch and for losses that are no means over samples.
        clip_norm: gradients of a larger norm over all parameters are scaled down to it; None leaves them.
        ema: EMA of the bare model, updated in each step.
        loader_timeout_s: see `engine.batches.next_batch`.

    Attributes:
        bare_model: the network without the wrapper for several processes.
        samples_seen: samples that all processes together have trained on.
        skipped_steps: steps that were not finite, including those before a resume.
        batches: this process's batches of the last step.
        is_mid_update: whether some weights have moved in this step and others have not.

    Raises:
        ConfigError: unknown precision, a number of batches below 1, a norm that is not above 0.
        LoaderError, StopRequested: in training, see `Batches`.
        NonFiniteError: in training, after 5 steps in a row that were not finite. The weights and buffers are then
            those of the last completed step, as after any error of a step unless `is_mid_update`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        precision: str = "float32",
        seed: int = 0,
        accumulation: int = 1,
        clip_norm: float | None = None,
        ema: Ema | None = None,
        loader_timeout_s: float = TIMEOUT_S,
    ) -> None:
        if precision not in AUTOCAST_DTYPES:
            raise ConfigError(f"train.precision must be one of {', '.join(AUTOCAST_DTYPES)}, got {precision!r}")
        if accumulation < 1:
            raise ConfigError(f"train.accumulation must be at least 1, got {accumulation}")
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigError(f"train.clip_norm must be above 0, or null, got {clip_norm}")
        super().__init__(model, data_loader, optimizer)
        self.bare_model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.seed = seed
        self.accumulation = accumulation
        self.clip_norm = clip_norm
        self.ema = ema
        self.samples_seen = self.skipped_steps = 0
        self.batches: list[dict[str, Any]] = []
        self.is_mid_update = False
        self._skipped_in_a_row = 0
        samples_per_draw = data_loader.batch_size * comm.get_world_size()
        self.samples_per_iteration = samples_per_draw * accumulation
        self._batches = Batches(data_loader, samples_per_draw, loader_timeout_s)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._dtype = AUTOCAST_DTYPES[precision]
        self._device_type = self._parameters[0].device.type
        warn_of_emulation(precision, self._parameters[0].device)
        self._grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == "fp16")

    @property
    def next_iteration(self) -> int:
        """Iteration to start with: 0, or after a resume the first one with samples that were not seen."""
        return self.samples_seen // self.samples_per_iteration

    @property
    def faulty_samples(self) -> int:
        """Bad samples, including those before a resume."""
        return self._batches.num_faults

    def before_train(self) -> None:
        self.data_loader.sampler.start = self.samples_seen
        super().before_train()

    def after_train(self) -> None:
        if self.start_iter == self.max_iter:
            self.iter = self.max_iter  # detectron2 counts one step even if none was left
        super().after_train()

    def run_step(self) -> None:
        assert self.model.training, "a hook left the model in evaluation mode"
        buffers = [(buffer, buffer.clone()) for buffer in self.bare_model.buffers()]
        is_done = False
        try:
            is_done = self._do_step()
        finally:
            if not is_done:
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _do_step(self) -> bool:
        """Do a step and tell whether it counts. If not, the buffers have to be restored."""
        losses = self._compute_gradients()
        self.after_backward()
        self._grad_scaler.unscale_(self.optimizer)
        norm = whole(get_total_norm([p.grad for p in self._parameters if p.grad is not None]))
        if self.clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self.clip_norm, norm)
        values = torch.stack([*losses.values(), norm])
        if comm.get_world_size() > 1:  # what is not finite in one process is not finite in the mean
            torch.distributed.all_reduce(values)
            values /= comm.get_world_size()
        metrics = dict(zip([*losses, "grad_norm"], values.tolist(), strict=True))
        norm_is_finite = math.isfinite(metrics["grad_norm"])
        losses_are_finite = all(math.isfinite(metrics[name]) for name in losses)
        is_overflow = losses_are_finite and not norm_is_finite and self._grad_scaler.get_scale() > 1
        is_done = losses_are_finite and (norm_is_finite or is_overflow)
        self.samples_seen += self.samples_per_iteration
        if is_done:
            self.is_mid_update = True
            self._grad_scaler.step(self.optimizer)  # skips an overflow itself
            if self.ema is not None and not is_overflow:
                self.ema.update_parameters(self.bare_model)
            self.is_mid_update = False
            self._skipped_in_a_row = 0
        self._grad_scaler.update()
        if not is_done:
            self._count_skipped(metrics)
        metrics["total_loss"] = sum(metrics[name] for name in losses)
        self.storage.put_scalars(**{name: value for name, value in metrics.items() if math.isfinite(value)})
        counts = {"skipped_steps": self.skipped_steps, "faulty_samples": self.faulty_samples}
        self.storage.put_scalars(**counts, smoothing_hint=False)
        return is_done

    def _compute_gradients(self) -> dict[str, Tensor]:
        """Draw the batches of a step, compute their mean gradients, and return the mean losses of this process."""
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        self.batches = []
        waits_s = 0.0
        for part in range(self.accumulation):
            is_last = part == self.accumulation - 1
            batch, waited_s = self._batches.draw(is_last)
            waits_s += waited_s
            self.batches.append(batch)
            # After the batch: the first draw makes the loader's iterator, which uses this generator.
            torch.manual_seed(step_seed(self.seed, self.iter, comm.get_rank(), part))
            # The processes average their gradients in the last backward pass of a step. A sharded network does so in
            # each pass: else a process would keep complete gradients. For it autocast keeps no copies of weights.
            is_local = not is_last and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if is_local else nullcontext():
                with torch.autocast(
                    self._device_type, self._dtype, self._dtype is not None, cache_enabled=not is_sharded(self.model)
                ):
                    parts = {name: loss / self.accumulation for name, loss in self.model(batch).items()}
                self._grad_scaler.scale(sum(parts.values())).backward()
            losses = {name: loss.detach() + losses.get(name, 0.0) for name, loss in parts.items()}
        self.storage.put_scalar("data_time", waits_s)
        return losses

    def _count_skipped(self, metrics: dict[str, float]) -> None:
        """Count a skipped step, and raise NonFiniteError if there were too many in a row."""
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.warning("Iteration %d is skipped, since not all of it is finite: %s", self.iter, shown)
        if self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            self._skipped_in_a_row = 0  # a resume begins with other samples
            message = f"{MAX_SKIPPED_IN_A_ROW} iterations in a row were not finite, last {shown}"
            raise NonFiniteError(message, self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "samples_seen": self.samples_seen,
            "faulty_samples": self.faulty_samples,
            "skipped_steps": (self.skipped_steps, self._skipped_in_a_row),
            "grad_scaler": self._grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state. Of the optimiser only the moments are loaded; its settings stay as they are now.

        Raises:
            CheckpointError: the optimiser had other groups of parameters.
        """
        saved, groups = state_dict["optimizer"], self.optimizer.state_dict()["param_groups"]
        sizes, sizes_now = ([len(group["params"]) for group in side] for side in (saved["param_groups"], groups))
        if sizes != sizes_now:
            raise CheckpointError(f"the optimiser had groups of {sizes} tensors, and has groups of {sizes_now}")
        # A schedule that starts in the middle needs the rate that it multiplies.
        groups = [{"initial_lr": group["lr"], **group} for group in groups]
        super().load_state_dict({**state_dict, "optimizer": {"state": saved["state"], "param_groups": groups}})
        self.samples_seen = state_dict["samples_seen"]
        # Checkpoints of earlier versions lack these two.
        self._batches.num_faults = state_dict.get("faulty_samples", 0)
        self.skipped_steps, self._skipped_in_a_row = state_dict.get("skipped_steps", (0, 0))
        # Empty if the run so far had no scaled loss.
        if state_dict["grad_scaler"]:
            self._grad_scaler.load_state_dict(state_dict["grad_scaler"])


def set_float32_products(precision: str) -> None:
    """Let CUDA's float32 products and convolutions round their factors to TF32 if the precision is "tf32"."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
