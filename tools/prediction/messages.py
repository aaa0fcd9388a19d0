"""What the commands over many images print: what was written, what failed and why."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path


def say(line: str, tool: str = "predict.py") -> None:
    """Print a line about the run to the person who called the tool, on stderr."""
    print(f"{tool}: {line}", file=sys.stderr)


def list_failures(failures: Mapping[Path, str], num_images: int, tool: str = "predict.py") -> None:
    """Print of which images there is nothing, and why; one line where a single image was asked for."""
    reasons = {path: reason.removeprefix(f"cannot read {path}: ") for path, reason in failures.items()}
    lines = [
        reason if reason.startswith((f"{path}: ", f"{path} ")) else f"{path}: {reason}"
        for path, reason in reasons.items()
    ]
    if lines and num_images == 1:
        say(lines[0], tool)
    elif lines:
        say("\n  ".join([f"{len(lines)} of {num_images} images failed:", *lines]), tool)


def list_written(outputs: Sequence[Path]) -> None:
    """Print which file was written, or how many in which folder."""
    if len(outputs) == 1:
        print(f"wrote {outputs[0]}")
        return
    for folder, count in Counter(path.parent for path in outputs).items():
        print(f"wrote {count} file{'s' * (count > 1)} to {folder}")
