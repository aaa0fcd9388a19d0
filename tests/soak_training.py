"""A run that is killed at random moments and resumed, until it is bit-exact with one that was left alone.

    make soak

kills 40 processes by SIGKILL: in their start, between and in their steps and evaluations, and while they write files,
one kind of file after the other. After each kill every checkpoint in the folder has to be whole but for the one that
was being written, and in the end weights, optimizer, averages, the best weights and the metrics of each step have to be
those of a process that ran alone, but for the line of a step whose process was killed after its checkpoint and before
that line. It prints a line for each kill, and ends with status 1 where something is not so.

Processes are forked from one that has imported all, so that a start takes a second. Linux only.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import main as program
from engine.checkpoint.file import CheckpointError, read_checkpoint
from engine.logging import writers
from runtime.atomic_write import SUFFIX
from tests.helpers.paths import DEMO
from tests.helpers.training import make_data, overrides

MOMENTS = ("any", "model_0", "start", "any", "model_0", "last_checkpoint", "model_best", "last_evaluation", "model_f")
"""What a kill waits for: nothing, the first steps, or that a file whose name begins so is being written."""

PERIOD = 3
"""Of checkpoints, in iterations."""

WAIT_S = 120.0
"""How long a kill waits for a file at most; where none comes, the process may end by itself."""

TIMES = ("time", "eta_seconds", "memory", "images_per_second", "gpu_memory")
"""How names of metrics begin or end that no two runs share."""


def arguments(data: Path, output: Path, num_iterations: int) -> list[str]:
    """Command line of a training run whose files take a good part of its time."""
    changes = {
        "train.device": "cpu",
        "train.max_iter": num_iterations,
        "train.checkpointer.period": PERIOD,
        "train.checkpointer.max_to_keep": 2,
        "train.eval_period": 2,
        "train.ema_decay": 0.9,
        "train.best_checkpoint.metric": "ema/matting/SAD",
        "optimizer.lr": 0.001,
    }
    return ["--config-file", DEMO, "--resume", *overrides(data, output, **changes)]


def start(command: list[str], log: Path) -> int:
    """Run main.py in a process of its own; gives its id."""
    process_id = os.fork()
    if process_id:
        return process_id
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        program.main(command)
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def has_ended(process_id: int) -> bool:
    return os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(moment: str, process_id: int, folder: Path, rng: np.random.Generator) -> None:
    """Wait until a process is to be killed, or has ended by itself."""

    def wait_until(condition: Callable[[], bool], limit_s: float, pause_s: float) -> None:
        end = time.monotonic() + limit_s
        while not has_ended(process_id) and time.monotonic() < end and not condition():
            time.sleep(pause_s)

    metrics = folder / writers.METRICS_NAME
    if moment == "start":
        wait_until(lambda: False, rng.uniform(0, 1.5), 0.01)
    elif moment == "any":
        size = metrics.stat().st_size if metrics.exists() else 0
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > size, WAIT_S, 0.001)
        wait_until(lambda: False, rng.exponential(0.4), 0.001)
    else:
        skipped = int(rng.integers(0, 2))  # not always the first one that a process writes
        seen: set[int] = set()

        def is_written() -> bool:
            for path in folder.glob(f"{moment}*{SUFFIX}"):
                try:
                    seen.add(path.stat().st_ino)
                except FileNotFoundError:
                    continue
                return len(seen) > skipped
            return False

        wait_until(is_written, WAIT_S, 0)


def whole_checkpoints(folder: Path) -> list[str]:
    """What is wrong with a folder after a kill."""
    wrong = []
    for path in folder.glob("*.pth"):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            wrong.append(str(error))
    last = folder / "last_checkpoint"
    if last.exists() and not (folder / last.read_text()).is_file():
        wrong.append(f"{last} names {last.read_text()!r}")
    return wrong


def metrics_of(folder: Path) -> dict[int, dict[str, float]]:
    """Give iteration -> what the last lines of metrics.json about it say, without times."""
    rows: dict[int, dict[str, float]] = {}
    for line in (folder / writers.METRICS_NAME).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        kept = {name: value for name, value in row.items() if not any(word in name for word in TIMES)}
        rows.setdefault(row["iteration"], {}).update(kept)
    return rows


def differences(ours: Any, theirs: Any, where: str) -> list[str]:
    """Name what is not identical."""
    if isinstance(theirs, torch.Tensor):
        return [] if isinstance(ours, torch.Tensor) and torch.equal(ours, theirs) else [where]
    if isinstance(theirs, dict) and isinstance(ours, dict):
        unlike = [f"{where} {key} is in one alone" for key in ours.keys() ^ theirs.keys()]
        shared = [key for key in theirs if key in ours]
        return unlike + [text for key in shared for text in differences(ours[key], theirs[key], f"{where} {key}")]
    if isinstance(theirs, list | tuple) and isinstance(ours, list | tuple) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [text for number, pair in pairs for text in differences(*pair, f"{where} {number}")]
    return [] if ours == theirs else [f"{where}: {str(ours)[:99]} instead of {str(theirs)[:99]}"]


def compare(folder: Path, alone: Path) -> list[str]:
    """Name what differs between two finished training runs."""
    # A process that was killed before its first checkpoint was a training run of its own.
    ours, names = (
        sorted(path.name for path in one.glob("*.pth") if "_of_earlier_training_" not in path.name)
        for one in (folder, alone)
    )
    if ours != names:
        return [f"{folder} has {', '.join(ours)} instead of {', '.join(names)}"]
    wrong = [text for name in names for text in differences(*(content(one / name) for one in (folder, alone)), name)]
    ours_by_iteration, expected = metrics_of(folder), metrics_of(alone)
    for iteration, row in ours_by_iteration.items():
        for name, value in row.items():
            if expected.get(iteration, {}).get(name) != value:
                wrong.append(f"{writers.METRICS_NAME} {iteration} {name}: {value}")
    for iteration, row in expected.items():
        # A step's line comes after its checkpoint, from which a resume does not do it again.
        lost = sorted(row.keys() - ours_by_iteration.get(iteration, {}).keys())
        if lost and ((iteration + 1) % PERIOD or any("/SAD" in name for name in lost)):
            wrong.append(f"{writers.METRICS_NAME} {iteration} lacks {', '.join(lost)}")
        elif lost:
            print(f"      the line of iteration {iteration} is lost: its process was killed right after the checkpoint")
    return wrong


def content(path: Path) -> dict[str, Any]:
    """Read a checkpoint without its notes on files, which differ after a kill between two of them."""
    found = read_checkpoint(path)
    if "trainer" in found:
        found["trainer"].pop("iteration", None)  # nothing reads it: the place is the number of samples
        found["trainer"].get("hooks", {}).pop("PeriodicCheckpointer", None)
    return found


def soak(folder: Path, num_kills: int, num_iterations: int, seed: int) -> list[str]:
    """Train alone, then with kills, in as many training runs as it takes for all of them; print each.

    Args:
        folder: an empty one.
        num_kills: of processes that did not end before.
        num_iterations: of a training run.
        seed: of the moments.

    Returns: what was wrong.
    """
    writers.WINDOW = 1  # the values of each step: a median of the last 20 begins anew with each process
    rng = np.random.default_rng(seed)
    make_data(folder)
    alone = folder / "alone"
    _, status = os.waitpid(start(arguments(folder, alone, num_iterations), folder / "alone.txt"), 0)
    if status:
        return [f"the training that is left alone fails:\n{(folder / 'alone.txt').read_text()[-3000:]}"]
    wrong: list[str] = []
    num_done = training = 0
    moments: Counter[str] = Counter()
    print("kill  training  checkpoint that was there  in the middle of   killed at")
    while num_done < num_kills:
        training += 1
        output, log = folder / f"killed_{training}", folder / f"killed_{training}.txt"
        while True:
            process_id = start(arguments(folder, output, num_iterations), log)
            moment = MOMENTS[num_done % len(MOMENTS)]
            if num_done < num_kills:
                wait_for(moment, process_id, output, rng)
                os.kill(process_id, signal.SIGKILL)
            _, status = os.waitpid(process_id, 0)
            if not os.WIFSIGNALED(status):
                break
            num_done += 1
            last = output / "last_checkpoint"
            unfinished = [path.name for path in output.glob(f"*{SUFFIX}")]
            moments[moment] += 1
            print(
                f"{num_done:4}  {training:8}  {last.read_text() if last.exists() else 'none':25}  "
                f"{', '.join(unfinished) or 'no file'}  {moment}",
                flush=True,
            )
            wrong += [f"after kill {num_done}: {text}" for text in whole_checkpoints(output)]
        if status:
            return [*wrong, f"a resume after kill {num_done} failed:\n{log.read_text()[-3000:]}"]
        wrong += [f"training {training}: {text}" for text in compare(output, alone)]
    print(f"{num_done} kills in {training} training runs of {num_iterations} iterations: {dict(moments)}")
    return wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=60, help="of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(Path(folder), args.kills, args.iterations, args.seed)
    print("\n".join(wrong) or "every resume went on from a whole checkpoint, and ended where the one left alone did")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
