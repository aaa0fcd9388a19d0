import logging

import pytest
import torch
from torch import nn

from engine.trainer import Trainer
from inference.network import choose_precision
from runtime import devices


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Let /proc/cpuinfo have some flags."""
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")

    def has(line):
        devices.CPU_INFO.write_text(f"processor\t: 0\n{line}\n")

    return has


X86, ARM = "flags\t\t: fpu sse2 avx2 ", "Features\t: fp asimd "


@pytest.mark.parametrize(
    ("line", "features"),
    [
        (X86, ["AVX2"]),
        (f"{X86}avx512f avx512_bf16 amx_bf16", ["AVX2", "AVX-512", "AVX-512 bf16", "AMX bf16"]),
        (ARM, ["NEON"]),
        (f"{ARM}bf16", ["NEON", "NEON bf16"]),
    ],
)
def test_a_cpu_that_emulates_bf16_is_told_of(cpu, caplog, line, features):
    cpu(line)
    assert devices.cpu_features() == features
    choose_precision("bf16", torch.device("cpu"))
    assert ("emulates" in caplog.text) == (not any("bf16" in name for name in features))


def test_what_does_not_compute_in_bf16_on_a_cpu_is_not_told_of(cpu, caplog):
    cpu(X86)
    choose_precision("float32", torch.device("cpu"))
    choose_precision("bf16", torch.device("cuda"))
    devices.CPU_INFO.unlink()
    assert devices.cpu_features() == []
    choose_precision("bf16", torch.device("cpu"))
    assert not caplog.records


def test_a_run_tells_of_it_too(cpu, caplog):
    cpu(X86)
    model = nn.Linear(1, 1)
    loader = torch.utils.data.DataLoader([{}], batch_size=1)
    with caplog.at_level(logging.WARNING):
        Trainer(model, loader, torch.optim.SGD(model.parameters(), 1), "bf16")
    assert "This CPU (AVX2) has no bf16 instructions" in caplog.text
