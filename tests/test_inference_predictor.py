"""Predictor against the model called by hand."""

import copy
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from data.trimap import decode_trimap
from inference import default_network
from inference.formats.model_folder import ModelFolderError, read_model_folder
from inference.network import TorchNetwork
from inference.predictor import Predictor
from runtime.devices import choose_device
from runtime.errors import ConfigError, UserError
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import image_and_trimap

SIZES = [(64, 64), (33, 47), (70, 31)]

PREDICT_AND_PRINT_PAGES = """
from pathlib import Path
import numpy as np
from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling import DetailCapture, ViTMatte
from modeling.backbone import ViT

backbone = ViT(embed_dim=16, depth=1, num_heads=2, global_block_indexes=[0], conv_residual_block_indexes=[0])
model = ViTMatte(backbone, DetailCapture(16, convstream_chans=[4, 4, 4], fusion_chans=[4, 4, 4, 4]))
predictor = Predictor(TorchNetwork(model))
rng = np.random.default_rng(0)
image, trimap = rng.integers(0, 256, (400, 400, 3), np.uint8), np.full((400, 400), 128, np.uint8)
for num_predictions in (400, 300):
    for height, width in rng.integers(1, 401, (num_predictions, 2)):
        predictor.predict(image[:height, :width], trimap[:height, :width])
    print(Path("/proc/self/statm").read_text().split()[1])
"""
"""Resident memory after 400 predictions, which fill the caches of torch and oneDNN, and after 300 more of new sizes."""


def by_hand(untrained_model, image, trimap):
    """Alpha (H, W) of the bare model for a uint8 image and a uint8 trimap of 0, 128, 255."""
    tensor = torch.stack([torch.tensor(image[:, :, channel].astype(np.float32) / 255) for channel in range(3)])
    known = {0: 0.0, 128: 0.5, 255: 1.0}
    values = torch.tensor([[known[int(value)] for value in row] for row in trimap])
    with torch.no_grad():
        return untrained_model.eval()({"image": tensor[None], "trimap": values[None, None]})["pred_alpha"][0, 0].numpy()


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_model_by_hand(untrained_model, predictor, size):
    image, trimap = image_and_trimap(*size)
    pred_alpha = predictor.predict(image, trimap)
    assert (pred_alpha.dtype, pred_alpha.shape) == (np.float32, size)
    assert pred_alpha[trimap == 128].std() > 0.01  # or an oracle would agree with anything
    np.testing.assert_allclose(pred_alpha, by_hand(untrained_model, image, trimap), rtol=0, atol=5e-6)


@pytest.mark.parametrize("seed", range(30))
def test_tiles_change_nothing_beyond_rounding(untrained_model, seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 250, 2)
    image, trimap = image_and_trimap(height, width, seed)
    trimap[rng.random((height, width)) < 0.3] = 0
    trimap[: rng.integers(height), : rng.integers(width)] = 255
    trimap[-1, -1] = 128
    pred_alpha = Predictor(TorchNetwork(untrained_model, tile_px=int(rng.integers(1, 100)))).predict(image, trimap)
    np.testing.assert_allclose(pred_alpha, by_hand(untrained_model, image, trimap), rtol=0, atol=1e-5)


def test_the_backbone_runs_once_and_the_decoder_only_where_alpha_is_unknown(untrained_model):
    image, trimap = image_and_trimap(160, 320)
    trimap[:] = 0
    trimap[20:30, 20:100] = 128
    trimap[100, 300] = 128
    network = TorchNetwork(untrained_model, tile_px=64)
    calls, read = [], []

    def note_backbone(module, inputs):
        calls.append(tuple(inputs[0].shape[-2:]))
        read.append(inputs[1])

    network.model.backbone.register_forward_pre_hook(note_backbone)
    network.model.decoder.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[1].shape[-2:])))
    Predictor(network).predict(image, trimap)
    # The band, rows 16 to 32, is cut at column 64; 32 px are added on each side, but not beyond the border.
    assert calls == [(160, 320), (64, 96), (64, 112), (80, 64)]
    expected = torch.zeros(10, 20, dtype=torch.bool)  # the band's tokens and the pixel's, and two more on each side
    expected[:4, :9] = expected[4:9, 16:] = True
    assert torch.equal(read[0], expected)


