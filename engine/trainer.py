"""The training step: precision, accumulation, clipping, a guard against what is not finite, the place in the stream."""

import logging
import math
import random
from contextlib import AbstractContextManager, nullcontext
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
from engine.distributed.launch import raise_on_lost_peer
from engine.ema import Ema
from engine.interrupts import TrainingStopped
from engine.out_of_memory import stop_on_out_of_memory
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

MAX_SKIPPED_IN_A_ROW = 5


class NonFiniteError(TrainingStopped):
    """Losses or gradients were not finite in too many steps in a row.

    Args:
        message: which, and in which iteration.
        batches: this process's batches of the last one.
    """

    status = 4

    def __init__(self, message: str, batches: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.batches = batches


def step_seed(seed: int, iteration: int, rank: int, part: int = 0) -> int:
    """Seed of one batch of a step in one process, in [0, 2**32): torch's CPU generator uses no more bits than these."""
    return random.Random(f"{seed} {iteration} {rank}{f' {part}' if part else ''}").getrandbits(32)


class Trainer(SimpleTrainer):
    """detectron2's trainer in several precisions, on the CPU and on CUDA, that resumes to the same numbers.

    What a step draws at random depends on (seed, iteration, rank) alone, and its samples on `samples_seen` alone, so a
    checkpoint needs no generator states. A resume with another batch size, accumulation or number of processes goes on
    where the stream of samples stopped, and in the schedule where that many samples belong.

    A step whose losses or gradients are not finite in any process changes nothing in all of them, is counted, and its
    samples are passed over. In fp16 an overflow is the scaler's affair, which lowers the scale and skips the step
    uncounted, as long as the scale is above 1.

    Args:
        model: gives a dict of scalar losses, means over the samples, in training mode; bare or wrapped for several
            processes.
        data_loader: endless, of dicts that `Batches` draws; its sampler has the attribute `start`, the number of
            samples that all processes together have drawn before.
        optimizer: of the model's parameters.
        precision: "float32", "tf32" (see `set_float32_products`), "bf16" or "fp16" (autocast; fp16 with a scaled loss).
        seed: of what the model draws.
        accumulation: batches of each process in a step; their mean is what one large batch gives, but for BatchNorm's
            statistics of each batch and losses that are no means over samples.
        clip_norm: gradients of a larger norm over all parameters are scaled down to it; None leaves them.
        ema: average of the bare model that each step moves.
        loader_timeout_s: see `engine.batches.next_batch`.

    Attributes:
        samples_seen: samples that all processes together have trained on.
        skipped_steps: steps that were not finite, before a resume as well.
        batches: this process's of the last step.
        stop_signal: name of a signal after which all processes stop before their next step, or "".

    Raises:
        ConfigError: for another name of a precision, a number of batches below 1, a norm that is not above 0.
        TrainingStopped: in training, between two steps; the weights and buffers are those of the last whole step. Its
            kinds: LoaderError and StopRequested, see `Batches`; NonFiniteError after 5 steps in a row that were not
            finite; LostProcess, in each process that is left by itself; OutOfMemory, in the process that has no more.
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
        self.seed = seed
        self.accumulation = accumulation
        self.clip_norm = clip_norm
        self.ema = ema
        self.samples_seen = self.skipped_steps = 0
        self.batches: list[dict[str, Any]] = []
        self.stop_signal = ""
        self._skipped_in_a_row = 0
        samples_per_draw = data_loader.batch_size * comm.get_world_size()
        self.samples_per_iteration = samples_per_draw * accumulation
        self._batches = Batches(data_loader, samples_per_draw, loader_timeout_s)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._dtype = AUTOCAST_DTYPES[precision]
        self._device_type = self._parameters[0].device.type
        self._grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == "fp16")

    @property
    def bare_model(self) -> nn.Module:
        """The network without what wraps it for several processes."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    @property
    def next_iteration(self) -> int:
        """Iteration to start with: 0, or after a resume the first one whose samples were not seen."""
        return self.samples_seen // self.samples_per_iteration

    @property
    def faulty_samples(self) -> int:
        """Samples that could not be read, before a resume as well."""
        return self._batches.num_faults

    def train(self, start_iter: int, max_iter: int) -> None:
        """Do the steps from `start_iter` to before `max_iter`; where none is left, the hooks before and after alone."""
        super().train(min(start_iter, max_iter), max_iter)

    @raise_on_lost_peer()
    @stop_on_out_of_memory()
    def before_train(self) -> None:
        self.data_loader.sampler.start = self.samples_seen
        super().before_train()

    @raise_on_lost_peer()
    @stop_on_out_of_memory()
    def after_step(self) -> None:
        super().after_step()

    @raise_on_lost_peer()
    @stop_on_out_of_memory()
    def after_train(self) -> None:
        if self.start_iter == self.max_iter:
            self.iter = self.max_iter  # detectron2 counts one step where none was left to do
        super().after_train()

    @raise_on_lost_peer()
    @stop_on_out_of_memory()
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
        """Do a step, and tell whether it counts; of one that does not, the buffers have to be set back."""
        losses = self._compute_gradients()
        self.after_backward()
        self._grad_scaler.unscale_(self.optimizer)
        norm = whole(get_total_norm([p.grad for p in self._parameters if p.grad is not None]))
        if self.clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self.clip_norm, norm)
        metrics = self._averaged({**losses, "grad_norm": norm})
        norm_is_finite = math.isfinite(metrics["grad_norm"])
        losses_are_finite = all(math.isfinite(metrics[name]) for name in losses)
        is_overflow = losses_are_finite and not norm_is_finite and self._grad_scaler.get_scale() > 1
        is_done = losses_are_finite and (norm_is_finite or is_overflow)
        self.samples_seen += self.samples_per_iteration
        if is_done:
            with stop_on_out_of_memory(has_whole_steps=False):
                self._grad_scaler.step(self.optimizer)  # skips an overflow itself
                if self.ema is not None and not is_overflow:
                    self.ema.update_parameters(self.bare_model)
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
        """Draw the batches of a step, compute their mean gradients, and give the mean losses of this process."""
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        self.batches = []
        waits_s = 0.0
        for part in range(self.accumulation):
            is_last = part == self.accumulation - 1
            batch, waited_s = self._batches.draw("" if part else self.stop_signal, is_last)
            waits_s += waited_s
            self.batches.append(batch)
            # After the batch: making the loader's iterator draws from the same generator, in the first step only.
            torch.manual_seed(step_seed(self.seed, self.iter, comm.get_rank(), part))
            with self._reduced_gradients(is_last):
                with self._autocast():
                    parts = {name: loss / self.accumulation for name, loss in self.model(batch).items()}
                self._grad_scaler.scale(sum(parts.values())).backward()
            losses = {name: loss.detach() + losses.get(name, 0.0) for name, loss in parts.items()}
        self.storage.put_scalar("data_time", waits_s)
        return losses

    def _autocast(self) -> torch.autocast:
        """Compute in the lower precision, if there is one; no copies of a sharded network's weights are kept for it."""
        is_low = self._dtype is not None
        return torch.autocast(self._device_type, self._dtype, is_low, cache_enabled=not is_sharded(self.model))

    def _reduced_gradients(self, is_last: bool) -> AbstractContextManager[None]:
        """Where the gradients of several processes are averaged: in a step's last backward pass alone.

        Those of a sharded network are in each of them: until the last one, a process would keep whole gradients.
        """
        return nullcontext() if is_last or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync()

    def _averaged(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over the processes; what is not finite in one is not finite in the result of all."""
        vector = torch.stack([*values.values()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(vector)
            vector /= comm.get_world_size()
        return dict(zip(values, vector.tolist(), strict=True))

    def _count_skipped(self, metrics: dict[str, float]) -> None:
        """Count a step that changes nothing, and raise where there were too many in a row."""
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
        """Go on from a state, with the optimiser's settings as they are now: of its own only the moments are taken.

        Raises:
            CheckpointError: the optimiser had other groups of parameters.
        """
        saved, groups = state_dict["optimizer"], self.optimizer.state_dict()["param_groups"]
        sizes, sizes_now = ([len(group["params"]) for group in side] for side in (saved["param_groups"], groups))
        if sizes != sizes_now:
            raise CheckpointError(f"the optimiser had groups of {sizes} tensors, and has groups of {sizes_now}")
        # Schedules that begin in the middle ask for the rate to multiply.
        groups = [{"initial_lr": group["lr"], **group} for group in groups]
        super().load_state_dict({**state_dict, "optimizer": {"state": saved["state"], "param_groups": groups}})
        self.samples_seen = state_dict["samples_seen"]
        # Checkpoints of earlier versions lack these two.
        self._batches.num_faults = state_dict.get("faulty_samples", 0)
        self.skipped_steps, self._skipped_in_a_row = state_dict.get("skipped_steps", (0, 0))
        # Empty where the training so far had no scaled loss.
        if state_dict["grad_scaler"]:
            self._grad_scaler.load_state_dict(state_dict["grad_scaler"])


def set_float32_products(precision: str) -> None:
    """Let CUDA's float32 products and convolutions round their factors to TF32 in precision "tf32", and there alone."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
