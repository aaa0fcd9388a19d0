"""runtime/processes.py and the tools that use it: threads stand for ranks, torchrun starts real ones."""

import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from torch import distributed

from inference.predictor import Predictor
from runtime.devices import device_of_rank
from runtime.errors import ConfigError, UserError
from runtime.processes import ALONE, Ranks, RanksError, RanksStartError, find_ranks
from tests.helpers.evaluation import write_test_set
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import IMAGE_SIZES
from tools import evaluate, predict
from tools.prediction import command_line, steps

RAMP = ("--baseline", "ramp")


class ThreadRanks(Ranks):
    """A rank that is a thread; `meeting` holds a barrier and a list of all values."""

    def all_gather(self, value):
        barrier, values = self.meeting
        values[self.rank] = pickle.dumps(value)
        barrier.wait(60)
        gathered = [pickle.loads(other) for other in values]
        barrier.wait(60)
        return gathered


def in_ranks(work, world_size):
    """What `work(ranks)` gives or raises in each of some threads."""
    meeting = threading.Barrier(world_size), [b""] * world_size

    def start(rank):
        ranks = ThreadRanks(rank, world_size, rank, world_size)
        ranks.meeting = meeting
        return pool.submit(work, ranks if world_size > 1 else ALONE)

    with ThreadPoolExecutor(world_size) as pool:
        futures = [start(rank) for rank in range(world_size)]
    return [future.exception() or future.result() for future in futures]


every_world = pytest.mark.parametrize("world_size", [1, 2, 3])


@every_world
@pytest.mark.parametrize("num_items", [0, 1, 2, 7])
def test_shares_cover_the_list_and_join_in_its_order(world_size, num_items):
    items = [f"{number}.png" for number in range(num_items)]
    shares = in_ranks(lambda ranks: ranks.share(items), world_size)
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    joined = in_ranks(lambda ranks: ranks.join(item + "!" for item in ranks.share(items)), world_size)
    assert joined == [[item + "!" for item in items]] * world_size


@every_world
def test_broadcast_calls_in_the_first_rank_alone(world_size):
    given = in_ranks(lambda ranks: [ranks.broadcast(lambda n=n: (ranks.rank, n)) for n in range(3)], world_size)
    assert given == [[(0, 0), (0, 1), (0, 2)]] * world_size


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_of_one_rank_is_raised_in_all_and_names_it(bad):
    def work(ranks):
        with ranks.together():
            if ranks.rank == bad:
                raise FileNotFoundError("no such folder")

    raised = in_ranks(work, 3)
    assert [type(error) for error in raised] == [RanksError] * 3
    assert {str(error) for error in raised} == {f"rank {bad} of 3: no such folder"}


def test_an_error_that_all_ranks_meet_stays_as_it_is():
    def work(ranks):
        with ranks.together():
            raise FileNotFoundError("no such folder")

    assert [(type(error), str(error)) for error in in_ranks(work, 3)] == [(FileNotFoundError, "no such folder")] * 3
    assert Ranks(0, 3, 0, 3).attribute(["full", "", "full"]) == ["rank 0, 2 of 3: full"]


def test_other_ranks_than_the_first_are_silent(capsys):
    for rank in (0, 1):
        with Ranks(rank, 2, rank, 2).first_speaks():
            print(f"out {rank}")
            print(f"error {rank}", file=sys.stderr)
    assert capsys.readouterr() == ("out 0\n", "error 0\n")


def test_without_torchrun_a_process_is_alone(monkeypatch):
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for environment in ({}, {"LOCAL_RANK": "", "MASTER_ADDR": "here"}, one | {"MASTER_PORT": "29500"}):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with find_ranks() as ranks:
                assert ranks is ALONE


def test_a_failed_exchange_says_why_and_a_failed_start_what_to_set(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] err == 0. can't allocate memory\nmore")

    monkeypatch.setattr(distributed, "all_gather_object", fail)
    with pytest.raises(RanksError, match="rank 1 of 2 .*can't allocate memory") as raised:
        Ranks(1, 2, 1, 2).all_gather("")
    assert "alloc_cpu" not in str(raised.value) and "\n" not in str(raised.value)

    monkeypatch.setattr(distributed, "rendezvous", fail)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**address, "RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RanksStartError, match="127.0.0.1:29500.*can't allocate.*GLOO_SOCKET_IFNAME"), find_ranks():
        pass


