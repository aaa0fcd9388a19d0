"""Files inside packages: .deb, .tgz and .whl archives, or a folder where a package is installed.

Nothing is unpacked to the disk: contents are handed over in memory, under names that no path is made of. Sizes are
bounded before anything is read.
"""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from zlib import error as ZlibError

from data.image_io.images import DataError

MAX_FILE_BYTES = 64 << 20  # of one file; the largest wanted picture has 21 MB
MAX_UNPACKED_BYTES = 4 << 30  # of all that an archive holds; the largest package unpacks to 0.2 GB
MAX_MEMBERS = 100_000
AR_MAGIC, AR_HEADER_BYTES = b"!<arch>\n", 60

Wanted = Callable[[str], bool]


def read_members(archive: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of a package, in the order of the archive, or by name for a folder.

    Args:
        archive: a .deb, .tgz or .whl file, or the folder that holds what such a package holds.
        wanted: tells by a file's name in the package, `usr/share/x.png`, whether its content is asked for.

    Raises:
        DataError: a damaged archive; one that holds more than the limits above, or names that lead out of it.
        OSError: the file cannot be read.
    """
    readers = {".deb": read_deb, ".tgz": read_tar, ".whl": read_zip}
    if archive.suffix not in readers:
        raise DataError(f"{archive} is no package that is understood: expected {', '.join(readers)}")
    try:
        yield from readers[archive.suffix](archive, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, LZMAError, ZlibError, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}): remove it and get it anew") from error


def read_deb(archive: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield from the data.tar inside the ar archive that a Debian package is."""
    with archive.open("rb") as file:
        if file.read(len(AR_MAGIC)) != AR_MAGIC:
            raise DataError(f"{archive} is no Debian package: it does not begin with {AR_MAGIC!r}")
        while len(header := file.read(AR_HEADER_BYTES)) == AR_HEADER_BYTES:
            name, size = header[:16].decode("ascii", "replace").strip(" /"), header[48:58].strip()
            if not size.isdigit():
                raise DataError(f"{archive} is damaged (an entry without a size): remove it and get it anew")
            if not name.startswith("data.tar"):
                file.seek(int(size) + int(size) % 2, 1)
                continue
            if name.endswith(".zst"):
                raise DataError(f"{archive} is packed by zstd, which Python cannot read: install the package instead")
            yield from read_tar(archive, wanted, BytesIO(file.read(int(size))))
            return
    raise DataError(f"{archive} is damaged (it has no data.tar): remove it and get it anew")


def read_tar(archive: Path, wanted: Wanted, content: BytesIO | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield from a compressed tar archive, or from the content of one, in a single pass."""
    with tarfile.open(None if content else archive, "r|*", content) as members:
        budget = Budget(archive)
        for member in members:
            name = budget.admit(member.name, member.size)
            if member.isfile() and wanted(name):
                file = members.extractfile(member)
                assert file is not None
                yield name, budget.read(name, file.read(MAX_FILE_BYTES + 1))


def read_zip(archive: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield from a zip archive, which a wheel is."""
    with zipfile.ZipFile(archive) as members:
        budget = Budget(archive)
        for member in members.infolist():
            name = budget.admit(member.filename, member.file_size)
            if not member.is_dir() and wanted(name):
                with members.open(member) as file:
                    yield name, budget.read(name, file.read(MAX_FILE_BYTES + 1))


def read_installed(root: Path, folders: list[str], wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of some folders below a root, sorted by name."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if wanted(name) and path.is_file():
                yield name, path.read_bytes()


class Budget:
    """What an archive may hold.

    Args:
        archive: for messages.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.num_members = self.num_bytes = 0

    def admit(self, name: str, num_bytes: int) -> str:
        """Count a member in, and give its name without a leading `./`.

        Raises:
            DataError: too many, too much, or a name that leads out of the archive.
        """
        self.num_members += 1
        self.num_bytes += num_bytes
        if self.num_members > MAX_MEMBERS or self.num_bytes > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{self.archive} unpacks to more than {MAX_MEMBERS} files or {MAX_UNPACKED_BYTES >> 20} MB: not used"
            )
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{self.archive} holds {name!r}, which leads out of it: not used")
        return path.as_posix()

    def read(self, name: str, content: bytes) -> bytes:
        """Give a content back that is within the limit of one file."""
        if len(content) > MAX_FILE_BYTES:
            raise DataError(f"{self.archive}: {name} has more than {MAX_FILE_BYTES >> 20} MB: not used")
        return content
