"""Published ViTMatte weights to model folders, against transformers' network and detectron2's backbone."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.vit import ViT as DetectronViT
from safetensors.torch import load_file, save_file
from transformers import VitMatteImageProcessor

from inference.formats.model_folder import build, read_model_folder
from inference.formats.published_vitmatte import SIZES, PublishedError, convert_published
from inference.predictor import Predictor
from modeling import DetailCapture
from runtime.errors import UserError
from tests.helpers.paths import REPOSITORY
from tests.helpers.published_vitmatte import (
    GLOBAL,
    WINDOWED,
    assert_same_alpha,
    exported,
    network_input,
    random_image_and_trimap,
    refused_export,
    run_export,
    transformers_vitmatte,
)

pytestmark = pytest.mark.usefixtures("tiny_size_is_published")


POSITIONS = "backbone.pos_embed"
BN = "decoder.convstream.convs.0.bn"


def detectron2_vit(embed_dim, num_heads):
    """The backbone of hustvl's code, in which the names of its .pth files are given."""
    blocks = dict(window_block_indexes=WINDOWED, residual_block_indexes=GLOBAL)
    size = dict(img_size=512, in_chans=4, embed_dim=embed_dim, num_heads=num_heads, window_size=14)
    return DetectronViT(**size, **blocks, use_rel_pos=True)


def hustvl_state(model):
    """The weights of transformers' tiny network under the names of hustvl's .pth; the backbone's are in one order."""
    names, values = detectron2_vit(**SIZES["tiny"]).state_dict(), model.backbone.state_dict().values()
    state = {f"backbone.{name}": value for name, value in zip(names, values, strict=True)}
    for name, value in model.decoder.state_dict().items():
        state["decoder." + name.replace("fusion_blocks", "fusion_blks").replace("batch_norm", "bn")] = value
    return state


def test_transformers_folders_give_the_same_alpha(vitmatte_folder, tiny_vitmatte, tmp_path, capsys):
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    num_tensors = len(tiny_vitmatte.state_dict())
    shown = capsys.readouterr().out
    assert f"ViTMatte-tiny, transformers layout, {num_tensors} tensors read, {num_tensors} converted" in shown
    assert "mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], as transformers' processor" in shown
    assert_same_alpha(tiny_vitmatte, read_model_folder(tmp_path / "model"), network_input(160, 224))


def test_the_published_small_network_gives_the_same_alpha(tmp_path):
    theirs = transformers_vitmatte(**SIZES["S"])
    theirs.save_pretrained(tmp_path / "source")
    ours = exported(tmp_path / "source", tmp_path / "model")
    assert_same_alpha(theirs, ours, network_input(512, 512))


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_hustvls_file_gives_the_same_alpha(tiny_vitmatte, tmp_path, capsys, is_wrapped):
    state = hustvl_state(tiny_vitmatte)
    file = tmp_path / "ViTMatte_tiny_Com.pth"
    torch.save({"model": state, "optimizer": {}, "iteration": 1} if is_wrapped else state, file)
    assert run_export("--from-vitmatte", file, "--output", tmp_path / "model") == 0
    shown = capsys.readouterr().out
    assert f"ViTMatte-tiny, hustvl layout, {len(state)} tensors read, {len(state)} converted" in shown
    assert ("left aside, as not of the network: iteration, optimizer" in shown) == is_wrapped
    assert "mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225], as hustvl's code" in shown
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["source"] == file.name
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    assert_same_alpha(tiny_vitmatte, read_model_folder(tmp_path / "model"), network_input(160, 224))


@pytest.mark.parametrize(("size", "embed_dim", "num_heads"), [("S", 384, 6), ("B", 768, 12)])
def test_hustvls_names_and_shapes_of_both_sizes_are_ours(size, embed_dim, num_heads):
    theirs = {f"backbone.{n}": tensor for n, tensor in detectron2_vit(embed_dim, num_heads).state_dict().items()}
    theirs |= {f"decoder.{name}": tensor for name, tensor in DetailCapture(embed_dim).state_dict().items()}
    converted = convert_published(theirs)
    with torch.device("meta"):
        ours = build("model", converted.description).state_dict()
    assert (converted.layout, converted.size) == ("hustvl", size)
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def unknown_alpha(network, x, trimap):
    """Alpha of transformers' network, cropped to the trimap's size, where the trimap is unknown."""
    with torch.inference_mode():
        alpha = network(x).alphas[0, 0, : trimap.shape[0], : trimap.shape[1]].numpy()
    return alpha[trimap == 128]


