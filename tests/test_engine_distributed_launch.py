"""Who is which process, by command line and environment; processes that end well, and those that lose one another."""

import atexit
import os
import signal
import socket
import sys
import time

import pytest
import torch
from detectron2.utils import comm

from data.loader.build import prepare_worker
from engine.distributed import launch as launching
from engine.distributed.launch import launch
from engine.interrupts import LostProcess
from engine.stops import as_stop, exit_with
from runtime.command_line import argument_parser
from runtime.dist_env import DistEnv, find_dist_env, meeting_point, read_environment
from runtime.errors import ConfigError
from tests.helpers.toy_training import in_two_processes, processes

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
            "MASTER_PORT": "29500"}  # fmt: skip


def options(*arguments):
    return argument_parser().parse_args([*arguments])


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
        ([], {**TORCHRUN, "RANK": "first"}, "RANK=first .* whole numbers"),
        ([], {**TORCHRUN, "MASTER_PORT": "65536"}, "MASTER_PORT must be 1 to 65535"),
        ([], {**TORCHRUN, "RANK": "8"}, "ranks must be below"),
        ([], {**TORCHRUN, "WORLD_SIZE": "6"}, "same number of processes"),
        (["--num-gpus", "1"], TORCHRUN, "--num-gpus is 1, but torchrun's environment says 4: leave the option out"),
        (["--num-machines", "1"], TORCHRUN, "--num-machines is 1, but torchrun's environment says 2"),
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


def test_a_meeting_point_that_does_not_answer_is_one_line(capfd):
    with socket.create_server(("", 0)) as closed:
        port = closed.getsockname()[1]
    args = options("--num-machines", "2", "--machine-rank", "1", "--dist-url", f"tcp://127.0.0.1:{port}")
    with pytest.raises(SystemExit) as ended:
        launch(print, args, "cpu", (), timeout_s=1)
    message = capfd.readouterr().err
    assert ended.value.code == 2 and f"did not come together at 127.0.0.1:{port} in time" in message, message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("local_rank", "is_own", "spoken"), [("0", False, "a.py: why\n"), ("1", False, ""), ("1", True, "a.py: why\n")]
)
def test_of_processes_on_a_machine_the_first_says_why(local_rank, is_own, spoken, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(sys, "argv", ["here/a.py"])
    monkeypatch.setattr("engine.stops.PAUSE_S", 0)
    with pytest.raises(SystemExit, match="2"):
        exit_with("why", 2, is_own=is_own)
    assert capsys.readouterr().err == spoken


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
def test_only_errors_of_exchanges_are_lost_processes(error, is_lost):
    assert type(as_stop(error)) is (LostProcess if is_lost else type(None))


@pytest.fixture
def as_started_process(monkeypatch):
    """Let this process do what a started one does before it meets the others."""
    monkeypatch.setattr(launching, "end_with_parent", lambda: None)
    monkeypatch.setattr(launching, "_work", lambda *_: None)
    monkeypatch.setattr(os, "environ", {name: os.environ[name] for name in os.environ if name != "OMP_NUM_THREADS"})
    return lambda: launching._start_work(1, print, (), DistEnv(2, 4, 0, 2), "cpu", 1.0, ("localhost", "1"))


@pytest.mark.parametrize(("given", "num_threads"), [(None, 3), ("5", 1)])
def test_started_processes_share_the_cores_and_have_the_environment_of_torchrun(
    given, num_threads, as_started_process, monkeypatch
):
    """torch takes OMP_NUM_THREADS when it is loaded, and this process has one thread before."""
    monkeypatch.setattr(launching, "num_cores", lambda: 7)
    if given:
        os.environ["OMP_NUM_THREADS"] = given
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        as_started_process()
        assert torch.get_num_threads() == num_threads and read_environment(os.environ) == (3, 4, 1, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_ctrl_c_stays_ignored_if_a_background_job_ignores_it(before, as_started_process, monkeypatch):
    monkeypatch.setattr("data.loader.build.cv2.setNumThreads", lambda _: None)
    os.environ["OMP_NUM_THREADS"] = "1"
    for start in (as_started_process, lambda: prepare_worker(0, world_size=2)):
        signal.signal(signal.SIGINT, before)
        start()
        assert signal.getsignal(signal.SIGINT) is (signal.SIG_IGN if before is signal.SIG_IGN else signal.SIG_DFL)


def report_limits(folder):
    """Leave the time limits of the group of all processes and of the one that detectron2 sends objects by."""
    groups = torch.distributed.group.WORLD, comm._get_global_gloo_group()
    limits = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]
    (folder / f"{comm.get_rank()}").write_text(str(limits))


def test_one_time_limit_holds_for_tensors_and_for_objects(tmp_path):
    in_two_processes(report_limits, tmp_path, timeout_s=77)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"[77.0, 77.0]"}


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
