"""Estimates of memory against what processes took, and limits that are kept."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from inference import memory
from inference.memory import MemoryLimitError, estimate_bytes, plan_tile, used_bytes
from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling import DetailCapture, ViTMatte
from modeling.backbone import ViT
from runtime.errors import ConfigError
from tests.helpers.networks import tiny_model
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import image_and_trimap

PREDICT_AND_PRINT_BYTES = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from inference.memory import estimate_bytes
from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling import DetailCapture, ViTMatte, backbone as backbones

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

kind, height, width, tile_px, batch_size, backbone_px = sys.argv[1], *map(int, sys.argv[2:7])
torch.set_num_threads(1)
backbone = getattr(backbones, kind)(depth=3, global_block_indexes=[2], conv_residual_block_indexes=[2])
network = TorchNetwork(ViTMatte(backbone, DetailCapture(384)), tile_px=tile_px, backbone_px=backbone_px)
image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
trimap = np.full((height, width), 128, np.uint8)
Predictor(network).predict(image[:64, :64], trimap[:64, :64])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
images = torch.from_numpy(image).permute(2, 0, 1).float().div(255).expand(batch_size, -1, -1, -1)
network.alpha(images, torch.full((batch_size, 1, height, width), 0.5))
scale = network.backbone_scale(height, width)
estimate = estimate_bytes(network.model, height, width, tile_px, batch_size, scale)
print(json.dumps([status("VmHWM") - before, estimate]))
"""


