"""Train as `make demo` does, alone and beside one busy process, in pairs: `make soak-busy`, minutes.

    python -m tests.soak_busy
    python -m tests.soak_busy --openmp GOMP_SPINCOUNT=300000    # GNU OpenMP by itself

The exit status is 1 if the median step beside the busy process takes more than `LIMIT` times that of its time alone, in
the median of the pairs. Let nothing else run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import make_data

LIMIT = 2.5
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


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Read the command line, measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="of each training (default: %(default)s)")
    parser.add_argument(
        "--openmp", metavar="NAME=VALUE", help="variable of OpenMP, instead of what the command chooses"
    )
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment |= dict([options.openmp.split("=", 1)]) if options.openmp else {}
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        make_data(data)
        for pair in range(options.pairs):
            alone = median_step_s(data, Path(folder, f"alone_{pair}"), options.steps, environment)
            with busy_process():
                beside = median_step_s(data, Path(folder, f"beside_{pair}"), options.steps, environment)
            ratios.append(beside / alone)
            print(f"pair {pair + 1}: {alone:.3f} s a step alone, {beside:.3f} s beside a busy process", flush=True)
    ratio = statistics.median(ratios)
    print(f"{ratio:.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f}), {LIMIT} are allowed")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
