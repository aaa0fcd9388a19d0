"""Command lines; `python tools/x.py` and `python -m tools.x` both work, by way of `_root`."""

import sys
from pathlib import Path

# `python -m tools.x` finds `_root` here. At the end of the path no tool hides another module.
sys.path.append(str(Path(__file__).resolve().parent))
