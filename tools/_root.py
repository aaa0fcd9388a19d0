"""Puts the repository root first on the import path and `tools/` last, and sets how OpenMP's threads wait.

Every tool imports this module first.
"""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent

# `python tools/x.py` puts tools/ first, where a tool would hide a library of the same name. Last it hides nothing, and
# a spawned worker, which runs the tool's file again on a copy of this path, still finds `_root`.
others = [entry for entry in sys.path if Path(entry or ".").resolve() not in (TOOLS, TOOLS.parent)]
sys.path[:] = [str(TOOLS.parent), *others, str(TOOLS)]

import runtime.openmp  # noqa: E402, F401  # found by the path above; sets what torch reads when it is loaded
