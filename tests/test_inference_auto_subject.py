"""inference/auto/subject.py: shapes of known outline, photographs with measured alphas."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from data.image_io.images import DataError, read_alpha, read_image, to_uint8
from data.trimap import read_trimap, trimap_from_mask
from inference.auto import subject
from inference.auto.subject import find_subject, trimap_of_subject
from tests.helpers.paths import REPOSITORY

RED, GREEN, BLUE, GREY = (0.85, 0.15, 0.1), (0.2, 0.5, 0.25), (0.15, 0.2, 0.8), (0.6, 0.6, 0.6)


def disc(shape, centre, radius_px):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(y - centre[0], x - centre[1]) < radius_px


def paint(regions, shape):
    """Paint colours over grey, with a little noise: (H, W, 3) in [0, 1]."""
    image = np.full((*shape, 3), GREY, np.float32)
    for mask, colour in regions:
        image[mask] = colour
    noise = np.random.default_rng(0).normal(0, 0.01, image.shape)
    return (image + noise).clip(0, 1).astype(np.float32)


def overlap(mask, expected_mask):
    return (mask & expected_mask).sum() / (mask | expected_mask).sum()


@pytest.fixture
def hot(monkeypatch):
    """Replace the network: colours have heats, blurred as patches blur."""

    def use(*heats, blur_px=8):
        def heat_map(image):
            heat = np.full(image.shape[:2], heats[0][1], np.float32)
            for colour, value in heats:
                heat[np.abs(image / 255 - colour).max(axis=2) < 0.1] = value
            return cv2.GaussianBlur(heat, (0, 0), blur_px)

        monkeypatch.setattr(subject, "heat_map", heat_map)

    return use


@pytest.mark.parametrize(
    ("shape", "centre", "radius_px"),
    [((300, 400), (150, 170), 70), ((400, 300), (399, 100), 120), ((1500, 2000), (400, 1500), 100)],
    ids=["inside", "at the border", "small"],
)
def test_a_disc_is_found_to_the_pixel(shape, centre, radius_px):
    expected_mask = disc(shape, centre, radius_px)
    mask = find_subject(paint([(expected_mask, RED)], shape))
    assert mask.shape == shape and mask.dtype == np.bool_
    assert not (mask & ~disc(shape, centre, radius_px + 2)).any()
    assert not (~mask & disc(shape, centre, radius_px - 2)).any()


def test_a_subject_is_found_on_large_images_as_on_small(matting_folder):
    image = read_image(matting_folder / "lemur/image/lemur.png")
    mask = find_subject(image)
    large = find_subject(cv2.resize(image, None, fx=4, fy=4))
    assert overlap(mask, read_alpha(matting_folder / "lemur/alpha_est/lemur.png") > 0.5) > 0.98
    assert overlap(large[2::4, 2::4], mask) > 0.98


def test_same_image_same_mask_in_any_thread_and_random_state():
    image = paint([(disc((200, 300), (90, 110), 60), RED)], (200, 300))
    expected, untouched = find_subject(image), image.copy()
    cv2.setRNGSeed(7)
    with ThreadPoolExecutor(3) as pool:
        for mask in pool.map(find_subject, [image] * 3):
            np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(image, untouched)


@pytest.mark.parametrize(("middle", "expected"), [(0.3, {"face"}), (0.55, {"face", "body"})])
def test_the_middle_level_is_scenery_or_body_by_its_heat(hot, middle, expected):
    shape = 300, 400
    regions = {"body": (disc(shape, (180, 200), 90), GREEN), "face": (disc(shape, (150, 200), 45), RED)}
    hot((GREY, 0.1), (GREEN, middle), (RED, 0.9))
    expected_mask = np.logical_or.reduce([regions[name][0] for name in expected])
    assert overlap(find_subject(paint(regions.values(), shape)), expected_mask) > 0.98


def test_specks_are_left_out_and_small_holes_filled(hot):
    shape = 300, 400
    second, hole = disc(shape, (80, 330), 35), disc(shape, (170, 150), 4)
    speck, ring = disc(shape, (250, 350), 9), disc(shape, (150, 150), 80)
    gap = disc(shape, (130, 150), 30)
    hot((GREY, 0.1), (RED, 0.9))
    image = paint([(ring | second | speck, RED), (hole | gap, GREY)], shape)
    assert overlap(find_subject(image), (ring & ~gap) | second) > 0.99
    assert find_subject(image)[hole].all() and not find_subject(image)[speck].any()


def test_an_image_of_uint8_or_rgba_gives_what_its_float_colours_give(hot):
    hot((GREY, 0.1), (RED, 0.9))
    image = to_uint8(paint([(disc((300, 400), (150, 150), 70), RED)], (300, 400)))
    expected = trimap_of_subject(image / np.float32(255))
    np.testing.assert_array_equal(trimap_of_subject(image), expected)
    np.testing.assert_array_equal(trimap_of_subject(np.dstack([image, image[:, :, :1]])), expected)


def test_remove_as_the_faq_writes_it_cuts_out_a_pillow_image():
    text = (REPOSITORY / "docs" / "faq.md").read_text()
    code = text[text.index("```python", text.index("## I use rembg")) :].split("```")[1].removeprefix("python")
    names: dict = {}
    exec(code, names)
    is_disc = disc((200, 300), (90, 110), 40)
    photo = Image.fromarray(to_uint8(paint([(is_disc, RED)], is_disc.shape))).rotate(90, expand=True)
    photo.getexif()[0x0112] = 6  # turn it by 90 degrees, as telephones write
    cutout = names["remove"](photo)
    assert cutout.mode == "RGBA" and cutout.size == (300, 200)
    assert overlap(np.asarray(cutout)[:, :, 3] > 127, is_disc) > 0.98


def test_a_trimap_is_the_masks_band_and_what_the_first_look_contradicts(hot):
    shape = 300, 400
    body, face = disc(shape, (150, 150), 70), disc(shape, (120, 150), 30)
    wisp, far = disc(shape, (150, 234), 12), disc(shape, (62, 62), 15)
    image = paint([(body, BLUE), (face, RED), (wisp | far, GREEN)], shape)
    hot((GREY, 0.1), (BLUE, 0.7), (RED, 0.95), blur_px=1)
    band = trimap_from_mask(find_subject(image), 8)
    np.testing.assert_array_equal(trimap_of_subject(image, 2), band)
    hot((GREY, 0.1), (GREEN, 0.25), (BLUE, 0.7), (RED, 0.95), blur_px=1)
    doubted = trimap_of_subject(image, 2)
    assert (doubted[wisp] == 0.5).mean() > 0.95 and (doubted[far] == 0).all()
    assert set(np.unique(doubted[band != doubted])) <= {0.5}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            np.full((60, 80, 3), 0.5),
            "no subject stands out .saliency 0.[78].* to 0.9.*; give a mask or a trimap",
        ),
        (np.random.default_rng(0).random((60, 80, 3)), "x.png: no subject stands out"),
        (np.ones((1, 1, 3)), "x.png: no subject stands out"),
        (np.ones(60), r"x.png has shape \(60,\); expected \(H, W, 3\) RGB"),
        (np.ones((0, 80, 3)), r"expected an image \(H, W, 3\), got \(0, 80, 3\)"),
        (np.full((60, 80, 3), np.nan), r"expected x.png in \[0, 1\], got nan"),
        (np.full((60, 80, 3), 255.0), r"expected x.png in \[0, 1\], got 255 to 255: scale it"),
    ],
    ids=["flat", "noise", "one pixel", "one axis", "empty", "nan", "0 to 255"],
)
def test_what_holds_no_subject_is_an_error(image, words):
    with pytest.raises(DataError, match=words):
        trimap_of_subject(image, name="x.png")


@pytest.mark.parametrize("heats", [(0.1, 0.4), (0.5, 0.7)], ids=["cold", "no contrast"])
def test_a_weak_heat_map_is_an_error(hot, heats):
    hot((GREY, heats[0]), (RED, heats[1]))
    with pytest.raises(DataError, match="no subject stands out"):
        find_subject(paint([(disc((300, 400), (150, 150), 70), RED)], (300, 400)))


def test_a_few_hot_pixels_are_no_subject(hot):
    hot((GREY, 0.1), (RED, 0.9), blur_px=0.1)
    with pytest.raises(DataError, match=r"no subject stands out \(4 of 120000 pixels do\)"):
        find_subject(paint([(np.s_[20:22, 30:32], RED)], (300, 400)))


def test_a_band_that_leaves_nothing_certain_is_an_error():
    image = paint([(disc((200, 300), (90, 110), 40), RED)], (200, 300))
    with pytest.raises(DataError, match="nothing of the subject.* is certain with a band of 40 %; narrow"):
        trimap_of_subject(image, 40)


@pytest.mark.parametrize("shape", [(1, 60), (60, 1), (5, 7), (3, 900)])
def test_any_shape_gives_a_mask_or_a_plain_error(shape):
    image = cv2.resize(paint([(disc((90, 120), (45, 50), 25), RED)], (90, 120)), shape[::-1]).reshape(*shape, 3)
    try:
        assert find_subject(image).shape == shape
    except DataError as error:
        assert "no subject stands out" in str(error)


def test_the_lemurs_own_trimap_is_not_contradicted(matting_folder):
    trimap = trimap_of_subject(read_image(matting_folder / "lemur/image/lemur.png"))
    official = read_trimap(matting_folder / "lemur/trimap/lemur.png")
    assert (np.abs(trimap - official) == 1).mean() < 0.001
    assert (trimap == 0.5).mean() < 0.1


@pytest.mark.slow
def test_measured_alphas_are_met(matting_folder):
    """The figures of docs/trimaps.md: pytest -m slow -s tests/test_inference_auto_subject.py -k measured."""
    rows = []
    for path in sorted((matting_folder / "alphamatting/image").iterdir()):
        image, alpha = read_image(path), read_alpha(matting_folder / "alphamatting/alpha" / path.name)
        mask, mixed = find_subject(image), (alpha > 0.02) & (alpha < 0.98)
        row = [overlap(mask, alpha > 0.5)]
        for trimap in (trimap_from_mask(mask, round(0.03 * max(alpha.shape))), trimap_of_subject(image)):
            unknown = trimap == 0.5
            wrong = ~unknown & (np.abs(alpha - trimap) > 0.5)
            row += [(mixed & unknown).sum() / mixed.sum(), unknown.mean(), wrong.mean()]
        rows.append(row)
        print(path.stem, *(f"{value:.4f}" for value in row))
    means = np.mean(rows, axis=0)
    print("mean", *(f"{value:.4f}" for value in means), "lowest overlap", min(row[0] for row in rows))
    assert means[0] > 0.96 and min(row[0] for row in rows) > 0.8
    assert means[4] > 0.81 and means[5] < 0.15 and means[6] < 0.006
    assert means[4] > means[1] and means[6] < 0.6 * means[3]
