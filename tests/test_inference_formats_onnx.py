"""ONNX files against torch, at sizes that the exporter did not see; files that are something else."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from inference.formats import onnx_export
from inference.formats.onnx_export import OnnxExportError, write_onnx
from inference.formats.onnx_network import OnnxNetwork, choose_providers
from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling import DetailCapture, ViTMatte
from modeling.backbone import ViT, ViTDet
from runtime.errors import ConfigError, UserError
from runtime.optional_packages import MissingExtraError
from tests.helpers.networks import random_pair, randomise_vitmatte, varied_network

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

# Height and width: no window whole, one pixel, the grid that positions are stored for, one side aligned, more tokens
# than in one piece.
SIZES = [(97, 33), (1, 1), (64, 64), (48, 48), (64, 97), (1, 150), (250, 310), (650, 490), (768, 800)]


def alpha_of(model, image, trimap):
    with torch.inference_mode():
        return model({"image": image, "trimap": trimap})["pred_alpha"]


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("ViT", "ViTDet", "DINOv2")]
)
def exported(request, tmp_path_factory):
    """A network and the path of its ONNX file; ViTDet pads as its published weights do."""
    padding = {"ViT": "edge", "ViTDet": "zero_hustvl", "DINOv2": "zero"}[request.param]
    model = varied_network(request.param, padding, window_size=3)
    path = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    assert write_onnx(model, path, "a test", "No terms.\nNone.\n") < 1e-5
    return model, path


def test_alpha_is_that_of_torch_at_sizes_not_seen_at_export(exported):
    model, path = exported
    network = OnnxNetwork(path)
    for size in SIZES:
        image, trimap = random_pair(*size)
        expected, found = alpha_of(model, image, trimap), network.alpha(image, trimap)
        assert found.dtype == torch.float32 and found.shape == expected.shape
        assert min(size) == 1 or expected[trimap == 0.5].std() > 0.02
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    batch = random_pair(45, 70, count=3)
    torch.testing.assert_close(network.alpha(*batch), alpha_of(model, *batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ViT", dict(keep_prefix_tokens=False)),
        ("ViT", dict(window_size=24)),
        ("ViT", dict(rope_per_window=True)),
        ("ViT", dict(ffn_layer="swiglu", qkv_bias=False, num_storage_tokens=0)),
        ("ViT", dict(depth=3, global_block_indexes=[0])),
        ("DINOv2", dict(position_interpolation="bicubic", position_grid_size=37, ffn_layer="swiglu")),
        ("DINOv2", dict(num_register_tokens=0, window_size=24)),
        ("ViTDet", dict(window_size=5, global_block_indexes=[0, 1])),
        ("ViTDet", dict(padding="zero")),
        ("ViTDet", dict(padding="zero_hustvl")),
    ],
)
def test_the_forward_that_is_traced_equals_the_network(kind, changes):
    """In torch, where variants are quick: the replaced attention is right before an exporter sees it."""
    model = varied_network(kind, **changes)
    traced = onnx_export._Exportable(model)
    for size in SIZES[::3]:
        image, trimap = random_pair(*size, count=2)
        with torch.inference_mode():
            torch.testing.assert_close(traced(image, trimap), alpha_of(model, image, trimap), rtol=0, atol=1e-5)


def test_the_network_is_left_as_it_was(exported):
    model, _ = exported
    again = varied_network(type(model.backbone).__name__, window_size=3)
    assert repr(model) == repr(again)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_file_says_what_it_is(exported):
    _, path = exported
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    proto = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert {item.key: item.value for item in proto.metadata_props} == {
        "source": "a test",
        "licence": "No terms.\nNone.\n",
    }
    docs = {value.name: value.doc_string for value in (*proto.graph.input, *proto.graph.output)}
    assert "(B, 3, H, W) float32, RGB in [0, 1]" in docs["image"]
    assert "0 background, 0.5 (or 128/255) unknown, 1 foreground" in docs["trimap"]
    assert "[0, 1]" in docs["alpha"] and "unknown" in proto.doc_string
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes["image"] == ["batch", 3, "height", "width"]
    assert shapes["trimap"] == shapes["alpha"] == ["batch", 1, "height", "width"]
    assert b"site-packages" not in path.read_bytes() and b"forward" not in path.read_bytes()


def run_bare(path, image, trimap):
    """Run the file as a program that is not ours does."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": image.numpy(), "trimap": trimap.numpy()})[0])


