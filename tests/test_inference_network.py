"""A network made ready to matte: what is fused, rounded and chosen."""

import copy
import os
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from data.trimap import decode_trimap
from evaluation.evaluator import MattingEvaluator
from evaluation.metrics import PROTOCOLS, measure
from inference.network import TiledEvaluation, TorchNetwork, choose_precision
from inference.predictor import Predictor
from inference.tiling import needed_tokens
from runtime.errors import ConfigError
from tests.helpers.networks import tiny_model
from tests.helpers.prediction import image_and_trimap


@pytest.fixture(scope="module")
def model():
    """Tiny, with statistics of its BatchNorms as training leaves them."""
    network = tiny_model()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.decoder.named_buffers():
        if tensor.is_floating_point():
            tensor.uniform_(*(0.5, 2) if name.endswith("var") else (-0.5, 0.5), generator=generator)
    head = network.decoder.matting_head
    logits = []
    hook = head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    image, trimap = tensors(45, 70)
    with torch.no_grad():
        network.eval()({"image": image, "trimap": trimap})
        head.matting_convs[3].bias -= logits[0].median()  # or its alphas would all be near 0
    hook.remove()
    return network


def tensors(height, width):
    image, trimap = image_and_trimap(height, width)
    return torch.from_numpy(image / 255).permute(2, 0, 1)[None].float(), torch.from_numpy(decode_trimap(trimap))[
        None, None
    ]


def test_batch_norms_become_part_of_the_convolutions_and_alpha_changes_by_rounding(model):
    image, trimap = tensors(45, 70)
    network = TorchNetwork(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.model.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        expected = model({"image": image, "trimap": trimap})["pred_alpha"]
    unknown = trimap == 0.5
    torch.testing.assert_close(network.alpha(image, trimap)[unknown], expected[unknown], rtol=0, atol=5e-6)
    broken = copy.deepcopy(model)
    broken.decoder.convstream.convs[0].bn.running_mean += 0.1
    assert (TorchNetwork(broken).alpha(image, trimap) - expected)[unknown].abs().max() > 1e-4


def test_bf16_computes_in_bfloat16_and_is_near_float32(model):
    image, trimap = tensors(45, 70)
    network = TorchNetwork(model, precision="bf16")
    types = set()
    for module in network.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    alpha, expected = network.alpha(image, trimap), TorchNetwork(model).alpha(image, trimap)
    assert types == {torch.bfloat16} and alpha.dtype == torch.float32 and network.name == "cpu, bf16"
    unknown = trimap == 0.5
    difference = (alpha - expected)[unknown].abs()
    assert 0 < difference.mean() < 0.01 and expected[unknown].std() > 0.1
    assert next(model.backbone.parameters()).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 0.1)])
def test_cuda_gives_the_alpha_of_the_cpu(model, precision, tolerance):
    image, trimap = tensors(45, 70)
    unknown = trimap == 0.5
    alpha = TorchNetwork(model, "cuda", precision).alpha(image, trimap).cpu()
    torch.testing.assert_close(
        alpha[unknown], TorchNetwork(model).alpha(image, trimap)[unknown], rtol=0, atol=tolerance
    )


