"""runtime/processes.py and the tools that use it: threads stand for processes, torchrun starts real ones."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta

import cv2
import numpy as np
import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from inference.predictor import Predictor
from runtime.errors import UserError
from runtime.processes import ALONE, POLL_S, Ranks, RanksError, Terminated, find_ranks
from tests.helpers.evaluation import write_test_set
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import IMAGE_SIZES
from tools import evaluate, predict
from tools.prediction import command_line, steps

TORCHRUN = dict(
    RANK="1", WORLD_SIZE="3", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500"
)
RAMP = ("--baseline", "ramp")


def in_ranks(work, world_size):
    """What `work(ranks)` gives or raises in each of some threads."""
    store = HashStore()

    def start(rank):
        return pool.submit(work, Ranks(rank, world_size, rank, world_size, store) if world_size > 1 else ALONE)

    with ThreadPoolExecutor(world_size) as pool:
        futures = [start(rank) for rank in range(world_size)]
    return [future.exception() or future.result() for future in futures]


every_world = pytest.mark.parametrize("world_size", [1, 2, 3])


@every_world
@pytest.mark.parametrize("num_items", [0, 1, 2, 7])
def test_what_is_shared_and_joined_is_the_list(world_size, num_items):
    items = [f"{number}.png" for number in range(num_items)]
    shares = in_ranks(lambda ranks: ranks.share(items), world_size)
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    joined = in_ranks(lambda ranks: ranks.join(item + "!" for item in ranks.share(items)), world_size)
    assert joined == [[item + "!" for item in items]] * world_size


@every_world
def test_all_get_what_the_first_gives_and_calls_do_not_mix(world_size):
    def work(ranks):
        told = [ranks.of_first(lambda number=number: (ranks.rank, number)) for number in range(3)]
        return told, ranks.exchange(ranks.rank), ranks.each(lambda: ranks.rank)

    expected = [([(0, 0), (0, 1), (0, 2)], list(range(world_size)), rank) for rank in range(world_size)]
    assert in_ranks(work, world_size) == expected


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_of_one_is_raised_in_all_and_names_it(bad):
    def work(ranks):
        if ranks.rank == bad:
            raise FileNotFoundError("no such folder")
        return ranks.rank

    raised = in_ranks(lambda ranks: ranks.each(lambda: work(ranks)), 3)
    assert [type(error) for error in raised] == [RanksError] * 3
    assert {str(error) for error in raised} == {f"rank {bad} of 3: no such folder"}


def test_what_all_meet_is_said_as_by_one():
    def fail():
        raise FileNotFoundError("no such folder")

    raised = in_ranks(lambda ranks: ranks.each(fail), 3)
    assert [(type(error), str(error)) for error in raised] == [(FileNotFoundError, "no such folder")] * 3
    assert ALONE.attribute(["full"]) == ["full"]
    assert Ranks(world_size=3).attribute(["full", "", "full"]) == ["rank 0, 2 of 3: full"]


def test_others_than_the_first_are_silent_where_all_would_say_the_same(capsys):
    for rank in (0, 1):
        with Ranks(rank, 2).first_speaks():
            print(f"out {rank}")
            print(f"error {rank}", file=sys.stderr)
    assert capsys.readouterr() == ("out 0\n", "error 0\n")


def test_without_torchrun_a_process_is_alone():
    for environment in ({}, {"LOCAL_RANK": "", "MASTER_ADDR": "here"}, {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1",
                        "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}):  # fmt: skip
        with find_ranks(environment) as ranks:
            assert ranks is ALONE


@pytest.mark.parametrize("tool", [predict, evaluate])
def test_half_an_environment_is_wrong_usage_of_the_tools(tool, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert tool.main(["--help"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch):
    ranks = Ranks(5, 8, 1, 2)
    assert ranks.device("cpu") == "cpu" and ALONE.device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [ranks.device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    assert ALONE.device("cuda") == "cuda"
    with pytest.raises(RanksError, match="4 processes on a machine with 2 CUDA devices"):
        Ranks(0, 4, 0, 4).device("auto")


def test_processes_share_the_cores_of_their_machine(monkeypatch):
    told = []
    monkeypatch.setattr("runtime.processes.num_cores", lambda: 12)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(cv2, "setNumThreads", told.append)
    ALONE.limit_threads()
    assert told == []
    Ranks(5, 8, 1, 4).limit_threads()
    Ranks(5, 64, 1, 32).limit_threads()
    assert told == [3, 3, 1, 1]


def matte(folder, ranks, *more, output="out"):
    """Run tools/predict.py after its command line, in one rank."""
    paths = [folder / "images", "--trimap-dir", folder / "trimaps", "--output", folder / output]
    options = command_line.parse([str(part) for part in (*paths, *(more or RAMP))], "")
    return predict.matte_images(options, ranks)


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
        (image_folders / "images" / f"{name}.png").write_text("no picture")
    assert in_ranks(lambda ranks: matte(image_folders, ranks), 2) == [1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3] == "predict.py: 2 of 3 images failed:"
    assert [line.split(":")[0] for line in lines[-2:]] == [f"  {image_folders}/images/{name}.png" for name in "ab"]
    assert list(contents(image_folders / "out")) == ["c.d.png"]


def test_what_ends_one_process_lets_the_others_finish_and_is_named(image_folders, capsys, monkeypatch):
    """Rank 1 has image b alone and no room for it."""

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
        for folder, picture in (("pred", rng.integers(0, 256, (30, 20))), ("label", rng.integers(0, 256, (30, 20))),
                                ("trimap", rng.choice([0, 128, 255], (30, 20)))):  # fmt: skip
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), picture.astype(np.uint8))
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
    (tmp_path / "pred" / "e.png").write_text("no picture")
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
    assert all("rank 0 of 2: " in str(error) and "holds pictures already" in str(error) for error in again)


def test_a_network_that_one_process_cannot_load_ends_all(test_folder, run_folder, monkeypatch):
    load = Predictor.load

    def broken(source, weights, device, **settings):
        if device == "broken":
            raise UserError("device 'broken' cannot be used")
        return load(source, weights, device, **settings)

    monkeypatch.setattr(Predictor, "load", broken)
    monkeypatch.setattr(Ranks, "device", lambda ranks, name: "broken" if ranks.rank == 1 else "cpu")
    raised = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "new")), 2)
    assert {str(error) for error in raised} == {"rank 1 of 2: device 'broken' cannot be used"}
    assert not (test_folder / "new").exists()


def torchrun(*command, processes=2, options=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    done = subprocess.run(
        [*start, *map(str, command)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    return (
        done.returncode,
        done.stdout,
        [line for line in done.stderr.splitlines() if line.startswith(("predict", "evalu", "  /"))],
    )


@pytest.mark.slow
def test_torchrun_runs_a_tool_on_two_processes(image_folders):
    (image_folders / "images" / "b.png").write_text("no picture")  # the share of rank 1
    places = [image_folders / "images", "--trimap-dir", image_folders / "trimaps", "--output", image_folders / "out"]
    status, output, lines = torchrun("tools/predict.py", *places, *RAMP)
    assert status == 1 and output == f"wrote 2 files to {image_folders / 'out'}\n"
    assert lines[0] == "predict.py: 1 of 3 images failed:" and len(lines) == 2 and "b.png: not a picture" in lines[1]
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
def test_a_killed_process_is_not_silent_and_may_be_started_again(image_folders, tmp_path):
    """Rank 1 is killed over image b; torchrun ends rank 0, and starts both again."""
    (tmp_path / "killed.py").write_text(KILLED)
    places = [image_folders / "images", "--trimap-dir", image_folders / "trimaps", "--output", image_folders / "out"]
    status, _, lines = torchrun(tmp_path / "killed.py", *places, *RAMP, "--resume", options=("--max-restarts=1",))
    assert status == 0 and list(contents(image_folders / "out")) == ["a.png", "b.png", "c.d.png"]
    assert lines == [
        "predict.py: 0 of 3 are there already",
        "predict.py: 1 images were not reached, the same command with --resume makes them:",
        f"  {image_folders}/images/b.png",
        "predict.py: ended by SIGTERM, as by torchrun where a process is killed; --resume makes what is missing",
        "predict.py: 2 of 3 are there already",
    ]


def test_a_process_that_says_nothing_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("runtime.processes.MAX_WAIT", timedelta(seconds=0.2))
    with pytest.raises(RanksError, match="^rank 1 of 2 has said nothing for 0:00:00.2"):
        Ranks(0, 2, 0, 2, HashStore()).exchange("")


def test_sigterm_gets_through_to_a_process_that_waits(monkeypatch):
    """`Store.wait` would sit it out."""
    monkeypatch.setattr("torch.distributed.rendezvous", lambda *_, **__: iter([(HashStore(), 0, 2)]))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Terminated), find_ranks({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "2"}) as ranks:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            ranks.exchange("")
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("ending", [None, UserError, SystemExit, KeyboardInterrupt, TypeError])
def test_the_first_leaves_last_but_where_it_is_cut_off(monkeypatch, ending):
    """Who hosts the store is the first one, and it would go with it."""
    store = HashStore()
    monkeypatch.setattr("torch.distributed.rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    monkeypatch.setattr("runtime.processes.signal.signal", lambda *_: None)
    others = Ranks(1, 2, 1, 2, PrefixStore("pictures/0", store))
    left_at = []
    timer = threading.Timer(4 * POLL_S, lambda: (left_at.append(time.monotonic()), others.leave()))
    timer.start()
    with pytest.raises(ending) if ending else nullcontext(), find_ranks({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "2"}):
        if ending:
            raise ending
    waited = bool(left_at) and time.monotonic() >= left_at[0]
    timer.join()
    assert waited == (ending not in (KeyboardInterrupt, TypeError))


def test_for_those_who_never_leave_the_first_waits_a_while_and_for_a_store_that_went_not_at_all(monkeypatch):
    class Gone(HashStore):
        def set(self, *_):
            raise RuntimeError("Connection reset by peer")

    Ranks(0, 2, 0, 2, Gone()).leave()
    monkeypatch.setattr("runtime.processes.MAX_LEAVE", timedelta(seconds=0.2))
    before = time.monotonic()
    Ranks(0, 2, 0, 2, HashStore()).leave()
    assert 0.2 <= time.monotonic() - before < 10


LATE = """
import os, sys, time
sys.path.insert(0, os.getcwd())
from runtime.processes import Ranks
from tools import predict
wait = Ranks._wait
def late(ranks, rank):
    time.sleep(0.5 * ranks.rank)
    return wait(ranks, rank)
Ranks._wait = late
raise SystemExit(predict.main())
"""


@pytest.mark.slow
def test_without_torchruns_store_a_process_that_reads_late_gets_all(image_folders, tmp_path):
    """As Slurm scripts start them; rank 0 hosts the store, and is through with it first."""
    (tmp_path / "late.py").write_text(LATE)
    places = [image_folders / "images", "--trimap-dir", image_folders / "trimaps", "--output", image_folders / "out"]
    command = [sys.executable, tmp_path / "late.py", *places, *RAMP]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment |= {**TORCHRUN, "WORLD_SIZE": "2", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            list(map(str, command)),
            cwd=REPOSITORY,
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], told
    assert "lost" not in "".join(told) and "TCPStore" not in "".join(told)
    assert list(contents(image_folders / "out")) == ["a.png", "b.png", "c.d.png"]
