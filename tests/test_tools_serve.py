"""tools/serve.py as a process: its command line, its end by signals, and what a killed one leaves."""

import signal
import socket
import stat
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest

from data.image_io.images import to_uint8
from inference.memory import GB
from inference.predictor import Predictor
from runtime.errors import ConfigError
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import decoded, pair, started
from tools import serve
from tools.serving import loading
from tools.serving.command_line import parse
from tools.serving.work_folder import PREFIX, hold_work_folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--host 0.0.0.0", "add --token, or say --public"),
        ("--host 192.168.0.1", "add --token, or say --public"),
        ("--token short", "at least 16"),
        ("--device cpu", "need a network"),
        ("--max-pixels 999999999", "pixels are ever decoded"),
        ("--port 70000", "0 to 65535"),
        ("--max-waiting 0", "at least 1"),
    ],
)
def test_wrong_usage(options, words, capsys, monkeypatch):
    monkeypatch.setattr("tools.serving.command_line.default_network", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        parse(options.split(), "")
    assert words in capsys.readouterr().err


def test_a_network_runs_as_the_options_say(tmp_path):
    options = parse(["--model", str(tmp_path), "--backbone-px", "512", "--tile-px", "128"], "")
    assert options.settings == {"tile_px": 128, "backbone_px": 512}


def test_tokens_are_made_and_loopback_needs_none():
    assert parse([], "").token is None and parse(["--host", "::1"], "").token is None
    made = [parse(["--host", "0.0.0.0", "--token"], "").token for _ in range(2)]
    assert len({*made}) == 2 and min(map(len, made)) >= 32


def test_a_port_in_use_ends_with_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main(["--port", str(taken.getsockname()[1])]) == 1
    assert capsys.readouterr().err.startswith("serve.py: cannot listen at 127.0.0.1, port ")


def test_a_limit_of_memory_lowers_that_of_pixels(monkeypatch):
    monkeypatch.setattr(loading, "used_bytes", lambda device: 2 * GB)
    assert loading.largest_image(1000, None) == 1000
    assert loading.largest_image(10**9, 4) == int(GB / loading.BYTES_PER_PIXEL)
    with pytest.raises(ConfigError, match="--max-memory 3"):
        loading.largest_image(1000, 3)


def test_a_work_folder_is_private_and_only_dead_ones_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, elsewhere = tmp_path / f"{PREFIX}dead", tmp_path / "elsewhere"
    for folder in (dead, elsewhere):
        folder.mkdir()
        (folder / "image").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    with hold_work_folder() as first:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with hold_work_folder() as second:
            assert first.exists() and not dead.exists() and (elsewhere / "image").exists()
            assert [stat.S_IMODE(folder.stat().st_mode) for folder in (first, second)] == [0o700] * 2
            (second / "left").touch()
    assert not first.exists() and not second.exists()


@pytest.mark.slow
def test_a_process_serves_ends_by_a_signal_and_leaves_nothing(model_folder, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    given = pair()
    expected = to_uint8(Predictor.load(model_folder, device="cpu").predict(*given))
    with started(temporary, "--model", str(model_folder), "--device", "cpu") as (process, address):
        answer = httpx.post(f"{address}/api/matte", files=given.files, timeout=120)
        assert np.abs(decoded(answer.content).astype(int) - expected).max() <= 1
        assert len([*temporary.glob(f"{PREFIX}*")]) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [*temporary.glob(f"{PREFIX}*")] == []


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_after_the_next_start(model_folder, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    options = ["--model", str(model_folder), "--device", "cpu"]
    large = pair(1500, 1500).files
    with started(temporary, *options) as (process, address):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            body = httpx.Request("POST", f"{address}/api/matte", files=large)
            head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
            connection.sendall(f"POST /api/matte HTTP/1.1\r\n{head}\r\n".encode() + body.read())
            end_s = time.monotonic() + 60
            while not [*temporary.glob(f"{PREFIX}*/*/image")]:
                assert time.monotonic() < end_s
        process.kill()
        process.wait()
    assert [*temporary.glob(f"{PREFIX}*/*/image")]
    port = address.rpartition(":")[2]
    with started(temporary, *options, "--port", port) as (process, address):
        assert address.endswith(port) and len([*temporary.glob(f"{PREFIX}*")]) == 1
        assert [*temporary.glob(f"{PREFIX}*/*/image")] == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_nothing_else_needs_the_packages_of_the_service():
    code = (
        "import sys; names = ('fastapi', 'starlette', 'uvicorn', 'gradio', 'fastapi_offline')\n"
        "sys.modules.update(dict.fromkeys(names))\n"
        "import tools.serve, tools.predict; raise SystemExit(tools.serve.main([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install -r requirements-serve.txt" in done.stderr
