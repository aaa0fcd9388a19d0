"""Augmentation options: switched off they change no bit, switched on they change what they name and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from data.augment.degradation import DegradeImage
from data.augment.tone_jitter import JitterTones
from data.composition import composite
from data.datasets.composition import CompositionDataset
from data.image_io.images import to_uint8
from data.procedural.demo import DEMO_KINDS
from data.procedural.surfaces import texture
from engine.config.config import apply_overrides, load_config
from runtime.errors import ConfigError
from tests.helpers.dataset_settings import grouped
from tests.helpers.paths import REPOSITORY

OFF: list[dict[str, Any]] = [
    {"degradation": DegradeImage()},
    {"tones": JitterTones()},
    {"estimates_foreground": False},
    {"trimap_reference_px": None},
    {"trimap_reference_px": 64},
]
ON: list[dict[str, Any]] = [
    {"degradation": DegradeImage(blur_probability=1.0)},
    {"degradation": DegradeImage(noise_probability=1.0)},
    {"degradation": DegradeImage(jpeg_probability=1.0)},
    {"tones": JitterTones(gamma=1.5)},
    {"tones": JitterTones(white_balance=1.3)},
    {"estimates_foreground": True},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cut-outs whose colours are the photograph's own, `exact` ones of the same alphas, and two backgrounds."""
    folder = tmp_path_factory.mktemp("augmentation")
    for name in ("photographs", "exact", "backgrounds"):
        (folder / name).mkdir()
    for number, kind in enumerate(("hair", "lace", "solid", "fur")):
        rng = np.random.default_rng(number)
        foreground, alpha = DEMO_KINDS[kind](rng, 128)
        photograph = composite(alpha[..., None], foreground, texture(rng, 128))
        for name, colours in (("photographs", photograph), ("exact", foreground)):
            Image.fromarray(to_uint8(np.dstack([colours, alpha]))).save(folder / name / f"{number}.png")
        Image.fromarray(to_uint8(texture(rng, 128))).save(folder / "backgrounds" / f"{number}.png")
    return folder


def samples(root: Path, colours: str = "photographs", **settings: Any) -> list[dict[str, torch.Tensor]]:
    dataset = CompositionDataset(
        root / colours, root / "backgrounds", **grouped({"samples_per_epoch": 8, "crop_px": 64, "seed": 3, **settings})
    )
    return [dataset[1, index] for index in range(8)]


def differing(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> set[str]:
    return {key for a, b in zip(first, second, strict=True) for key in a if not torch.equal(a[key], b[key])}


@pytest.mark.parametrize("settings", OFF, ids=lambda settings: next(iter(settings)))
def test_off_is_bit_exact_with_not_having_it(root, settings):
    assert differing(samples(root), samples(root, **settings)) == set()


@pytest.mark.parametrize("settings", ON, ids=lambda settings: next(iter(settings)))
def test_on_changes_the_image_alone(root, settings):
    assert differing(samples(root), samples(root, **settings)) == {"image"}


def test_trimaps_grow_with_the_crop_and_nothing_else_changes(root):
    grown = samples(root, trimap_radius_px=(1, 7), trimap_reference_px=32)
    assert differing(grown, samples(root, trimap_radius_px=(2, 14))) == set()
    assert differing(grown, samples(root, trimap_radius_px=(1, 7))) == {"trimap"}


def test_options_draw_from_generators_of_their_own(root):
    """What they did to each sample is done again by hand: to the image, and to the background where it is seen."""
    tones, degradation = JitterTones(1.5, 1.3), DegradeImage(noise_probability=1.0, jpeg_probability=1.0)
    drawn = [samples(root), samples(root, tones=tones), samples(root, tones=tones, degradation=degradation)]
    for index in range(8):
        plain, toned, degraded = (np.ascontiguousarray(of[index]["image"].permute(1, 2, 0).numpy()) for of in drawn)
        is_background = drawn[0][index]["alpha"][0].numpy() == 0
        expected = tones({"foreground": plain, "background": plain}, np.random.default_rng([3, 1, index, 1]))
        np.testing.assert_allclose(toned[is_background], expected["background"][is_background], atol=1e-6)
        expected = degradation({"image": toned}, np.random.default_rng([3, 1, index, 2]))
        np.testing.assert_array_equal(degraded, expected["image"])


def test_estimated_foregrounds_are_nearer_to_the_exact_ones(root):
    """Composites over new backgrounds, against those of the exact colours of the same alphas and views."""
    exact = samples(root, "exact", hue_deg=0, jitter_share=0)
    errors = [
        np.mean([(a["image"] - b["image"]).abs().mean() for a, b in zip(exact, other, strict=True)])
        for other in (
            samples(root, hue_deg=0, jitter_share=0, estimates_foreground=True),
            samples(root, hue_deg=0, jitter_share=0),
        )
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    "override",
    [
        "degradation.blur_probability=1.0",
        "degradation.noise_probability=1.0",
        "degradation.jpeg_probability=1.0",
        "tones.gamma=1.4",
        "tones.white_balance=1.2",
        "estimates_foreground=true",
        "trimap.reference_px=32",
        "degradation=null",
        "tones=null",
    ],
)
def test_each_is_one_line_in_a_config(root, override):
    """Off in the common config, on by one override; null is off too."""

    def drawn(*overrides: str) -> list[dict[str, torch.Tensor]]:
        cfg = load_config(REPOSITORY / "configs" / "demo.py")
        folders = (f"foreground_dirs=[{root}/photographs]", f"background_dirs=[{root}/backgrounds]", "crop_px=64")
        apply_overrides(cfg, [f"dataloader.train.dataset.{setting}" for setting in (*folders, *overrides)])
        dataset = instantiate(cfg.dataloader.train).dataset
        return [dataset[0, index] for index in range(4)]

    changed = {"trimap"} if override.startswith("trimap") else {"image"}
    assert differing(drawn(), drawn(override)) == (set() if override.endswith("null") else changed)


@pytest.mark.parametrize("value", [0, -5, "512"])
def test_a_reference_that_is_no_side_of_a_crop_is_refused(root, value):
    with pytest.raises(ConfigError, match=f"reference_px must be a number of at least 1, got {value!r}"):
        samples(root, trimap_reference_px=value)
