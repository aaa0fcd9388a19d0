"""Train as `make demo` does, alone and beside one and two busy processes, in turn: `make soak-busy`, minutes.

    python -m tests.soak_busy
    python -m tests.soak_busy --openmp GOMP_SPINCOUNT=300000    # GNU OpenMP by itself

The exit status is 1 if the median step beside busy processes takes more than `LIMITS` times that of its time alone, in
the median of the rounds. Let nothing else run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import make_data
from tools.benchmarks.fresh import busy_processes, with_range

LIMITS = {1: 2.5, 2: 3.3}
"""Busy processes -> how many times as long a step may take: 0.4 and 0.3 of the steps of a quiet machine."""

BATCH_SIZE = 8
WARM_UP_STEPS = 5
"""Loading, the first batches, and the choice of kernels."""


def median_step_s(data: Path, output: Path, num_steps: int, environment: dict[str, str]) -> float:
    """Train the demo's network for some steps and return the median of a step's seconds."""
    overrides = {
        "train.output_dir": output,
        "train.init_checkpoint": "''",
        "train.samples_per_epoch": num_steps * BATCH_SIZE,
        "train.log_period": 1,
        "dataloader.train.batch_size": BATCH_SIZE,
        "dataloader.train.dataset.foreground_dirs": f"[{data}/rgba]",
        "dataloader.train.dataset.background_dirs": f"[{data}/backgrounds]",
        "dataloader.test.dataset.image_dir": data / "image",
        "dataloader.test.dataset.trimap_dir": data / "trimap",
        "dataloader.test.dataset.alpha_dir": data / "alpha",
    }
    command = [sys.executable, "main.py", "--config-file", DEMO]
    command += [f"{name}={value}" for name, value in overrides.items()]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    times = [line["time"] for line in lines if "time" in line]
    return statistics.median(times[WARM_UP_STEPS:])


def main() -> int:
    """Read the command line, measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="of each training (default: %(default)s)")
    parser.add_argument(
        "--openmp", metavar="NAME=VALUE", help="variable of OpenMP, instead of what the command chooses"
    )
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment |= dict([options.openmp.split("=", 1)]) if options.openmp else {}
    ratios: dict[int, list[float]] = {count: [] for count in LIMITS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        make_data(data)
        for number in range(options.rounds):
            seconds = {}
            for count in (0, *LIMITS):
                with busy_processes(count):
                    output = Path(folder, f"round_{number}_busy_{count}")
                    seconds[count] = median_step_s(data, output, options.steps, environment)
            for count, found in ratios.items():
                found.append(seconds[count] / seconds[0])
            shown = ", ".join(f"{step_s:.3f} s beside {count}" for count, step_s in seconds.items())
            print(f"round {number + 1}, a step: {shown} busy processes", flush=True)
    for count, limit in LIMITS.items():
        print(f"beside {count}: {with_range(ratios[count], 2)} times as long, {limit} are allowed")
    return int(any(statistics.median(ratios[count]) > limit for count, limit in LIMITS.items()))


if __name__ == "__main__":
    raise SystemExit(main())
