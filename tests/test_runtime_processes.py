"""runtime/processes.py: threads stand for ranks, and two processes are real ones."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch import distributed

from runtime.devices import device_of_rank
from runtime.errors import ConfigError
from runtime.processes import ALONE, Ranks, RanksError, RanksStartError, find_ranks
from tests.helpers.paths import REPOSITORY
from tests.helpers.ranks import in_ranks
from tools import evaluate, predict

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
