"""The distributions of the training samples are those of a second implementation of the augmentations.

The colours of a foreground encode the coordinates of its pixels. So scale, rotation, shear, flips and centre of a crop
are read from the sample itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp

from data.augment.random_crop import DrawView
from data.augment.transforms import JitterColour, MakeTrimap
from data.datasets.composition import CompositionDataset
from data.datasets.photographs import DrawInnerView, RealImageDataset
from tests.helpers.reference_augmentation import Settings, draw_composite, draw_photograph

pytestmark = pytest.mark.slow

SAMPLES = 5000
# These tests compare about 40 quantities. With 1e-4 for each, one of 250 choices of seeds fails by chance. Two
# distributions of 5000 samples are told apart if their distribution functions differ by 0.045 somewhere.
SMALLEST_P = 1e-4

CROP_PX = 64
# The scales of the two windows do not overlap. So a scale range shifted by 5 % is seen.
CROP: dict[str, Any] = {"square_px": 80, "rotation_min_px": 100, "crop_factors": (1.0, 2.0)}
TRIMAP: dict[str, Any] = {"radius_px": (0, 7)}
NO_JITTER = {"hue_deg": 0.0, "jitter_share": 0.0}
LARGE = (220, 170)
# Windows limited by the foreground, foregrounds that are enlarged, and foregrounds with a border of alpha 0.
SMALL = ((110, 90), (46, 40), (28, 24))

Sample = dict[str, NDArray]


def make_disc(width: int, height: int, colour: tuple[float, ...] | None = None) -> NDArray:
    """Draw a disc with a soft rim. By default red is x / width and green is y / height. Return (H, W, 4) of 8 bit."""
    y, x = np.mgrid[:height, :width] + 0.5
    alpha = np.clip((0.34 * height - np.hypot(x - 0.42 * width, y - 0.53 * height)) / 4 + 0.5, 0, 1)
    channels = [np.full_like(x, value) for value in colour] if colour else [x / width, y / height, np.zeros_like(x)]
    return np.rint(255 * np.stack([*channels, alpha], axis=2)).astype(np.uint8)


def to_float(image: NDArray) -> NDArray[np.float32]:
    """Turn 8 bit into [0, 1]."""
    return (image / 255).astype(np.float32)


def write(path: Path, image: NDArray) -> None:
    """Write an image (H, W) or (H, W, C) of 8 bit."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)


def observe_geometry(sample: Sample, *, is_composite: bool) -> dict[str, float]:
    """Fit the affine map from the foreground, in units of its size, to the coordinates that its colours encode.

    The scale is the side of the foreground in sides of the crop, the root of both areas' ratio.
    """
    image, alpha = sample["image"], sample["alpha"]
    inside = alpha > 0.8 if is_composite else np.ones_like(alpha, dtype=bool)
    y, x = np.nonzero(cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0))
    if len(x) < 20:
        return {}
    colour = image[y, x, :2] / (alpha[y, x, None] if is_composite else 1)
    crop_points = np.column_stack([x + 0.5, y + 0.5, np.ones(len(x))])
    inverse = np.linalg.lstsq(crop_points, colour, rcond=None)[0].T
    x_axis, y_axis = np.linalg.inv(inverse[:, :2]).T / CROP_PX
    flip_x, flip_y = x_axis[0] < 0, y_axis[1] < 0
    x_axis, y_axis = (-1) ** flip_x * x_axis, (-1) ** flip_y * y_axis
    rotation = np.arctan2(x_axis[1], x_axis[0])
    observed = {
        "scale": np.sqrt(x_axis[0] * y_axis[1] - x_axis[1] * y_axis[0]),
        "stretch": np.hypot(*x_axis) / np.hypot(*y_axis),
        "rotation": rotation,
        "shear": np.arctan2(-y_axis[0], y_axis[1]) - rotation,
        "flips": flip_x + 2 * flip_y,
        "centre x": inverse[0] @ [CROP_PX / 2, CROP_PX / 2, 1],
        "centre y": inverse[1] @ [CROP_PX / 2, CROP_PX / 2, 1],
    }
    # Coarser than the errors of the fit. Otherwise they would count where a quantity is constant.
    return {name: round(float(value), 2) for name, value in observed.items()}


