"""Install detectron2's Python code into the environment of this script, unless it can be imported already.

detectron2 is not on the Python package index under its own name. The wheel below has upstream's Python code of commit
a59f0563 (2024-04-17). Its compiled part is for Python 3.10 only, and nothing here needs it. The wheel is tagged for
Python 3.10. So pip installs it elsewhere only as a file for another platform, into a target folder and without its
declared needs (numpy below 2 and black, which it does not use). The real needs are in requirements.txt.

Only the standard library is used, because nothing else may be installed yet.

    python tools/runs/install_detectron2.py
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
    """Tell whether `import detectron2` finds a package in this environment.

    Looks without importing: an installed detectron2 whose needs are missing is still installed.
    """
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


def pip_command(requirements: Path, target: Path) -> list[str]:
    """Build the pip call that unpacks the pinned wheel into a folder.

    Args:
        requirements: file that holds the pinned requirement and its hash.
        target: folder to install into; created by pip.
    """
    return [
        sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", *FOREIGN_CP310,
        "--disable-pip-version-check", "--require-hashes", "--target", str(target), "-r", str(requirements),
    ]  # fmt: skip


def install(site_packages: Path) -> None:
    """Unpack the wheel beside `site_packages` and move in what belongs to detectron2, so that nothing is half there.

    The wheel also carries a top-level package `tools`, which would hide ours in any program that does not start in the
    repository root; it, and whatever else is not detectron2, stays behind.

    Args:
        site_packages: existing folder on the import path of this Python.

    Raises:
        subprocess.CalledProcessError: pip failed; its own words are on stderr.
    """
    with tempfile.TemporaryDirectory(dir=site_packages.parent) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(REQUIREMENT)
        target = Path(scratch, "target")
        subprocess.run(pip_command(requirements, target), check=True)
        for path in sorted(target.iterdir()):
            if path.name == "detectron2" or path.name.endswith(".dist-info"):
                path.rename(site_packages / path.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default), install where needed and say what was done.

    Returns: 0 when detectron2 is there at the end, else 1.
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
