"""data.checks piece by piece: files that are cut off, alphas, colours, trimaps, and images that are alike."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.checks.dataset import as_colours
from data.checks.duplicates import MIN_CORRELATION, find_alike, find_duplicates, make_fingerprint
from data.checks.files import read_stored_image
from data.checks.pixels import (
    describe_alpha,
    describe_trimap,
    fits_turned,
    is_premultiplied,
)
from data.image_io.decoding import turn_upright
from data.image_io.encoding import encode
from tests.helpers.broken_dataset import KINDS as DEMO_KINDS
from tests.helpers.broken_dataset import draw, make_trimap, photograph, save

DRAWN = [draw(index) for index in range(2 * len(DEMO_KINDS))]


def multiply(colours, alpha):
    return np.rint(colours * (alpha[..., None] / np.iinfo(alpha.dtype).max)).astype(colours.dtype)


def as_16_bit(pixels):
    return pixels.astype(np.uint16) * 257


def as_jpeg(pixels, quality):
    content = BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
def test_a_file_without_its_end_is_told_from_one_that_is_damaged(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    content = encode(photograph(0), suffix)
    for length in (len(content) - 300, len(content) // 2, len(content) // 4, 60, 12 if suffix != ".ppm" else 60):
        path.write_bytes(content[:length])
        image, findings = read_stored_image(path)
        assert image is None and [finding.code for finding in findings] == ["truncated"], length
    damaged = bytearray(content)
    for place in range(len(content) // 2, len(content) // 2 + 40):
        damaged[place] ^= 0x5A
    path.write_bytes(damaged)
    codes = [finding.code for finding in read_stored_image(path)[1]]
    assert codes == ["unreadable"] if suffix == ".png" else codes in ([], ["unreadable"])  # others may be decoded yet
    path.write_bytes(content)
    image, findings = read_stored_image(path)
    assert findings == [] and (suffix == ".jpg" or (image.pixels == photograph(0)).all())


def test_a_16_bit_png_without_its_last_bytes_is_cut_off_and_one_of_bad_pixels_is_not(tmp_path):
    """OpenCV, which decodes these, says the same of both."""
    content = encode(as_16_bit(photograph(0)), ".png")
    for broken, code in ((content[:-3], "truncated"), (content[:300] + bytes(9) + content[309:], "unreadable")):
        (tmp_path / "a.png").write_bytes(broken)
        assert [finding.code for finding in read_stored_image(tmp_path / "a.png")[1]] == [code]


def test_a_camera_s_jpeg_of_two_images_is_a_jpeg(tmp_path):
    first, second = (Image.fromarray(photograph(index)) for index in range(2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert read_stored_image(tmp_path / "a.jpg")[1] == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_the_orientation_is_read_of_all_formats_that_have_one(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a{suffix}"
    for tags, orientation in ((None, 1), (exif, 6)):
        save(path, photograph(0), **({"exif": tags} if tags else {}))
        image, findings = read_stored_image(path)
        assert findings == [] and image.orientation == orientation
        assert image.pixels.shape == ((128, 160, 3) if orientation == 1 else (160, 128, 3))


@pytest.mark.parametrize("quality", [60, 75, 90, 100])
def test_masks_are_found_through_jpeg_and_soft_alphas_are_none(quality):
    for _, alpha in DRAWN:
        assert describe_alpha(alpha) is None and describe_alpha(as_jpeg(alpha, quality)) is None
        if (alpha > 127).any():
            mask = np.where(alpha > 127, 255, 0).astype(np.uint8)
            assert describe_alpha(as_jpeg(mask, quality))[0] == "hard-mask"
            assert describe_alpha(as_16_bit(mask))[0] == "hard-mask"


@pytest.mark.parametrize(("value", "code"), [(0, "empty-alpha"), (1, "empty-alpha"), (255, "full-alpha")])
def test_an_alpha_of_one_value_is_empty_or_full(value, code):
    alpha = np.full((8, 8), value, np.uint8)
    assert describe_alpha(alpha)[0] == code and describe_alpha(as_16_bit(alpha))[0] == code
    alpha[:4, :4] = 128
    assert describe_alpha(alpha) is None


@pytest.mark.parametrize("convert", [np.asarray, as_16_bit], ids=["8 bit", "16 bit"])
def test_premultiplied_colours_are_told_from_straight_ones(convert):
    for colours, alpha in DRAWN:
        colours, alpha = convert(colours), convert(alpha)
        assert is_premultiplied(multiply(colours, alpha), alpha)
        assert not is_premultiplied(colours, alpha)
        assert not is_premultiplied(np.where(alpha[..., None] > 0, colours, 0), alpha)  # nothing hidden under 0
        black = colours // 64  # as bright as alpha nowhere, and yet straight
        assert not is_premultiplied(black, alpha)
        dark = np.full_like(colours, np.iinfo(colours.dtype).max // 16)
        assert not is_premultiplied(dark, alpha)


def test_few_bright_pixels_are_compression_and_many_are_straight_colours():
    colours, alpha = DRAWN[0]
    multiplied = multiply(colours, alpha)
    soft = np.argwhere((alpha > 15) & (alpha < 200))
    for share, expected in ((0.01, True), (0.1, False)):
        changed = multiplied.copy()
        for row, column in soft[:: round(1 / share)]:
            changed[row, column] = alpha[row, column] + 12
        assert is_premultiplied(changed, alpha) == expected


def test_a_trimap_may_err_on_a_pixel_in_a_thousand():
    alpha = np.zeros((100, 100), np.uint8)
    trimap = np.zeros_like(alpha)
    trimap[0, :10], trimap[:, 50:] = 128, 255
    alpha[:, 50:] = 255
    alpha[0, :10] = 77
    assert describe_trimap(trimap, alpha) is None
    alpha[1, :9] = 255  # of 9990 known pixels
    assert describe_trimap(trimap, alpha) is None and describe_trimap(trimap, as_16_bit(alpha)) is None
    alpha[1, 60] = 0
    code, detail = describe_trimap(trimap, alpha)
    assert code == "trimap-contradiction" and detail.startswith("0.1% of its known pixels")
    alpha[1] = np.where(alpha[1] > 0, 255 - 25, 25)  # a tenth is near enough
    alpha[1, 60] = 255 - 25
    assert describe_trimap(trimap, alpha) is None


def test_odd_trimaps_are_named_by_their_values():
    trimap = np.array([[0, 128, 255, 1, 2, 3, 4, 5, 6]], np.uint8)
    assert describe_trimap(trimap, None) == ("trimap-values", "uint8 with 1, 2, 3, 4, 5, ...")
    assert describe_trimap(np.array([[0, 2, 1]], np.uint8), None) == ("trimap-values", "uint8 with 1, 2")
    assert describe_trimap(as_16_bit(trimap), None)[0] == "trimap-values"
    assert describe_trimap(trimap[:, :1], None) == ("trimap-no-unknown", "0 alone")
    assert describe_trimap(trimap[:, [0, 2]], None) == ("trimap-no-unknown", "0 and 255 alone")
    assert describe_trimap(trimap[:, 1:2], None) is None
    for _, alpha in DRAWN:
        assert describe_trimap(make_trimap(alpha), alpha) is None


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_alpha_of_the_image_as_stored_fits_once_it_is_turned(orientation):
    """The alpha was made of what is stored; the image is seen upright."""
    for colours, alpha in DRAWN[:6]:
        opacity = alpha[..., None] / 255
        stored = np.rint(opacity * colours + (1 - opacity) * (photograph(5)[:, :128] // 8)).astype(np.uint8)
        upright = turn_upright(stored, orientation)
        assert fits_turned(upright, alpha, orientation)
        assert not fits_turned(upright, turn_upright(alpha, orientation), orientation)
        assert not fits_turned(upright, alpha, 1)
        if orientation > 4:  # turned it has another size: that of the upright image it has already
            assert not fits_turned(upright[:-8], alpha[:-8], orientation)


def fingerprint(name, pixels, alpha=None, is_cutout=False):
    return make_fingerprint(Path(name), as_colours(pixels), alpha, is_cutout)


def test_the_same_pixels_are_found_in_any_format_and_other_pixels_are_not(tmp_path):
    photo = photograph(0)
    grey = photo[:, :, 0]
    test = [fingerprint("photo", photo), fingerprint("grey", grey)]
    for suffix in (".png", ".bmp", ".tif", ".webp", ".ppm"):
        for name, pixels in (("photo", photo), ("grey", grey)):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(encode(pixels, suffix))
            copies = [fingerprint(path, read_stored_image(path)[0].pixels), fingerprint("16 bit", as_16_bit(pixels))]
            assert [(found.code, found.detail) for found in find_duplicates(copies, test)] == [
                ("duplicate", f"the pixels of {name}")
            ] * 2
    photo = photo.copy()
    photo[5, 5, 1] ^= 1
    assert [found.code for found in find_duplicates([fingerprint("changed", photo)], test)] == ["near-duplicate"]
    assert list(find_duplicates([fingerprint("other", photograph(1))], test)) == []


def test_what_says_too_little_is_not_alike():
    flat, turned = np.zeros((20, 40, 3), np.uint8), np.zeros((40, 20, 3), np.uint8)
    assert list(find_duplicates([fingerprint("flat", flat)], [fingerprint("turned", turned)])) == []
    pattern = np.repeat(np.random.default_rng(0).integers(0, 2, (32, 32, 1), np.uint8), 3, axis=2)
    faint = [fingerprint(str(level), pattern + level) for level in (100, 101)]
    assert list(find_duplicates(faint[:1], faint[1:])) == []
    speck = np.zeros((64, 64), np.uint8)
    speck[:15, :15] = 255
    colours = [np.where(speck[..., None] > 0, 9, photograph(index)[:64, :64]).astype(np.uint8) for index in range(2)]
    specks = [fingerprint(str(index), colours[index], speck) for index in range(2)]
    assert list(find_duplicates(specks[:1], specks[1:])) == []


def test_a_foreground_is_found_whatever_is_behind_it_and_an_alpha_alone_is_not_enough():
    colours, alpha = draw(0)
    opacity = alpha[..., None] / 255
    merged = np.rint(opacity * colours + (1 - opacity) * photograph(3)[:, :128]).astype(np.uint8)
    test = [fingerprint("test", merged, alpha)]
    for hidden in (colours, np.where(alpha[..., None] > 0, colours, 0)):
        found = list(find_duplicates([fingerprint("cutout", hidden, alpha, is_cutout=True)], test))
        assert [(one.code, one.path) for one in found] == [("duplicate", Path("cutout"))]
    assert list(find_duplicates([fingerprint("other", colours // 2, alpha, is_cutout=True)], test)) == []
    assert list(find_duplicates([fingerprint("other", photograph(4), np.full((128, 160), 255, np.uint8))], test)) == []


def test_images_alike_are_those_of_a_loop():
    photos = [photograph(index) for index in range(6)]
    copies = [as_jpeg(cv2.resize(photo, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), 50) for photo in photos]
    copies += [photos[0][:, ::-1].copy(), photos[1][20:, 20:].copy(), np.full((64, 64, 3), 90, np.uint8)]
    copies.append(np.clip(copies[2].astype(int) // 2 + 30, 0, 255).astype(np.uint8))  # darker and flatter

    def detail(pixels):
        small = cv2.cvtColor(cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        return small - cv2.GaussianBlur(small.astype(np.float64), (0, 0), 2)

    expected = []
    for name, copy in enumerate(copies):
        with np.errstate(invalid="ignore"):
            all_of_it = [np.corrcoef(detail(copy).ravel(), detail(photo).ravel())[0, 1] for photo in photos]
        if max(all_of_it) > MIN_CORRELATION:
            expected.append((Path(str(name)), Path(str(int(np.argmax(all_of_it)))), max(all_of_it)))
    assert [int(path.name) for path, _, _ in expected] == [0, 1, 2, 3, 4, 5, 9]
    training = [fingerprint(str(index), pixels) for index, pixels in enumerate(copies)]
    alike = list(find_alike(training, [fingerprint(str(index), photo) for index, photo in enumerate(photos)]))
    assert [pair[:2] for pair in alike] == [pair[:2] for pair in expected]
    assert [pair[2] for pair in alike] == pytest.approx([pair[2] for pair in expected], abs=1e-3)
