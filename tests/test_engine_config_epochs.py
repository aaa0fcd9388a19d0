"""The schedule's arithmetic against the published numbers, and against a loop where there are none."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given
from omegaconf import OmegaConf

from engine.config.epochs import (
    build_decay,
    describe_change,
    epochs_to_iterations,
    iterations_per_epoch,
    milestones,
    warmup_fraction,
)
from runtime.errors import ConfigError


def test_the_report_in_iterations():
    per_epoch = iterations_per_epoch(43_100, 16, 2)
    assert per_epoch == 1347
    assert epochs_to_iterations(10, per_epoch) == 13470
    assert epochs_to_iterations(2, per_epoch) == 2694
    assert milestones(13470, 0.8, 0.95) == [8 * 1347, int(9.5 * 1347)]
    assert warmup_fraction(32_000, 16, 2, 13470) == pytest.approx(1000 / 13470, rel=1e-12)
    # 0.95 * 134700 is just below 127965 in binary
    assert milestones(134700, 0.8, 0.95) == [80 * 1347, 95 * 1347]


@given(samples=st.integers(1, 5000), batch_size=st.integers(1, 40), world_size=st.integers(1, 9))
def test_an_epoch_shows_every_sample_and_no_iteration_too_many(samples, batch_size, world_size):
    iterations, seen = 0, 0
    while seen < samples:
        iterations, seen = iterations + 1, seen + batch_size * world_size
    assert iterations_per_epoch(samples, batch_size, world_size) == iterations


@given(max_iter=st.integers(3, 60))
def test_steps_lie_in_order_inside_a_training_however_short(max_iter):
    first, second = milestones(max_iter, 0.8, 0.95)
    assert 0 < first < second < max_iter
    if max_iter >= 20:
        assert (first, second) == (max_iter * 4 // 5, max_iter * 19 // 20)


def test_a_training_without_room_for_the_steps_is_refused():
    with pytest.raises(ConfigError, match="2 iterations are too few for 2 steps"):
        milestones(2, 0.8, 0.95)


def test_a_training_has_an_iteration_at_least():
    assert epochs_to_iterations(0.01, 10) == 1


def test_warmup_is_constant_in_samples_and_at_most_half_of_a_short_training():
    for batch_size in (1, 4, 16):
        max_iter = epochs_to_iterations(10, iterations_per_epoch(43_100, batch_size, 1))
        samples = warmup_fraction(32_000, batch_size, 1, max_iter) * max_iter * batch_size
        assert samples == pytest.approx(32_000, rel=1e-9)
    assert warmup_fraction(32_000, 16, 2, 1500) == 0.5


def test_resolvers_work_by_name():
    cfg = OmegaConf.create({"n": 100, "steps": "${milestones:${n},0.8,0.95}", "device": "${default_device:}"})
    assert cfg.steps == [80, 95]
    cfg.n = 1000
    assert cfg.steps == [800, 950]
    assert cfg.device in ("cpu", "cuda")


def test_the_change_of_samples_per_iteration_is_one_line():
    cfg = OmegaConf.create(
        {
            "train": {"world_size": 1, "accumulation": 1, "epochs": 10, "iterations_per_epoch": 5388, "max_iter": 53880,
                      "warmup_samples": 32_000},
            "dataloader": {"train": {"batch_size": 8}},
            "lr_multiplier": {"warmup_length": 4000 / 53880},
        }
    )  # fmt: skip
    assert describe_change(cfg, 8) == ""
    line = describe_change(cfg, 32)
    assert "\n" not in line
    for words in ("8 samples", "32", "5388 iterations per epoch", "epochs kept at 10", "53880", "32000 samples",
                  "4000 iterations", "learning rate not scaled"):  # fmt: skip
        assert words in line
    cfg.lr_multiplier.warmup_length = 0.5
    cfg.train.max_iter = 100
    assert "warm-up cut from 32000 to 400 samples (50 iterations)" in describe_change(cfg, 32)


@given(done=st.integers(0, 99), first=st.floats(0.1, 2.0), end=st.floats(0.0, 0.1))
def test_decay_is_by_steps_or_half_a_period_of_a_cosine(done, first, end):
    steps, cosine = (build_decay(kind, [first, 0.5, 0.2], [80, 95], 100, end) for kind in ("steps", "cosine"))
    assert steps(done / 100) == (first if done < 80 else 0.5 if done < 95 else 0.2)
    expected = end + (first - end) * math.cos(math.pi * done / 200) ** 2
    assert cosine(done / 100) == pytest.approx(expected, rel=1e-9)


def test_another_kind_of_decay_is_refused():
    with pytest.raises(ConfigError, match='kind must be "steps" or "cosine", got \'linear\''):
        build_decay("linear", [1.0, 0.5], [1], 2)
