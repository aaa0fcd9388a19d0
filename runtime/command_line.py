"""Options that several commands share."""

import argparse


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    """Add --trust-module to the options of a command that reads a config.yaml."""
    parser.add_argument(
        "--trust-module",
        action="append",
        default=[],
        metavar="MODULE",
        help="exact module whose classes a config.yaml may name, as mypkg.nets; its code is run; may be repeated",
    )
