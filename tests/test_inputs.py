"""What people feed a matting program, file to file: odd inputs give the alpha of their plain twin, bad ones a line."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_io.decoding import ORIENTATION_TAG
from data.image_io.images import read_alpha
from inference.formats.model_folder import build, write_model_folder
from tests.helpers.image_files import GREY, PALETTE, RGB, random_pixels, write_png
from tools import predict

HEIGHT, WIDTH = 37, 50


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model folder of a tiny network whose alphas vary."""
    backbone = {"type": "ViT", "embed_dim": 32, "depth": 1, "num_heads": 2, "global_block_indexes": [0]}
    decoder = {"type": "DetailCapture", "in_chans": 32, "convstream_chans": [4, 4, 4], "fusion_chans": [8, 8, 8, 8]}
    description = {
        "type": "ViTMatte",
        "backbone": backbone | {"conv_residual_block_indexes": []},
        "decoder": decoder,
    }
    torch.manual_seed(0)
    network = build("model", description)
    for parameter in network.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model_folder(folder, description, network.state_dict(), "a test", "")
    return folder


class CommandError(Exception):
    """The lines that the command printed when it failed."""


@pytest.fixture
def matte(model_folder, tmp_path, capsys):
    """Run tools/predict.py on the paths of image and trimap; returns alpha, read from 16 bit."""

    def by_command(image_path, trimap_path):
        files = [image_path, "--trimap", trimap_path, "--output", tmp_path / "alpha.png", "--bits", 16]
        if predict.main([str(part) for part in (*files, "--overwrite", "--model", model_folder, "--device", "cpu")]):
            raise CommandError(capsys.readouterr().err)
        return read_alpha(tmp_path / "alpha.png")

    return by_command


def plain_pair(folder, height=HEIGHT, width=WIDTH):
    """Write `image.png`, 64 colours in 8-bit RGB, and `trimap.png` of 0, 128, 255; return both as arrays."""
    image = random_pixels((height, width, 3)) // 64 * 85
    trimap = np.full((height, width), 128, np.uint8)
    trimap[: height // 4], trimap[height - height // 4 :] = 0, 255
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(trimap).save(folder / "trimap.png")
    return image, trimap


def sixteen_bit(path, image):
    write_png(path, image.astype(np.uint16) * 257, RGB)


def palette(path, image):
    colours, indexes = np.unique(image.reshape(-1, 3), axis=0, return_inverse=True)
    write_png(path, indexes.reshape(image.shape[:2]).astype(np.uint8), PALETTE, {b"PLTE": colours.tobytes()})


def cmyk(path, image):
    Image.fromarray(np.dstack([255 - image, np.zeros_like(image[:, :, 0])]), "CMYK").save(path, "TIFF")


def rotated(path, image):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6  # to be turned clockwise by whoever shows it
    Image.fromarray(np.rot90(image)).save(path, "PNG", exif=exif)


def transparent(path, image):
    Image.fromarray(np.dstack([image, random_pixels(image.shape[:2])])).save(path)


@pytest.mark.parametrize("write", [sixteen_bit, palette, cmyk, rotated, transparent])
def test_an_image_in_another_form_gives_the_same_alpha(tmp_path, matte, write, caplog):
    image, trimap = plain_pair(tmp_path)
    expected = matte(tmp_path / "image.png", tmp_path / "trimap.png")
    assert len(np.unique(expected)) > 300  # of 65536 levels, or it would agree with anything
    write(tmp_path / "odd.png", image)
    np.testing.assert_array_equal(matte(tmp_path / "odd.png", tmp_path / "trimap.png"), expected)
    assert ("its transparency is ignored" in caplog.text) == (write is transparent)


def test_a_grey_image_is_one_of_three_equal_channels(tmp_path, matte):
    image, _ = plain_pair(tmp_path)
    write_png(tmp_path / "grey.png", image[:, :, 0], GREY)
    Image.fromarray(image[:, :, [0, 0, 0]]).save(tmp_path / "rgb.png")
    expected = matte(tmp_path / "rgb.png", tmp_path / "trimap.png")
    np.testing.assert_array_equal(matte(tmp_path / "grey.png", tmp_path / "trimap.png"), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (31, 33), (32, 64), (63, 100)])
