"""The record of a run: what has to be known to tell it from others, or to do it again."""

import copy
import datetime
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from engine.config.config import save_config
from engine.interrupts import write_text
from runtime.identity import find_cluster_jobs, is_restart

logger = logging.getLogger(__name__)

RECORD_NAME, RESOLVED_NAME = "run.json", "config_resolved.yaml"

MODULES = ("torch", "torchvision", "detectron2", "timm", "numpy", "cv2", "PIL", "omegaconf")
"""Modules whose versions may change the results of a run."""


def record_run(cfg: DictConfig, start_iteration: int) -> None:
    """Append an entry to the run.json of a run's folder, and write its config with all derived values.

    Every process has to call it; the main one writes. An entry holds the command line and its folder, the time, seed,
    first iteration, commit and versions, the launcher's jobs, and host and device of each process. `micro_batch` is the
    number of samples in one forward pass of one process, `accumulation` the number of these passes in a step. A
    run.json that is none is backed up.

    Args:
        cfg: complete, without the model in it.
        start_iteration: first one that is done; more than 0 is a resume.

    Raises:
        OutputError: the folder cannot be written.
    """
    device = f"{cfg.train.device}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if cfg.train.device == "cuda":
        device = torch.cuda.get_device_name()
    processes = comm.all_gather({"host": socket.gethostname(), "device": device})
    if not comm.is_main_process():
        return
    folder = Path(cfg.train.output_dir)
    entry = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "directory": os.getcwd(),
        "start_iteration": start_iteration,
        "seed": cfg.train.seed,
        "git": git_state(Path(__file__).parent),
        "versions": {
            "python": platform.python_version(),
            **{name: getattr(sys.modules.get(name), "__version__", None) for name in MODULES},
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()) if torch.version.cuda else None,
        },
        "jobs": find_cluster_jobs(),
        "num_processes": len(processes),
        "micro_batch": cfg.dataloader.train.batch_size,
        "accumulation": cfg.train.accumulation,
        "processes": processes,
    }
    write_text(folder / RECORD_NAME, json.dumps([*read_record(folder / RECORD_NAME), entry], indent=2) + "\n")
    resolved = copy.deepcopy(cfg)
    OmegaConf.resolve(resolved)
    save_config(resolved, folder / RESOLVED_NAME)


def is_restarted(folder: Path) -> bool:
    """Tell in all processes whether this is the last run of a folder, which torchrun or Slurm has started again."""
    entries = read_record(folder / RECORD_NAME) if comm.is_main_process() else []
    return comm.all_gather(bool(entries) and is_restart(find_cluster_jobs(), entries[-1].get("jobs", {})))[0]


def read_record(path: Path) -> list[dict[str, Any]]:
    """Read the entries so far; none if there is no file. Back up a file with other content."""
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        entries = None
    if isinstance(entries, list):
        return entries
    aside = path.with_suffix(".unreadable")
    path.replace(aside)
    logger.warning("%s is no list of runs: moved to %s", path, aside)
    return []


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a folder's repository, and whether tracked files differ from it; None outside of one."""
    commands = ("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, or one without a commit
        return None
    return {"commit": commit.strip(), "is_dirty": bool(changes)}
