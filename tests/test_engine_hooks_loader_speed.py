"""engine.hooks.loader_speed: a slow loader is warned of with advice that fits the machine, a fast one never."""

import logging
import re

import pytest

from engine.hooks import loader_speed as pace
from engine.hooks.loader_speed import LoaderBottleneckWarning, speed_advice


class Clock:
    """Stands for `time`, moved by hand."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def warnings_of(monkeypatch, caplog, waits, compute_s=0.8, start_iter=0):
    """Iterations at which the hook warns, of steps that wait for so long and then compute."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    hook = LoaderBottleneckWarning()
    hook.trainer = type("Trainer", (), {"start_iter": start_iter})
    hook.trainer.data_loader = type("Loader", (), {"num_workers": 2})
    warned = []
    with caplog.at_level(logging.WARNING, "engine.hooks.loader_speed"):
        for i, wait_s in enumerate(waits):
            hook.trainer.iter = start_iter + i
            hook.trainer.storage = type("Storage", (), {"latest": lambda wait_s=wait_s: {"data_time": (wait_s, 0)}})
            hook.before_step()
            clock.now += wait_s + compute_s
            hook.after_step()
            clock.now += 50  # an evaluation
            if caplog.records:
                warned.append((hook.trainer.iter, caplog.records[0].getMessage()))
                caplog.clear()
    return warned


def test_a_loader_is_judged_by_a_hundred_steps_after_the_warm_up(monkeypatch, caplog):
    # 0.2 s before 0.8 s are 20 %, and not above.
    assert warnings_of(monkeypatch, caplog, [0.1999] * 2000) == []
    warned = warnings_of(monkeypatch, caplog, [0.3] * 2500, start_iter=7)
    assert [iteration for iteration, _ in warned] == [7 + 119, 7 + 1219, 7 + 2319]
    # Workers that start, and batches that come in bursts: 0.9 s every fifth step are 0.18 s a step.
    assert warnings_of(monkeypatch, caplog, [60.0] * 20 + [0.9, 0, 0, 0, 0] * 100) == []
    slow = warnings_of(monkeypatch, caplog, [0.0] * 220 + [1.2, 0, 0, 0, 0] * 20)
    assert [iteration for iteration, _ in slow] == [319]
    assert re.match(r"The loader sets the pace: 23 % of the last 100 steps .* batches\. ", slow[0][1])


@pytest.mark.parametrize(
    ("num_workers", "num_cores", "num_processes", "words"),
    [
        (0, 1, 1, "num_workers from 0 to 1"),
        (2, 16, 2, r"num_workers from 2 to 8 \(of 16 cores, 8 for each"),
        (8, 16, 2, "num_workers=8 would not help .*tools/dataset/pack_dataset.py"),
        (2, 1, 4, "num_workers=2 would not help"),
    ],
)
def test_the_advice_fits_the_machine(num_workers, num_cores, num_processes, words):
    assert re.search(words, speed_advice(num_workers, num_cores, num_processes))
