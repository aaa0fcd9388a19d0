"""Unpack packages: .deb, .tgz and .whl archives, and .pk3 archives in them."""

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

MAX_FILE_BYTES = 512 << 20  # of one wanted file; the largest, an archive of textures, has 337 MB
MAX_UNPACKED_BYTES = 4 << 30  # of all that an archive holds; the largest package unpacks to 0.4 GB
MAX_MEMBERS = 100_000
ADVICE = "remove it and get it anew"


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the wanted files of a package.

    Args:
        archive: a .deb file, which dpkg-deb reads, or a .tgz, .whl or .pk3 file.
        folder: an empty folder; nothing is written outside.
        wanted: tells by a file's name in the package, `usr/share/x.png`, whether to unpack it.

    Raises:
        DataError: a damaged archive, one beyond the limits above, or one whose names lead out of the folder.
        OSError: a file cannot be read or written.
    """
    try:
        if archive.suffix in (".whl", ".pk3"):
            with zipfile.ZipFile(archive) as members:
                sizes = [member.file_size for member in members.infolist()]
                files = [member for member in members.infolist() if wanted(member.filename)]
                check_limits(archive, len(sizes), sum(sizes), max((member.file_size for member in files), default=0))
                members.extractall(folder, files)  # removes .. and the root from names
            return
        with open_tar(archive) as content, tarfile.open(fileobj=content, mode="r|*") as tar:
            for number, member in enumerate(tar, 1):
                member.name = normpath(member.name)  # Debian's begin with ./
                is_wanted = member.isfile() and wanted(member.name)
                num_bytes = member.offset_data + member.size  # from the start of the tar archive to this member's end
                check_limits(archive, number, num_bytes, member.size if is_wanted else 0)
                if is_wanted:
                    tar.extract(member, folder, filter="data")
    # RuntimeError: encrypted or of an unknown compression; ValueError: a name that no file can have
    except (tarfile.TarError, zipfile.BadZipFile, LZMAError, ZlibError, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{archive} is damaged ({error}): {ADVICE}") from error


def check_limits(archive: Path, num_members: int, num_bytes: int, file_bytes: int) -> None:
    """Raise a DataError if an archive has too many members, too many bytes or too large a wanted file."""
    if num_members > MAX_MEMBERS or num_bytes > MAX_UNPACKED_BYTES or file_bytes > MAX_FILE_BYTES:
        raise DataError(
            f"{archive} unpacks to more than {MAX_MEMBERS} files, {MAX_UNPACKED_BYTES >> 20} MB or "
            f"{MAX_FILE_BYTES >> 20} MB in one file: not used"
        )


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
        num_bytes = 0
        while chunk := process.stdout.read(1 << 20):  # what follows the end of the tar archive
            num_bytes += len(chunk)
            check_limits(archive, 0, num_bytes, 0)
        if problem := process.stderr.read().decode(errors="replace").strip():
            raise tarfile.ReadError(problem)
