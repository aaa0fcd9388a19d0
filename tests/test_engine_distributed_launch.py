"""Who is which process, by command line and environment; processes that end well, and those that lose one another."""

import atexit
import os
import signal
import socket
import sys
import time
from datetime import timedelta

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from data.loader.build import prepare_worker
from engine.distributed import launch as launching
from engine.distributed import spawn as children
from engine.distributed.launch import exit_with, launch, raise_on_lost_peer
from engine.interrupts import LostProcess
from runtime.command_line import argument_parser
from runtime.dist_env import DistEnv, find_dist_env, meeting_point
from runtime.errors import ConfigError
from tests.helpers.toy_training import processes

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
            "MASTER_PORT": "29500"}  # fmt: skip


def options(*arguments):
    return argument_parser().parse_args([*arguments])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--config-file a.py --resume --eval-only",
        "--num-gpus 2 --num-machines 3 --machine-rank 1 --dist-url tcp://a:1 train.seed=1 --resume",
        "train.seed=1 --num-gpus 2",
        "--num-g 2",
    ],
)
def test_options_are_detectron2s_but_for_trust_and_what_is_not_given_about_processes(line):
    theirs = default_argument_parser()
    theirs.set_defaults(trust_module=[], **dict.fromkeys(("num_gpus", "num_machines", "machine_rank", "dist_url")))
    assert options(*line.split()) == theirs.parse_args(line.split())


def test_help_speaks_of_this_project():
    told = " ".join(argument_parser(epilog="the end").format_help().split())
    assert (
        "auto (default, one machine)" in told
        and "with train.device=cpu, on the CPU" in told
        and told.endswith("the end")
    )
    assert not [word for word in ("Yacs", "DefaultTrainer", "pytorch.org", "SOLVER", "gpus *per") if word in told]


@pytest.mark.parametrize(
    ("arguments", "environment", "place"),
    [
        ([], {}, (0, 1, 0, 1)),
        (["--num-gpus", "4"], {}, (0, 4, 0, 4)),
        (["--num-gpus", "4", "--num-machines", "3", "--machine-rank", "2"], {}, (8, 12, 0, 4)),
        ([], TORCHRUN, (5, 8, 1, 4)),
        (["--num-gpus", "4", "--num-machines", "2", "--machine-rank", "1"], TORCHRUN, (5, 8, 1, 4)),
        # Left by a login of Slurm or Kubernetes, and no word about processes.
        (["--num-gpus", "2"], {"MASTER_ADDR": "node0", "SLURM_PROCID": "1", "RANK": ""}, (0, 2, 0, 2)),
    ],
)
def test_a_process_knows_its_place(arguments, environment, place):
    assert find_dist_env(options(*arguments), environment) == DistEnv(*place)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--num-gpus", "0"], {}, "--num-gpus must be at least 1, got 0"),
        (["--machine-rank", "1"], {}, "--machine-rank must be below --num-machines 1 and not negative, got 1"),
        ([], {"RANK": "0"}, "RANK=0, without WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ([], {**TORCHRUN, "WORLD_SIZE": ""}, "without WORLD_SIZE.* unset RANK, LOCAL_RANK, LOCAL_WORLD_SIZE$"),
        ([], {**TORCHRUN, "MASTER_PORT": ""}, "without MASTER_PORT"),
        ([], {**TORCHRUN, "RANK": "first"}, "RANK=first .* whole numbers"),
        ([], {**TORCHRUN, "WORLD_SIZE": "-8"}, "WORLD_SIZE=-8 .* whole numbers"),
        ([], {**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT=http, .* whole numbers"),
        ([], {**TORCHRUN, "MASTER_PORT": "65536"}, "MASTER_PORT must be 1 to 65535"),
        ([], {**TORCHRUN, "RANK": "8"}, "ranks must be below"),
        ([], {**TORCHRUN, "LOCAL_RANK": "4"}, "ranks must be below"),
        ([], {**TORCHRUN, "WORLD_SIZE": "0"}, "ranks must be below"),
        ([], {**TORCHRUN, "WORLD_SIZE": "6"}, "same number of processes"),
        (["--num-gpus", "1"], TORCHRUN, "--num-gpus is 1, but torchrun's environment says 4: leave the option out"),
        (["--num-machines", "1"], TORCHRUN, "--num-machines is 1, but torchrun's environment says 2"),
        (["--machine-rank", "0"], TORCHRUN, "--machine-rank is 0, but torchrun's environment says 1"),
        (["--dist-url", "tcp://a:1"], TORCHRUN, "--dist-url is tcp://a:1, but .* says tcp://node0:29500"),
    ],
)
def test_a_place_that_cannot_be_is_refused(arguments, environment, words):
    with pytest.raises(ConfigError, match=words) as refused:
        find_dist_env(options(*arguments), environment)
    assert "\n" not in str(refused.value)


ONE_MACHINE, FIRST_OF_TWO = DistEnv(0, 2, 0, 2), DistEnv(0, 2, 0, 1)


def test_processes_meet_where_the_command_line_says():
    assert meeting_point(None, ONE_MACHINE) == meeting_point("auto", ONE_MACHINE) == ("127.0.0.1", 0)
    assert meeting_point("tcp://node0:29500", FIRST_OF_TWO) == ("node0", 29500)
    assert meeting_point("tcp://[::1]:29500", FIRST_OF_TWO) == ("::1", 29500)


@pytest.mark.parametrize(
    "url", ["node0:29500", "tcp://node0", "tcp://node0:port", "tcp://node0:70000", "http://node0:1", ""]
)
def test_other_meeting_points_are_refused(url):
    with pytest.raises(ConfigError, match="--dist-url must be auto or tcp://HOST:PORT"):
        meeting_point(url, FIRST_OF_TWO)


@pytest.mark.parametrize("url", [None, "auto"])
def test_several_machines_need_a_meeting_point(url):
    with pytest.raises(ConfigError, match="several machines need --dist-url"):
        meeting_point(url, FIRST_OF_TWO)


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "meta", ""])
def test_a_device_that_cannot_be_trained_on_is_refused(device):
    with pytest.raises(ConfigError, match=f"train.device must be cpu, cuda or mps, got {device!r}"):
        launch(print, processes(1), device, ())