@pytest.mark.parametrize("unknown", [127 / 255, 128 / 255, 0.5 + 1e-4])
def test_the_graph_decodes_a_trimap_as_the_contract_does(exported, unknown):
    """Known values that are off by rounding count as well, so that no alpha lies outside [0, 1]."""
    model, path = exported
    image, trimap = random_pair(45, 70)
    expected = alpha_of(model, image, trimap)
    for shift in (0.003, -0.003):
        given = torch.where(trimap == 0.5, unknown, trimap + shift)
        found = run_bare(path, image, given)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert torch.equal(found[trimap != 0.5], trimap[trimap != 0.5])


def test_what_no_trimap_holds_is_unknown_to_the_graph(exported):
    """0..255 without division above all: alpha was 128.0 there."""
    model, path = exported
    image, trimap = random_pair(45, 70)
    expected = alpha_of(model, image, torch.where(trimap == 0, trimap, 0.5))
    for values in (trimap * 255, torch.where(trimap == 0, 0.0, 0.3), torch.where(trimap == 0, 0.0, torch.nan)):
        torch.testing.assert_close(run_bare(path, image, values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_network_takes_unknown_as_128_of_255_and_refuses_other_ranges(exported, kind):
    model, path = exported
    network = OnnxNetwork(path) if kind == "onnx" else TorchNetwork(model)
    image, trimap = random_pair(45, 70)
    is_unknown = trimap == 0.5
    found = network.alpha(image, torch.where(is_unknown, 128 / 255, trimap))
    torch.testing.assert_close(found[is_unknown], alpha_of(model, image, trimap)[is_unknown], rtol=0, atol=1e-5)
    for wrong in (image * 255, image - 0.5, image * torch.nan):
        with pytest.raises(UserError, match=r"expected an image in \[0, 1\], got .*: divide 8-bit values by 255"):
            network.alpha(wrong, trimap)
    for wrong in (trimap * 255, trimap * 2, trimap * 0.8, -trimap, trimap * torch.nan):
        with pytest.raises(UserError, match=r"expected a trimap of 0, 0.5 and 1, got .*: decode it"):
            network.alpha(image, wrong)


def test_a_predictor_runs_the_file(exported, tmp_path):
    model, path = exported
    rng = np.random.default_rng(0)
    image, trimap = rng.integers(0, 256, (50, 83, 3), np.uint8), rng.choice(np.array([0, 128, 255], np.uint8), (50, 83))
    predictor = Predictor.load(path, device="cpu")
    assert predictor.network.name == "onnxruntime, cpu, float32"
    (tmp_path / "LOUD.ONNX").symlink_to(path)
    assert Predictor.load(tmp_path / "LOUD.ONNX", device="cpu").network.name == predictor.network.name
    expected = Predictor(TorchNetwork(model)).predict(image, trimap)
    np.testing.assert_allclose(predictor.predict(image, trimap), expected, rtol=0, atol=1e-5)


def test_threads_share_a_network_and_take_as_many_cores_as_torch(exported):
    _, path = exported
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        network = OnnxNetwork(path)
    finally:
        torch.set_num_threads(threads)
    assert network.session.get_session_options().intra_op_num_threads == 2
    pairs = [random_pair(40 + 9 * index, 50) for index in range(6)]
    expected = [network.alpha(*each) for each in pairs]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda each: network.alpha(*each), pairs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    model = varied_network("ViT")
    taken = tmp_path / "taken.onnx"
    taken.write_bytes(b"mine")
    with pytest.raises(OnnxExportError, match="taken.onnx exists: name a new file"):
        write_onnx(model, taken, "", "")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "MAX_BYTES", 1000)
        with pytest.raises(OnnxExportError, match=r"GB, an ONNX file holds less than .*: export a model folder"):
            write_onnx(model, tmp_path / "new.onnx", "", "")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(MissingExtraError, match=f"ONNX export needs the optional package {name}: pip install"):
                write_onnx(model, tmp_path / "new.onnx", "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["taken.onnx"] and taken.read_bytes() == b"mine"


def test_a_file_with_another_alpha_is_not_left_behind(exported, tmp_path, monkeypatch):
    """As if the exporter had written another network's alpha."""
    model, path = exported
    monkeypatch.setattr(onnx_export, "_graph", lambda *_: onnx.load(path))
    other = varied_network("ViT", norm_eps=0.3)
    with pytest.raises(OnnxExportError, match="model.onnx is not written: onnxruntime's alpha differs from torch's by"):
        write_onnx(other, tmp_path / "model.onnx", "", "")
    assert not list(tmp_path.iterdir())
    write_onnx(model, tmp_path / "model.onnx", "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def save_graph(path, trimap_shape=("B", 1, "H", "W"), type_=TensorProto.FLOAT, divisor=1.0, output="alpha"):
    """An ONNX file with alpha = trimap / divisor + 0 * red."""
    image = helper.make_tensor_value_info("image", type_, ("B", 3, "H", "W"))
    trimap = helper.make_tensor_value_info("trimap", type_, trimap_shape)
    constant = helper.make_tensor("divisor", type_, (), [divisor])
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["trimap", "divisor"], ["scaled"]),
            helper.make_node("ReduceMin", ["image"], ["least"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["least", "least"], ["nothing"]),
            helper.make_node("Add", ["scaled", "nothing"], [output]),
        ],
        "test",
        [image, trimap],
        [helper.make_tensor_value_info(output, type_, ("B", 1, "H", "W"))],
        [constant],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_a_file_that_is_something_else_is_refused(exported, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError, match="model.onnx: no such .onnx file"):
        OnnxNetwork(path)
    whole = exported[1].read_bytes()
    for content in (b"", b"no network", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^.*model.onnx is damaged or no ONNX file \(.*\): export it again$"):
            OnnxNetwork(path)
    for changes in (
        dict(trimap_shape=("B", 1, 512, 512)),
        dict(trimap_shape=("B", 2, "H", "W")),
        dict(trimap_shape=("B", "H", "W")),
        dict(output="mask"),
        dict(type_=TensorProto.DOUBLE),
    ):
        save_graph(path, **changes)
        with pytest.raises(UserError, match=r"model.onnx: expected float32 image \(B, 3, H, W\), .*, got image tensor"):
            OnnxNetwork(path)
    save_graph(path)
    image, trimap = random_pair(4, 5)
    torch.testing.assert_close(OnnxNetwork(path).alpha(image, trimap), trimap)


def test_a_run_that_stops_or_gives_no_finite_values_is_an_error_of_one_line(tmp_path):
    save_graph(tmp_path / "model.onnx", divisor=0.0)
    network = OnnxNetwork(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="the network gives values that are not finite"):
        network.alpha(*random_pair(4, 5))
    with pytest.raises(UserError, match=r"^.*model.onnx stops at 5 x 4 px \(.*\): it takes images whole; a model .*$"):
        network.alpha(random_pair(4, 5)[0], random_pair(3, 3)[1])


def test_settings_that_only_torch_has_are_refused(tmp_path):
    save_graph(tmp_path / "model.onnx")
    for setting in (
        dict(tile_px=256),
        dict(max_memory_gb=8),
        dict(backbone_px=512),
        dict(is_compiled=True),
        dict(precision="bf16"),
    ):
        with pytest.raises(ConfigError, match="model.onnx: an .onnx file has no tiles"):
            Predictor.load(tmp_path / "model.onnx", **setting)


def test_without_onnxruntime_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="an .onnx file needs the optional package onnxruntime: pip install -r"):
        Predictor.load(tmp_path / "model.onnx")


def test_devices():
    cpu, both = ["CPUExecutionProvider"], ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_providers("auto", cpu) == choose_providers("cpu", both) == cpu
    for device, index in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        (name, settings), fallback = choose_providers(device, both)
        assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        assert settings == {"device_id": index, "use_tf32": 0}
    for device, available in (("cuda", cpu), ("mps", both), ("cuda:x", both), ("gpu", both)):
        with pytest.raises(ConfigError, match=f"device '{device}' cannot be used: an .onnx file runs on cpu"):
            choose_providers(device, available)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_onnxruntime_was_built_for_and_does_not_find(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    save_graph(tmp_path / "model.onnx")
    assert OnnxNetwork(tmp_path / "model.onnx").name == "onnxruntime, cpu, float32"
    with pytest.raises(
        ConfigError, match="device 'cuda:1' cannot be used: onnxruntime does not find its CUDA libraries"
    ):
        OnnxNetwork(tmp_path / "model.onnx", "cuda:1")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [ViT, ViTDet])
def test_networks_of_full_width(tmp_path, backbone):
    """Of width 384 and with windows of the recipes; two blocks, since the exporter takes minutes for twelve."""
    torch.manual_seed(0)
    vit = backbone(depth=2, global_block_indexes=[1], conv_residual_block_indexes=[1])
    model = randomise_vitmatte(ViTMatte(vit, DetailCapture(384)))
    write_onnx(model, tmp_path / "model.onnx", "a test", "No terms.")
    network = OnnxNetwork(tmp_path / "model.onnx")
    for size in ((97, 33), (650, 490)):
        image, trimap = random_pair(*size)
        torch.testing.assert_close(network.alpha(image, trimap), alpha_of(model, image, trimap), rtol=0, atol=1e-4)
