"""The open data set: which archives are read and refused, terms, the same bytes again, the printed command."""

import hashlib
import io
import json
import lzma
import os
import shlex
import shutil
import stat
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets.composition import MattingFolder
from data.image_io.images import DataError, read_raw_rgba
from data.procedural import KINDS
from engine.config.config import apply_overrides, load_config
from evaluation.output.report import GAP_PX
from inference.default_network import SHIPPED
from tools import make_open_dataset as tool
from tools.dataset.open_data import archives, licences, pictures, sheet, sources
from tools.dataset.open_data.archives import unpack

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


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb reads Debian packages")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with a Debian package of `FILES`; it and one that is not to be had are all sources."""
    monkeypatch.setattr(tool, "SOURCES", (SOURCE, ABSENT))
    (tmp_path / "packages").mkdir()
    write_archive(tmp_path / "packages", ".deb", FILES)
    return tmp_path / "packages"


NUMBERS = {"size-px": 64, "num-drawn": 8, "num-drawn-test": 1, "num-test": 4, "num-workers": 1}
SMALL = [f"--{name}={number}" for name, number in NUMBERS.items()]


def test_a_set_is_whole_and_a_run_that_was_cut_off_ends_in_the_same_bytes(packages, tmp_path, capsys):
    output = tmp_path / "open set, 1"
    command = ["--output", str(output), "--packages", str(packages), *SMALL]
    assert tool.main(command) == 0
    said = capsys.readouterr().out
    assert "without @nobody/nothing: --download fetches it, or put nobody-nothing-*.tgz into" in said
    made = digests(output)
    manifest = json.loads((output / "manifest.json").read_text())
    assert {name: entry["sha256"] for name, entry in manifest["pictures"].items()} == {
        name: made[name] for name in manifest["pictures"]
    }
    outside = {"manifest.json", "LICENCES.md", "licences/stamps/copyright"}
    num = sum(name.startswith("test/rgba/") for name in made)
    names = [f"{index % num:04d}_{index // num}.png" for index in range(4)]
    composites = {f"test/{folder}/{name}" for folder in tool.TEST_FOLDERS for name in names}
    assert made.keys() == manifest["pictures"].keys() | outside | composites
    assert sum("/backgrounds/drawn_surface_" in name for name in made) == sum(
        tool.NUM_SURFACES.values()
    )  # few photographs
    drawn = [name for name in manifest["pictures"] if name.startswith("train/rgba/drawn_")]
    assert sorted(name.split("_")[1] for name in drawn) == sorted(KINDS)
    derived = {name: entry for name, entry in manifest["pictures"].items() if "photograph" in entry}
    assert len(derived) > 1 and sum(name.endswith("_defocused.jpg") for name in derived) == 1
    for name, entry in derived.items():
        photograph = entry["photograph"]
        assert photograph.partition("/")[0] == name.partition("/")[0], "a held-out photograph is in training"
        assert entry["licence"] == manifest["pictures"][photograph]["licence"]
    pictures_of_packages = {name: entry for name, entry in manifest["pictures"].items() if name not in derived}
    stamps = {entry["file"]: (name, entry) for name, entry in pictures_of_packages.items() if "file" in entry}
    assert {name.rpartition("/")[2] for name in stamps} == {"hen.png", "pig.png", "wood.jpg"}
    name, entry = stamps[f"{STAMPS}/animals/hen.png"]
    assert (entry["licence"], entry["author"]) == ("CC-BY-4.0", "2003, A. Painter; 2004, B. Painter")
    assert f"| {name} | stamps | {STAMPS}/animals/hen.png | CC-BY-4.0 |" in (output / "LICENCES.md").read_text()
    assert entry["file_sha256"] == hashlib.sha256(FILES[f"{STAMPS}/animals/hen.png"]).hexdigest()
    np.testing.assert_array_equal(np.dstack(read_raw_rgba(output / name)), cutout(1))
    assert manifest["left_out"] == {
        f"stamps: {STAMPS}/animals/flat.png": "is drawn in few colours",
        f"stamps: {STAMPS}/animals/cat.png": "is under the licence 'CC-BY-NC-4.0', which is not among the free ones",
    }
    assert licences.find_faults(manifest, output) == []
    assert manifest["packages"]["stamps"]["sha256"] == digests(packages)["stamps_1.0_all.deb"]

    lost = [name for number, name in enumerate(sorted(manifest["pictures"])) if number % 2]
    for gone in (*lost, "LICENCES.md"):
        (output / gone).unlink()
    kept = {name: (output / name).stat().st_mtime_ns for name in manifest["pictures"] if name not in lost}
    assert tool.main(command) == 0
    assert digests(output) == made
    assert all((output / name).stat().st_mtime_ns == then for name, then in kept.items())

    assert tool.main([*command, "--seed", "1"]) == 1
    assert "holds a set of other settings (seed)" in capsys.readouterr().err
    (output / "train/rgba/mine.png").touch()
    assert tool.main(command) == 1
    assert "train/rgba/mine.png has no entry in the manifest" in capsys.readouterr().err