PREDICT_IN_A_ROW = """
import numpy as np
import torch
from inference.memory import WORKSPACE_BYTES, estimate_bytes, used_bytes
from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling import DetailCapture, ViTMatte
from modeling.backbone import ViT

torch.set_num_threads(1)
backbone = ViT(depth=2, global_block_indexes=[1], conv_residual_block_indexes=[1])
network = TorchNetwork(ViTMatte(backbone, DetailCapture(384)))
image, trimap = np.zeros((900, 900, 3), np.uint8), np.full((900, 900), 128, np.uint8)
Predictor(network).predict(image[:64, :64], trimap[:64, :64])
spare = WORKSPACE_BYTES  # what the libraries keep is part of the estimate; the second image meets it as memory in use
network.max_memory_gb = (used_bytes(network.device) + estimate_bytes(network.model, 900, 900, 64) + spare) / 1e9
print(len([Predictor(network).predict(image, trimap) for _ in range(4)]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read as Linux tells it")
@pytest.mark.parametrize(
    ("kind", "height", "width", "tile_px", "batch_size", "backbone_px"),
    [
        pytest.param("ViT", 1024, 1280, 64, 1, 9999, marks=pytest.mark.slow),
        ("ViT", 900, 640, 512, 1, 9999),
        pytest.param("ViT", 512, 512, 256, 4, 9999, marks=pytest.mark.slow),
        ("ViTDet", 640, 900, 256, 1, 9999),
        pytest.param("DINOv2", 640, 900, 256, 1, 9999, marks=pytest.mark.slow),
        pytest.param("ViTDet", 1024, 1024, 64, 1, 9999, marks=pytest.mark.slow),
        pytest.param("ViT", 1024, 1536, 256, 1, 768, marks=pytest.mark.slow),
    ],
)
def test_estimates_are_above_what_is_taken_but_not_by_much(kind, height, width, tile_px, batch_size, backbone_px):
    numbers = map(str, (height, width, tile_px, batch_size, backbone_px))
    command = [sys.executable, "-c", PREDICT_AND_PRINT_BYTES, kind, *numbers]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    taken, estimate = json.loads(done.stdout)
    most = memory.WORKSPACE_BYTES + 1.25 * taken
    assert taken <= estimate <= most, f"taken {taken / 1e6:.0f} MB, estimated {estimate / 1e6:.0f} MB"


def test_tiles_are_halved_until_they_fit_and_no_further():
    with torch.device("meta"):
        model = ViTMatte(
            ViT(embed_dim=64, num_heads=2, depth=1, global_block_indexes=(), conv_residual_block_indexes=()),
            DetailCapture(64),
        )
    used = used_bytes(torch.device("cpu"))
    needs = {tile: estimate_bytes(model, 1000, 2000, tile) for tile in (256, 128, 64)}
    assert needs[256] > needs[128] > needs[64]
    with mock.patch.object(memory, "used_bytes", lambda device: used):  # it changes beside other tests
        for tile, need in needs.items():
            assert plan_tile(model, 1000, 2000, 256, (used + need + 1) / 1e9) == tile
        with pytest.raises(MemoryLimitError, match=r"2000 x 1000 px need an estimated .* GB beside the .* GB in use"):
            plan_tile(model, 1000, 2000, 256, (used + needs[64] - 1) / 1e9)
    assert plan_tile(model, 1000, 2000, 50, 1000) == 50
    with mock.patch.object(memory, "used_bytes", lambda device: used):
        assert plan_tile(model, 1000, 2000, 120, (used + needs[64] + 1) / 1e9) == 64  # and not 60
        with pytest.raises(MemoryLimitError, match="3 images of 2000 x 1000 px need"):
            plan_tile(model, 1000, 2000, 256, (used + needs[64] + 1) / 1e9, batch_size=3)


@pytest.mark.slow
def test_equal_images_in_a_row_fit_where_the_first_does():
    """What a prediction leaves behind is given back before the next is planned."""
    command = [sys.executable, "-c", PREDICT_IN_A_ROW]
    assert subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout == "4\n"


def test_an_estimate_grows_with_image_width_of_the_network_and_tile():
    model = tiny_model()
    estimate = estimate_bytes(model, 1024, 1024, 256)
    assert (
        3 < (estimate_bytes(model, 2048, 2048, 256) - memory.WORKSPACE_BYTES) / (estimate - memory.WORKSPACE_BYTES) < 5
    )
    assert estimate_bytes(model, 1023, 1024, 256) == estimate < estimate_bytes(model, 1025, 1024, 256)


def test_an_estimate_is_of_the_padded_size():
    model = tiny_model()
    model.padding = "zero_hustvl"
    assert estimate_bytes(model, 1024, 1000, 256) == estimate_bytes(model, 1055, 1023, 256)
    assert estimate_bytes(model, 1024, 1000, 256) > estimate_bytes(model, 1024, 1024, 256)


def test_a_limit_changes_tiles_not_alpha_and_refuses_what_cannot_fit():
    model, (image, trimap) = tiny_model(), image_and_trimap(300, 400)
    expected = Predictor(TorchNetwork(model)).predict(image, trimap)
    used = used_bytes(torch.device("cpu"))
    limit_gb = (used + (estimate_bytes(model, 300, 400, 64) + estimate_bytes(model, 300, 400, 128)) / 2) / 1e9
    network = TorchNetwork(model, max_memory_gb=limit_gb)
    tiles = []
    network.model.decoder.register_forward_pre_hook(lambda _, inputs: tiles.append(max(inputs[1].shape[-2:])))
    with mock.patch.object(memory, "used_bytes", lambda device: used):
        np.testing.assert_allclose(Predictor(network).predict(image, trimap), expected, rtol=0, atol=1e-5)
    assert max(tiles) == 64 + 2 * 32
    with pytest.raises(MemoryLimitError, match="more than the 0.01 GB allowed: reduce the image, or raise the limit"):
        Predictor(TorchNetwork(model, max_memory_gb=0.01)).predict(image, trimap)


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="expected a limit of memory above 0 GB"):
        TorchNetwork(tiny_model(), max_memory_gb=limit)


def test_resident_memory_is_that_of_this_process():
    before = used_bytes(torch.device("cpu"))
    block = np.ones(30_000_000)
    assert 0.9 * block.nbytes < used_bytes(torch.device("cpu")) - before < 1.2 * block.nbytes
