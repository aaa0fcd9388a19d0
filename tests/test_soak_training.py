"""The soak in short, and that it finds what it is for."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.paths import REPOSITORY
from tests.soak_training import compare, metrics_of, whole_checkpoints


@pytest.mark.slow
def test_killed_trainings_end_as_one_that_is_left_alone():
    command = [sys.executable, "-m", "tests.soak_training", "--kills", "5", "--iterations", "18"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-2].startswith("5 kills in ") and "model_0000002.pth" in done.stdout


def finished(folder, weight=1.0, loss=0.5, name="model_final"):
    """A folder as a training run leaves it."""
    folder.mkdir()
    optimizer = {"state": {0: {"exp_avg": torch.ones(2) * weight}}, "lr": [0.1]}
    torch.save({"model": {"w": torch.ones(3)}, "trainer": {"optimizer": optimizer}}, folder / f"{name}.pth")
    rows = [{"iteration": 0, "total_loss": 7.0}, {"iteration": 0, "total_loss": loss, "time": weight}]
    (folder / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"iteration": 1, "to')
    return folder


def test_what_differs_is_named(tmp_path):
    alone = finished(tmp_path / "alone")
    same = finished(tmp_path / "same")
    (same / "model_best_of_earlier_training_1.pth").touch()
    assert compare(same, alone) == [] and metrics_of(alone) == {0: {"iteration": 0, "total_loss": 0.5}}
    found = compare(finished(tmp_path / "weight", weight=1 + 2**-23), alone)
    assert found == ["model_final.pth trainer optimizer state 0 exp_avg"]
    found = compare(finished(tmp_path / "loss", loss=0.5 + 2**-53), alone)
    assert found == ["metrics.json 0 total_loss: 0.5000000000000001"]
    assert "instead of model_final.pth" in compare(finished(tmp_path / "name", name="model_0000001"), alone)[0]


def test_half_a_checkpoint_is_found(tmp_path):
    folder = finished(tmp_path / "a")
    assert whole_checkpoints(folder) == []
    path = folder / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    (folder / "last_checkpoint").write_text("model_0000007.pth")
    wrong = whole_checkpoints(folder)
    assert len(wrong) == 2 and "cut off" in wrong[0] and "names 'model_0000007.pth'" in wrong[1]
