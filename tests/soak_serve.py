"""Load for tools/serve.py: 8 clients, 400 requests of mixed sizes and ways, one in twenty broken.

    python -m tests.soak_serve [NUM_REQUESTS]

Every valid request must get what `Predictor` gives, every broken one its status. Memory must stay flat after a warm-up,
and nothing may stay in the temporary folder. Prints the latencies; the exit status is 1 if anything is wrong.
"""

import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from data.image_io.images import to_uint8, to_uint16
from data.trimap import band_width_px, trimap_from_mask
from inference.foreground import cut_out, estimate_foreground
from inference.formats.model_folder import build, write_model_folder
from inference.predictor import Predictor
from tests.helpers.networks import network_description
from tests.helpers.serving import bomb, decoded, encoded, pair, started
from tools.serving.work_folder import PREFIX

NUM_CLIENTS, WARM_UP = 8, 60
LARGEST_GROWTH = 60e6
MAX_PIXELS = 700 * 700
LEVELS = 1.001  # of 255: two ways of threading may round differently
BAD = {
    "cut off": (422, lambda files: files | {"image": files["image"][:-40]}),
    "no image": (422, lambda files: files | {"image": b"words"}),
    "bomb": (413, lambda files: files | {"image": bomb()}),
    "too large": (413, lambda files: files | {"image": bomb(701, 700)}),
    "other size": (422, lambda files: files | {"trimap": encoded(pair(9, 9).trimap)}),
}


def resident_bytes(pid: int) -> int:
    """Read how much memory a process has (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Load:
    """The requests of one run, and what was wrong with their answers."""

    def __init__(self, address: str, predictor: Predictor) -> None:
        self.address = address
        self.predictor = predictor
        self.faults: list[str] = []
        self.latencies: list[float] = []
        self.kinds: Counter[str] = Counter()

    def request(self, number: int) -> None:
        """Send one request, and compare its answer."""
        rng = random.Random(number)
        given = pair(rng.randrange(32, 400), rng.randrange(32, 400), number)
        if number % 20 == 7:
            return self.break_off(given.files) if rng.random() < 0.3 else self.send_broken(rng, given.files)
        kind = rng.choice(["alpha", "alpha 16", "rgba", "mask"])
        self.kinds[kind] += 1
        files, data, expected = self.expect(kind, given)
        started_s = time.monotonic()
        while (
            answer := httpx.post(f"{self.address}/api/matte", files=files, data=data, timeout=300)
        ).status_code == 503:
            time.sleep(0.2)  # the queue is shorter than the number of clients
        self.latencies.append(time.monotonic() - started_s)
        if answer.status_code != 200:
            return self.faults.append(f"{number} {kind}: {answer.status_code} {answer.text[:200]}")
        found = decoded(answer.content)
        levels = np.abs(found.astype(float) - expected).max() * 255 / np.iinfo(found.dtype).max
        if found.shape != expected.shape or levels > LEVELS:
            self.faults.append(f"{number} {kind}: differs by {levels} of 255")

    def post(self, files: dict[str, bytes], data: dict[str, str]) -> httpx.Response:
        """Send a request until it finds a place in the queue, which is shorter than the number of clients."""
        while True:
            answer = httpx.post(f"{self.address}/api/matte", files=files, data=data, timeout=300)
            if answer.status_code != 503:
                return answer
            time.sleep(0.1)

    def expect(self, kind: str, given):
        """Make a request, and what its answer must be."""
        if kind == "mask":
            mask = np.zeros(given.trimap.shape, np.uint8)
            mask[len(mask) // 2 :] = 255
            trimap = trimap_from_mask(mask, band_width_px(4, max(mask.shape)))
            files, data = {"image": given.files["image"], "mask": encoded(mask)}, {"width_percent": "4", "as": "alpha"}
            return files, data, to_uint8(self.predictor.predict(given.image, trimap))
        alpha = self.predictor.predict(*given)
        if kind == "rgba":
            foreground = estimate_foreground(given.image, alpha)
            return given.files, {"as": "rgba"}, to_uint8(cut_out(foreground, alpha))
        is_16_bit = kind.endswith("16")
        return given.files, {"bits": "16" if is_16_bit else "8"}, (to_uint16 if is_16_bit else to_uint8)(alpha)

    def send_broken(self, rng: random.Random, files: dict[str, bytes]) -> None:
        """Send a bad request and compare its status."""
        name = rng.choice([*BAD])
        self.kinds[name] += 1
        status, spoil = BAD[name]
        answer = self.post(spoil(files), {})
        if answer.status_code != status or [*answer.json()] != ["error"]:
            self.faults.append(f"{name}: {answer.status_code} {answer.text[:200]}")

    def break_off(self, files: dict[str, bytes]) -> None:
        """Leave in the middle of an upload."""
        self.kinds["left"] += 1
        request = httpx.Request("POST", f"{self.address}/api/matte", files=files)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        body = request.read()
        with socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2]))) as connection:
            connection.sendall(f"POST /api/matte HTTP/1.1\r\n{head}\r\n".encode() + body[: len(body) // 2])


def main(num_requests: int) -> int:
    """Run the load. Returns: the exit status."""
    with tempfile.TemporaryDirectory() as name:
        temporary, model = Path(name, "temporary"), Path(name, "model")
        temporary.mkdir()
        description = network_description()
        write_model_folder(model, description, build("model", description).state_dict(), "a soak", "")
        options = ["--model", str(model), "--device", "cpu", "--max-pixels", str(MAX_PIXELS), "--max-waiting", "4"]
        with started(temporary, *options) as (process, address):
            load = Load(address, Predictor.load(model, device="cpu"))
            with ThreadPoolExecutor(NUM_CLIENTS) as pool:
                [*pool.map(load.request, range(WARM_UP))]
                before = resident_bytes(process.pid)
                started_s = time.monotonic()
                [*pool.map(load.request, range(WARM_UP, WARM_UP + num_requests))]
                seconds = time.monotonic() - started_s
            growth = resident_bytes(process.pid) - before
            left = [*temporary.glob(f"{PREFIX}*/*/image")]  # libraries have folders of their own there
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            remaining = [*temporary.iterdir()]
    p50, p95 = np.quantile(load.latencies[WARM_UP:], [0.5, 0.95])
    print(f"{num_requests} requests in {seconds:.0f} s, {dict(load.kinds)}")
    print(f"latency: 50th percentile {p50:.2f} s, 95th {p95:.2f} s; memory grew by {growth / 1e6:.1f} MB")
    faults = load.faults + [f"left: {path}" for path in [*left, *remaining]]
    faults += [f"memory grew by {growth / 1e6:.0f} MB"] * (growth > LARGEST_GROWTH) + ["no clean end"] * (status != 0)
    print("\n".join(faults) or "nothing is wrong")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 400))
