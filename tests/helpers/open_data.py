"""Small packages with images and terms, as archives, for tests of the open data set."""

import hashlib
import io
import lzma
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from tools.dataset.open_data import sources

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2002 Any One
License: GPL-2

Files: animals/hen.png
 animals/cow?.png
Copyright: 2003, A. Painter
           2004, B. Painter
License: CC-BY-4.0

Files: animals/cat.png
Copyright: 2006 C. Painter
License: CC-BY-NC-4.0

Files: debian/*
Copyright: 2005 A Packager
License: Expat
"""


def png(pixels):
    """Encode an array as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def cutout(seed, side=80):
    """A noisy disc with a soft edge, RGBA."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    alpha = np.clip((side / 3 - np.hypot(x, y)) / 4, 0, 1) * 255
    return np.dstack([rng.integers(0, 256, (side, side, 3)), alpha]).astype(np.uint8)


def photograph(seed):
    return np.random.default_rng(seed).integers(0, 256, (90, 120, 3)).astype(np.uint8)


STAMPS = "usr/share/stamps"
FILES = {
    "usr/share/doc/stamps/copyright": COPYRIGHT.encode(),
    f"{STAMPS}/animals/hen.png": png(cutout(1)),
    f"{STAMPS}/animals/pig.png": png(cutout(2)),
    f"{STAMPS}/animals/cat.png": png(cutout(6)),
    f"{STAMPS}/animals/flat.png": png(np.minimum(cutout(3), [9, 9, 9, 255]).astype(np.uint8)),
    f"{STAMPS}/photos/wood.jpg": png(photograph(4)),
    f"{STAMPS}/symbols/heart.png": png(cutout(5)),
}
SOURCE = sources.debian("stamps", (f"{STAMPS}/*.png",), (f"{STAMPS}/photos/*.jpg",), ("*/symbols/*",))
ABSENT = sources.Source("@nobody/nothing", "npm", cutouts=("package/*.png",))


def tar(files, mode):
    """Bytes of a tar archive whose names begin with ./, as Debian's do."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name if name.startswith("/") else f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def deb(files, behind=b""):
    """Bytes of a Debian package; `behind` follows the end of its tar archive."""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"control": b"x"}, "w:xz"),
        "data.tar.xz": lzma.compress(tar(files, "w") + behind),
    }
    entries = [b"!<arch>\n"]
    for name, content in parts.items():
        entries += [f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode(), content]
        entries += [b"\n"] * (len(content) % 2)
    return b"".join(entries)


def write_archive(folder, suffix, files):
    """Write the files as a package of this kind."""
    path = folder / f"stamps_1.0_all{suffix}"
    if suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(deb(files) if suffix == ".deb" else tar(files, "w:gz"))
    return path


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


NUMBERS = {"size-px": 64, "num-drawn": 8, "num-drawn-test": 1, "num-test": 4, "num-workers": 1}
SMALL = [f"--{name}={number}" for name, number in NUMBERS.items()]

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb reads Debian packages")
