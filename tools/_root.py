"""Put the repository root first on the import path and `tools/` last, and set how OpenMP's threads wait.

Every tool imports this module first. The scripts of a subfolder find it by a small `_root.py` of their own.
"""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent

# Python puts a script's folder first. There a tool would hide a library of the same name; last, `tools/` hides nothing.
# It must stay on the path: a spawned worker gets a copy of this path, runs the script again and imports `_root`.
folders = {entry: Path(entry or ".").resolve() for entry in sys.path}
others = [entry for entry, folder in folders.items() if folder != ROOT and TOOLS not in (folder, folder.parent)]
sys.path[:] = [str(ROOT), *others, str(TOOLS)]

import runtime.openmp  # noqa: E402, F401  # found by the path above; sets what torch reads when it is loaded