@pytest.mark.parametrize("tool", [predict, evaluate])
def test_half_an_environment_is_wrong_usage_of_the_tools(tool, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert tool.main(["--help"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_each_rank_has_the_gpu_of_its_local_rank(monkeypatch):
    assert device_of_rank("cpu", 1, 2) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [device_of_rank(name, 1, 2) for name in ("auto", "cuda", "cuda:0", "cpu")]
    assert found == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    with pytest.raises(ConfigError, match="4 processes, 2 devices"):
        device_of_rank("auto", 0, 4)


def places(folder, output="out"):
    """Images, trimaps and output of tools/predict.py."""
    return [*map(str, (folder / "images", "--trimap-dir", folder / "trimaps", "--output", folder / output))]


def matte(folder, ranks, *more, output="out"):
    """Run tools/predict.py after its command line, in one rank."""
    options = command_line.parse([*places(folder, output), *(more or RAMP)], "")
    return predict.matte(options) if ranks is ALONE else predict.matte_in_ranks(options, ranks)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_images_are_shared_out_and_come_out_the_same(image_folders, world_size, capsys):
    """Of 4 processes and 3 images one has nothing to do."""
    assert matte(image_folders, ALONE, output="alone") == 0
    assert in_ranks(lambda ranks: matte(image_folders, ranks), world_size) == [0] * world_size
    assert contents(image_folders / "out") == contents(image_folders / "alone") and len(IMAGE_SIZES) == 3
    capsys.readouterr()
    (image_folders / "out" / "b.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in (image_folders / "out").iterdir()}
    assert in_ranks(lambda ranks: matte(image_folders, ranks, *RAMP, "--resume"), world_size) == [0] * world_size
    assert capsys.readouterr().err.count("predict.py: 2 of 3 are there already\n") == 1
    assert contents(image_folders / "out") == contents(image_folders / "alone")
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (image_folders / "out").iterdir()}.items()


def test_bad_files_of_all_shares_are_one_list(image_folders, capsys):
    for name in ("a", "b"):
        (image_folders / "images" / f"{name}.png").write_text("no image")
    assert in_ranks(lambda ranks: matte(image_folders, ranks), 2) == [1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3] == "predict.py: 2 of 3 images failed:"
    assert [line.split(":")[0] for line in lines[-2:]] == [f"  {image_folders}/images/{name}.png" for name in "ab"]
    assert list(contents(image_folders / "out")) == ["c.d.png"]


def test_what_ends_one_process_lets_the_others_finish_and_is_named(image_folders, capsys, monkeypatch):
    """Rank 1 has only image b, and its disk is full."""

    def ramp(image, trimap):
        if image.shape[:2] == IMAGE_SIZES["b"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return trimap

    monkeypatch.setitem(steps.BASELINES, "ramp", ramp)
    assert in_ranks(lambda ranks: matte(image_folders, ranks), 2) == [1, 1]
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "predict.py: rank 1 of 2: [Errno 28] No space left on device",
        "predict.py: 1 images were not reached, the same command with --resume makes them:",
        f"  {image_folders}/images/b.png",
    ]
    assert list(contents(image_folders / "out")) == ["a.png", "c.d.png"]


def test_what_cannot_be_begun_is_raised_in_all(image_folders):
    raised = in_ranks(lambda ranks: matte(image_folders, ranks, *RAMP, "--bits", "16", output="images"), 2)
    assert [str(error).partition(": images are")[0] for error in raised] == [f"rank 0 of 2: {image_folders}/images"] * 2


def measure(folder, ranks, *more):
    """Run tools/evaluate.py after its command line, in one rank."""
    evaluate.evaluate(evaluate.parse([str(part) for part in more], 1), ranks)


@pytest.mark.parametrize("world_size", [2, 3])
def test_measured_in_shares_the_numbers_are_the_same(tmp_path, world_size, capsys):
    """To the last digit: the files are compared; what the first prints comes once."""
    write_test_set(tmp_path)
    rng = np.random.default_rng(0)
    for name in "cdefg":
        for folder, image in (("pred", rng.integers(0, 256, (30, 20))), ("label", rng.integers(0, 256, (30, 20))),
                                ("trimap", rng.choice([0, 128, 255], (30, 20)))):  # fmt: skip
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image.astype(np.uint8))
    options = [part for name in ("pred", "label", "trimap") for part in (f"--{name}-dir", tmp_path / name)]
    measure(tmp_path, ALONE, *options, "--output", tmp_path / "alone")
    printed = capsys.readouterr().out.replace(str(tmp_path / "alone"), str(tmp_path / "out"))
    assert (
        in_ranks(lambda ranks: measure(tmp_path, ranks, *options, "--output", tmp_path / "out"), world_size)
        == [None] * world_size
    )
    assert capsys.readouterr() == (printed, "")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")

    (tmp_path / "pred" / "d.png").unlink()
    (tmp_path / "pred" / "e.png").write_text("no image")
    raised = in_ranks(lambda ranks: measure(tmp_path, ranks, *options), world_size)
    assert {str(error) for error in raised} == {str(raised[0])} and "2 problems, nothing evaluated" in str(raised[0])
    assert "d.* is missing" in str(raised[0]) and "e.png" in str(raised[0])


@pytest.fixture
def test_folder(image_folders):
    """image/, alpha/ and trimap/ of a test set."""
    (image_folders / "images").rename(image_folders / "image")
    for folder in ("alpha", "trimap"):
        (image_folders / folder).mkdir()
    for path in (image_folders / "trimaps").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        trimap = np.where((grey > 0) & (grey < 255), 128, grey).astype(np.uint8)
        cv2.imwrite(str(image_folders / "alpha" / f"{path.stem}.png"), grey)
        cv2.imwrite(str(image_folders / "trimap" / f"{path.stem}.png"), trimap)
    return image_folders


def by_network(test_folder, run_folder, name):
    weights = ["--config-file", run_folder / "config.yaml", "--weights", run_folder / "weights.pth", "--device", "cpu"]
    places = ["--pred-dir", test_folder / name, "--output", test_folder / f"{name}_result"]
    return [*weights, "--dataset", test_folder, "--workers", 1, *places]


def results(test_folder, name):
    """Alphas as files, and the summary but for where the alphas lie."""
    summary = json.loads((test_folder / f"{name}_result" / "summary.json").read_text())
    assert summary["predictions"].pop("dir") == str(test_folder / name)
    return contents(test_folder / name), summary


def test_a_network_over_shares_writes_and_measures_the_same(test_folder, run_folder):
    measure(test_folder, ALONE, *by_network(test_folder, run_folder, "alone"))
    in_two = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "shared")), 2)
    assert in_two == [None, None]
    assert results(test_folder, "shared") == results(test_folder, "alone")
    again = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "shared")), 2)
    assert all("rank 0 of 2: " in str(error) and "holds images already" in str(error) for error in again)