@pytest.mark.parametrize("value", [0, 255])
def test_an_image_without_an_unknown_pixel_runs_no_network(untrained_model, value):
    def fail(*_):
        raise AssertionError("the network ran")

    image, trimap = image_and_trimap(40, 50)
    trimap[:] = value
    predictor = Predictor(TorchNetwork(untrained_model))
    for module in predictor.network.model.modules():
        module.register_forward_pre_hook(fail)
    pred_alpha = predictor.predict(image, trimap)
    with pytest.raises(AssertionError, match="the network ran"):
        predictor.predict(*image_and_trimap(40, 50))
    assert pred_alpha.dtype == np.float32
    np.testing.assert_array_equal(pred_alpha, trimap / 255)
    known = np.eye(40, 50, dtype=np.float32)
    np.testing.assert_array_equal(predictor.alpha(np.zeros((40, 50, 3), np.float32), known), known)


def test_a_network_in_float64_gives_float32_too(untrained_model):
    image, trimap = image_and_trimap(40, 56)
    expected = Predictor(TorchNetwork(untrained_model)).predict(image, trimap)
    pred_alpha = Predictor(TorchNetwork(copy.deepcopy(untrained_model).double())).predict(image, trimap)
    assert pred_alpha.dtype == np.float32
    np.testing.assert_allclose(pred_alpha, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read as Linux tells it")
def test_memory_is_flat_over_many_predictions():
    command = [sys.executable, "-c", PREDICT_AND_PRINT_PAGES]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    start, end = (int(pages) * resource.getpagesize() for pages in done.stdout.split())
    assert end - start < 20e6  # the alphas alone are 48 MB


def test_threads_may_share_a_predictor(predictor):
    pairs = [image_and_trimap(40 + 3 * seed, 70 - 2 * seed, seed) for seed in range(12)]
    expected = [predictor.predict(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for pred_alpha, own in zip(pool.map(lambda pair: predictor.predict(*pair), pairs), expected, strict=True):
                # Not bit-exact: once numba has run, OpenMP's number of threads differs between threads.
                np.testing.assert_allclose(pred_alpha, own, rtol=0, atol=1e-6)


def test_what_is_no_network_or_no_tile_is_refused(untrained_model):
    with pytest.raises(TypeError, match="expected a ViTMatte, got a DetailCapture"):
        TorchNetwork(untrained_model.decoder)
    with pytest.raises(ConfigError, match="tile_px 0"):
        TorchNetwork(untrained_model, tile_px=0)


def test_one_image_in_any_dtype_gives_one_alpha(predictor):
    image, trimap = image_and_trimap(40, 56)
    expected = predictor.predict(image, trimap)
    for same in (image.astype(np.float32) / np.float32(255), image.astype(np.uint16) * 257):
        np.testing.assert_array_equal(predictor.predict(same, trimap), expected)
    np.testing.assert_allclose(predictor.predict(image / 255, trimap), expected, rtol=0, atol=1e-5)


def test_grey_and_transparent_arrays_are_taken_by_their_colours(predictor, caplog):
    image, trimap = image_and_trimap(40, 56)
    grey = image[:, :, :1].repeat(3, axis=2)
    expected = predictor.predict(grey, trimap)
    for same in (image[:, :, 0], image[:, :, :1], np.dstack([grey, image[:, :, 1]])):
        np.testing.assert_array_equal(predictor.predict(same, trimap), expected)
    assert caplog.messages == ["the image: its transparency is ignored, its colours are taken as they are"]


def test_a_trimap_in_any_form_gives_one_alpha(predictor):
    image, trimap = image_and_trimap(40, 56)
    expected = predictor.predict(image, trimap)
    rng = np.random.default_rng(2)
    odd_greys = np.where(trimap == 128, rng.integers(1, 255, trimap.shape), trimap).astype(np.uint8)
    assert len(np.unique(odd_greys)) > 100
    forms = {
        "odd greys": odd_greys,
        "decoded": decode_trimap(odd_greys),
        "float64": decode_trimap(trimap).astype(np.float64),
        "class ids": np.where(trimap == 128, 1, trimap // 127).astype(np.uint8),
        "RGB": np.dstack([trimap] * 3),
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(predictor.predict(image, form), expected, err_msg=name)


def test_the_callers_model_stays_as_it_is_and_no_graph_is_made(untrained_model):
    untrained_model.train()
    before = {name: value.clone() for name, value in untrained_model.state_dict().items()}
    network = TorchNetwork(untrained_model)
    assert not any(module.training for module in network.model.modules())
    image, trimap = image_and_trimap(32, 32)
    outputs = []
    network.model.decoder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    alphas = [Predictor(network).predict(image, trimap) for _ in range(2)]
    assert len(outputs) == 2 and not any(output.requires_grad for output in outputs)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(*alphas)
    assert all(module.training for module in untrained_model.modules())
    assert untrained_model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in untrained_model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in untrained_model.parameters())


def test_the_callers_arrays_stay_as_they_are(predictor):
    image, trimap = image_and_trimap(45, 52)  # padded, so that something is written next to the image
    planes = np.ascontiguousarray((image / np.float32(255)).transpose(2, 0, 1))
    for mine in (image, image[:, ::-1], image / np.float32(255), planes.transpose(1, 2, 0)):
        for own_trimap in (trimap, decode_trimap(trimap)):
            copies = mine.copy(), own_trimap.copy()
            pred_alpha = predictor.predict(mine, own_trimap)
            pred_alpha[:] = 7
            np.testing.assert_array_equal(mine, copies[0])
            np.testing.assert_array_equal(own_trimap, copies[1])


@pytest.mark.parametrize(
    ("image", "trimap", "words"),
    [
        (np.zeros((32, 48, 3), np.uint8), np.zeros((48, 32), np.uint8), r"\(32, 48, 3\) and \(48, 32\)"),
        (np.zeros((32, 48, 2), np.uint8), np.zeros((32, 48), np.uint8), r"the image has shape \(32, 48, 2\)"),
        (np.zeros((0, 48, 3), np.uint8), np.zeros((0, 48), np.uint8), "is empty"),
        (np.zeros((32, 48, 3), np.int32), np.zeros((32, 48), np.uint8), "int32"),
        (np.full((32, 48, 3), 255.0), np.zeros((32, 48), np.uint8), r"\[0, 1\].*255"),
        (np.full((32, 48, 3), np.nan), np.zeros((32, 48), np.uint8), r"\[0, 1\].*nan"),
        (np.full((32, 48, 3), -0.1), np.zeros((32, 48), np.uint8), r"\[0, 1\].*-0.1"),
        (np.zeros((32, 48, 3), np.uint8), np.ones((32, 48), np.uint8), "only 0 and 1"),
        (np.zeros((32, 48, 3), np.uint8), np.full((32, 48), 0.3), "not 0, 0.5 or 1"),
    ],
)
def test_what_it_cannot_use_is_refused(predictor, image, trimap, words):
    with pytest.raises(UserError, match=words):
        predictor.predict(image, trimap)


def test_a_model_folder_is_loaded_onto_the_device_and_said_so(model_folder, caplog):
    with caplog.at_level("INFO"):
        predictor = Predictor.load(model_folder, device="cpu")
    assert f"{model_folder} runs on cpu, float32 (asked for: cpu, auto)" in caplog.text
    assert not any(module.training for module in predictor.network.model.modules())
    assert Predictor.load(model_folder, tile_px=80).network.tile_px == 80
    with mock.patch("inference.network.choose_device", lambda name: torch.device({"gpu": "meta"}[name])):
        elsewhere = Predictor.load(model_folder, device="gpu").network.model
    assert {tensor.device.type for tensor in elsewhere.state_dict().values()} == {"meta"}
    image, trimap = image_and_trimap(33, 47)
    pred_alpha = predictor.predict(image, trimap)
    expected = by_hand(read_model_folder(model_folder), image, trimap)
    np.testing.assert_allclose(pred_alpha, expected, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(Predictor.load(str(model_folder)).predict(image, trimap), pred_alpha)


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_best_device(monkeypatch, has_cuda, has_mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    asked = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: (asked.append(device), torch.zeros(0))[1])
    choose_device("auto")
    assert asked == [expected]


@pytest.mark.parametrize("device", ["nosuch", "cuda:99", "", "meta"])
def test_a_device_that_is_not_there_is_one_line(model_folder, device):
    with pytest.raises(ConfigError, match=rf"device '{device}' cannot be used: .*; try cpu") as error:
        Predictor.load(model_folder, device=device)
    assert len(str(error.value).splitlines()) == 1


def test_without_a_source_the_shipped_network_is_loaded(model_folder, tmp_path, monkeypatch, caplog):
    assert default_network.SHIPPED == REPOSITORY / "models" / "open"
    monkeypatch.setattr(default_network, "SHIPPED", model_folder)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        Predictor.load(device="cpu")
    assert f"{model_folder} runs on cpu, float32" in caplog.text
    monkeypatch.setattr(default_network, "SHIPPED", tmp_path / "open")
    with pytest.raises(UserError, match=r"/open is not there.*: name a model folder, which tools/export.py makes$"):
        Predictor.load()


def test_a_folder_that_is_none_is_refused(model_folder):
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        Predictor.load(model_folder.parent / "nowhere")
    (model_folder / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match='expected "format": 1'):
        Predictor.load(model_folder)


def test_alphas_that_are_not_finite_are_an_error(untrained_model):
    broken = copy.deepcopy(untrained_model)
    with torch.no_grad():
        next(broken.backbone.parameters()).fill_(3e38)
    with pytest.raises(UserError, match="not finite: its weights or settings cannot be used"):
        Predictor(TorchNetwork(broken)).predict(*image_and_trimap(40, 50))
