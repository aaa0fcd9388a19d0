"""tools/dataset/make_composition1k.py: the published rule by pixel, resuming, and errors before the start."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources.composition1k import blend, fit_background
from data.sources.layouts import LAYOUTS, Layout, find_test_set
from tests.helpers.paths import REPOSITORY
from tools.dataset import make_composition1k

NUM_BACKGROUNDS = 4
FOREGROUNDS = {"rgb.png": (40, 30), "b.1.png": (33, 50), "grey.png": (30, 30)}  # width, height
# The first is large enough, the others lack a side, have the very size, or lack both.
BACKGROUND_SIZES = ((90, 70), (20, 80), (40, 30), (37, 29), (33, 50), (60, 40), (50, 60), (7, 9), (30, 30), (31, 29))


def random_pixels(rng: np.random.Generator, size: tuple[int, int], *channels: int) -> np.ndarray:
    return rng.integers(0, 256, (size[1], size[0], *channels), np.uint8)


@pytest.fixture()
def sources(tmp_path: Path) -> Path:
    """Three foregrounds (RGBA, palette, grey) with alphas (grey, RGB of unlike channels, RGBA), 12 backgrounds."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "sources"
    for name in ("fg", "alpha", "bg", "trimaps"):
        (folder / name).mkdir(parents=True)
    for name, size in FOREGROUNDS.items():
        colours = {"rgb.png": (4,), "b.1.png": (3,), "grey.png": ()}[name]
        image = Image.fromarray(random_pixels(rng, size, *colours))
        (image.quantize(64) if name == "b.1.png" else image).save(folder / "fg" / name)
        alpha = random_pixels(rng, size, *{"rgb.png": (), "b.1.png": (3,), "grey.png": (4,)}[name])
        alpha[:10] = rng.choice(np.array([0, 255], np.uint8), alpha[:10].shape)
        Image.fromarray(alpha).save(folder / "alpha" / name)
        for index in range(NUM_BACKGROUNDS):
            trimap = rng.choice(np.array([0, 128, 255], np.uint8), size[::-1])
            Image.fromarray(trimap).save(folder / "trimaps" / f"{Path(name).stem}_{index}.png")
    backgrounds = []
    for index in range(len(FOREGROUNDS) * NUM_BACKGROUNDS):
        size = BACKGROUND_SIZES[index % len(BACKGROUND_SIZES)]
        image = Image.fromarray(random_pixels(rng, size, *(() if index == 2 else (4,) if index == 3 else (3,))))
        backgrounds.append(f"2008_{index:06d}.{'png' if index % 3 else 'jpg'}")
        (image if index % 3 else image.convert("RGB")).save(folder / "bg" / backgrounds[-1])
    (folder / "fg.txt").write_text("\n".join(FOREGROUNDS) + "\n\n")
    (folder / "bg.txt").write_text("\r\n".join(backgrounds))
    return folder


def arguments(sources: Path, output: Path, *more: object) -> list[str]:
    options = {
        "--foreground-dir": sources / "fg",
        "--alpha-dir": sources / "alpha",
        "--background-dir": sources / "bg",
        "--foreground-list": sources / "fg.txt",
        "--background-list": sources / "bg.txt",
        "--trimap-dir": sources / "trimaps",
        "--output": output,
        "--num-foregrounds": len(FOREGROUNDS),
        "--num-backgrounds": NUM_BACKGROUNDS,
        "--workers": 1,
    }
    return [str(part) for option in options.items() for part in option] + [str(part) for part in more]


def build(sources: Path, output: Path, *more: object) -> int:
    return make_composition1k.main(arguments(sources, output, *more))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published_composite(foreground: Image.Image, alpha: Image.Image, background: Image.Image) -> list:
    """Composite pixel by pixel in plain Python, as the published rule is worded."""
    foreground, alpha, background = (picture.convert("RGB") for picture in (foreground, alpha, background))
    w, h = foreground.size
    bw, bh = background.size
    ratio = max(w / bw, h / bh)
    if ratio > 1:
        background = background.resize((math.ceil(bw * ratio), math.ceil(bh * ratio)), Image.Resampling.BICUBIC)
    image = np.asarray(background.crop((0, 0, w, h))).tolist()
    colours, opacity = np.asarray(foreground).tolist(), np.asarray(alpha).tolist()
    for y in range(h):
        for x in range(w):
            a = opacity[y][x][0]
            if a == 255:
                image[y][x] = colours[y][x]
            elif a > 0:
                pairs = zip(colours[y][x], image[y][x], strict=True)
                image[y][x] = [int(a / 255 * f + (1 - a / 255) * b) for f, b in pairs]
    return image


