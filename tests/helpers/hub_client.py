"""Load networks and run commands in a process of its own: huggingface_hub reads its settings when it is imported.

`python -m tests.helpers.hub_client` reads cases from standard input as JSON, and prints their outcomes as JSON.
"""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.paths import REPOSITORY

CASES = list[dict[str, Any]]


def run_cases(cases: CASES, folder: Path, endpoint: str, **environment: str) -> CASES:
    """Run cases in a new process.

    Args:
        cases: {"load": source} loads a network and mattes a fixed pair; {"run": tool, "with": arguments} runs a
            command, logged in by "token".
        folder: the current one; `home` in it is for huggingface_hub's cache.
        endpoint: address of the hub.
        environment: other variables.

    Returns: for each case the digest of its "alpha", or the "error"; or "status", "out" and "err". "connections" tells
        whether it opened any.
    """
    hub = dict(HF_ENDPOINT=endpoint, HF_HOME=str(folder / "home"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    hub |= dict(
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(REPOSITORY),
        NO_PROXY="127.0.0.1,localhost",
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.hub_client"],
        cwd=folder,
        env=inherited | hub | environment,
        input=json.dumps(cases, default=str),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    connections = []
    sys.addaudithook(lambda event, _: connections.append(event) if event == "socket.connect" else None)
    sys.path.insert(0, str(REPOSITORY / "tools"))
    outcomes = []
    for case in json.load(sys.stdin):
        connections.clear()
        os.environ["HF_TOKEN"] = case.get("token", "")
        outcome = load(case["load"]) if "load" in case else run(case["run"], *map(str, case["with"]))
        outcomes.append(outcome | {"connections": bool(connections)})
    print(json.dumps(outcomes))


def load(source: str) -> dict[str, Any]:
    """Load a network, and matte a random image and trimap."""
    import numpy as np

    from inference.predictor import Predictor
    from runtime.errors import UserError

    rng = np.random.default_rng(0)
    trimap = rng.choice(np.array([0, 128, 255], np.uint8), (45, 70))
    try:
        alpha = Predictor.load(source, device="cpu").predict(rng.integers(0, 256, (45, 70, 3), np.uint8), trimap)
    except (UserError, OSError) as error:
        return {"error": str(error), "kind": type(error).__name__}
    return {"alpha": hashlib.sha256(alpha.tobytes()).hexdigest(), "std": float(alpha[trimap == 128].std())}


def run(tool: str, *arguments: str) -> dict[str, Any]:
    """Run a command of tools/."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = __import__(tool).main(list(arguments))
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    main()
