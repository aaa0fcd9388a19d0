"""Archives of packages: what is read of them, limits, damage."""

import io
import shutil
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from data.image_io.images import DataError
from tests.helpers.open_data import COPYRIGHT, FILES, SOURCE, deb, needs_dpkg, write_archive
from tools.dataset.open_data import archives, sources
from tools.dataset.open_data.archives import unpack


def unpack_pngs(archive, folder):
    """Unpack an archive's PNGs into a folder; give all that the folder holds then."""
    unpack(archive, folder, lambda name: name.endswith(".png"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_dpkg
@pytest.mark.parametrize("suffix", [".deb", ".tgz", ".whl"])
def test_archives_give_the_wanted_files_alone(tmp_path, suffix):
    found = unpack_pngs(write_archive(tmp_path, suffix, FILES), tmp_path / "files")
    assert found == {name: content for name, content in FILES.items() if name.endswith(".png")}


@needs_dpkg
@pytest.mark.parametrize("suffix", [".deb", ".tgz", ".whl"])
def test_archives_write_nothing_outside_and_no_more_than_the_limit(tmp_path, suffix, monkeypatch):
    for name in ("../evil.png", "a/../../evil.png", "/etc/evil.png"):
        path = write_archive(tmp_path, suffix, {"good.png": b"x", name: b"x"})
        with suppress(DataError):
            unpack_pngs(path, tmp_path / "files")
        assert not list(tmp_path.glob("evil.png")) and not Path("/etc/evil.png").exists()
    path = write_archive(tmp_path, suffix, {"bomb.png": bytes(3_000_000)})
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2_000_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack_pngs(path, tmp_path / "bomb")
    assert not (tmp_path / "bomb").exists()


@needs_dpkg
@pytest.mark.parametrize("suffix", [".deb", ".tgz", ".whl"])
@pytest.mark.parametrize(
    ("limit", "most"), [("MAX_UNPACKED_BYTES", 2_000_000), ("MAX_MEMBERS", 2), ("MAX_FILE_BYTES", 5)]
)
def test_what_is_not_wanted_counts_and_each_wanted_file_has_a_limit(tmp_path, suffix, limit, most, monkeypatch):
    path = write_archive(tmp_path, suffix, {"bomb": bytes(3_000_000), "other": b"x", "good.png": b"123456"})
    assert unpack_pngs(path, tmp_path / "files") == {"good.png": b"123456"}
    monkeypatch.setattr(archives, limit, most)
    with pytest.raises(DataError, match=f"{path.name} unpacks to more than"):
        unpack_pngs(path, tmp_path / "limited")
    assert not (tmp_path / "limited").exists()


@needs_dpkg
def test_what_follows_the_end_of_a_tar_counts(tmp_path, monkeypatch):
    path = tmp_path / "stamps_1.0_all.deb"
    path.write_bytes(deb({"good.png": b"x"}, behind=bytes(5_000_000)))
    assert unpack_pngs(path, tmp_path / "files") == {"good.png": b"x"}
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2_000_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack_pngs(path, tmp_path / "limited")


def test_what_python_cannot_unpack_is_named(tmp_path):
    """A wheel that is encrypted, one of an unknown compression, and a tar archive with a NUL in a name."""
    path = write_archive(tmp_path, ".whl", {"x.png": b"x"})
    content = path.read_bytes()
    entry = content.index(b"PK\1\2")
    for local_byte, entry_byte, value in ((6, 8, 1), (8, 10, 99)):
        changed = bytearray(content)
        changed[local_byte] = changed[entry + entry_byte] = value
        path.write_bytes(changed)
        with pytest.raises(DataError, match=f"{path.name} is damaged"):
            unpack_pngs(path, tmp_path / "files")
    path = tmp_path / "stamps-1.0.tgz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("x.png")
        member.pax_headers = {"path": "x\0.png"}
        archive.addfile(member)
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        unpack_pngs(path, tmp_path / "files")


@needs_dpkg
@pytest.mark.parametrize("suffix", [".deb", ".tgz", ".whl"])
def test_a_damaged_archive_is_named(tmp_path, suffix):
    path = write_archive(tmp_path, suffix, FILES)
    content = path.read_bytes()
    for damaged in (content[:-3000], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path.name} is damaged"):
            unpack_pngs(path, tmp_path / "files")


def test_an_installed_package_gives_what_its_archive_gives(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    archive = write_archive(tmp_path, ".deb", FILES)
    assert dict(sources.contents(SOURCE, None, tmp_path)) == dict(sources.contents(SOURCE, archive, None))
    assert list(sources.contents(SOURCE, None, None)) == []
    wheel = next(source for source in sources.SOURCES if source.package == "scikit-image")
    root = sources.installed_root(wheel)
    assert root is not None and (root / wheel.photographs[0]).is_file()


def test_an_archive_inside_a_package_is_read_as_a_part_of_its_folder(tmp_path):
    """From the package's archive and from the installed package; its files may not leave the folder either."""
    base, zipped = "usr/share/game/base", io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in ("textures/stone.png", "textures/sign.png", "../../evil/stone.png"):
            archive.writestr(name, name)
    files = {"usr/share/doc/game/copyright": COPYRIGHT.encode(), f"{base}/0.pk3": zipped.getvalue()}
    source = sources.debian("game", photographs=(f"{base}/textures/stone.???",), inner=f"{base}/0.pk3")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    expected = {"usr/share/doc/game/copyright": COPYRIGHT.encode(), f"{base}/textures/stone.png": b"textures/stone.png"}
    assert dict(sources.contents(source, None, tmp_path)) == expected
    if shutil.which("dpkg-deb"):
        assert dict(sources.contents(source, write_archive(tmp_path, ".deb", files), None)) == expected
