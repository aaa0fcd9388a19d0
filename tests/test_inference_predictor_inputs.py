"""What `Predictor.predict` takes beside arrays, and what `Predictor.load` takes for a network."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_io.images import read_raw, read_raw_image
from inference.formats.model_folder import ModelFolderError
from inference.inputs import check_pair
from inference.predictor import Predictor
from runtime.errors import UserError
from tests.helpers.prediction import image_and_trimap


@pytest.fixture
def files(tmp_path):
    """A folder of files of one image in several formats, kinds of pixels and rotations, and of one trimap."""
    colours, trimap = image_and_trimap(40, 56)
    opened = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6
    opened.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    opened.quantize(64).save(tmp_path / "palette.png")
    opened.convert("CMYK").save(tmp_path / "cmyk.tif")
    opened.convert("LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(colours[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(np.dstack([colours, colours[:, :, 0]])).save(tmp_path / "rgba.webp", lossless=True)
    Image.fromarray(trimap).save(tmp_path / "trimap.png")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["turned.jpg", "palette.png", "cmyk.tif", "grey_alpha.png", "grey16.png", "rgba.webp", "trimap.png"]
)
def test_a_path_and_a_pillow_image_are_the_files_arrays(files, name):
    expected = check_pair(read_raw_image(files / name), read_raw(files / "trimap.png"))
    for path in (files / name, str(files / name)):
        for pair in ((path, files / "trimap.png"), (Image.open(path), Image.open(files / "trimap.png"))):
            for got, wanted in zip(check_pair(*pair), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_tensors_with_channels_first_or_last_are_the_arrays(predictor, kind):
    colours, trimap = image_and_trimap(40, 56)
    values = torch.from_numpy(colours)
    values = values if kind == torch.uint8 else (values.to(torch.float64) / 255).to(kind)
    known = torch.from_numpy(trimap)
    array = values.numpy() if kind != torch.bfloat16 else values.float().numpy()
    expected = predictor.predict(array, trimap)
    for image in (
        values,
        values.permute(2, 0, 1),
        values.permute(2, 0, 1).clone().requires_grad_(kind.is_floating_point),
    ):
        for own_trimap in (known, known[None], known[..., None], trimap):
            np.testing.assert_array_equal(predictor.predict(image, own_trimap), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([[0, 1]], "the image is a list: expected an array, a tensor, a Pillow image or the path"),
        (None, "the image is a NoneType"),
        (b"png", "the image is a bytes"),
        (torch.zeros(1, 3, 40, 56), r"shape \(1, 3, 40, 56\): expected one image"),
        (torch.zeros(2, 40, 56), r"shape \(2, 40, 56\)"),
        (torch.zeros(3, 40, 56, device="meta"), "device meta"),
        (torch.full((3, 40, 56), 255.0), r"in \[0, 1\].*255"),
        (Image.new("F", (56, 40)), "pixel format F"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(predictor, image, words):
    with pytest.raises(UserError, match=words) as error:
        predictor.predict(image, image_and_trimap(40, 56)[1])
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="gone.png"):
        predictor.predict("gone.png", image_and_trimap(40, 56)[1])


@contextmanager
def default(choice):
    """torch's default type or device, set to another."""
    dtype = torch.get_default_dtype()
    set_default = torch.set_default_device if isinstance(choice, str) else torch.set_default_dtype
    set_default(choice)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)


@pytest.mark.parametrize("choice", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_loading_and_predicting_do_not_depend_on_torchs_defaults(model_folder, choice):
    expected = Predictor.load(model_folder, device="cpu").predict(*image_and_trimap(40, 56))
    with default(choice):
        loaded = Predictor.load(model_folder, device="cpu")
        alpha = loaded.predict(*image_and_trimap(40, 56))
        fresh = torch.empty(0)
        assert choice in (fresh.dtype, fresh.device.type)  # as the caller has set them
    tensors = loaded.network.model.state_dict().values()
    assert {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(torch.float32, "cpu")}
    np.testing.assert_array_equal(alpha, expected)


@pytest.mark.parametrize(
    ("source", "config", "words"),
    [
        ("downloaded", {"architectures": ["A"], "model_type": "birefnet"}, "of the kind 'birefnet': only vitmatte"),
        ("weights.pth", None, "weights.pth is a file.*--config-file and --weights"),
    ],
)
def test_what_people_take_for_a_model_folder_is_told_what_to_do_with(tmp_path, monkeypatch, source, config, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"")
    if config is not None:
        (tmp_path / source).mkdir()
        (tmp_path / source / "config.json").write_text(json.dumps(config))
        (tmp_path / source / "model.safetensors").write_bytes(b"")
        source = tmp_path / source
    with pytest.raises(ModelFolderError, match=words.format(tmp_path)) as error:
        Predictor.load(source)
    assert len(str(error.value).splitlines()) == 1
