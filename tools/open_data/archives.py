"""Unpack packages: .deb, .tgz and .whl archives."""

import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from posixpath import normpath
from typing import IO
from zlib import error as ZlibError

from data.image_io.images import DataError

MAX_UNPACKED_BYTES = 4 << 30  # of the wanted files of an archive; the largest package unpacks to 0.2 GB
ADVICE = "remove it and get it anew"


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the wanted files of a package.

    Args:
        archive: a .deb file, which dpkg-deb reads, or a .tgz or .whl file.
        folder: an empty folder; nothing is written outside.
        wanted: tells by a file's name in the package, `usr/share/x.png`, whether to unpack it.

    Raises:
        DataError: a damaged archive, one with too many bytes, or one whose names lead out of the folder.
        OSError: a file cannot be read or written.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as members:
                files = [member for member in members.infolist() if wanted(member.filename)]
                check_size(archive, sum(member.file_size for member in files))
                members.extractall(folder, files)  # removes .. and the root from names
            return
        num_bytes = 0
        with open_tar(archive) as content, tarfile.open(fileobj=content, mode="r|*") as tar:
            for member in tar:
                member.name = normpath(member.name)  # Debian's begin with ./
                if member.isfile() and wanted(member.name):
                    num_bytes += member.size
                    check_size(archive, num_bytes)
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, LZMAError, ZlibError, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}): {ADVICE}") from error


def check_size(archive: Path, num_bytes: int) -> None:
    """Raise a DataError if the wanted files are too large."""
    if num_bytes > MAX_UNPACKED_BYTES:
        raise DataError(f"{archive} unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB: not used")


@contextmanager
def open_tar(archive: Path) -> Iterator[IO[bytes]]:
    """Open the tar archive in a .tgz or .deb file."""
    if archive.suffix == ".tgz":
        with archive.open("rb") as file:
            yield file
        return
    if shutil.which("dpkg-deb") is None:
        raise DataError(
            f"{archive} is read by dpkg-deb, which is not on this machine: install dpkg, or remove the file"
        )
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        yield process.stdout
        process.stdout.read()
        if problem := process.stderr.read().decode(errors="replace").strip():
            raise tarfile.ReadError(problem)
