"""Packs compared with the images that they are made of: exact pixels, naive averages, statistics of the points."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chisquare

from data.augment.random_crop import scaling, translation
from data.augment.warp import INTERPOLATIONS, sample_layer
from data.datasets.composition import CompositionDataset
from data.image_io.images import DataError
from data.loader.build import build_train_loader
from data.sources.foregrounds import NUM_POINTS, REDUCTIONS, Box, ForegroundFile
from data.sources.packs.reader import INDEX, MAX_POINTS, PackedForeground, find_packed, is_pack
from data.sources.packs.writer import make_pack

SIZES = {"dot": (1, 1), "odd": (63, 65), "even": (128, 64), "large": (201, 330)}  # width, height
ORIENTATION = 0x0112


def soft_alpha(rng: np.random.Generator, size: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    """Random values of which a third is 0 and a third 1."""
    full = np.iinfo(dtype).max
    values = rng.integers(0, full, size[::-1], dtype, endpoint=True)
    return rng.choice(np.array([0, 1, full], dtype), size[::-1]) * np.minimum(values, 1) | values * (values % 3 == 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours in fg/ and alphas in alpha/ of all sizes, one in 16 bit, one of mixed depth, a JPEG lying on its side."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("fg", "alpha"):
        (folder / name).mkdir()
    for name, size in SIZES.items():
        cv2.imwrite(str(folder / "fg" / f"{name}.png"), rng.integers(0, 256, (*size[::-1], 3), np.uint8))
        cv2.imwrite(str(folder / "alpha" / f"{name}.png"), soft_alpha(rng, size))
    for name, dtype in (("deep", np.uint16), ("mixed", np.uint8)):
        colours = rng.integers(0, np.iinfo(dtype).max, (70, 90, 3), dtype, endpoint=True)
        cv2.imwrite(str(folder / "fg" / f"{name}.png"), colours)
        cv2.imwrite(str(folder / "alpha" / f"{name}.png"), soft_alpha(rng, (90, 70), np.uint16))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying = Image.fromarray(rng.integers(0, 256, (40, 80, 3), np.uint8))
    lying.save(folder / "fg" / "rotated.jpg", exif=exif)
    cv2.imwrite(str(folder / "alpha" / "rotated.png"), soft_alpha(rng, (40, 80)))
    return folder


@pytest.fixture(scope="module")
def pack(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "pack"
    make_pack(list_files(pictures), folder, 1, lambda count: None)
    return folder


@pytest.fixture
def copied(pack: Path, tmp_path: Path) -> Path:
    """A pack that a test may damage."""
    return Path(shutil.copytree(pack, tmp_path / "copy"))


def list_files(pictures: Path) -> list[ForegroundFile]:
    return [
        ForegroundFile(path, pictures / "alpha" / f"{path.stem}.png") for path in sorted((pictures / "fg").iterdir())
    ]


def pack_arrays(folder: Path, colours: np.ndarray, alpha: np.ndarray) -> PackedForeground:
    """Pack one foreground of pixels in memory."""
    cv2.imwrite(str(folder / "colours.png"), colours[:, :, ::-1])
    cv2.imwrite(str(folder / "alpha.png"), alpha)
    make_pack([ForegroundFile(folder / "colours.png", folder / "alpha.png")], folder / "pack", 1, lambda count: None)
    return find_packed(folder / "pack")[0]


def read_both(packed_foreground: PackedForeground, pictures: Path) -> tuple[np.ndarray, ...]:
    """Read the packed image and the files, those by OpenCV, or by Pillow where there is a rotation."""
    stored = packed_foreground.open().read((0, 0, *packed_foreground.size), 1)
    name = packed_foreground.name.rpartition(":")[2]
    if name.endswith(".jpg"):
        with Image.open(pictures / "fg" / name) as image:
            colours = np.asarray(ImageOps.exif_transpose(image))
    else:
        colours = cv2.imread(str(pictures / "fg" / name), cv2.IMREAD_UNCHANGED)[:, :, ::-1]
    alpha = cv2.imread(str(pictures / "alpha" / f"{Path(name).stem}.png"), cv2.IMREAD_UNCHANGED)
    return *stored, colours, alpha


def test_the_first_size_equals_the_files_bit_exact(pack, pictures):
    foregrounds = find_packed(pack)
    names = [foreground.name.rpartition(":")[2] for foreground in foregrounds]
    assert names == [file.path.name for file in list_files(pictures)]
    for foreground in foregrounds:
        colours, alpha, expected, expected_alpha = read_both(foreground, pictures)
        assert foreground.size == expected_alpha.shape[::-1]
        assert (colours.dtype, alpha.dtype) == (expected.dtype, expected_alpha.dtype), foreground.name
        np.testing.assert_array_equal(colours, expected)
        np.testing.assert_array_equal(alpha, expected_alpha)


def test_a_cut_out_is_packed_with_its_hidden_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 4), np.uint8)
    pixels[:, :20, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    make_pack([ForegroundFile(tmp_path / "a.png")], tmp_path / "pack", 1, lambda count: None)
    colours, alpha = find_packed(tmp_path / "pack")[0].read((0, 0, 50, 30), 1)
    np.testing.assert_array_equal(np.dstack([colours, alpha]), pixels)


def average_naively(colours: np.ndarray, alpha: np.ndarray, box: Box, reduction: int) -> Iterator[np.ndarray]:
    """Average the premultiplied floats of the areas of a box, and divide; gives R, G, B, A of each.

    Beyond the image its last row and column are repeated.
    """
    left, top, right, bottom = box
    for y in range(top, bottom, reduction):
        for x in range(left, right, reduction):
            rows, columns = (
                np.minimum(np.arange(start, start + reduction), side - 1)
                for start, side in zip((y, x), alpha.shape, strict=True)
            )
            area = np.ix_(rows, columns)
            weights = alpha[area].astype(float)[:, :, None]
            total = weights.sum() or 1
            yield np.append((weights * colours[area]).sum(axis=(0, 1)) / total, weights.mean())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_box_is_the_premultiplied_average_of_its_areas(pack, pictures, reduction):
    rng = np.random.default_rng(reduction)
    for foreground in find_packed(pack):
        *_, colours, alpha = read_both(foreground, pictures)
        width, height = foreground.size
        steps = [(-(-side // reduction)) for side in (width, height)]
        for _ in range(12):
            left, top = (reduction * int(rng.integers(count)) for count in steps)
            right = int(rng.integers(left + 1, min(width, left + 96) + 1))
            bottom = int(rng.integers(top + 1, min(height, top + 9 * reduction) + 1))
            box = (left, top, right, bottom)
            reduced, opacity = foreground.open().read(box, reduction)
            assert opacity.shape == (-(-(bottom - top) // reduction), -(-(right - left) // reduction))
            assert reduced.shape == (*opacity.shape, 3)
            expected = np.array(list(average_naively(colours, alpha, box, reduction))).reshape(*opacity.shape, 4)
            np.testing.assert_array_less(np.abs(opacity - expected[:, :, 3]), 0.5 + 1e-6)
            is_visible = expected[:, :, 3] > 0
            difference = np.abs(reduced - expected[:, :, :3])[is_visible]
            np.testing.assert_array_less(difference, 0.5 + 1e-6)


def test_a_box_outside_the_image_or_between_its_areas_is_refused(pack):
    foreground = next(f for f in find_packed(pack) if f.size == SIZES["large"])
    for box, reduction in (
        ((-1, 0, 5, 5), 1),
        ((0, 0, 202, 5), 1),
        ((0, 0, 5, 331), 1),
        ((6, 0, 5, 9), 1),
        ((2, 4, 9, 9), 4),
        ((0, 0, 9, 9), 3),
    ):
        with pytest.raises(ValueError, match="expected"):
            foreground.read(box, reduction)


def test_points_are_uniform_over_all_fractional_pixels(tmp_path):
    alpha = np.zeros((50, 40), np.uint8)
    alpha[10:20, 5:30], alpha[40:, 20:] = 128, 255
    alpha[0, 0], alpha[49, 39] = 1, 254
    foreground = pack_arrays(tmp_path, np.zeros((50, 40, 3), np.uint8), alpha)
    rng = np.random.default_rng(0)
    drawn = [foreground.open().unknown_points(rng) for _ in range(400)]
    assert {points.shape for points in drawn} == {(NUM_POINTS, 2)}
    assert {points.dtype for points in drawn} == {np.dtype(np.int32)}
    columns, rows = np.concatenate(drawn).T
    counts = np.zeros(alpha.shape, int)
    np.add.at(counts, (rows, columns), 1)
    is_fractional = (alpha > 0) & (alpha < 255)
    assert (counts[~is_fractional] == 0).all()
    assert chisquare(counts[is_fractional]).pvalue > 1e-3
    first = np.array([points[0] for points in drawn])
    assert len(np.unique(first, axis=0)) > 150  # of 252 pixels 200 are expected in 400 draws


def test_of_many_unknown_pixels_an_even_choice_is_stored(tmp_path):
    alpha = np.full((300, 200), 128, np.uint8)
    alpha[:, :50] = 0
    foreground = pack_arrays(tmp_path, np.zeros((300, 200, 3), np.uint8), alpha)
    assert (alpha == 128).sum() > MAX_POINTS
    rng = np.random.default_rng(0)
    drawn = np.unique(np.concatenate([foreground.unknown_points(rng) for _ in range(600)]), axis=0)
    columns, rows = drawn.T
    assert (alpha[rows, columns] == 128).all()
    counts = np.histogram2d(rows, columns, bins=(10, 10), range=((0, 300), (50, 200)))[0]
    assert chisquare(counts.ravel()).pvalue > 1e-3
    assert 0.85 * MAX_POINTS < len(drawn) <= MAX_POINTS  # 1 - exp(-600 * 64 / 16384) = 0.90


def test_without_fractional_pixels_points_lie_on_edges_and_without_edges_there_are_none(tmp_path):
    hard = np.zeros((20, 30), np.uint8)
    hard[5:15, 5:25] = 255
    rng = np.random.default_rng(0)
    (tmp_path / "hard").mkdir()
    (tmp_path / "flat").mkdir()
    columns, rows = pack_arrays(tmp_path / "hard", np.zeros((20, 30, 3), np.uint8), hard).unknown_points(rng).T
    padded = np.pad(hard, 1, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    assert (np.ptp(windows.reshape(20, 30, 9), axis=2)[rows, columns] > 0).all()
    flat = pack_arrays(tmp_path / "flat", np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 255, np.uint8))
    assert flat.unknown_points(rng).shape == (0, 2)
    assert flat.read((0, 0, 9, 9), 8)[1].tolist() == [[255, 255], [255, 255]]


def test_a_pickle_is_small_and_no_file_stays_open(pack):
    foregrounds = find_packed(pack)
    before = len(os.listdir("/proc/self/fd"))
    for foreground in foregrounds:
        foreground.open().read((0, 0, *foreground.size), 2)
        foreground.open().unknown_points(np.random.default_rng(0))
        content = pickle.dumps(foreground)
        assert len(content) < 1000
        assert pickle.loads(content) == foreground
    assert len(os.listdir("/proc/self/fd")) == before


def digest(foreground: PackedForeground) -> bytes:
    colours, alpha = foreground.open().read((0, 0, *foreground.size), 1)
    return colours.tobytes() + alpha.tobytes()


def test_a_pack_may_be_moved(pack, copied):
    digests = [[digest(foreground) for foreground in find_packed(folder)] for folder in (pack, copied)]
    assert digests[0] == digests[1]


def test_what_is_a_pack(pack, pictures, tmp_path):
    assert is_pack(pack) and is_pack(str(pack))
    assert not is_pack(pictures / "fg") and not is_pack(tmp_path / "nowhere")


def test_a_file_that_is_cut_off_or_missing_is_named(copied):
    foregrounds = find_packed(copied)
    path, content = foregrounds[2].path, foregrounds[2].path.read_bytes()
    for length in (len(content) - 1, 1000, 0):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"{path} is damaged: expected {len(content)} bytes, got {length}"):
            find_packed(copied)
        for read in (
            lambda: foregrounds[2].read((0, 0, 1, 1), 1),
            lambda: foregrounds[2].unknown_points(np.random.default_rng(0)),
        ):
            with pytest.raises(DataError, match=f"cannot read {foregrounds[2].name}: {path} is damaged"):
                read()
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        find_packed(copied)
    with pytest.raises(FileNotFoundError):
        foregrounds[2].read((0, 0, 1, 1), 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: index | {"version": 1}, "version 1; .* version 2: .*pack it again"),
        (lambda index: index | {"format": "another"}, "is of another, version 2"),
        (lambda index: {"version": 2}, "is damaged"),
        (lambda index: [index], "is damaged"),
        (lambda index: index | {"foregrounds": [{"name": "a.png"}]}, "is damaged"),
        (lambda index: index | {"foregrounds": None}, "is an unfinished pack"),
    ],
)
def test_an_index_that_cannot_be_used_is_an_error(copied, damage, message):
    text = (copied / INDEX).read_text()
    (copied / INDEX).write_text(json.dumps(damage(json.loads(text))))
    with pytest.raises(DataError, match=message):
        find_packed(copied)
    (copied / INDEX).write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="is damaged"):
        find_packed(copied)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_views_of_a_pack_are_those_of_its_files(tmp_path, interpolation):
    rng = np.random.default_rng(0)
    alpha = np.repeat(np.repeat(soft_alpha(rng, (50, 40)), 8, axis=0), 8, axis=1)
    colours = cv2.GaussianBlur(rng.integers(0, 256, (320, 400, 3), np.uint8), (0, 0), 3)
    stored = pack_arrays(tmp_path, colours, alpha)
    file = ForegroundFile(tmp_path / "colours.png", tmp_path / "alpha.png").open()
    for scale, tolerance in ((1.3, 0), (0.7, 0), (0.4, 2 / 255), (0.2, 2 / 255), (0.1, 2 / 255)):
        view = scaling(scale) @ translation(np.array([-37.3, -21.7]))
        layers = [sample_layer(source, view, 64, interpolation) for source in (stored, file)]
        for values, others in zip(*([alpha, alpha * colours] for alpha, colours in layers), strict=True):
            np.testing.assert_allclose(values, others, atol=tolerance)
            assert values.std() > 0.1


def test_samples_are_the_same_for_any_number_of_workers(pack, pictures):
    dataset = CompositionDataset([pack], [pictures / "fg"], None, samples_per_epoch=8, crop_px=32)
    batches = []
    for num_workers in (0, 2):
        loader = iter(build_train_loader(dataset, 4, num_workers, seed=0))
        batches.append([next(loader) for _ in range(3)])
    for alone, shared in zip(*batches, strict=True):
        for key in ("image", "trimap", "alpha"):
            assert torch.equal(alone[key], shared[key])
    assert not torch.equal(batches[0][0]["image"], batches[0][1]["image"])