def test_every_image_follows_the_published_rule(sources, tmp_path, capsys):
    assert build(sources, tmp_path / "set") == 0
    assert capsys.readouterr().out == f"built 12 images in {tmp_path / 'set'}\n"
    backgrounds = (sources / "bg.txt").read_text().split()
    names = set()
    for number, foreground in enumerate(FOREGROUNDS):
        for index in range(NUM_BACKGROUNDS):
            name = f"{foreground.removesuffix('.png')}_{index}.png"
            names |= {f"{folder}/{name}" for folder in ("merged", "alpha_copy", "trimaps")}
            colours, source_alpha = (Image.open(sources / kind / foreground) for kind in ("fg", "alpha"))
            background = Image.open(sources / "bg" / backgrounds[number * NUM_BACKGROUNDS + index])
            merged = Image.open(tmp_path / "set/merged" / name)
            assert merged.mode == "RGB"
            np.testing.assert_array_equal(merged, published_composite(colours, source_alpha, background), err_msg=name)
            alpha = Image.open(tmp_path / "set/alpha_copy" / name)
            assert alpha.mode == "L"
            stored = np.asarray(source_alpha)
            np.testing.assert_array_equal(alpha, stored if stored.ndim == 2 else stored[:, :, 0], err_msg=name)
            trimap = (tmp_path / "set/trimaps" / name).read_bytes()
            assert trimap == (sources / "trimaps" / name).read_bytes()
    assert set(contents(tmp_path / "set")) == names | {"manifest.json"}


def test_a_blend_truncates_in_float64_for_every_alpha_and_colour():
    alpha, colours = np.mgrid[:256, :256].astype(np.uint8)
    for other in (0, 1, 77, 254, 255):
        background = np.full((256, 256, 3), other, np.uint8)
        foreground = np.repeat(colours[:, :, None], 3, axis=2)
        image = blend(alpha, foreground, background)
        for a in range(256):
            expected = [int(a / 255 * f + (1 - a / 255) * other) for f in range(256)]
            assert image[a, :, 0].tolist() == expected
        np.testing.assert_array_equal(image[0], background[0])
        np.testing.assert_array_equal(image[255], foreground[255])


@pytest.mark.parametrize(
    ("size", "enlarged"), [((40, 30), (40, 30)), ((90, 31), (90, 31)), ((39, 90), (40, 93)), ((41, 29), (43, 31))]
)
def test_a_background_grows_only_where_it_is_too_small(size, enlarged):
    """The sizes are worked out by hand; in floating point 29 * (30 / 29) is above 30, which the rule rounds up."""
    background = Image.fromarray(random_pixels(np.random.default_rng(2), size))
    fitted = fit_background(background, (40, 30))
    assert fitted.size == (40, 30)
    grown = background if enlarged == size else background.resize(enlarged, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fitted, np.asarray(grown)[:30, :40])