def observe_trimap(sample: Sample) -> dict[str, float]:
    """Measure how far the unknown region reaches into opaque and into transparent pixels, and its share."""
    stored, unknown = np.rint(255 * sample["alpha"]), sample["trimap"] == 0.5
    widths = {}
    for name, pure in (("inner width", stored == 255), ("outer width", stored == 0)):
        distance = cv2.distanceTransform(pure.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        widths[name] = 0.0 if pure.all() else float((distance * unknown).max())
    return {**widths, "unknown share": unknown.mean(), "mean of alpha": sample["alpha"].mean()}


def assert_same_distributions(
    dataset: CompositionDataset | RealImageDataset,
    draw: Callable[[int, np.random.Generator], Sample],
    observe: Callable[[Sample], dict[str, float]],
) -> None:
    """Compare each quantity of all samples with the reference's by a two-sample Kolmogorov-Smirnov test."""
    ours, expected = [], []
    for index in range(SAMPLES):
        arrays = {name: values.permute(1, 2, 0).numpy() for name, values in dataset[0, index].items()}
        ours.append(
            observe({"image": arrays["image"], "alpha": arrays["alpha"][..., 0], "trimap": arrays["trimap"][..., 0]})
        )
        expected.append(observe(draw(index, np.random.default_rng(index))))
    different = {}
    for name in max(expected, key=len):
        pair = [[sample[name] for sample in samples if name in sample] for samples in (ours, expected)]
        assert min(map(len, pair)) > 0.9 * SAMPLES, f"{name} can seldom be observed"
        result = ks_2samp(*pair)
        print(f"{name}: largest difference {result.statistic:.3f}, p = {result.pvalue:.2g}")
        if result.pvalue < SMALLEST_P:
            different[name] = result
    assert not different


def make_composites(folder: Path, foregrounds: list[NDArray], **changed: Any) -> tuple[CompositionDataset, Settings]:
    """Build a data set of these foregrounds over a black background, and the same settings for the reference."""
    for number, foreground in enumerate(foregrounds):
        write(folder / "foregrounds" / f"{number}.png", foreground)
    write(folder / "backgrounds" / "black.png", np.zeros((9, 9, 3), np.uint8))
    settings = {"merge_probability": 0.0, **NO_JITTER, **changed}
    colour = {name: settings[name] for name in NO_JITTER}
    dataset = CompositionDataset(
        folder / "foregrounds",
        folder / "backgrounds",
        samples_per_epoch=SAMPLES,
        crop_px=CROP_PX,
        merge_probability=settings["merge_probability"],
        crop=DrawView(**CROP),
        trimap=MakeTrimap(**TRIMAP),
        colour=JitterColour(**colour),
    )
    return dataset, Settings(CROP_PX, **CROP, **TRIMAP, **settings)


@pytest.mark.parametrize("sizes", [pytest.param([LARGE], id="large"), pytest.param(SMALL, id="small")])
def test_crops_and_trimaps_of_composites(tmp_path, sizes):
    foregrounds = [make_disc(*size) for size in sizes]
    dataset, settings = make_composites(tmp_path, foregrounds)
    arrays = [to_float(foreground) for foreground in foregrounds]
    assert_same_distributions(
        dataset,
        lambda index, rng: draw_composite(arrays, index, settings, rng),
        lambda sample: {**observe_geometry(sample, is_composite=True), **observe_trimap(sample)},
    )


def test_merged_foregrounds_and_their_colours(tmp_path):
    foregrounds = [make_disc(*size, colour=(0.3, 0.7, 0.4)) for size in (*SMALL, SMALL[0][::-1])]
    jitter = {"hue_deg": 30.0, "jitter_share": 0.2}
    dataset, settings = make_composites(tmp_path, foregrounds, merge_probability=0.5, **jitter)
    arrays = [to_float(foreground) for foreground in foregrounds]

    def observe(sample: Sample) -> dict[str, float]:
        opaque = np.rint(255 * sample["alpha"]) == 255
        if not opaque.any():
            return {}
        colour = sample["image"][opaque].mean(axis=0, keepdims=True)[None].astype(np.float32)
        hsv = cv2.cvtColor(colour, cv2.COLOR_RGB2HSV)[0, 0]
        return {**dict(zip(("hue", "saturation", "value"), hsv, strict=True)), **observe_trimap(sample)}

    assert_same_distributions(dataset, lambda index, rng: draw_composite(arrays, index, settings, rng), observe)


def test_crops_and_trimaps_of_a_photograph(tmp_path):
    photograph = make_disc(*LARGE)
    write(tmp_path / "image" / "photograph.png", photograph[..., :3])
    write(tmp_path / "alpha" / "photograph.png", photograph[..., 3])
    dataset = RealImageDataset(
        tmp_path / "image",
        tmp_path / "alpha",
        samples_per_epoch=SAMPLES,
        crop_px=CROP_PX,
        crop=DrawInnerView(**CROP),
        trimap=MakeTrimap(**TRIMAP),
        colour=JitterColour(**NO_JITTER),
    )
    settings = Settings(CROP_PX, **CROP, **TRIMAP, **NO_JITTER)
    array = to_float(photograph)
    assert_same_distributions(
        dataset,
        lambda index, rng: draw_photograph(array, settings, rng),
        lambda sample: {**observe_geometry(sample, is_composite=False), **observe_trimap(sample)},
    )
