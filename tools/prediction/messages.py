"""Print which files a command wrote, and which images failed and why."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path


def say(line: str, tool: str = "predict.py") -> None:
    """Print a line to stderr, with the tool's name."""
    print(f"{tool}: {line}", file=sys.stderr)


def list_failures(
    failures: Mapping[Path, str], num_images: int, tool: str = "predict.py", advice: Mapping[str, str] | None = None
) -> None:
    """Print which images failed, and why; a single line if one image was asked for.

    Args:
        failures: image -> reason.
        num_images: how many were asked for.
        tool: that prints.
        advice: words of a reason -> a line to print if any reason has them.
    """
    reasons = {path: reason.removeprefix(f"cannot read {path}: ") for path, reason in failures.items()}
    lines = [
        reason if reason.startswith((f"{path}: ", f"{path} ")) else f"{path}: {reason}"
        for path, reason in reasons.items()
    ]
    if lines and num_images == 1:
        say(lines[0], tool)
    elif lines:
        say("\n  ".join([f"{len(lines)} of {num_images} images failed:", *lines]), tool)
    for words, line in (advice or {}).items():
        if any(words in reason for reason in reasons.values()):
            say(line, tool)


def list_written(outputs: Sequence[Path]) -> None:
    """Print which file was written, or how many in which folder."""
    if len(outputs) == 1:
        print(f"wrote {outputs[0]}")
        return
    for folder, count in Counter(path.parent for path in outputs).items():
        print(f"wrote {count} file{'s' * (count > 1)} to {folder}")
