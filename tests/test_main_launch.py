"""main.py in real processes of --num-gpus, torchrun and two network namespaces: equal, and ending when one is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import main
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import overrides

pytestmark = [pytest.mark.usefixtures("no_log_handlers_left"), pytest.mark.slow]

TORCHRUN = (sys.executable, "-W", "ignore", "-m", "torch.distributed.run")
ENDLESS = {"train.device": "cpu", "dataloader.test": "null", "train.epochs": 100_000, "train.timeout_s": 8}


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A command in a session of its own, all of which is ended at last."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(further for child in children for further in descendants(child))]


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read what a process prints until a line has a text."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines[-30:]))


def local_rank(pid: int) -> str:
    """What torchrun told a process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(variable.partition("=")[::2] for variable in variables).get("LOCAL_RANK", "")


def saved(folder: Path) -> int:
    """Steps in the last checkpoint of a training run."""
    name = (folder / "last_checkpoint").read_text()
    content = torch.load(folder / name, weights_only=True)
    assert content["trainer"]["samples_seen"] == (content["iteration"] + 1) * 4
    return content["iteration"] + 1


def test_torchrun_and_num_gpus_train_to_the_same_bits(data, tmp_path):
    changes = {"train.device": "cpu", "train.log_period": 1}
    commands = {
        "spawn": (sys.executable, "-W", "ignore", "main.py", "--num-gpus", "2"),
        "torchrun": (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "main.py"),
    }
    for name, command in commands.items():
        with started(*command, "--config-file", DEMO, *overrides(data, tmp_path / name, **changes)) as process:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output[-3000:]
    weights = [torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in commands]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    losses = [
        [row["total_loss"] for row in map(json.loads, (tmp_path / name / "metrics.json").open()) if "total_loss" in row]
        for name in commands
    ]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert "world_size: 2" in (tmp_path / "torchrun" / "config.yaml").read_text()


@pytest.mark.parametrize("by", ["num-gpus", "torchrun"])
def test_a_process_that_is_killed_ends_the_others_with_a_message_and_a_checkpoint(by, data, tmp_path):
    if by == "num-gpus":
        command = (sys.executable, "-W", "ignore", "main.py", "--num-gpus", "2")
    else:
        command = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "main.py")
    changes = {**ENDLESS, "train.epochs_per_checkpoint": 50_000}
    with started(*command, "--config-file", DEMO, *overrides(data, tmp_path, **changes)) as process:
        wait_for(process, " iter: 4 ")
        workers = [pid for pid in descendants(process.pid) if b"main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        workers = [pid for pid in workers if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        victim = workers[1] if by == "num-gpus" else next(pid for pid in workers if local_rank(pid) == "1")
        os.kill(victim, signal.SIGKILL)
        start = time.monotonic()
        output, _ = process.communicate(timeout=60)
        assert time.monotonic() - start < 40
    assert process.returncode == (5 if by == "num-gpus" else 1)  # torchrun ends with 1 whatever its processes say
    assert re.search(r"Stopped: process 0 of 2 has lost another one, which ended", output)
    if by == "num-gpus":
        assert "main.py: process 1 of this machine was ended by SIGKILL" in output.splitlines()[-1]
        assert "Traceback" not in output
    done = saved(tmp_path)
    assert done >= 5 and f"--resume goes on from iteration {done}\n" in output


def test_processes_of_a_torchrun_that_is_gone_write_a_checkpoint_and_end(data, tmp_path):
    command = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "main.py")
    with started(*command, "--config-file", DEMO, *overrides(data, tmp_path, **ENDLESS)) as process:
        wait_for(process, " iter: 4 ")
        workers = [pid for pid in descendants(process.pid) if local_rank(pid)]
        os.kill(process.pid, signal.SIGUSR1)  # of which torchrun takes no notice but to die
        process.wait(timeout=20)
        deadline = time.monotonic() + 40
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert len(workers) >= 2 and not left
    assert saved(tmp_path) >= 5


