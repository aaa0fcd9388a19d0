"""Run main.py in this process, end it, and compare what it left."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils.logger import setup_logger

import main
from engine.trainer import Trainer
from tests.helpers.paths import DEMO
from tests.helpers.toy_training import forked_ranks


def remove_log_handlers():
    """Remove the log handlers that detectron2 adds for each output folder and keeps until the process ends."""
    setup_logger.cache_clear()
    for name in main.LOGGED:
        logger = logging.getLogger(name)
        for handler in [*logger.handlers]:
            logger.removeHandler(handler)


def refusal(status, capsys, *arguments):
    """Run main.py, check that it exits with a status, and return its one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main.main(["--config-file", DEMO, *arguments])
    message = capsys.readouterr().err
    assert ended.value.code == status and message.startswith(f"{Path(sys.argv[0]).name}: ")
    return message


def train_in_two_processes(*arguments):
    """Run main.py on two ranks, without the imports of three processes; test_main_launch.py starts the command."""
    with forked_ranks():
        main.main(["--config-file", DEMO, "--num-gpus", "2", "--dist-url", "auto", *arguments])


def stopped(*arguments):
    """Run main.py and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main.main(["--config-file", DEMO, *arguments])
    return ended.value.code


def at_iteration(monkeypatch, iteration, action):
    """Do something to a training run before one of its iterations."""
    run_step = Trainer.run_step

    def step(trainer):
        if trainer.iter == iteration:
            action(trainer)
        run_step(trainer)

    monkeypatch.setattr(Trainer, "run_step", step)


def same_weights(folder, other):
    ours, theirs = (torch.load(path / "model_final.pth", weights_only=True)["model"] for path in (folder, other))
    return all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
