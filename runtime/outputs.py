"""Which files a command may write: those that are there already stay, unless the user says otherwise."""

from collections.abc import Iterable
from pathlib import Path

from runtime.errors import UserError

NUM_LISTED = 3


class OutputExistsError(UserError):
    """A file that a command would write is there already."""


def refuse_existing(outputs: Iterable[Path], can_resume: bool = False) -> None:
    """Raise an `OutputExistsError` that names the outputs that are there already.

    Args:
        outputs: files to be written.
        can_resume: whether the command has `--resume` beside `--overwrite`.
    """
    there = [str(path) for path in outputs if path.is_file()]
    if there:
        listed = ", ".join(there[:NUM_LISTED]) + (f" and {len(there) - NUM_LISTED} more" * (len(there) > NUM_LISTED))
        verb, them = ("is", "it") if len(there) == 1 else ("are", "them")
        resume = ", --resume makes only what is missing" if can_resume else ""
        raise OutputExistsError(f"{listed} {verb} there already: --overwrite replaces {them}{resume}")
