"""Install detectron2's Python code into the environment of this script, unless it can be imported already.

    python tools/runs/install_detectron2.py

detectron2 is not on the Python package index under its own name. The wheel below has upstream's Python code of commit
a59f0563 (2024-04-17). Its compiled part is for Python 3.10 only, and nothing here needs it. It is tagged for Python
3.10. So pip installs it elsewhere only as a file for another platform, into a target folder. pip leaves out its
declared needs (numpy below 2 and black, which it does not use). The real needs are in requirements.txt.

Only the standard library is used, because nothing else may be installed yet.
"""

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

REQUIREMENT = "sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561\n"
FOREIGN_CP310 = ("--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any")


def is_importable() -> bool:
    """Tell whether detectron2 is installed here. It is not imported, because its own needs may be missing."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


def install(site_packages: Path) -> None:
    """Unpack the pinned wheel beside `site_packages`, and then move in only detectron2.

    The wheel also has a top-level package `tools`, which could hide ours.

    Args:
        site_packages: existing folder on the import path of this Python.

    Raises:
        subprocess.CalledProcessError: pip failed; its message is on stderr.
    """
    with tempfile.TemporaryDirectory(dir=site_packages.parent) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(REQUIREMENT)
        target = Path(scratch, "target")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", *FOREIGN_CP310]
        command += ["--only-binary=:all:", "--require-hashes", "--target", str(target), "-r", str(requirements)]
        subprocess.run(command, check=True)
        for path in sorted(target.iterdir()):
            if path.name == "detectron2" or path.name.endswith(".dist-info"):
                path.rename(site_packages / path.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default), install detectron2 if needed and print what was done.

    Returns: 0 if detectron2 is installed at the end, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    if is_importable():
        print("detectron2 is already installed")
        return 0
    site_packages = Path(sysconfig.get_paths()["purelib"])
    if not os.access(site_packages, os.W_OK):
        print(f"cannot write to {site_packages}: run this with the Python of a virtual environment", file=sys.stderr)
        return 1
    try:
        install(site_packages)
    except subprocess.CalledProcessError as error:
        print(f"pip could not install detectron2 (exit status {error.returncode}), see above", file=sys.stderr)
        return 1
    if not is_importable():
        print(f"pip reported success, yet detectron2 does not import from {site_packages}", file=sys.stderr)
        return 1
    print(f"detectron2 installed into {site_packages}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