def test_exif_rotation_is_not_applied(sources, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = sources / "bg" / (sources / "bg.txt").read_text().split()[0]
    background = Image.open(path)
    background.load()
    background.save(path, exif=exif, quality=95)
    assert build(sources, tmp_path / "set") == 0
    images = [Image.open(folder) for folder in (sources / "fg/rgb.png", sources / "alpha/rgb.png", path)]
    np.testing.assert_array_equal(Image.open(tmp_path / "set/merged/rgb_0.png"), published_composite(*images))


def test_any_number_of_workers_gives_the_same_bytes(sources, tmp_path):
    assert build(sources, tmp_path / "one") == 0
    assert build(sources, tmp_path / "two", "--workers", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_manifest_lists_every_file(sources, tmp_path):
    assert build(sources, tmp_path / "set") == 0
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    files = contents(tmp_path / "set")
    del files["manifest.json"]
    assert manifest["files"].keys() == files.keys()
    for name, digest in {**manifest["files"], **manifest["inputs"]["background"]}.items():
        path = tmp_path / "set" / name if name in files else sources / "bg" / name
        run = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
        assert run.stdout.split()[0] == digest
    assert list(manifest["inputs"]["foreground"]) == list(manifest["inputs"]["alpha"]) == list(FOREGROUNDS)
    backgrounds = (sources / "bg.txt").read_text().split()
    assert [pair["background"] for pair in manifest["composites"].values()] == backgrounds
    assert manifest["versions"] == {"numpy": np.__version__, "pillow": Image.__version__}
    assert "bicubic" in manifest["rule"]


def test_the_built_set_is_found_as_a_test_set(sources, tmp_path, monkeypatch):
    composition = LAYOUTS["Composition-1k"]
    small = Layout(**{**vars(composition), "num_images": 12})
    monkeypatch.setitem(LAYOUTS, "Composition-1k", small)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert build(sources, tmp_path / composition.root) == 0
    assert find_test_set("Composition-1k").num_images == 12


def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the composites that are made from now on, and not kept."""
    names: list[str] = []
    make = make_composition1k.make_composite

    def record(composite):
        names.append(composite.name)
        return make(composite)

    monkeypatch.setattr(make_composition1k, "make_composite", record)
    return names


def test_a_second_run_makes_only_what_is_damaged(sources, tmp_path, monkeypatch):
    output = tmp_path / "set"
    assert build(sources, output) == 0
    whole = contents(output)
    (output / "merged/rgb_1.png").write_bytes(whole["merged/rgb_1.png"][:-20])
    (output / "alpha_copy/b.1_3.png").unlink()
    Image.new("L", (30, 30)).save(output / "trimaps/grey_2.png")
    stamp = (output / "merged/grey_0.png").stat().st_mtime_ns
    names = made(monkeypatch)
    assert build(sources, output) == 0
    assert names == ["rgb_1", "b.1_3"]
    assert contents(output) == whole
    assert (output / "merged/grey_0.png").stat().st_mtime_ns == stamp


def test_trimaps_can_be_added_later_and_stay(sources, tmp_path, monkeypatch):
    output = tmp_path / "set"
    without = arguments(sources, output)
    at = without.index("--trimap-dir")
    del without[at : at + 2]
    assert make_composition1k.main(without) == 0
    assert not (output / "trimaps").exists()
    names = made(monkeypatch)
    assert build(sources, output) == 0
    whole = contents(output)
    assert make_composition1k.main(without) == 0
    assert contents(output) == whole and "trimaps/rgb_0.png" in json.loads(whole["manifest.json"])["files"]
    assert names == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("disk full")])
def test_after_a_stop_the_remaining_images_are_made(sources, tmp_path, monkeypatch, capsys, stop):
    """It stops while an image is being written, which then does not count."""
    assert build(sources, tmp_path / "whole") == 0
    output = tmp_path / "set"
    replace = os.replace
    moved: list[Path] = []

    def stop_at_the_seventh(source, target):
        if target.suffix == ".png":
            if len(moved) == 7:
                raise stop
            moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_the_seventh)
        assert build(sources, output) == (130 if stop is KeyboardInterrupt else 1)
    assert ("continues" if stop is KeyboardInterrupt else "disk full") in capsys.readouterr().err
    assert len(list(output.rglob("*.png"))) == 7
    names = made(monkeypatch)
    assert build(sources, output) == 0
    assert names == ["rgb_2", "rgb_3", *(f"{name}_{i}" for name in ("b.1", "grey") for i in range(NUM_BACKGROUNDS))]
    assert contents(output) == contents(tmp_path / "whole")


def test_workers_hold_no_torch(tmp_path):
    """A spawned worker runs the tool's file again, so what that imports is what a worker holds."""
    code = "import sys, make_composition1k; print({'torch', 'detectron2'} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tools/dataset")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"


def refused(sources: Path, output: Path, capsys: pytest.CaptureFixture, *more: object) -> str:
    """Return the one message of a run that is refused before it writes anything."""
    before = contents(output) if output.exists() else None
    assert build(sources, output, *more) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("make_composition1k.py: ")
    assert (contents(output) if output.exists() else None) == before
    return printed.err


def test_all_faults_of_the_inputs_are_listed_at_once(sources, tmp_path, capsys):
    (sources / "fg/rgb.png").unlink()
    (sources / "bg/2008_000003.jpg").unlink()
    (sources / "bg/2008_000001.png").write_bytes(b"no image")
    (sources / "trimaps/b.1_2.png").unlink()
    Image.new("L", (30, 30)).save(sources / "trimaps/b.1_1.png")
    Image.new("L", FOREGROUNDS["rgb.png"], 127).save(sources / "trimaps/rgb_1.png")
    Image.new("L", (31, 30)).save(sources / "alpha/grey.png")
    Image.fromarray(np.zeros((50, 33), np.uint16)).save(sources / "alpha/b.1.png")
    message = refused(sources, tmp_path / "set", capsys)
    assert "8 problems, nothing made:" in message
    for part in (
        f"{sources}/fg/rgb.png is missing",
        f"{sources}/bg/2008_000003.jpg is missing",
        f"cannot read {sources}/bg/2008_000001.png",
        f"{sources}/trimaps/b.1_2 is missing",
        f"{sources}/trimaps/b.1_1.png is 30 x 30 px, but {sources}/fg/b.1.png is 33 x 50 px",
        f"{sources}/trimaps/rgb_1.png: expected a trimap of 0, 128 and 255 alone, got 127",
        f"{sources}/alpha/grey.png is 31 x 30 px, but {sources}/fg/grey.png is 30 x 30 px",
        f"{sources}/alpha/b.1.png has pixel format I;16: expected 8 bit",
    ):
        assert part in message


def test_the_complete_set_is_expected_by_default(sources, tmp_path, capsys):
    options = arguments(sources, tmp_path / "set")
    for name in ("--num-foregrounds", "--num-backgrounds"):
        at = options.index(name)
        del options[at : at + 2]
    assert make_composition1k.main(options) == 1
    message = capsys.readouterr().err
    assert f"{sources}/fg.txt lists 3 names, expected 50" in message
    assert f"{sources}/bg.txt lists 12 names, expected 1000" in message


def test_a_foreground_listed_twice_is_refused(sources, tmp_path, capsys):
    (sources / "fg.txt").write_text("rgb.png\nb.1.png\nrgb.jpg")
    assert f"{sources}/fg.txt lists rgb 2 times" in refused(sources, tmp_path / "set", capsys)


def test_missing_folders_and_unreadable_lists_are_named(sources, tmp_path, capsys):
    shutil.copy(sources / "fg/rgb.png", sources / "fg.txt")
    assert f"cannot read the list {sources}/fg.txt" in refused(sources, tmp_path / "set", capsys)
    message = refused(tmp_path / "nowhere", tmp_path / "set", capsys)
    for name in ("fg", "alpha", "bg", "trimaps", "fg.txt", "bg.txt"):
        assert f"{tmp_path}/nowhere/{name}" in message


def test_names_may_have_no_suffix_or_another_one(sources, tmp_path, capsys):
    assert build(sources, tmp_path / "exact") == 0
    for index, names in enumerate(("rgb\nb.1.jpg\ngrey.PNG\n", "rgb\nb.1\ngrey.png\n", "\ufeffrgb.png\nb.1\ngrey")):
        (sources / "fg.txt").write_text(names, encoding="utf-8")
        assert build(sources, tmp_path / f"other{index}") == 0
        assert contents(tmp_path / "exact") == contents(tmp_path / f"other{index}")
    capsys.readouterr()
    (sources / "fg.txt").write_text("rgb\nb\nfg/grey.png\n")
    shutil.copy(sources / "fg/rgb.png", sources / "fg/rgb.bmp")
    message = refused(sources, tmp_path / "third", capsys)
    for words in ("fg/b is missing", "fg/fg/grey.png is missing", "fg/rgb is one of rgb.bmp, rgb.png: keep one"):
        assert words in message


def test_a_broken_image_is_named_and_finished_images_stay(sources, tmp_path, capsys):
    path = sources / "fg/grey.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert build(sources, tmp_path / "set") == 1
    assert f"cannot read {path}" in capsys.readouterr().err
    assert len(list((tmp_path / "set/merged").iterdir())) == 2 * NUM_BACKGROUNDS


def test_a_folder_with_another_set_is_refused(sources, tmp_path, capsys, monkeypatch):
    assert build(sources, tmp_path / "set") == 0
    capsys.readouterr()
    lines = (sources / "bg.txt").read_text().split()
    (sources / "bg.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    assert "set that differs in composites:" in refused(sources, tmp_path / "set", capsys)
    (sources / "bg.txt").write_text("\n".join(lines))
    for kind in ("fg", "alpha", "bg"):
        path = sorted((sources / kind).iterdir())[-1]
        content = path.read_bytes()
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        assert "set that differs in inputs" in refused(sources, tmp_path / "set", capsys)
        path.write_bytes(content)
    monkeypatch.setattr(make_composition1k, "RULE", "another")
    assert "set that differs in rule:" in refused(sources, tmp_path / "set", capsys)


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', "{"])
def test_a_foreign_manifest_is_refused(sources, tmp_path, capsys, text):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/manifest.json").write_text(text)
    assert "is not a manifest of this tool" in refused(sources, tmp_path / "set", capsys)


@pytest.mark.parametrize("file", ["merged/rgb_0.jpg", "alpha_copy/other.png", "trimaps/rgb_9.png"])
def test_other_images_in_the_folders_are_refused(sources, tmp_path, capsys, file):
    path = tmp_path / "set" / file
    path.parent.mkdir(parents=True)
    path.touch()
    (path.parent / "notes.txt").touch()
    message = refused(sources, tmp_path / "set", capsys)
    assert "1 images are not part of this set" in message and str(path) in message


@pytest.mark.parametrize(
    "more", [["--workers", "0"], ["--num-foregrounds", "0"], ["--num-backgrounds", "-1"], ["--seed", "1"]]
)
def test_wrong_usage_is_status_2(sources, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as stop:
        build(sources, tmp_path / "set", *more)
    assert stop.value.code == 2
    assert more[0] in capsys.readouterr().err
