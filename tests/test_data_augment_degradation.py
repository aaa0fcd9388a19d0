"""Blur, noise, compression of the composite: against closed forms, Pillow's encoder and the draws' statistics."""

import io

import numpy as np
import pytest
from PIL import Image

from data.augment.degradation import DegradeImage, add_noise, compress
from data.image_io.images import to_float, to_uint8
from runtime.errors import ConfigError

ON = {"blur_probability": 1.0, "noise_probability": 1.0, "jpeg_probability": 1.0}


def picture(seed: int = 0, size_px: int = 64) -> np.ndarray:
    """Smooth colours with an edge, (S, S, 3) float32 in [0, 1]."""
    y, x = np.mgrid[:size_px, :size_px] / size_px
    colours = np.dstack([x, y, 0.5 + 0.4 * np.sin(9 * x + seed)])
    colours[:, size_px // 2 :] *= 0.4
    return colours.astype(np.float32)


def sample(seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": picture(seed), "alpha": picture(seed)[:, :, :1], "trimap": picture(seed)[:, :, 1:2]}


def degraded(seed: int = 0, **settings) -> np.ndarray:
    return DegradeImage(**settings)(sample(), np.random.default_rng(seed))["image"]


def test_off_gives_back_the_sample_and_draws_nothing():
    rng, given = np.random.default_rng(5), sample()
    assert DegradeImage()(given, rng) is given
    assert rng.random() == np.random.default_rng(5).random()


def test_only_the_image_changes_and_the_given_one_stays():
    given, before = sample(), sample()
    result = DegradeImage(**ON)(given, np.random.default_rng(0))
    assert not np.array_equal(result["image"], before["image"])
    assert result["image"].dtype == np.float32
    assert result["image"].min() >= 0 and result["image"].max() <= 1
    assert result["alpha"] is given["alpha"] and result["trimap"] is given["trimap"]
    np.testing.assert_array_equal(given["image"], before["image"])


@pytest.mark.parametrize("kind", ["blur", "noise", "jpeg"])
def test_each_comes_as_often_as_asked(kind):
    transform = DegradeImage(**{f"{kind}_probability": 0.3, "noise_sigma": (1, 4)})
    given = {"image": picture(size_px=8)}
    changed = [transform(given, np.random.default_rng(seed))["image"] is not given["image"] for seed in range(400)]
    equal = [np.array_equal(transform(given, np.random.default_rng(s))["image"], given["image"]) for s in range(400)]
    assert all(changed)  # clipped in any case
    assert abs(np.mean(equal) - 0.7) < 0.07  # three standard deviations of 400 draws


def test_a_kind_switched_on_leaves_what_the_others_draw():
    noisy = degraded(3, noise_probability=1.0)
    np.testing.assert_array_equal(noisy, degraded(3, **{**ON, "jpeg_probability": 0}, blur_sigma_px=(0, 0)))
    for quality in (40, 95):
        settings = {"noise_probability": 1.0, "jpeg_probability": 1.0, "jpeg_quality": (quality, quality)}
        np.testing.assert_array_equal(degraded(3, **settings), compress(noisy, quality))


def test_blur_is_a_gaussian_of_the_stated_width():
    """The response to a step is the normal distribution's; its variance adds to the pixel's own sampling."""
    step = np.zeros((9, 101, 3), np.float32)
    step[:, 50:] = 1
    blurred = DegradeImage(blur_probability=1.0, blur_sigma_px=(2.0, 2.0))({"image": step}, np.random.default_rng(0))
    weights = np.diff(blurred["image"][4, :, 0].astype(np.float64))
    centre = (weights * np.arange(100)).sum()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert (weights * (np.arange(100) - centre) ** 2).sum() == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("value", [0.3, 0.7])
def test_noise_has_the_variance_of_the_formula(value):
    flat = np.full((256, 256, 3), value, np.float32)
    noise = add_noise(flat, 3 / 255, 8 / 255, np.random.default_rng(1)).astype(np.float64) - flat
    assert 255**2 * noise.var() == pytest.approx(3**2 + 8**2 * value, rel=0.02)
    assert 255 * abs(noise.mean()) < 0.1
    channels = noise.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("quality", [30, 80])
def test_compression_is_as_strong_as_pillows(quality):
    image = picture()
    memory = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(memory, "JPEG", quality=quality, subsampling="4:2:0")
    expected = to_float(np.asarray(Image.open(memory)))
    np.testing.assert_allclose(compress(image, quality), expected, atol=6 / 255)
    assert np.abs(compress(image, quality) - expected).mean() < 0.4 / 255


def test_qualities_cover_their_range_with_both_ends(monkeypatch):
    seen: set[int] = set()

    def record(image: np.ndarray, quality: int) -> np.ndarray:
        seen.add(quality)
        return image

    monkeypatch.setattr("data.augment.degradation.compress", record)
    for seed in range(60):
        degraded(seed, jpeg_probability=1.0, jpeg_quality=[70, 74])
    assert seen == {70, 71, 72, 73, 74}


def test_noise_is_added_behind_the_blur():
    flat = {"image": np.full((64, 64, 3), 0.5, np.float32)}
    settings = {"noise_sigma": (5, 5), "shot_noise_sigma": (0, 0), "blur_sigma_px": (3, 3), "jpeg_probability": 0}
    noisy = DegradeImage(**{**ON, **settings})(flat, np.random.default_rng(0))["image"]
    assert 255 * noisy.std() == pytest.approx(5, rel=0.05)


def test_noise_is_compressed_and_not_the_other_way_round():
    """A file's blocks of 8 px are flat at quality 1; noise added behind it would not be."""
    image = degraded(0, noise_probability=1.0, noise_sigma=(9, 9), jpeg_probability=1.0, jpeg_quality=(1, 1))
    np.testing.assert_array_equal(to_float(to_uint8(image)), image)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jpeg_probability", 1.5),
        ("blur_probability", -0.1),
        ("jpeg_quality", [0, 90]),
        ("jpeg_quality", [50.5, 95]),
        ("blur_sigma_px", [0, float("inf")]),
        ("noise_sigma", [-1, 2]),
        ("shot_noise_sigma", [0, 300]),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        DegradeImage(**{name: value})