def test_a_network_that_one_process_cannot_load_ends_all(test_folder, run_folder, monkeypatch):
    load = Predictor.load

    def broken(source, weights, device, **settings):
        if device == "broken":
            raise UserError("device 'broken' cannot be used")
        return load(source, weights, device, **settings)

    monkeypatch.setattr(Predictor, "load", broken)
    devices = ["cpu", "broken"]
    monkeypatch.setattr("runtime.devices.device_of_rank", lambda name, local_rank, local_size: devices[local_rank])
    raised = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "new")), 2)
    assert {str(error) for error in raised} == {"rank 1 of 2: device 'broken' cannot be used"}
    assert not (test_folder / "new").exists()


def torchrun(*command, processes=2, options=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    done = subprocess.run(
        [*start, *map(str, command)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith(("predict", "evalu", "  /"))]
    return done.returncode, done.stdout, lines


@pytest.mark.slow
def test_torchrun_runs_a_tool_on_two_processes(image_folders):
    (image_folders / "images" / "b.png").write_text("no image")  # the share of rank 1
    status, output, lines = torchrun("tools/predict.py", *places(image_folders), *RAMP)
    assert status == 1 and output == f"wrote 2 files to {image_folders / 'out'}\n"
    assert lines[0] == "predict.py: 1 of 3 images failed:" and len(lines) == 2 and "b.png: not an image" in lines[1]
    assert list(contents(image_folders / "out")) == ["a.png", "c.d.png"]


@pytest.mark.slow
def test_torchrun_measures_the_same(test_folder, run_folder):
    measure(test_folder, ALONE, *by_network(test_folder, run_folder, "alone"))
    status, output, lines = torchrun("tools/evaluate.py", *by_network(test_folder, run_folder, "shared"), processes=3)
    assert status == 0, lines
    assert output.count("Protocol dim") == 1 and lines == []
    assert results(test_folder, "shared") == results(test_folder, "alone")


KILLED = """
import os, signal, sys, time
sys.path.insert(0, os.getcwd())
from tools import predict
from tools.prediction import steps
def ramp(image, trimap):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
    return trimap
steps.BASELINES["ramp"] = ramp
raise SystemExit(predict.main())
"""


@pytest.mark.slow
def test_a_killed_process_is_reported_and_may_be_started_again(image_folders, tmp_path):
    """Rank 1 is killed over image b; rank 0 loses it, and torchrun starts both again."""
    (tmp_path / "killed.py").write_text(KILLED)
    command = [tmp_path / "killed.py", *places(image_folders), *RAMP, "--resume"]
    status, _, lines = torchrun(*command, options=("--max-restarts=1",))
    assert status == 0 and list(contents(image_folders / "out")) == ["a.png", "b.png", "c.d.png"]
    assert lines[0] == "predict.py: 0 of 3 are there already"
    assert "1 images were not reached" in lines[1] and lines[2] == f"  {image_folders}/images/b.png"
    assert "rank 0 of 2 lost another" in lines[3] or "ended by SIGTERM" in lines[3]
    assert lines[4:] == ["predict.py: 2 of 3 are there already"]


WAITING = """
import os, sys
from datetime import timedelta
sys.path.insert(0, os.getcwd())
from runtime import processes
processes.MAX_WAIT = timedelta(seconds=float(sys.argv[1]))
with processes.find_ranks() as ranks:
    assert ranks.all_gather(ranks.rank) == [0, 1]
    print("waits", flush=True)
    if ranks.rank == 1:
        sys.stdin.readline()
    try:
        ranks.all_gather("")
    except BaseException as ending:
        print(type(ending).__name__, ending, flush=True)
        raise
"""


@contextmanager
def two_waiting(tmp_path, max_wait_s):
    """Two ranks as scripts of Slurm start them: the first waits for the second, which waits for a line."""
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, tmp_path / "waiting.py", str(max_wait_s)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen(command, cwd=REPOSITORY, env={**inherited, **same, "RANK": n, "LOCAL_RANK": n}, **pipes)
        for n in "01"
    ]
    timer = threading.Timer(90, lambda: [rank.kill() for rank in ranks])  # or a rank that hangs would block the test
    timer.start()
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["waits\n"] * 2
        yield ranks
    finally:
        timer.cancel()
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_rank_that_waits_and_the_other_loses_it(tmp_path, number):
    """Within 2 seconds: a wait of torch itself would keep the signal back."""
    with two_waiting(tmp_path, 600) as (first, second):
        time.sleep(0.2)
        first.send_signal(number)
        before = time.monotonic()
        expected = "Terminated" if number == signal.SIGTERM else "KeyboardInterrupt"
        assert first.stdout.readline().strip() == expected and time.monotonic() - before < 2
        assert first.wait(60) != 0
        assert "RanksError rank 1 of 2 lost another" in second.communicate("\n", timeout=60)[0]


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_not_waited_for_for_ever(tmp_path):
    with two_waiting(tmp_path, 3) as (first, _):
        assert "RanksError rank 0 of 2 lost another" in first.communicate(timeout=60)[0]