def test_a_batch_is_what_its_images_are(model):
    pairs = [tensors(45, 70), tensors(45, 70)]
    pairs[1] = (pairs[1][0].flip(-1), pairs[1][1].flip(-2))
    network = TorchNetwork(model)
    together = network.alpha(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
    for alpha, (image, trimap) in zip(together, pairs, strict=True):
        unknown = trimap[0] == 0.5
        torch.testing.assert_close(alpha[unknown], network.alpha(image, trimap)[0][unknown], rtol=0, atol=5e-6)


def test_a_batch_without_an_unknown_pixel_runs_no_network(model):
    image, trimap = tensors(45, 70)
    trimap = (trimap > 0.5).float()
    network = TorchNetwork(model)
    network.model.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    assert torch.equal(network.alpha(image, trimap), trimap)


@pytest.mark.parametrize("tile_px", [1, 32, 256])
def test_an_evaluation_by_tiles_is_that_of_the_whole_image(model, tile_px):
    image, trimap = (tensor.double() for tensor in tensors(75, 130))
    network = copy.deepcopy(model).double()
    for known in (trimap, (trimap > 0.5).double()):  # and where nothing is unknown
        batch = {"image": image, "trimap": known}
        with torch.no_grad():
            expected = network(batch)["pred_alpha"]
            alpha = TiledEvaluation(tile_px).wrap(network).eval()(batch)["pred_alpha"]
        torch.testing.assert_close(alpha, expected, rtol=0, atol=1e-12)


def test_an_evaluation_by_tiles_measures_what_the_predictor_gives(model):
    """The numbers of training and of tools/evaluate.py, on images of different sizes."""
    evaluator = MattingEvaluator(protocol="float")
    predictor = Predictor(TorchNetwork(model))
    for name, size in {"a": (45, 70), "b": (130, 75)}.items():
        image, trimap = tensors(*size)
        alpha = torch.linspace(0, 1, trimap.numel()).view(trimap.shape)
        with torch.no_grad():
            outputs = TiledEvaluation().wrap(model)({"image": image, "trimap": trimap})
        evaluator.process({"alpha": alpha, "trimap": trimap, "name": [name]}, outputs)
        written = predictor.predict(image[0].permute(1, 2, 0).numpy(), trimap[0, 0].numpy())
        expected = measure(written, alpha[0, 0].numpy(), trimap[0, 0].numpy() == 0.5, PROTOCOLS["float"])
        assert evaluator.rows[name] == pytest.approx(expected, rel=0, abs=1e-6)


def test_tiles_take_a_backbone_that_computes_all_features(model):
    class Plain(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.inner = backbone

        def forward(self, x):
            return self.inner(x)

    image, trimap = (tensor.double() for tensor in tensors(45, 70))
    model = copy.deepcopy(model).double()
    of_its_own = copy.deepcopy(model)
    of_its_own.backbone = Plain(of_its_own.backbone)
    with torch.no_grad():
        expected = model({"image": image, "trimap": trimap})["pred_alpha"]
        alpha = TiledEvaluation(32).wrap(of_its_own)({"image": image, "trimap": trimap})["pred_alpha"]
    torch.testing.assert_close(alpha, expected, rtol=0, atol=1e-12)


def test_networks_that_tiles_would_change_are_evaluated_whole(model):
    other = copy.deepcopy(model)
    other.decoder = nn.Identity()
    for network in (other, nn.Linear(1, 1)):
        assert TiledEvaluation().wrap(network) is network


@pytest.mark.parametrize("tile_px", [0, -16, 1.5])
def test_tiles_of_no_size_are_refused(tile_px):
    with pytest.raises(ConfigError, match="tile_px"):
        TiledEvaluation(tile_px)


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("auto", "cpu", None, "float32"),
        ("auto", "mps", None, "float32"),
        ("auto", "cuda", (7, 5), "float32"),
        ("auto", "cuda", (8, 0), "bf16"),
        ("auto", "cuda", (9, 0), "bf16"),
        ("bf16", "cpu", None, "bf16"),
        ("float32", "cuda", (9, 0), "float32"),
    ],
)
def test_auto_precision_is_bf16_where_cuda_multiplies_it_natively(monkeypatch, name, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision(name, torch.device(device)) == expected


def test_a_precision_that_there_is_not_is_refused(model):
    with pytest.raises(ConfigError, match="precision must be auto, float32 or bf16, got 'fp8'"):
        TorchNetwork(model, precision="fp8")


@pytest.mark.parametrize("halo", [0, 1, 2])
def test_needed_tokens_against_a_loop(halo):
    is_needed = torch.rand(2, 1, 24, 32, generator=torch.Generator().manual_seed(halo)) < 0.003
    expected = torch.zeros(6, 8, dtype=torch.bool)
    for _, _, y, x in is_needed.nonzero().tolist():
        expected[max(y // 4 - halo, 0) : y // 4 + halo + 1, max(x // 4 - halo, 0) : x // 4 + halo + 1] = True
    assert 0 < expected.sum() < 48
    assert torch.equal(needed_tokens(is_needed, 4, halo), expected)


@pytest.mark.slow
def test_compiled_alpha_is_the_same_but_for_rounding(model):
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    compiled, network = TorchNetwork(model, is_compiled=True), TorchNetwork(model)
    assert compiled.name == "cpu, float32, compiled"
    counters.clear()
    image, trimap = tensors(45, 70)
    unknown = trimap == 0.5
    alpha, expected = (some.alpha(image, trimap)[unknown] for some in (compiled, network))
    torch.testing.assert_close(alpha, expected, rtol=0, atol=5e-6)
    assert expected.std() > 0.1
    assert counters["stats"]["unique_graphs"] > 0  # or nothing was compiled