def test_processes_that_torchrun_starts_again_come_together_and_resume(data, tmp_path):
    command = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "main.py")
    changes = {**ENDLESS, "train.timeout_s": 60}
    with started(*command, "--config-file", DEMO, *overrides(data, tmp_path, **changes)) as process:
        wait_for(process, " iter: 4 ")
        os.kill(next(pid for pid in descendants(process.pid) if local_rank(pid) == "1"), signal.SIGKILL)
        wait_for(process, "started again by torchrun or Slurm: it resumes")
        done = saved(tmp_path)
        wait_for(process, f"Starting training from iteration {done}")
        wait_for(process, f" iter: {done} ")
        process.terminate()
        process.communicate(timeout=60)
    assert done >= 5 and saved(tmp_path) > done
    jobs = [run["jobs"] for run in json.loads((tmp_path / "run.json").read_text())]
    assert [[*restarts.values()] for restarts in jobs] == [[0], [1]] and jobs[0].keys() == jobs[1].keys()
    assert not (tmp_path / "run.lock").exists()


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces, node 0 at 10.77.0.1, joined by a cable of which each has the end `cable`."""
    names = f"matting-{os.getpid()}-0", f"matting-{os.getpid()}-1"
    ends = f"mc{os.getpid()}-0", f"mc{os.getpid()}-1"
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (iproute2) to make network namespaces")
    try:
        run_ip("netns", "add", names[0])
        run_ip("netns", "add", names[1])
        run_ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            run_ip("link", "set", end, "netns", name, "name", "cable")
            run_ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
            for device in ("lo", "cable"):
                run_ip("-n", name, "link", "set", device, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine grants no network namespaces joined by a cable: {error.stderr.strip()}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def test_two_machines_end_in_time_when_the_cable_between_them_is_cut(two_machines, data, tmp_path):
    def node(rank, folder):
        changes = overrides(data, tmp_path / folder, **ENDLESS, **{"train.epochs_per_checkpoint": 50_000})
        meeting = ("--nnodes", "2", "--node-rank", str(rank), "--master-addr", "10.77.0.1", "--master-port", "29500")
        torchrun = (*TORCHRUN, *meeting, "--nproc-per-node", "1", "main.py", "--config-file", DEMO, *changes)
        return started("ip", "netns", "exec", two_machines[rank], *torchrun, GLOO_SOCKET_IFNAME="cable")

    with node(0, "main") as first, node(1, "other") as second:
        wait_for(first, " iter: 4 ")
        run_ip("-n", two_machines[1], "link", "set", "cable", "down")
        start = time.monotonic()
        outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
        passed_s = time.monotonic() - start
        assert first.returncode and second.returncode
    assert passed_s < 20, passed_s
    assert "Stopped: process 0 of 2 has lost another one" in outputs[0] and "imed out" in outputs[0]
    done = saved(tmp_path / "main")
    assert done >= 5 and f"--resume goes on from iteration {done}\n" in outputs[0]

    # One machine goes on where the two stopped: 2 steps of 2 samples for each of theirs of 4.
    changes = {**ENDLESS, "train.max_iter": 2 * done + 2}
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path / "main", **changes)])
    final = torch.load(tmp_path / "main" / "model_final.pth", weights_only=True)
    assert final["trainer"]["samples_seen"] == 4 * done + 4


STANDINS = {
    "scontrol": """#!/bin/bash
        if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" > "$STANDINS/requeued"; fi""",
    # Two tasks of one machine, as Slurm numbers them; the status is the highest, as srun's is.
    "srun": """#!/bin/bash
        while [[ "$1" = --* ]]; do shift; done
        export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
        SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
        SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
        wait $first; status=$?
        wait $second; other=$?
        exit $((status > other ? status : other))""",
}


def test_the_script_for_slurm_trains_and_goes_back_into_the_queue_by_a_signal(data, tmp_path):
    script = (REPOSITORY / "docs" / "launch.md").read_text().partition("```bash\n")[2].partition("```")[0]
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, text in {**STANDINS, "job": script, "python": python}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "STANDINS": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "PYTHONWARNINGS": "ignore",
    }
    changes = overrides(data, tmp_path / "out", **{**ENDLESS, "train.timeout_s": 60})
    with started(str(tmp_path / "job"), "--config-file", DEMO, *changes, **slurm) as process:
        wait_for(process, " iter: 4 ")
        tasks = [
            pid for pid in descendants(process.pid) if b"main.py\0--resume" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        for pid in tasks:
            os.kill(pid, signal.SIGUSR1)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 75, output[-3000:]
    assert len(tasks) == 2 and (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    done = saved(tmp_path / "out")
    changes = overrides(data, tmp_path / "out", **{**ENDLESS, "train.timeout_s": 60, "train.max_iter": done + 1})
    with started(str(tmp_path / "job"), "--config-file", DEMO, *changes, **slurm) as process:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output[-3000:]
    assert saved(tmp_path / "out") == done + 1
