"""A training run of milliseconds: a toy network, its data, its trainer and checkpointer."""

import argparse
import multiprocessing
import os
from contextlib import contextmanager
from unittest import mock

import torch
from detectron2.engine import hooks
from detectron2.solver import WarmupParamScheduler
from detectron2.utils import comm
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from engine.checkpoint.file import Checkpointer
from engine.distributed.launch import distribute, launch
from engine.hooks.checkpoint import PeriodicCheckpointer
from engine.optimizer import build_adamw
from engine.trainer import Trainer


class Toy(nn.Module):
    """Linear, BatchNorm, dropout, linear: weights, buffers and randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 1)

    def forward(self, batch):
        x, target = (batch[name].to(self.out.weight.device) for name in ("x", "y"))
        y = self.out(nn.functional.dropout(self.norm(self.hidden(x)), 0.5, self.training))
        return {"loss_square": (y - target).square().mean(), "loss_size": 0.1 * y.abs().mean()}


class Stream(Sampler):
    """Positions start, start + 1, ... without end, shared out to ranks in blocks of a batch."""

    def __init__(self, batch_size, rank=0, world_size=1):
        self.batch_size, self.rank, self.world_size, self.start = batch_size, rank, world_size, 0

    def __iter__(self):
        first = self.start + self.rank * self.batch_size
        while True:
            yield from range(first, first + self.batch_size)
            first += self.batch_size * self.world_size


class Samples(Dataset):
    """Position -> a sample made of it, and a record of the positions asked for."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, position):
        self.asked.append(position)
        x = torch.randn(3, generator=torch.Generator().manual_seed(position))
        return {"x": x, "y": x.sum(dim=0, keepdim=True)}


class Losses(hooks.HookBase):
    """Keep the losses of each iteration."""

    def __init__(self):
        self.by_iteration = {}

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.by_iteration[self.trainer.iter] = tuple(
            latest[k][0] for k in ("loss_square", "loss_size", "total_loss", "lr")
        )


def toy_training(folder, batch_size=4, precision="float32", max_iter=12, hooks_too=(), device="cpu"):
    """Trainer, checkpointer and loss record of a toy training that saves every 6 iterations."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = Toy().to(device)
    optimizer = build_adamw([{"params": list(model.parameters())}], lr=0.01, betas=[0.9, 0.99], weight_decay=0.1)
    loader = DataLoader(Samples(), batch_size, sampler=Stream(batch_size, comm.get_rank(), comm.get_world_size()))
    trainer = Trainer(distribute(model), loader, optimizer, precision, seed=3)
    checkpointer = Checkpointer(model, str(folder), trainer=trainer)
    multiplier = WarmupParamScheduler(MultiStepParamScheduler([1, 0.5], max_iter, [9]), 0.001, 0.25)
    losses = Losses()
    saver = hooks.PeriodicCheckpointer(checkpointer, 6) if comm.is_main_process() else None
    trainer.register_hooks([hooks.LRScheduler(scheduler=multiplier), saver, *hooks_too])
    if comm.is_main_process():
        trainer.register_hooks([losses])
    return trainer, checkpointer, losses


def trained_toy(folder, **options):
    trainer, checkpointer, losses = toy_training(folder, **options)
    trainer.train(trainer.next_iteration, 12)
    return trainer, losses


def processes(number):
    return argparse.Namespace(num_gpus=number, num_machines=1, machine_rank=0, dist_url="auto")


@contextmanager
def forked_ranks():
    """Fork the ranks that are launched from a process that has imported what a run needs, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "main"])
    one_thread = mock.patch.dict(os.environ, OMP_NUM_THREADS="1")
    with one_thread, mock.patch("engine.distributed.spawn.multiprocessing.get_context", return_value=context):
        yield


def in_two_processes(work, *arguments, **options):
    """Call a function in two processes."""
    with forked_ranks():
        launch(work, processes(2), "cpu", arguments, **options)


def toy_training_with_checkpoints(folder, **options):
    trainer, checkpointer, losses = toy_training(folder, **options)
    trainer._hooks = [hook for hook in trainer._hooks if type(hook).__name__ != "PeriodicCheckpointer"]
    checkpoints = PeriodicCheckpointer(checkpointer, period=6)
    trainer.register_hooks([checkpoints])
    return trainer, checkpointer, checkpoints