def test_more_processes_than_devices_are_refused():
    for device, number in (("cuda", 99), ("mps", 2)):
        with pytest.raises(ConfigError, match=f"train.device={device}: .*: {number} processes, .* devices"):
            launch(print, processes(number), device, ())


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        args = options("--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="the port of 127.0.0.1:.* is taken on this machine") as refused:
            launch(print, args, "cpu", ())
    assert "\n" not in str(refused.value)


def test_a_meeting_point_that_does_not_answer_is_one_line():
    with socket.create_server(("", 0)) as closed:
        port = closed.getsockname()[1]
    args = options("--num-machines", "2", "--machine-rank", "1", "--dist-url", f"tcp://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"did not come together at 127.0.0.1:{port} in time") as refused:
        launch(print, args, "cpu", (), timeout_s=1)
    assert time.monotonic() - start < 10 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("local_rank", "is_own", "spoken"), [("0", False, "a.py: why\n"), ("1", False, ""), ("1", True, "a.py: why\n")]
)
def test_of_processes_on_a_machine_the_first_says_why(local_rank, is_own, spoken, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(sys, "argv", ["here/a.py"])
    monkeypatch.setattr("engine.distributed.launch.PAUSE_S", 0)
    with pytest.raises(SystemExit, match="2"):
        exit_with("why", 2, is_own=is_own)
    assert capsys.readouterr().err == spoken


@pytest.mark.parametrize(("number", "spoken"), [(0, "a.py: why\n"), (1, "")])
@pytest.mark.parametrize("error", [ConfigError("why"), LostProcess("why")])
def test_of_processes_that_cannot_start_the_first_says_why(number, spoken, error, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["here/a.py"])
    monkeypatch.setattr("engine.distributed.launch.PAUSE_S", 0)
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    for name in ("end_with_parent", "_open_store"):
        monkeypatch.setattr(launching, name, lambda *_, **__: None)
    monkeypatch.setattr(launching, "_work", fail)
    with pytest.raises(SystemExit) as ended:
        launching._start_work(number, print, (), DistEnv(0, 2, 0, 2), "cpu", 1.0, ("localhost", 1))
    assert capsys.readouterr().err == spoken and ended.value.code == getattr(error, "status", 2)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL error in: ..., remote process exited"), True),
        (torch.distributed.DistNetworkError("Broken pipe"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo/"), False),
    ],
)
def test_errors_of_exchanges_alone_are_lost_processes(error, is_lost):
    with pytest.raises(LostProcess if is_lost else type(error)), raise_on_lost_peer():
        raise error


@pytest.mark.parametrize(
    ("ended", "received", "outcome"),
    [
        ([0, 0], [], None),
        ([5, 1, 5], [], SystemExit(1)),
        ([5, 5], [], SystemExit(5)),
        ([75, 75], [signal.SIGTERM], SystemExit(75)),
        ([0, 0], [signal.SIGTERM], None),
        ([5, -9], [], LostProcess("process 1 of this machine was ended by SIGKILL")),
        ([-15, -15], [signal.SIGTERM], SystemExit(143)),
        ([-2, -2], [signal.SIGINT], KeyboardInterrupt()),
    ],
)
def test_the_one_that_started_others_ends_as_they_do(ended, received, outcome, monkeypatch):
    monkeypatch.setattr(children.SpawnProcess, "start", lambda process: None)

    def join(_):
        for number in received:
            os.kill(os.getpid(), number)
        return ended

    monkeypatch.setattr(children, "_join", join)
    if outcome is None:
        children.run_processes(print, (), len(ended))
        return
    with pytest.raises(type(outcome)) as raised:
        children.run_processes(print, (), len(ended))
    if isinstance(outcome, SystemExit):
        assert raised.value.code == outcome.code
    assert str(raised.value).startswith(str(outcome))


@pytest.mark.parametrize(("given", "num_threads"), [(None, 3), ("5", 1)])
def test_processes_started_here_share_the_cores(given, num_threads, monkeypatch):
    """torch takes OMP_NUM_THREADS when it is loaded, and one thread is what this process has before."""
    monkeypatch.setattr(launching, "num_cores", lambda: 7)
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    for name in ("end_with_parent", "_open_store", "_work"):
        monkeypatch.setattr(launching, name, lambda *_, **__: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the process sets its own, which is taken back with this
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        launching._start_work(1, print, (), DistEnv(0, 2, 0, 2), "cpu", 1.0, ("localhost", 1))
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_ctrl_c_stays_ignored_where_a_background_job_ignores_it(before, monkeypatch):
    for name in ("end_with_parent", "_open_store", "_work"):
        monkeypatch.setattr(launching, name, lambda *_, **__: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("data.loader.build.cv2.setNumThreads", lambda _: None)
    wanted = signal.SIG_IGN if before is signal.SIG_IGN else signal.SIG_DFL
    for start in (
        lambda: launching._start_work(1, print, (), DistEnv(0, 2, 0, 2), "cpu", 1.0, ("localhost", 1)),
        lambda: prepare_worker(0, world_size=2),
    ):
        signal.signal(signal.SIGINT, before)
        start()
        assert signal.getsignal(signal.SIGINT) is wanted


@pytest.mark.parametrize(("device", "backends"), [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl")])
def test_one_time_limit_holds_for_tensors_and_for_objects(device, backends, monkeypatch):
    """Where NCCL is not alone, detectron2 sends objects by the group of all processes, gloo here in place of NCCL."""
    start = torch.distributed.init_process_group

    def start_alone(asked, *_):
        assert asked == backends
        start(asked.replace("nccl", "gloo"), None, timedelta(seconds=7), 1, 0, torch.distributed.HashStore())
        group = comm._get_global_gloo_group.__wrapped__()
        assert group is torch.distributed.group.WORLD
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
        raise ValueError("enough")

    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", start_alone)
    try:
        with pytest.raises(ConfigError, match="enough"):
            launching._work(print, (), DistEnv(0, 2, 0, 2), device, 7.0, torch.distributed.HashStore())
    finally:
        torch.distributed.destroy_process_group()


def do_one_after_another(folder):
    """What each of two processes does: talk once, then end, the main one later; leave word that nothing is open."""
    rank = comm.get_rank()
    atexit.register(lambda: torch.distributed.is_initialized() or (folder / f"closed{rank}").touch())
    assert comm.get_local_rank() == rank and torch.distributed.get_backend() == "gloo"
    comm.all_gather(rank)
    time.sleep(0.5 * (1 - rank))


def test_a_process_that_is_done_before_the_others_ends_well(tmp_path):
    """With connections still open, every second run of this ended by SIGABRT."""
    launch(do_one_after_another, processes(2), "cpu", (tmp_path,))
    assert {path.name for path in tmp_path.iterdir()} == {"closed0", "closed1"}
