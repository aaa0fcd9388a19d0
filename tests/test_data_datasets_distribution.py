"""The loader draws from the distribution of the plain pipeline: Kolmogorov-Smirnov tests over 2000 samples of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats

from data.datasets.composition import CompositionDataset
from data.sources.packs.writer import make_pack
from tests.helpers.dataset_settings import grouped
from tests.helpers.plain_pipeline import PlainPipeline

pytestmark = pytest.mark.slow

NUM_SAMPLES = 2000
CROP_PX = 64
VIEW: dict[str, Any] = {
    "square_probability": 0.25,
    "square_px": 120,
    "rotation_deg": 30.0,
    "rotation_min_px": 0,
    "scale_range": (0.8, 1.25),
    "shear_deg": 10.0,
    "flip_probability": 0.5,
    "crop_factors": (1.0, 1.5, 2.0, 3.5),  # the last one reads colours at a half, the square ones too
    "max_enlargement": 2.0,
    "trimap_radius_px": (0, 5),
}
WIDER_SCALES = (0.8 / 1.1, 1.25 * 1.1)

Sample = dict[str, NDArray]
Statistics = dict[str, float]


def save(path: Path, values: NDArray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(path, **options)


def smooth(rng: np.random.Generator, *shape: int, sigma: float) -> NDArray:
    """Draw smooth noise in [0, 1], (H, W) or (H, W, C)."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), (sigma, sigma, 0)[: len(shape)])
    return (noise - noise.min()) / np.ptp(noise)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textured foregrounds of several sizes as JPEG pairs, rulers whose colours are coordinates, and backgrounds."""
    root = tmp_path_factory.mktemp("distribution")
    for number in range(6):
        rng = np.random.default_rng(number)
        height, width = 220 + 30 * number, 380 - 20 * number
        steepness, sigma = (rng.uniform(3, 12), 30) if number % 2 else (60, 8)
        alpha = np.clip((smooth(rng, height, width, sigma=sigma) - 0.5) * steepness + 0.5, 0, 1)
        colours = smooth(rng, height, width, 3, sigma=4)
        if number % 3:
            colours[alpha < 0.02] = 1  # hidden colours that must not be seen
        save(root / "fg" / f"{number}.jpg", colours, quality=92)
        save(root / "alpha" / f"{number}.jpg", alpha, quality=92)
        save(root / "bg" / f"{number}.jpg", smooth(rng, 120, 160, 3, sigma=6), quality=92)
    x, y = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256))
    save(root / "ruler" / "ruler.png", np.dstack([x, y, np.ones_like(x), np.where((x - 0.5) ** 2 < 1 / 16, 1, 0.995)]))
    save(root / "flat" / "flat.png", np.zeros((120, 160, 3)))
    return root


def affine_statistics(sample: Sample) -> Statistics:
    """Read scale, rotation and shear off a crop of the ruler, whose red and green are the places in its picture."""
    image = sample["image"]
    rows, columns = np.nonzero(image[:, :, 2] > 0.98)
    places = np.stack([columns, rows, np.ones_like(rows)], axis=1)
    to_picture, *_ = np.linalg.lstsq(places, 256 * image[rows, columns, :2], rcond=None)
    first, second = np.linalg.inv(to_picture[:2].T).T  # where the picture's axes point in the crop
    determinant = abs(first[0] * second[1] - first[1] * second[0])
    return {
        "scale": np.log(determinant) / 2,
        "stretch": np.log(first @ first / determinant),
        "rotation": np.arctan2(first[1], first[0]) % np.pi,  # flips aside
        "shear": first @ second / determinant,
        "mirrored": float(first[0] * second[1] < first[1] * second[0]),
        "upside down": float(second[1] < 0),
        "column": image[:, :, 0].mean(),
        "row": image[:, :, 1].mean(),
    }


def picture_statistics(sample: Sample) -> Statistics:
    """Measure what a network sees: trimap, alpha and colours."""
    image, alpha, trimap = sample["image"], sample["alpha"], sample["trimap"]
    hsv_value, spread = image.max(axis=2), np.ptp(image, axis=2)
    shares = np.histogram(alpha, [0, 0.002, 0.25, 0.5, 0.75, 0.998, 1.001])[0] / alpha.size
    return {
        "unknown": (trimap == 0.5).mean(),
        "known foreground": (trimap == 1).mean(),
        **{f"alpha {number}": share for number, share in enumerate(shares)},
        **{name: image[:, :, channel].mean() for channel, name in enumerate(("red", "green", "blue"))},
        "contrast": image.std(),
        "red beside green": (image[:, :, 0] - image[:, :, 1]).std(),
        "hue": np.arctan2(*(image.mean(axis=(0, 1)) @ [[1.7320508, 2], [-1.7320508, -1], [0, -1]])),
        "edge": (trimap == 0.5).mean() - ((alpha > 0.002) & (alpha < 0.998)).mean(),
        "saturation": (spread / np.maximum(hsv_value, 1e-3)).mean(),
        "sharpness": np.abs(np.diff(image, axis=1)).mean(),
    }


def measure(draw: Callable[[int], Sample], statistics: Callable[[Sample], Statistics]) -> dict[str, NDArray]:
    """Give each statistic of `NUM_SAMPLES` samples."""
    rows = [statistics(draw(index)) for index in range(NUM_SAMPLES)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def smallest(first: dict[str, NDArray], second: dict[str, NDArray]) -> tuple[float, str]:
    """Give the smallest p of the two-sample tests, times their number (Bonferroni), and its statistic."""
    assert min(np.ptp(values) for values in first.values()) > 0
    p, name = min((stats.ks_2samp(first[name], second[name]).pvalue * len(first), name) for name in first)
    print(f"{name}: p = {p:.2g} after Bonferroni over {len(first)} statistics")
    return p, name


def new_samples(dataset: CompositionDataset) -> Callable[[int], Sample]:
    def draw(index: int) -> Sample:
        return {name: value.numpy().transpose(1, 2, 0) for name, value in dataset[0, index].items()}

    return draw


def build_rulers(root: Path, **changed: Any) -> tuple[CompositionDataset, PlainPipeline]:
    still = {"hue_deg": 0.0, "jitter_share": 0.0, "merge_probability": 0.0, "crop_px": CROP_PX, **VIEW}
    dataset = CompositionDataset(
        root / "ruler", root / "flat", samples_per_epoch=NUM_SAMPLES, seed=1, **grouped({**still, **changed})
    )
    plain = PlainPipeline([(root / "ruler" / "ruler.png", None)], dataset.backgrounds, seed=2, **still)
    return dataset, plain


def test_views_have_the_plain_pipelines_distribution_and_a_wider_one_has_not(root):
    dataset, plain = build_rulers(root)
    expected = measure(plain.__getitem__, affine_statistics)
    p, name = smallest(measure(new_samples(dataset), affine_statistics), expected)
    assert p > 1e-3, name
    wider, _ = build_rulers(root, scale_range=WIDER_SCALES)
    p, name = smallest(measure(new_samples(wider), affine_statistics), expected)
    assert p < 1e-3
    assert name == "stretch"


def test_samples_have_the_plain_pipelines_distribution_and_others_have_not(root):
    settings = {"crop_px": CROP_PX, **VIEW}

    def build(**changed: Any) -> CompositionDataset:
        folders = {"foreground_dirs": root / "fg", "background_dirs": root / "bg", "alpha_dirs": root / "alpha"}
        return CompositionDataset(
            **grouped({"samples_per_epoch": NUM_SAMPLES, "seed": 1, **folders, **settings, **changed})
        )

    dataset = build()
    files = [(foreground.path, foreground.alpha_path) for foreground in dataset.foregrounds]  # type: ignore[attr-defined]
    expected = measure(PlainPipeline(files, dataset.backgrounds, seed=2, **settings).__getitem__, picture_statistics)
    make_pack(dataset.foregrounds, root / "pack", 1, lambda done: None)  # type: ignore[arg-type]
    for same in (dataset, build(foreground_dirs=root / "pack", alpha_dirs=None)):
        p, name = smallest(measure(new_samples(same), picture_statistics), expected)
        assert p > 1e-3, name
    for changed in ({"trimap_radius_px": (0, 7)}, {"merge_probability": 0.75}):
        p, name = smallest(measure(new_samples(build(**changed)), picture_statistics), expected)
        assert p < 1e-3, (changed, name)
