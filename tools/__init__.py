"""Command lines over the packages; `python tools/x.py` and `python -m tools.x` both work, by way of `_root`."""

import sys
from pathlib import Path

# So that a tool run as `python -m tools.x` finds `_root`; at the end, where no tool's name hides another module.
sys.path.append(str(Path(__file__).resolve().parent))
