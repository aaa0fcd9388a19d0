"""ONNX files with image and trimap in one input, as programs made for ViTMatte read them; rembg itself is one."""

import numpy as np
import pytest
import torch
from PIL import Image

from inference.formats.onnx_export import write_onnx
from inference.formats.onnx_network import OnnxNetwork
from inference.network import TorchNetwork
from inference.predictor import Predictor
from runtime.errors import UserError
from tests.helpers.networks import ONE_BLOCK, random_pair, varied_network

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of one block: tests/test_inference_formats_onnx.py has the kinds of blocks."""
    model, path = varied_network("ViTDet", "zero", **ONE_BLOCK), tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert write_onnx(model, path, "a test", "No terms.", "pixel_values") < 1e-5
    return model, path


def run(path, image, trimap):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["pixel_values", "alphas"]
    return torch.from_numpy(session.run(None, {"pixel_values": torch.cat((image, trimap), 1).numpy()})[0])


@pytest.mark.parametrize("size", [(97, 33), (64, 64), (250, 310)])
def test_alpha_is_that_of_torch_and_128_is_unknown(exported, size):
    model, path = exported
    image, trimap = random_pair(*size, count=2)
    with torch.inference_mode():
        expected = model({"image": image, "trimap": trimap})["pred_alpha"]
    found = run(path, image, torch.where(trimap == 0.5, 128 / 255, trimap))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected[trimap == 0.5].std() > 0.02


def test_the_file_says_what_its_channels_hold_and_our_own_reader_refuses_it(exported):
    _, path = exported
    proto = onnx.load(path)
    docs = {value.name: value.doc_string for value in (*proto.graph.input, *proto.graph.output)}
    assert "(B, 4, H, W). Channels 0 to 2" in docs["pixel_values"] and "0.5 (or 128/255)" in docs["pixel_values"]
    assert "[0, 1]" in docs["alphas"]
    with pytest.raises(UserError, match=r"expected float32 image \(B, 3, H, W\), .*, got pixel_values tensor"):
        OnnxNetwork(path)


def test_rembg_runs_a_file_of_ours_in_the_place_of_its_own(tmp_path, monkeypatch):
    """On an image of its fixed size, nothing is resized: alpha is ours, cut off to 8 bits as rembg does."""
    matting = pytest.importorskip("rembg.matting")
    windowed = ONE_BLOCK | {"global_block_indexes": []}  # a global one: tests/test_tools_benchmarks_squashed.py
    model, name = varied_network("ViT", "edge", **windowed), "vitmatte-small-distinctions-646.onnx"
    assert matting.VARIANTS[matting.DEFAULT_VARIANT]["fname"] == name
    path = tmp_path / "models" / "vitmatte" / name
    write_onnx(model, path, "a test", "No terms.", "pixel_values", matting.INPUT_SIZE)
    monkeypatch.delenv("U2NET_HOME", raising=False)
    monkeypatch.setenv("REMBG_HOME", str(tmp_path))
    monkeypatch.setattr(matting, "_sessions", {})
    y, x = np.mgrid[:1024, :1024]
    image = np.dstack([x // 4, y // 4, (x ^ y) % 256]).astype(np.uint8)
    mask = Image.fromarray(((np.hypot(x - 500, y - 480) < 300) * 255).astype(np.uint8))
    found = np.asarray(matting.vitmatte_alpha(Image.fromarray(image), mask)).astype(int)
    trimap = np.asarray(matting.trimap_from_mask(mask))
    assert set(np.unique(trimap)) == {0, 128, 255}
    expected = np.floor(255 * Predictor(TorchNetwork(model)).predict(image, trimap)).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert expected[trimap == 128].std() > 5
    with pytest.raises(Exception, match="Got: 1000 Expected: 1024"):
        run(path, *random_pair(1000, 1024))
