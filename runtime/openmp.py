"""Let OpenMP's threads sleep while they wait. Import this module before torch: it acts when it is imported.

By default a thread that has done its part spins until all others have done theirs. If another program runs on the
machine, the spinning thread takes the core from the thread that it waits for. Then a training step takes many times as
long (docs/machines.md). OpenMP reads its variables once, when torch, numba or scikit-learn load it. So every command
imports this module first. Processes that a command starts inherit the variable.
"""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"

OTHER_VARIABLES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of GNU's and Intel's OpenMP with the same purpose."""


def wait_policy() -> str:
    """Return the environment's settings about waiting, such as "OMP_WAIT_POLICY=PASSIVE", or ""."""
    given = (name for name in (WAIT_POLICY, *OTHER_VARIABLES) if name in os.environ)
    return " ".join(f"{name}={os.environ[name]}" for name in given)


if not wait_policy():
    os.environ[WAIT_POLICY] = "PASSIVE"
