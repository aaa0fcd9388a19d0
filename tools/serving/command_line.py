"""The command line of tools/serve.py."""

import argparse
import ipaddress
import math
import secrets
from collections.abc import Sequence
from pathlib import Path

from data.image_io.formats import MAX_PIXELS
from inference.default_network import default_network
from runtime.command_line import integer_from, number_up_to
from tools.prediction.command_line import add_network_options, network_settings

LEAST_TOKEN = 16
"""Characters of a token that is not soon guessed."""


def parse(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Read the command line; options that contradict each other end the process with status 2.

    Returns: the options; `model` is None for closed-form matting, `settings` has the arguments of `Predictor.load` that
        were given, and `token` is None or has at least `LEAST_TOKEN` characters.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("alpha")
    group.add_argument("--model", type=Path, help="model folder or .onnx file (default: as of predict.py)")
    add_network_options(group)
    group = parser.add_argument_group("where it listens, and who may ask")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    group.add_argument("--port", type=integer_from(0), default=7860, help="default: 7860; 0 takes a free one")
    group.add_argument(
        "--token", nargs="?", const="", help="what clients must know; without a value, one is made and printed"
    )
    group.add_argument("--public", action="store_true", help="let everyone ask who reaches another --host")
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="host name of this server; may be repeated"
    )
    group.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="other site that may ask; may be repeated"
    )
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-pixels", type=integer_from(1), default=64_000_000, help="of an image (default: 64 million)"
    )
    group.add_argument("--max-bytes", type=integer_from(1), default=200_000_000, help="of a request (default: 200 MB)")
    group.add_argument("--max-waiting", type=integer_from(1), default=16, help="images that may wait (default: 16)")
    group.add_argument(
        "--grace", type=number_up_to(math.inf), default=30.0, metavar="SECONDS", help="for the running image at the end"
    )
    options = parser.parse_args(arguments)
    options.model = options.model or default_network()
    options.settings = network_settings(options)
    if not options.model and {*options.settings} - {"max_memory_gb"}:
        parser.error("--device, --precision, --tile-px and --backbone-px need a network: give --model")
    if options.max_pixels > MAX_PIXELS:
        parser.error(f"--max-pixels: at most {MAX_PIXELS} pixels are ever decoded")
    if options.port > 65535:
        parser.error("--port: expected 0 to 65535")
    if options.token == "":
        options.token = secrets.token_urlsafe(24)
    if options.token is not None and (len(options.token) < LEAST_TOKEN or not options.token.isascii()):
        parser.error(f"--token: expected at least {LEAST_TOKEN} ASCII characters; without a value, one is made")
    if not is_loopback(options.host) and options.token is None and not options.public:
        parser.error(f"--host {options.host} can be reached from other machines: add --token, or say --public")
    return options


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
