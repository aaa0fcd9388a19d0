"""The soak in short, and that it finds what it is for."""

import mmap
import os

import pytest
import soak_data
import torch
from soak_data import make_dataset, soak
from torch.utils.data import Dataset

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than this machine has cores


def test_samples_are_the_same_and_memory_flat_whatever_workers_make_them(tmp_path, capsys):
    assert soak(make_dataset(tmp_path, 50), num_samples=60, mean_samples=15, seed=0) == []
    output = capsys.readouterr().out
    assert "60 samples twice, 60 of them unlike" in output and "killed" in output and "asked" in output


class Faulty(Dataset):
    """Samples that name the process that made them, or that stay in its memory."""

    def __init__(self, names_process=False, leak_mb=0):
        self.names_process = names_process
        self.leak_mb = leak_mb
        self.kept = []

    def __len__(self):
        return 1000

    def __getitem__(self, key):
        if self.leak_mb and os.getpid() != PARENT:
            leak = mmap.mmap(-1, self.leak_mb * 2**20)  # pages of its own, not such as the parent has freed
            leak.write(b"x" * len(leak))
            self.kept.append(leak)
        return {"key": torch.tensor([*key, os.getpid() if self.names_process else 0])}


PARENT = os.getpid()


def test_samples_that_depend_on_the_process_are_found():
    assert "20 samples of Life(start=0, stop=20" in soak(Faulty(names_process=True), 20, 40, seed=1)[0]


def test_a_leak_is_found(monkeypatch):
    monkeypatch.setattr(soak_data, "WARM_UP_SAMPLES", 20)
    found = soak(Faulty(leak_mb=4), 80, 60, seed=1)
    assert "a worker of Life(start=0, stop=80" in found[0]