def test_an_image_of_any_size_is_matted(tmp_path, matte, size):
    _, trimap = plain_pair(tmp_path, *size)
    alpha = matte(tmp_path / "image.png", tmp_path / "trimap.png")
    assert alpha.shape == size
    np.testing.assert_array_equal(alpha[trimap != 128], trimap[trimap != 128] / 255)
    assert (alpha[trimap == 128] > 0).all() and (alpha[trimap == 128] < 1).all()


TRIMAPS = {
    "all unknown": lambda trimap: np.full_like(trimap, 128),
    "no foreground": lambda trimap: np.where(trimap == 255, 0, trimap).astype(np.uint8),
    "no background": lambda trimap: np.where(trimap == 0, 255, trimap).astype(np.uint8),
    "all background": np.zeros_like,
    "all foreground": lambda trimap: np.full_like(trimap, 255),
}


@pytest.mark.parametrize("name", TRIMAPS)
def test_a_trimap_may_lack_foreground_or_background_or_be_of_one_side_alone(tmp_path, matte, name):
    trimap = TRIMAPS[name](plain_pair(tmp_path)[1])
    Image.fromarray(trimap).save(tmp_path / "trimap.png")
    alpha = matte(tmp_path / "image.png", tmp_path / "trimap.png")
    np.testing.assert_array_equal(alpha[trimap == 0], 0)
    np.testing.assert_array_equal(alpha[trimap == 255], 1)
    assert np.isfinite(alpha).all() and ((alpha[trimap == 128] > 0) & (alpha[trimap == 128] < 1)).all()


ODD_TRIMAPS = {
    "odd greys": lambda trimap: np.where(trimap == 128, random_pixels(trimap.shape).clip(1, 254), trimap),
    "127": lambda trimap: np.where(trimap == 128, 127, trimap),
    "class ids": lambda trimap: trimap // 127,
    "RGB": lambda trimap: np.dstack([trimap] * 3),
    "opaque RGBA": lambda trimap: np.dstack([trimap] * 3 + [np.full_like(trimap, 255)]),
}


@pytest.mark.parametrize("name", ODD_TRIMAPS)
def test_a_trimap_in_another_form_gives_the_same_alpha(tmp_path, matte, name):
    _, trimap = plain_pair(tmp_path)
    expected = matte(tmp_path / "image.png", tmp_path / "trimap.png")
    Image.fromarray(ODD_TRIMAPS[name](trimap).astype(np.uint8)).save(tmp_path / "odd.png")
    np.testing.assert_array_equal(matte(tmp_path / "image.png", tmp_path / "odd.png"), expected)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_size(width, height):
    def rewrite(path):
        """Make a PNG's header say another size."""
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)

    return rewrite


def turned(path):
    with Image.open(path) as image:
        image.rotate(90, expand=True).save(path)


BAD_FILES = {
    "not an image": (lambda path: path.write_text("no picture"), "not an image"),
    "truncated": (truncated, "Is it complete"),
    "no byte": (lambda path: path.write_bytes(b""), "not an image"),
    "no pixel": (of_size(0, HEIGHT), "Replace or remove it"),
    "bomb": (of_size(2**14, 2**13 + 1), "too large .* the limit is 134217728 pixels"),
    "another size": (turned, f"{WIDTH} x {HEIGHT} px"),
    "absent": (lambda path: path.unlink(), "no such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no image in|is a folder"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("role", ["image", "trimap"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_used_is_named(tmp_path, matte, name, role):
    plain_pair(tmp_path)
    if role == "trimap":
        trimap = random_pixels((HEIGHT, WIDTH)).clip(64, 191)  # not small when deflated
        trimap[0], trimap[-1] = 0, 255
        Image.fromarray(trimap).save(tmp_path / "trimap.png")
    damage, words = BAD_FILES[name]
    damage(tmp_path / f"{role}.png")
    with pytest.raises(CommandError, match=words) as error:
        matte(tmp_path / "image.png", tmp_path / "trimap.png")
    assert f"{tmp_path}/{role}.png" in str(error.value)


def test_folders_without_rights_are_named(tmp_path, matte, closed_folder):
    with pytest.raises(CommandError, match=f"Permission denied: '{tmp_path}/"):
        matte(closed_folder / "a.png", tmp_path / "trimap.png")
