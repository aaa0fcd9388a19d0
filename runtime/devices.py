"""Devices of this machine: which there are, and which one a process takes."""

import logging
from pathlib import Path

import torch

from runtime.errors import ConfigError, first_line

logger = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")

CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx_bf16": "AMX bf16",
    "asimd": "NEON",
    "bf16": "NEON bf16",
}
"""Word of Linux -> instructions that decide how fast a CPU computes here."""


def best_device() -> str:
    """Name the best kind of device that torch finds here: "cuda", "mps" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def choose_device(name: str = "auto") -> torch.device:
    """Find the device of a name.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" ...; "auto" is `best_device`.

    Raises:
        ConfigError: there is no such device.
    """
    name = best_device() if name == "auto" else name
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it holds no values")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}; try cpu") from error


def check_num_devices(kind: str, num_processes: int) -> None:
    """Raise a ConfigError if this machine has fewer devices of a kind than processes; all share a CPU."""
    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if found.get(kind, num_processes) < num_processes:
        raise ConfigError(
            f"each process on this machine needs a {kind} device of its own: {num_processes} processes, {found[kind]} "
            "devices. Start fewer processes, or choose another device"
        )


def device_of_rank(name: str, local_rank: int, local_size: int) -> str:
    """Name the device of one of several processes: for "auto" and "cuda" the GPU with the number of its local rank.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine.
    """
    if name not in ("auto", "cuda") or best_device() != "cuda":
        return name
    check_num_devices("cuda", local_size)
    return f"cuda:{local_rank}"


def cpu_features() -> list[str]:
    """List which of `CPU_FEATURES` this machine's CPU has; empty where the system is not Linux."""
    if not CPU_INFO.is_file():
        return []
    words = {*CPU_INFO.read_text(encoding="utf-8").split()}
    return [name for word, name in CPU_FEATURES.items() if word in words]


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Log a warning if a CPU without bf16 instructions is to compute in bf16."""
    if precision != "bf16" or device.type != "cpu":
        return
    features = cpu_features()
    if features and not any("bf16" in name for name in features):
        logger.warning(
            "This CPU (%s) has no bf16 instructions and emulates them, which takes several times as long as float32",
            ", ".join(features),
        )
