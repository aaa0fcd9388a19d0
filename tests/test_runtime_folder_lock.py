"""runtime.folder_lock: who holds a folder, who is gone, and who gets it of several that come at the same time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from runtime import folder_lock, identity
from runtime.folder_lock import BEAT_S, LOCK_NAME, STALE_S, FolderInUseError, hold_folder
from runtime.identity import find_cluster_jobs, is_restart, process_start, this_process
from tests.helpers.paths import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from runtime.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1]), {}, lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


def held(folder, jobs=None, on_loss=lambda: None):
    return hold_folder(folder, jobs or {}, on_loss)


def write_lock(folder, age_s=0.0, **changes):
    """Leave the lock of a process that is gone, or says what is changed, as old as that."""
    gone = {**this_process(), "start": "1", "jobs": {}}
    (folder / LOCK_NAME).write_text(json.dumps({**gone, **changes}))
    make_older(folder, age_s)


def make_older(folder, age_s):
    then = time.time() - age_s
    os.utime(folder / LOCK_NAME, (then, then))


def holder(folder):
    return json.loads((folder / LOCK_NAME).read_text())


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    folder = tmp_path / "new" / "folder"
    with pytest.raises(ZeroDivisionError), held(folder):
        assert holder(folder)["pid"] == os.getpid()
        with pytest.raises(FolderInUseError) as refused, held(folder):
            pass
        assert holder(folder)["pid"] == os.getpid()
        raise ZeroDivisionError
    own = this_process()
    who = f"process {own['pid']} on {own['host']} since {own['since'][:10]}"
    assert f"{folder} is in use by {who}" in str(refused.value)
    assert "wait until that ends" in str(refused.value) and "\n" not in str(refused.value)
    assert [*folder.iterdir()] == []
    with held(folder):
        pass


def test_a_killed_process_leaves_a_lock_that_does_no_harm(tmp_path):
    """Neither while its parent has not waited for it, nor afterwards."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(FolderInUseError, match=f"process {process.pid} on"), held(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    left = (tmp_path / LOCK_NAME).read_text()
    for _ in range(2):
        with held(tmp_path):
            assert holder(tmp_path)["pid"] == os.getpid()
        (tmp_path / LOCK_NAME).write_text(left)
        process.wait()
    process.stdout.close()


def test_a_process_id_that_is_used_again_is_noticed(tmp_path):
    write_lock(tmp_path, pid=os.getppid(), start=process_start(os.getppid()))
    with pytest.raises(FolderInUseError), held(tmp_path):
        pass
    write_lock(tmp_path, pid=os.getppid(), start="1")
    with held(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"machine": "a container"}, {"start": ""}])
def test_a_lock_of_another_machine_counts_by_its_age(tmp_path, changes):
    """Its process cannot be looked up here, be it alive or not."""
    write_lock(tmp_path, age_s=STALE_S - 20, **changes)
    with pytest.raises(FolderInUseError) as refused, held(tmp_path):
        pass
    assert f"remove {tmp_path / LOCK_NAME}" in str(refused.value) and "start again in " in str(refused.value)
    assert changes.get("host", "") in str(refused.value)
    make_older(tmp_path, STALE_S + 1)
    with held(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("text", ["", "\0\xff", "[]", '{"pid": 1}'])
def test_a_damaged_lock_counts_by_its_age(tmp_path, text):
    """It may be one whose process is about to write it."""
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(FolderInUseError, match="does not tell"), held(tmp_path):
        pass
    make_older(tmp_path, STALE_S + 1)
    with held(tmp_path):
        pass


def test_a_run_renews_its_lock_and_notices_when_it_is_lost(tmp_path, monkeypatch):
    assert BEAT_S == 30 and STALE_S == 300
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.01)
    is_lost = threading.Event()
    with held(tmp_path, on_loss=is_lost.set):
        make_older(tmp_path, 1000)
        deadline = time.monotonic() + 20
        while time.time() - (tmp_path / LOCK_NAME).stat().st_mtime > 500 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK_NAME).stat().st_mtime < 500 and not is_lost.is_set()
        write_lock(tmp_path, host="elsewhere")
        assert is_lost.wait(20)
    assert holder(tmp_path)["host"] == "elsewhere"  # what another run holds stays


def test_a_restart_takes_over_the_lock_of_its_own_attempt_alone(tmp_path):
    write_lock(tmp_path, host="elsewhere", jobs={"SLURM_JOB_ID=17": 1})
    for jobs in ({}, {"SLURM_JOB_ID=17": 1}, {"SLURM_JOB_ID=17": 0}, {"SLURM_JOB_ID=18": 2}):
        with pytest.raises(FolderInUseError), held(tmp_path, jobs):
            pass
    with held(tmp_path, {"TORCHELASTIC_RUN_ID=a": 0, "SLURM_JOB_ID=17": 2}):
        assert holder(tmp_path)["jobs"]["SLURM_JOB_ID=17"] == 2


RACE = """
import json, multiprocessing, sys
from pathlib import Path
from runtime.folder_lock import FolderInUseError, hold_folder

def compete(root, barrier, wins):
    for number in range(40):
        barrier.wait()
        try:
            with hold_folder(root / str(number), {}, lambda: None):
                wins.put(number)
                barrier.wait()
        except FolderInUseError:
            barrier.wait()

root = Path(sys.argv[1])
for number in range(0, 40, 2):  # left by a process that is gone
    (root / str(number)).mkdir()
    (root / str(number) / "run.lock").write_text(sys.argv[2])
context = multiprocessing.get_context("fork")
wins, barrier = context.SimpleQueue(), context.Barrier(4)
processes = [context.Process(target=compete, args=(root, barrier, wins)) for _ in range(4)]
for process in processes:
    process.start()
print(json.dumps(sorted(wins.get() for _ in range(40))))
for process in processes:
    process.join()
assert wins.empty()
print(sorted(path.name for path in root.glob("*/*")))
"""


def test_of_processes_that_start_at_the_same_time_one_gets_the_folder(tmp_path):
    """Four at once, in 40 folders; every other one has a lock to take over."""
    stale = json.dumps({**this_process(), "start": "1", "jobs": {}})
    command = [sys.executable, "-c", RACE, str(tmp_path), stale]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [json.dumps([*range(40)]), "[]"]


def test_a_process_is_known_by_its_start_without_proc_too(monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    starts = [process_start(child.pid)]
    monkeypatch.setattr(identity.Path, "exists", lambda _: False)
    starts.append(process_start(child.pid))
    child.kill()
    child.wait()
    starts.append(process_start(child.pid))
    monkeypatch.undo()
    starts.append(process_start(child.pid))
    assert all(starts[:2]) and starts[2:] == ["", ""]


def test_a_job_and_its_restarts_are_known_by_the_launcher():
    assert find_cluster_jobs({"SLURM_JOB_ID": "17", "TORCHELASTIC_RUN_ID": ""}) == {"SLURM_JOB_ID=17": 0}
    both = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "1"}  # fmt: skip
    torchrun = f"TORCHELASTIC_RUN_ID={identity.socket.gethostname()}:{os.getppid()}"
    assert find_cluster_jobs(both) == {"SLURM_JOB_ID=17": 2, torchrun: 1}
    assert is_restart(find_cluster_jobs(both), {torchrun: 0}) and is_restart(
        find_cluster_jobs(both), {"SLURM_JOB_ID=17": 1}
    )
    assert not is_restart(find_cluster_jobs(both), {"TORCHELASTIC_RUN_ID=none": 0, "SLURM_JOB_ID=17": 2})
