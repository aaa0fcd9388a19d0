"""Find `tools/_root.py` for the scripts of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tools._root  # noqa: F401