def test_ctrl_c_is_one_line(packages, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "map_in_workers", stop)
    assert tool.main(["--output", str(tmp_path / "open"), "--packages", str(packages), *SMALL]) == 130
    assert capsys.readouterr().err == "make_open_dataset.py: stopped; the same command continues from here\n"


def test_unfinished_composites_are_made_again_and_finished_ones_kept(tmp_path, monkeypatch):
    calls = []

    def write(foregrounds, backgrounds, output, **settings):
        calls.append(settings)
        for folder in tool.TEST_FOLDERS:
            (output / folder).mkdir(parents=True)  # raises where an earlier one is left
            for index in range(2 if folder == "trimap" and len(calls) == 1 else 3):
                (output / folder / f"{index}.png").touch()

    monkeypatch.setattr(tool, "write_test_set", write)
    for num_calls in (1, 2, 2):
        tool.make_test_composites(tmp_path, 3, 512, 7)
        assert len(calls) == num_calls
    assert calls[0] == {"num": 3, "crop_px": 512, "seed": 7}


def test_the_printed_command_reads_the_set(tmp_path):
    from detectron2.config import instantiate

    folder = tmp_path / "my set, 'new'"
    for name, write in (("train/rgba", cutout), ("train/backgrounds", photograph)):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(png(write(0)))
    for name, content in (("image", photograph(1)), ("trimap", np.full((90, 120), 128, np.uint8))):
        (folder / "test" / name).mkdir(parents=True)
        (folder / "test" / name / "0.png").write_bytes(png(content))
    (folder / "test/alpha").mkdir()
    (folder / "test/alpha/0.png").write_bytes(png(photograph(2)[..., 0]))
    words = shlex.split(tool.training_command(folder).replace("\\\n", ""))
    assert words[:4] == ["python", "main.py", "--config-file", "configs/demo.py"]
    cfg = load_config(words[3])
    apply_overrides(cfg, words[4:])
    assert cfg.train.init_checkpoint == "" and cfg.train.samples_per_epoch == 16000
    sample = instantiate(cfg.dataloader.train.dataset)[0, 0]
    assert sample["image"].shape == (3, 128, 128) and sample["alpha"].max() > 0
    assert isinstance(instantiate(cfg.dataloader.test.dataset), MattingFolder)


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


def test_terms_are_those_of_the_last_paragraph_that_covers_the_file():
    def of(name):
        return licences.debian_terms(f"usr/share/stamps/{name}", COPYRIGHT)

    assert of("animals/hen.png").licence == of("animals/cow1.png").licence == "CC-BY-4.0"
    assert of("animals/pig.png") == licences.Terms("GPL-2", "2002 Any One")  # and debian/* is no image
    names = "".join(f"\n {number} Any One" for number in range(9))
    named = f"Files:\n a/hen.png\nCopyright:{names}\nLicense: CC0\n\nFiles: b/hen.png\nLicense: GPL-2\n"
    five = "; ".join(f"{number} Any One" for number in range(5))
    assert licences.debian_terms("usr/share/stamps/a/hen.png", named) == licences.Terms("CC0", f"{five}; 4 others")
    assert licences.debian_terms("usr/share/stamps/b/hen.png", named).licence == "GPL-2"
    with pytest.raises(DataError, match="no licence.*covers"):
        licences.debian_terms("usr/share/x.png", COPYRIGHT.replace("Files: *", "Files: other/*"))
    with pytest.raises(DataError, match="without the file that states its terms"):
        licences.terms_of(SOURCE, f"{STAMPS}/animals/hen.png", {})
    record = json.dumps({"license": "MIT", "author": {"name": "Some One"}})
    assert licences.terms_of(ABSENT, "package/x.png", {"package/package.json": record}) == licences.Terms(
        "MIT", "Some One"
    )
    wheel = next(source for source in sources.SOURCES if source.package == "scikit-image")
    assert licences.terms_of(wheel, "skimage/data/camera.png", {}) == licences.Terms("CC0", "Lav Varshney")
    assert not any("none stated" in licence for source in sources.SOURCES for licence in source.licences.values())