def assert_pipelines_agree(model, theirs, image, trimap):
    found = Predictor.load(model, device="cpu").predict(image, trimap)[trimap == 128]
    assert theirs.std() > 0.05
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(133, 77), (96, 133), (128, 96)], ids=str)
def test_any_size_gives_the_alpha_of_transformers_processor_and_network(vitmatte_folder, tiny_vitmatte, tmp_path, size):
    """The whole pipelines; alone the unknown value 128 / 255 becomes the 0.5 that the weights were trained with."""
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    image, trimap = random_image_and_trimap(*size)
    x = VitMatteImageProcessor.from_pretrained(vitmatte_folder)(
        images=image, trimaps=trimap, return_tensors="pt"
    ).pixel_values
    x[:, 3:][x[:, 3:] == 128 / 255] = 0.5
    assert (x[:, 3, : size[0], : size[1]] == 0.5).sum() == (trimap == 128).sum()
    assert_pipelines_agree(tmp_path / "model", unknown_alpha(tiny_vitmatte, x, trimap), image, trimap)


def test_a_predictor_reads_a_transformers_folder_as_it_would_be_exported(vitmatte_folder, tmp_path):
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    pair = random_image_and_trimap(133, 77)
    expected = Predictor.load(tmp_path / "model", device="cpu").predict(*pair)
    np.testing.assert_array_equal(Predictor.load(vitmatte_folder, device="cpu").predict(*pair), expected)
    (vitmatte_folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model.safetensors"):
        Predictor.load(vitmatte_folder)
    with pytest.raises(UserError, match="is a transformers folder; make a model folder of it: tools/export.py --from"):
        read_model_folder(vitmatte_folder)


@pytest.mark.parametrize("size", [(133, 77), (128, 77), (133, 96), (128, 96)], ids=str)
def test_any_size_gives_the_alpha_of_hustvls_padding(tiny_vitmatte, tmp_path, capsys, size):
    """Both sides grow to 32 (floor(n / 32) + 1) when either is ragged; transformers' network stands for hustvl's."""
    torch.save(hustvl_state(tiny_vitmatte), tmp_path / "w.pth")
    assert run_export("--from-vitmatte", tmp_path / "w.pth", "--output", tmp_path / "model") == 0
    assert "padding: zero_hustvl, as hustvl's code" in capsys.readouterr().out
    image, trimap = random_image_and_trimap(*size)
    height, width = size
    is_ragged = height % 32 or width % 32
    padded = (32 * (height // 32 + 1), 32 * (width // 32 + 1)) if is_ragged else size
    x = torch.zeros(1, 4, *padded)
    colours = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x[0, :3, :height, :width] = torch.tensor(colours).permute(2, 0, 1)
    x[0, 3, :height, :width] = torch.tensor(np.round(trimap / 127.5) / 2)
    assert_pipelines_agree(tmp_path / "model", unknown_alpha(tiny_vitmatte, x, trimap), image, trimap)


def test_half_precision_becomes_float32(tiny_vitmatte, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        state = {name: tensor.to(dtype) for name, tensor in hustvl_state(tiny_vitmatte).items()}  # its counters too
        torch.save({"state_dict": state}, tmp_path / "w.pth")
        output = tmp_path / str(dtype)
        assert run_export("--from-vitmatte", tmp_path / "w.pth", "--output", output) == 0
        written = load_file(output / "model.safetensors")
        assert {t.dtype for t in written.values()} == {torch.float32, torch.int64}
        assert all(torch.equal(written[name], tensor.to(written[name].dtype)) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.blocks.3.attn.rel_pos_w": None}, "1 missing (backbone.blocks.3.attn.rel_pos_w)"),
        (
            {f"{BN}.running_var": None, f"{BN}.num_batches_tracked": None},
            f"2 missing ({BN}.running_var, {BN}.num_batches",
        ),
        ({"backbone.norm.bias": torch.zeros(3)}, "1 unexpected (backbone.norm.bias)"),
        (
            {POSITIONS: torch.zeros(1, 196, 24)},
            f"1 of another shape ({POSITIONS} (1, 196, 24), expected (1, 197",
        ),
        (
            {POSITIONS: torch.zeros(1, 197, 192)},
            "the backbone is 192 wide, which no published ViTMatte is (S 384, B 768",
        ),
        ({POSITIONS: torch.zeros(197, 24)}, "backbone.pos_embed has shape (197, 24), expected three dimensions"),
        ({POSITIONS: None}, "expected a ViTMatte, with backbone.pos_embed and decoder. among its names, got "),
        ({POSITIONS: torch.full((1, 197, 24), float("nan"))}, f"1 with values that are not finite ({POSITIONS})"),
        ({3: torch.zeros(1)}, "1 unexpected (3)"),
    ],
    ids=range(9),
)
def test_what_does_not_fit_or_is_left_over_is_one_line(tiny_vitmatte, tmp_path, capsys, change, words):
    state = hustvl_state(tiny_vitmatte) | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "w.pth")
    assert words in refused_export(capsys, tmp_path, "--from-vitmatte", tmp_path / "w.pth")


def other(state):
    """Another copy of the network: the same names, other values."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("layout", ["hustvl", "transformers"])
@pytest.mark.parametrize(
    ("wrap", "left"),
    [
        (lambda s: under("module.", s), ""),
        (lambda s: {"state_dict": under("module._orig_mod.", s), "epoch": 3}, "as not of the network: epoch"),
        (lambda s: {"model": s, "model_ema": other(s), "optimizer": {}}, "as other copies of the network: EMA"),
        (lambda s: {"teacher": other(s), "model": s, "ema": other(s)}, "network: EMA (N tensors), teacher (N tensors)"),
        (lambda s: s | under("teacher.", other(s)), "as other copies of the network: teacher (N tensors)"),
        (lambda s: under("model_ema.", other(s)) | under("model.", s), "as other copies of the network: EMA"),
        (
            lambda s: {"state_dict": under("net.", s) | {"loss.weight": torch.zeros(1)}},
            "not of the network: state_dict",
        ),
    ],
    ids=range(7),
)
def test_the_network_is_found_in_what_a_training_stored(tiny_vitmatte, tmp_path, capsys, layout, wrap, left):
    state = hustvl_state(tiny_vitmatte) if layout == "hustvl" else dict(tiny_vitmatte.state_dict())
    torch.save(wrap(state), tmp_path / "w.pth")
    assert run_export("--from-vitmatte", tmp_path / "w.pth", "--output", tmp_path / "model") == 0
    shown = capsys.readouterr().out
    assert left.replace("N", str(len(state))) in shown and ("left aside" in shown) == bool(left)
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in hustvl_state(tiny_vitmatte).items())


def test_weights_of_a_folder_may_be_a_pickle_or_shards(tiny_vitmatte, vitmatte_folder, tmp_path, capsys):
    state = dict(load_file(vitmatte_folder / "model.safetensors"))
    (vitmatte_folder / "model.safetensors").unlink()
    torch.save(state, vitmatte_folder / "pytorch_model.bin")
    (vitmatte_folder / "optimizer.pt").write_text("not to be read")
    assert_same_alpha(tiny_vitmatte, exported(vitmatte_folder, tmp_path / "model"), network_input(64, 96))
    assert "left aside, other files of the folder: optimizer.pt" in capsys.readouterr().out


def test_two_layouts_at_once_are_one_line(vitmatte_folder, tmp_path, capsys):
    tensors = dict(load_file(vitmatte_folder / "model.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()} | {
        "backbone.pos_embed": torch.zeros(1, 197, 24)
    }
    save_file(tensors, vitmatte_folder / "model.safetensors")
    assert "two tensors are backbone.pos_embed" in refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)


def test_files_that_are_missing_are_one_line(vitmatte_folder, tmp_path, capsys):
    assert "absent.pth is missing" in refused_export(capsys, tmp_path, "--from-vitmatte", "absent.pth")
    (vitmatte_folder / "config.json").unlink()
    assert "source/config.json is missing" in refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)


WITHOUT_DETECTRON2 = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detectron2", "omegaconf", "hydra", "fvcore", "iopath", "transformers", "yaml"):
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from inference.formats.published_vitmatte import SIZES
SIZES["tiny"] = dict(embed_dim=24, num_heads=3)
from tools import export, predict
source, model, image, trimap, alpha = sys.argv[1:]
assert export.main(["--from-vitmatte", source, "--output", model]) == 0
assert predict.main([image, "--model", model, "--trimap", trimap, "--output", alpha, "--device", "cpu"]) == 0
"""


def test_published_weights_run_without_detectron2(vitmatte_folder, tmp_path):
    """Converted and used where detectron2 and what it brings cannot be imported: the same image."""
    image, trimap = random_image_and_trimap()
    cv2.imwrite(str(tmp_path / "image.png"), image)
    cv2.imwrite(str(tmp_path / "trimap.png"), trimap)
    files = [tmp_path / name for name in ("image.png", "trimap.png", "alpha.png")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DETECTRON2, vitmatte_folder, tmp_path / "model", *files],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = Predictor.load(tmp_path / "model").predict(np.ascontiguousarray(image[:, :, ::-1]), trimap)
    written = cv2.imread(str(files[2]), cv2.IMREAD_UNCHANGED)
    assert np.abs(written - 255 * expected.astype(np.float64)).max() <= 0.5 + 1e-3


def test_a_sparse_tensor_is_refused_by_name():
    with pytest.raises(PublishedError, match="backbone.pos_embed is a sparse or quantised tensor"):
        convert_published({"backbone.pos_embed": torch.zeros(1, 197, 24).to_sparse(), "decoder.x": torch.zeros(1)})
