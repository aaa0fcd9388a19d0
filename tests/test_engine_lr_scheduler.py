"""Rates of groups that begin late, against a loop that writes the rule down, and a resume in the middle."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from engine.lr_scheduler import GroupedMultiplier, LRScheduler

MAX_ITER, WARMUP, START = 200, 20, 50
STEPS = MultiStepParamScheduler([1.0, 0.5, 0.2], milestones=[160, 190], num_updates=MAX_ITER)
SCHEDULES = {
    kind: WarmupParamScheduler(decay, 0.001, WARMUP / MAX_ITER)
    for kind, decay in {"steps": STEPS, "cosine": CosineParamScheduler(1.0, 0.0)}.items()
}
both_kinds = pytest.mark.parametrize("kind", SCHEDULES)


def by_hand(kind, iteration, start):
    """The multiplier at an iteration: decay times ramp, the ramp counted from the start."""
    if iteration < start:
        return 0.0
    cosine = (1 + math.cos(math.pi * iteration / MAX_ITER)) / 2
    decayed = (0.2 if iteration >= 190 else 0.5 if iteration >= 160 else 1.0) if kind == "steps" else cosine
    if iteration - start >= WARMUP:
        return decayed
    peak = 1.0 if kind == "steps" else (1 + math.cos(math.pi * WARMUP / MAX_ITER)) / 2
    ramp = 0.001 + (peak - 0.001) * (iteration - start) / WARMUP
    return min(decayed, ramp)


def make_optimizer(start=START / MAX_ITER):
    """AdamW over an early and a late parameter."""
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1},
        {"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.01, "start": start},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.1)


def step(optimizer, iteration):
    """Train on gradients that the iteration alone decides."""
    generator = torch.Generator().manual_seed(iteration)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.randn(3, generator=generator)
    optimizer.step()


@both_kinds
def test_rates_iteration_by_iteration(kind):
    optimizer = make_optimizer()
    scheduler = GroupedMultiplier(optimizer, SCHEDULES[kind], MAX_ITER)
    for iteration in range(MAX_ITER):
        early, late = (group["lr"] for group in optimizer.param_groups)
        assert early == pytest.approx(0.1 * by_hand(kind, iteration, 0), rel=1e-9), iteration
        assert late == pytest.approx(0.01 * by_hand(kind, iteration, START), rel=1e-9), iteration
        optimizer.step()
        scheduler.step()


@both_kinds
def test_without_a_start_the_rates_are_detectron2s(kind):
    optimizers = make_optimizer(start=0.0), make_optimizer(start=0.0)
    ours = GroupedMultiplier(optimizers[0], SCHEDULES[kind], MAX_ITER)
    theirs = LRMultiplier(optimizers[1], SCHEDULES[kind], MAX_ITER)
    for _ in range(MAX_ITER):
        assert ours.get_last_lr() == theirs.get_last_lr()
        for optimizer, scheduler in zip(optimizers, (ours, theirs), strict=True):
            optimizer.step()
            scheduler.step()


def test_before_its_start_a_group_gathers_moments_and_moves_not_at_all():
    optimizer = make_optimizer()
    scheduler = GroupedMultiplier(optimizer, SCHEDULES["steps"], MAX_ITER)
    early, late = (group["params"][0] for group in optimizer.param_groups)
    for iteration in range(START):
        step(optimizer, iteration)
        scheduler.step()
        assert torch.equal(late, torch.ones(3))
    assert not torch.isclose(early, torch.ones(3)).any()
    # Only the randomness of the gradients differs from the early group's moments: those of a group that learns.
    assert optimizer.state[late]["step"] == START
    assert (optimizer.state[late]["exp_avg_sq"] > 0).all()
    step(optimizer, START)
    assert not torch.equal(late, torch.ones(3))


@pytest.mark.parametrize("stop", [10, START, START + 5, 170])
def test_a_resume_goes_on_to_the_bit(stop):
    """Through the hook, with the optimiser's state as a checkpoint holds it."""

    def train(optimizer, first, last):
        hook = LRScheduler(scheduler=SCHEDULES["cosine"])
        storage = SimpleNamespace(put_scalar=lambda *_, **__: None)
        hook.trainer = SimpleNamespace(optimizer=optimizer, max_iter=MAX_ITER, iter=first, storage=storage)
        hook.load_state_dict({"base_lrs": [7.0, 7.0], "last_epoch": 3})  # of an earlier checkpoint: not needed
        hook.before_train()
        for iteration in range(first, last):
            step(optimizer, iteration)
            hook.after_step()

    unbroken, stopped, resumed = make_optimizer(), make_optimizer(), make_optimizer()
    train(unbroken, 0, MAX_ITER)
    train(stopped, 0, stop)
    resumed.load_state_dict(stopped.state_dict())
    with torch.no_grad():
        for group, old in zip(resumed.param_groups, stopped.param_groups, strict=True):
            group["params"][0].copy_(old["params"][0])
    train(resumed, stop, MAX_ITER)
    for group, expected in zip(resumed.param_groups, unbroken.param_groups, strict=True):
        assert torch.equal(group["params"][0], expected["params"][0])
        assert group["lr"] == expected["lr"]
