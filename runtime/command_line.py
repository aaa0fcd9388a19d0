"""Options of several commands, and a check that no output is overwritten without --overwrite."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from runtime.errors import UserError, few

NUM_LISTED = 3
"""Number of existing outputs that a message names."""


def integer_from(least: int) -> Callable[[str], int]:
    """Make an argument type of whole numbers that are at least `least`."""

    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return integer


def number_up_to(most: float) -> Callable[[str], float]:
    """Make an argument type of numbers above 0 that are at most `most`."""

    def number(text: str) -> float:
        if not 0 < (value := float(text)) <= most:
            raise argparse.ArgumentTypeError(f"must be above 0 and at most {most:g}, got {text}")
        return value

    return number


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    """Add --trust-module to the options of a command that reads a config.yaml."""
    parser.add_argument(
        "--trust-module",
        action="append",
        default=[],
        metavar="MODULE",
        help="module, such as mypkg.nets, whose classes a config.yaml may name; its code runs; may be repeated",
    )


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Make a parser of detectron2's options; options about processes are None if they are not given."""
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help=".py config, or config.yaml of a run")
    add_trust_option(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in train.output_dir, if there is one"
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="only evaluate train.init_checkpoint, or with --resume the last checkpoint",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        metavar="N",
        help="processes on this machine: one per GPU or, with train.device=cpu, on the CPU (default: 1)",
    )
    parser.add_argument("--num-machines", type=int, metavar="N", help="machines of the run (default: 1)")
    parser.add_argument(
        "--machine-rank", type=int, metavar="I", help="number of this machine, the first being 0 (default: 0)"
    )
    parser.add_argument(
        "--dist-url",
        metavar="URL",
        help="where processes meet: auto (default, one machine) or tcp://HOST:PORT of the first machine",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY=VALUE",
        help="overrides of the config, after all options: train.seed=1 train.ema_decay=null 'train.output_dir=my runs'",
    )
    return parser


class OutputExistsError(UserError):
    """A file that a command would write exists already."""


def refuse_existing(outputs: Iterable[Path], can_resume: bool = False) -> None:
    """Raise an `OutputExistsError` that names the outputs that exist already.

    Args:
        outputs: files to be written.
        can_resume: whether the command has `--resume` as well as `--overwrite`.
    """
    there = [str(path) for path in outputs if path.is_file()]
    if there:
        verb, them = ("is", "it") if len(there) == 1 else ("are", "them")
        resume = ", --resume makes only what is missing" if can_resume else ""
        raise OutputExistsError(f"{few(there, NUM_LISTED)} {verb} there already: --overwrite replaces {them}{resume}")
