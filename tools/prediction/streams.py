"""An image from standard input, and its result to standard output."""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory

from runtime.errors import UserError

STREAM = "-"
"""Name of standard input on the command line."""

NAME = "standard input"
"""Name of standard input in messages, and of the temporary file with its content."""


def matte_stream(options: argparse.Namespace, matte: Callable[[argparse.Namespace], int]) -> int:
    """Matte the image of standard input. Its result goes to standard output, and nothing else does.

    Args:
        options: of the command line. With `output` the result is written there instead.
        matte: takes options that name files, and returns the exit status.

    Returns: the exit status.

    Raises:
        OSError: standard output is closed, or a full disk.
        UserError: standard input or output is a terminal.
    """
    if sys.stdin.isatty():
        raise UserError(f"{STREAM} reads an image from {NAME}: pipe one in, or name a file")
    if options.output is None and sys.stdout.isatty():
        raise UserError(f"{STREAM} writes an image to standard output: redirect it to a file, or give --output")
    with TemporaryDirectory() as folder:
        image, result = Path(folder, NAME), Path(folder, f"result.{options.format}")
        with image.open("wb") as file:
            copyfileobj(sys.stdin.buffer, file)
        with redirect_stdout(sys.stderr):
            named = {**vars(options), "images": [str(image)], "output": options.output or result}
            status = matte(argparse.Namespace(**named))
        if status == 0 and options.output is None:
            sys.stdout.buffer.write(result.read_bytes())
            sys.stdout.buffer.flush()
    return status


def with_stream_named(failures: Mapping[Path, str]) -> dict[Path, str]:
    """Replace the temporary file of standard input by `NAME`, as an image and in its reason."""
    paths = {path: Path(NAME) if path.name == NAME else path for path in failures}
    return {paths[path]: reason.replace(str(path), str(paths[path])) for path, reason in failures.items()}
