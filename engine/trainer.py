"""The training step: precision, step-wise random numbers and the position in the stream of samples."""

import random
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from engine.loading import Batches

AUTOCAST_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Seed of one step in one process, in [0, 2**32): torch's CPU generator uses no more bits than these."""
    return random.Random(f"{seed} {iteration} {rank}").getrandbits(32)


class Trainer(SimpleTrainer):
    """detectron2's trainer in float32, bf16 or fp16, on the CPU and on CUDA, that resumes to the same numbers.

    What a step draws at random depends on (seed, iteration, rank) alone, and its samples on `samples_seen` alone, so a
    checkpoint needs no generator states. A resume with another batch size or number of processes goes on where the
    stream of samples stopped, and in the schedule where that many samples belong.

    Args:
        model: gives a dict of scalar losses in training mode; bare or wrapped for several processes.
        data_loader: endless, of dicts that `Batches` draws; its sampler has the attribute `start`, the number of
            samples that all processes together have drawn before.
        optimizer: of the model's parameters.
        precision: "float32", "bf16" or "fp16" (autocast; fp16 with a scaled loss).
        seed: of what the model draws.

    Attributes:
        samples_seen: samples that all processes together have trained on.

    Raises:
        ValueError: for another name of a precision.
        LoaderError: in training, where the loader has no batch or too many faults; see `Batches`.
        FloatingPointError: in training, where a loss is not finite; the weights are still those of the step before.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        precision: str = "float32",
        seed: int = 0,
    ) -> None:
        if precision not in AUTOCAST_DTYPES:
            raise ValueError(f"train.precision must be one of {', '.join(AUTOCAST_DTYPES)}, got {precision!r}")
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.samples_seen = 0
        self.samples_per_iteration = data_loader.batch_size * comm.get_world_size()
        self._batches = Batches(data_loader, self.samples_per_iteration)
        self._dtype = AUTOCAST_DTYPES[precision]
        self._device_type = next(model.parameters()).device.type
        self._grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == "fp16")

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

    def before_train(self) -> None:
        self.data_loader.sampler.start = self.samples_seen
        super().before_train()

    def after_train(self) -> None:
        if self.start_iter == self.max_iter:
            self.iter = self.max_iter  # detectron2 counts one step where none was left to do
        super().after_train()

    def run_step(self) -> None:
        assert self.model.training, "a hook left the model in evaluation mode"
        batch, data_time = self._batches.draw()
        # After the batch: making the loader's iterator draws from the same generator, in the first step only.
        torch.manual_seed(step_seed(self.seed, self.iter, comm.get_rank()))
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            losses = self.model(batch)
        self.optimizer.zero_grad()
        self._grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.storage.put_scalar("faulty_samples", self.faulty_samples, smoothing_hint=False)
        self._grad_scaler.step(self.optimizer)
        self._grad_scaler.update()
        self.samples_seen += self.samples_per_iteration

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "samples_seen": self.samples_seen,
            "faulty_samples": self.faulty_samples,
            "grad_scaler": self._grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.samples_seen = state_dict["samples_seen"]
        self._batches.num_faults = state_dict.get("faulty_samples", 0)  # checkpoints of earlier versions lack it
        # Empty where the training so far had no scaled loss.
        if state_dict["grad_scaler"]:
            self._grad_scaler.load_state_dict(state_dict["grad_scaler"])
