"""A service with a tiny network on a free port of this machine, its clients, and images to send."""

import atexit
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from data.image_io.encoding import png_chunk
from inference.network import TorchNetwork
from inference.predictor import Predictor
from tests.helpers.networks import tiny_model
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import image_and_trimap
from tools.serving.app import make_app
from tools.serving.matting import Matter
from tools.serving.prediction_queue import PredictionQueue
from tools.serving.security.bodies import BodyLimits
from tools.serving.security.guard import Guard, Rules
from tools.serving.server import Server, listen
from tools.serving.service import Service

MAX_PIXELS, MAX_BYTES = 20_000, 300_000


def encoded(pixels: NDArray, suffix: str = ".png") -> bytes:
    """Encode RGB or grey."""
    return cv2.imencode(suffix, pixels[:, :, ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def decoded(content: bytes) -> NDArray:
    """Decode to grey, RGB or RGBA as stored."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]


class Pair(NamedTuple):
    """A photograph and its trimap, as arrays; `files` are what a client sends."""

    image: NDArray[np.uint8]
    trimap: NDArray[np.uint8]

    @property
    def files(self) -> dict[str, bytes]:
        return {"image": encoded(self.image), "trimap": encoded(self.trimap)}


def pair(height: int = 40, width: int = 56, seed: int = 0) -> Pair:
    return Pair(*image_and_trimap(height, width, seed))


class Running(NamedTuple):
    """A service that runs in a thread of the tests."""

    url: str
    port: int
    client: httpx.Client
    predictor: Predictor
    queue: PredictionQueue
    server: Server
    folder: Path
    """Temporary files of the process."""

    def matte(self, files: dict[str, bytes], **data: Any) -> httpx.Response:
        return self.client.post("/api/matte", files=files, data=data)

    def send_raw(self, content: bytes, timeout_s: float = 10) -> bytes:
        """Send bytes that no client library would send, and receive until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as connection:
            connection.sendall(content)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
                if b"\r\n\r\n" in b"".join(parts) and b"connection: close" not in b"".join(parts).lower():
                    break
            return b"".join(parts)


@contextmanager
def running(
    folder: Path,
    rules: Rules | None = None,
    max_pixels: int = MAX_PIXELS,
    max_waiting: int = 4,
    predict: Callable[[NDArray, NDArray], NDArray] | None = None,
    grace_s: float = 5,
    mount: Callable[[FastAPI, Service], FastAPI] = lambda app, service: app,
) -> Iterator[Running]:
    """Start a service with uvicorn on a free port.

    Args:
        folder: for temporary files.
        rules: of the guard; without them it lets local clients ask.
        max_pixels: of an image.
        max_waiting: jobs in the queue.
        predict: instead of the tiny network.
        grace_s: see `Server`.
        mount: adds the page.
    """
    predictor = Predictor(TorchNetwork(tiny_model().train()))
    rules = rules or Rules(body=BodyLimits(MAX_BYTES))
    queue = PredictionQueue(max_waiting)
    service = Service(Matter(predict or predictor.alpha, max_pixels), queue, "tiny", "cpu", rules.body)
    server = Server(Guard(mount(make_app(service), service), rules), queue, grace_s)
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    with mock.patch("tempfile.tempdir", str(folder)):
        thread.start()
        wait_until(lambda: server.started)
        try:
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                yield Running(url, port, client, predictor, queue, server, folder)
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for a condition, or fail."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.01)


class Gate:
    """A prediction that waits until the test opens it."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.num_begun = 0

    def __call__(self, image: NDArray, trimap: NDArray) -> NDArray:
        self.num_begun += 1
        assert self.is_open.wait(30)
        return trimap


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A small PNG that states many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"x\x9c") + png_chunk(b"IEND", b"")


def with_profile(pixels: NDArray[np.uint8], profile: bytes) -> bytes:
    """Encode RGB as PNG with an ICC profile."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG", icc_profile=profile)
    return content.getvalue()


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command with temporary files below a folder: its process and its address."""
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, REPOSITORY / "tools" / "serve.py", "--port", "0", *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            yield process, address
        finally:
            process.kill()


@functools.cache
def page_folder() -> Path:
    """Make the folder for the page's files: Gradio reads its name when it is imported, so there is one in a process."""
    from tools.serve import TELEMETRY

    private = Path(tempfile.mkdtemp(prefix="page_of_the_tests_"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    folder = private / "page"  # beside it lies nothing of other programs
    folder.mkdir()
    os.environ.update(TELEMETRY, GRADIO_TEMP_DIR=str(folder))
    assert "gradio" not in sys.modules
    return folder


def with_page(app: FastAPI, service: Service) -> FastAPI:
    """Mount the page, for `running`."""
    folder = page_folder()
    from tools.serving.page.mount import mount_page

    return mount_page(app, service, folder)
