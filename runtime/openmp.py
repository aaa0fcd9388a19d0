"""Let OpenMP's threads sleep while they wait. Import this module before torch: it acts when it is imported.

By default a thread that has done its part spins until the others have done theirs. On a machine where another program
runs, it takes the core from the very thread that it waits for: a training step takes many times as long
(docs/machines.md). OpenMP reads its variables once, when it is loaded, and torch, numba and scikit-learn load it. So
every command imports this module first. Processes that a command starts inherit the variable.
"""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"

OTHER_VARIABLES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What GNU's and Intel's OpenMP are told the same by."""


def wait_policy() -> str:
    """Name what the environment says about waiting, such as "OMP_WAIT_POLICY=PASSIVE"; "" where it says nothing."""
    given = (name for name in (WAIT_POLICY, *OTHER_VARIABLES) if name in os.environ)
    return " ".join(f"{name}={os.environ[name]}" for name in given)


if not wait_policy():
    os.environ[WAIT_POLICY] = "PASSIVE"
