"""The open data set: which archives are read and refused, terms, the same bytes again, the printed command."""

import hashlib
import json
import os
import shlex
import stat
import sys

import numpy as np
import pytest
from PIL import Image

from data.datasets.composition import MattingFolder
from data.image_io.images import read_raw_rgba
from data.procedural import KINDS
from engine.config.config import apply_overrides, load_config
from evaluation.output.report import GAP_PX
from tests.helpers.open_data import (
    ABSENT,
    FILES,
    SMALL,
    SOURCE,
    STAMPS,
    cutout,
    digests,
    photograph,
    png,
    write_archive,
)
from tools import make_open_dataset as tool
from tools.dataset.open_data import licences, pictures, sheet, sources


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with a Debian package of `FILES`; it and one that is not to be had are all sources."""
    monkeypatch.setattr(tool, "SOURCES", (SOURCE, ABSENT))
    (tmp_path / "packages").mkdir()
    write_archive(tmp_path / "packages", ".deb", FILES)
    return tmp_path / "packages"


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