@pytest.mark.parametrize(
    ("licence", "is_free"),
    [
        *((name, True) for name in ("CC0", "CC0-1.0", "public domain", "public-domain", "MIT", "Expat", "Apache-2.0")),
        *((name, True) for name in ("BSD-3-Clause", "BSD-2-clause", "CC BY 2.0", "CC-BY-4.0", "CC-BY-SA-2.5")),
        *((name, True) for name in ("GPL-2", "GPL-2+", "GPL-3+", "LGPL-2.1+")),
        *((name, False) for name in ("CC-BY-NC-4.0", "CC-BY-ND-3.0", "CC-BY-NC-SA-4.0", "CC BY-NC 2.0", "CC-BY")),
        *((name, False) for name in ("", "not stated", "none stated; from a benchmark", "GFDL-1.2+", "MIT-like")),
    ],
)
def test_only_free_licences_are_used(licence, is_free):
    assert (licences.Terms(licence, "Some One").fault() is None) == is_free
    assert licences.Terms("CC0", licences.NOT_STATED).fault() == "has no author"


def test_faults_of_a_manifest_and_its_folder_are_found(tmp_path):
    for folder in licences.IMAGE_FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    free = {"package": "stamps", "file": "hen.png", "licence": "GPL-2", "author": "Any One"}
    entries = {
        "train/rgba/drawn_hair_00000.png": {"drawn": True},
        "train/rgba/hen.png": free,
        "train/backgrounds/sea.jpg": free | {"licence": "CC-BY-NC-4.0"},
        "test/rgba/pig.png": {"licence": "CC0", "author": "Any One"},
    }
    entries["train/rgba/drawn_fur_00001.png"] = {"drawn": True, "photograph": "sea"} | entries[
        "train/backgrounds/sea.jpg"
    ]
    for name in (*entries, "test/backgrounds/other.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "train/rgba/hen.png").unlink()
    faults = [
        "train/backgrounds/sea.jpg is under the licence 'CC-BY-NC-4.0', which is not among the free ones",
        "test/rgba/pig.png has no origin",
        "train/rgba/drawn_fur_00001.png is under the licence 'CC-BY-NC-4.0', which is not among the free ones",
    ]
    assert licences.find_faults({"pictures": entries}) == faults
    assert licences.find_faults({"pictures": entries}, tmp_path) == [
        *faults,
        "test/backgrounds/other.jpg has no entry in the manifest",
        "train/rgba/hen.png is in the manifest, but not in the folder",
    ]


def test_the_shipped_network_learnt_from_free_images():
    if not SHIPPED.is_dir():
        pytest.skip("no network is shipped")
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["pictures"] and licences.find_faults(manifest) == []


def test_cutouts_that_teach_nothing_are_told_apart():
    fit = cutout(0)
    hard, full, flat = fit.copy(), fit.copy(), fit.copy()
    hard[..., 3] = np.where(hard[..., 3] > 127, 255, 0)
    full[..., 3] = np.maximum(full[..., 3], 100)
    flat[..., :3] = flat[..., :3] // 128 * 128
    reasons = [pictures.why_unfit(each) for each in (fit, fit[..., :3], cutout(0, 40), hard, full, flat)]
    assert reasons == [
        None, "has no transparency", "has a side below 64 px", "has a hard edge", "fills its frame",
        "is drawn in few colours",
    ]  # fmt: skip
    assert pictures.write_cutout(b"no image", "x.png").startswith("cannot be read")


def test_the_same_share_is_held_out_whatever_else_there_is():
    share = np.mean([pictures.is_held_out(f"name_{number}") for number in range(4000)])
    assert abs(share - pictures.HELD_OUT_SHARE) < 0.02


def client(folder, script):
    """Make an executable that stands in for a registry's client."""
    folder.mkdir(exist_ok=True)
    path = folder / "apt-get"
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_download_is_whole_or_not_there(tmp_path, monkeypatch):
    packages = tmp_path / "packages"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    client(tmp_path / "bin", "assert sys.argv[1:] == ['download', 'stamps']\nopen('stamps_1_all.deb', 'w').write('x')")
    assert sources.download(SOURCE, packages) is None
    assert [path.name for path in packages.iterdir()] == ["stamps_1_all.deb"]
    assert sources.find_archive(SOURCE, packages) == packages / "stamps_1_all.deb"

    (packages / "stamps_1_all.deb").unlink()
    client(tmp_path / "bin", "open('stamps_1_all.deb', 'w').write('half')\nsys.exit('no such package')")
    problem = sources.download(SOURCE, packages)
    assert "apt-get download stamps failed (no such package)" in problem and "by hand" in problem
    assert list(packages.iterdir()) == []

    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "npm is not on this machine" in sources.download(ABSENT, packages)


def test_only_what_is_missing_is_fetched_and_only_when_asked(packages, tmp_path, monkeypatch, capsys):
    asked = []

    def fail(source, folder):
        asked.append((source.package, folder))
        return "no network"

    monkeypatch.setattr(tool, "download", fail)
    monkeypatch.setattr(tool, "draw_missing", lambda *_: None)
    monkeypatch.setattr(tool, "make_test_composites", lambda *_: None)
    command = ["--output", str(tmp_path / "set"), "--packages", str(packages), *SMALL]
    assert tool.main(command) == 0 and asked == []
    assert tool.main([*command, "--download"]) == 0 and asked == [(ABSENT.package, packages)]
    assert "make_open_dataset.py: no network" in capsys.readouterr().err
    assert tool.main(["--output", str(tmp_path / "set"), "--packages", str(tmp_path / "typo"), *SMALL]) == 1
    assert "typo is no folder" in capsys.readouterr().err


def test_a_folder_of_other_files_is_left_alone(packages, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert tool.main(["--output", str(tmp_path / "mine"), "--packages", str(packages), *SMALL]) == 1
    assert "holds files but no manifest.json" in capsys.readouterr().err
    assert digests(tmp_path / "mine").keys() == {"notes.txt"}
    assert tool.main(["--output", str(tmp_path / "mine/notes.txt"), *SMALL]) == 1
    assert "notes.txt is a file: name a folder" in capsys.readouterr().err
    for wrong in ([], ["--output", "x", "--sheet", "y.png"], ["--output", "x", "--size-px", "3"]):
        with pytest.raises(SystemExit) as raised:
            tool.main(wrong)
        assert raised.value.code == 2


def test_the_sheet_shows_each_kind_over_a_photograph_and_its_alpha(tmp_path, monkeypatch):
    shades = {f"kind {number}": number / 7 for number in range(8)}

    def flat(shade):
        return lambda rng, side: (np.zeros((side, side, 3), np.float32), np.full((side, side), shade, np.float32))

    monkeypatch.setattr(sheet, "KINDS", {kind: flat(shade) for kind, shade in shades.items()})
    monkeypatch.setattr(sheet, "CELL_PX", 40)
    assert tool.main(["--sheet", str(tmp_path / "sheet.png")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    label_px = (len(pixels) - 4 * 40) // 2
    for number, shade in enumerate(shades.values()):
        top = label_px + number // 4 * (label_px + 80)
        left = number % 4 * (40 + GAP_PX)
        over, alpha = (pixels[start : start + 40, left : left + 40] for start in (top, top + 40))
        assert (alpha == round(255 * shade)).all()
        assert over.max() > 0 if shade < 1 else over.max() == 0  # a black foreground over a photograph
        assert over.max() <= round(255 * (1 - shade))
