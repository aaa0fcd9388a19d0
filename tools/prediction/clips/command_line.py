"""The options of tools/predict.py that are for clips."""

import argparse
import math
from pathlib import Path

from data.image_io.formats import VIDEO_SUFFIXES
from runtime.command_line import integer_from


def is_clip(name: str) -> bool:
    """Tell whether a name on the command line is a clip."""
    path = Path(name)
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add which frames are matted, and how much alpha follows the frames before."""
    group = parser.add_argument_group("clips")
    group.add_argument("--start", type=seconds, metavar="TIME", help="first frame, in seconds or H:M:S")
    group.add_argument("--end", type=seconds, metavar="TIME", help="end, before which the last frame begins")
    group.add_argument("--every", type=integer_from(1), default=1, metavar="N", help="matte every N-th frame")
    group.add_argument(
        "--stability",
        type=share,
        metavar="S",
        help="how much alpha follows the frames before, 0 (each frame alone) to 1 (default: a tuned one)",
    )


def check_clip_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with status 2 if options of clips are given without a clip."""
    given = (options.start, options.end, options.every > 1, options.keyframes, options.stability is not None)
    if any(given) and not any(map(is_clip, options.images)):
        parser.error("--start, --end, --every, --keyframes and --stability are for a clip")


def seconds(text: str) -> float:
    """Read seconds, M:S or H:M:S."""
    parts = [float(part) for part in text.split(":")]
    if not (len(parts) <= 3 and all(0 <= part < math.inf for part in parts)):
        raise argparse.ArgumentTypeError(f"must be seconds, M:S or H:M:S, got {text}")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value
