"""Serve matting to people by a page, and to programs by HTTP, also as rembg's server does.

    python tools/serve.py
    python tools/serve.py --model models/vitmatte_s --port 7000
    python tools/serve.py --host 0.0.0.0 --token

The page is at http://127.0.0.1:7860. The API is documented at http://127.0.0.1:7860/docs. Images are matted one at a
time; others wait in a bounded queue. Uploads are temporary: nothing stays on the disk.

By default only programs and browsers of this machine can ask. Another --host needs --token or --public.

Exit status: 0 ended by a signal, 1 it cannot start, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from runtime.errors import UserError
from runtime.optional_packages import import_extra
from tools.serving.command_line import parse
from tools.serving.work_folder import hold_work_folder

REQUIREMENTS = "requirements-serve.txt"
TELEMETRY = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""Variables that libraries read when they are imported."""

ONEDNN_CACHE = "64"
"""Kernels that oneDNN keeps. Its default is 1024, and each new size of an image adds some: 80 MB after 300 sizes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and serve until a signal ends it.

    Returns: the exit status.
    """
    options = parse(arguments, str(__doc__))
    os.environ.update(TELEMETRY)
    signal.signal(signal.SIGTERM, _end)
    try:
        for name in ("fastapi", "fastapi_offline", "uvicorn"):
            import_extra(name, "the service", REQUIREMENTS)
        with hold_work_folder() as folder:
            return serve(options, folder)
    except (OSError, UserError) as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _end(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does. uvicorn raises the signal again after it has ended, and before it has begun this is all."""
    raise KeyboardInterrupt


def serve(options: argparse.Namespace, folder: Path) -> int:
    """Load the network and serve.

    Args:
        options: of the command line.
        folder: for temporary files.

    Returns: the exit status.

    Raises:
        OSError, UserError: it cannot start.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")  # read when Gradio is imported
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)  # read when torch first computes
    (folder / "page").mkdir()
    from tools.serving.app import make_app
    from tools.serving.loading import load_matter
    from tools.serving.page.mount import mount_page
    from tools.serving.prediction_queue import PredictionQueue
    from tools.serving.security.bodies import BodyLimits
    from tools.serving.security.guard import Guard, Rules
    from tools.serving.server import Server, listen
    from tools.serving.service import Service

    with listen(options.host, options.port) as listening:
        matter, device = load_matter(options)
        queue = PredictionQueue(options.max_waiting)
        body = BodyLimits(options.max_bytes)
        model = options.model or Path("closed-form matting")
        name = model.name if model.is_absolute() else str(model)  # clients need not know where it lies
        service = Service(matter, queue, name, device, body)
        hosts = {options.host.lower(), *map(str.lower, options.allow_host)}
        rules = Rules(hosts, options.allow_origin, options.token, body)
        app = mount_page(make_app(service), service, folder / "page")
        server = Server(Guard(app, rules), queue, options.grace)
        queue.submit(matter.warm_up)
        host, port = listening.getsockname()[:2]
        print(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        if options.token:
            print(f"token: {options.token}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="serve.py: %(message)s")
    for name in ("inference", "runtime", "tools"):
        logging.getLogger(name).setLevel(logging.INFO)
    status = main()
    # A prediction that was not waited for still runs in a thread, whose libraries would crash in a common exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
