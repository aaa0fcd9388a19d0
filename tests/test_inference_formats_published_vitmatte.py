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
from tests.helpers.paths import REPOSITORY
from tests.helpers.published_vitmatte import (
    GLOBAL,
    WINDOWED,
    random_image_and_trimap,
    refused_export,
    run_export,
    transformers_vitmatte,
)
from tools import predict

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


def network_input(height, width):
    """Normalised colours and a trimap of 0, 0.5, 1, sides being multiples of 32."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.randn(1, 3, height, width, generator=generator)
    return torch.cat((colours, torch.randint(0, 3, (1, 1, height, width), generator=generator) / 2), dim=1)


def assert_same_alpha(theirs, ours, x, atol):
    with torch.inference_mode():
        expected = theirs(x).alphas
        found = ours.decoder(ours.backbone(x), x)
    assert expected[x[:, 3:] == 0.5].std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("size", ["ragged", "square"])
def test_transformers_folders_give_the_same_alpha(vitmatte_folder, tiny_vitmatte, tmp_path, capsys, size):
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    num_tensors = len(tiny_vitmatte.state_dict())
    shown = capsys.readouterr().out
    assert f"ViTMatte-tiny, transformers layout, {num_tensors} tensors read, {num_tensors} converted" in shown
    assert "mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], as transformers' processor" in shown
    x = network_input(*{"ragged": (160, 224), "square": (512, 512)}[size])
    assert_same_alpha(tiny_vitmatte, read_model_folder(tmp_path / "model"), x, atol=1e-5)


def test_the_published_small_network_gives_the_same_alpha(tmp_path):
    theirs = transformers_vitmatte(**SIZES["S"])
    theirs.save_pretrained(tmp_path / "source")
    assert run_export("--from-vitmatte", tmp_path / "source", "--output", tmp_path / "model") == 0
    ours = read_model_folder(tmp_path / "model")
    for height, width in [(160, 224), (512, 512)]:
        assert_same_alpha(theirs, ours, network_input(height, width), atol=1e-5)


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
    assert_same_alpha(tiny_vitmatte, read_model_folder(tmp_path / "model"), network_input(160, 224), atol=1e-5)


@pytest.mark.parametrize(("size", "embed_dim", "num_heads"), [("S", 384, 6), ("B", 768, 12)])
def test_hustvls_names_and_shapes_of_both_sizes_are_ours(size, embed_dim, num_heads):
    theirs = {f"backbone.{n}": tensor for n, tensor in detectron2_vit(embed_dim, num_heads).state_dict().items()}
    theirs |= {f"decoder.{name}": tensor for name, tensor in DetailCapture(embed_dim).state_dict().items()}
    converted = convert_published(theirs)
    with torch.device("meta"):
        ours = build("model", converted.description).state_dict()
    assert (converted.layout, converted.size) == ("hustvl", size)
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_colours_are_normalised_as_by_the_sources_own_code(vitmatte_folder, tiny_vitmatte, tmp_path):
    """At an aligned size: transformers' processor; hustvl's ImageNet values. The trimap stays 0, 0.5, 1 in both."""
    image, trimap = random_image_and_trimap(64, 96)
    torch.save(hustvl_state(tiny_vitmatte), tmp_path / "w.pth")
    theirs = VitMatteImageProcessor()(images=image, trimaps=trimap, return_tensors="pt")["pixel_values"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    by_hand = torch.tensor((image / 255 - mean) / std).permute(2, 0, 1)[None].float()
    for origin, colours in ((vitmatte_folder, theirs[:, :3]), (tmp_path / "w.pth", by_hand)):
        assert run_export("--from-vitmatte", origin, "--output", tmp_path / f"of_{origin.name}") == 0
        predictor = Predictor.load(tmp_path / f"of_{origin.name}")
        seen = []
        backbone = predictor.network.model.backbone
        backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        predictor.predict(image, trimap)
        torch.testing.assert_close(seen[0][:, :3], colours, rtol=0, atol=1e-5)
        torch.testing.assert_close(seen[0][:, 3:], theirs[:, 3:].mul(2).round().div(2), rtol=0, atol=0)


def unknown_alpha(network, x, trimap):
    """Alpha of transformers' network, cropped to the trimap's size, where the trimap is unknown."""
    with torch.inference_mode():
        alpha = network(x).alphas[0, 0, : trimap.shape[0], : trimap.shape[1]].numpy()
    return alpha[trimap == 128]


def assert_pipelines_agree(model, theirs, image, trimap):
    found = Predictor.load(model, device="cpu").predict(image, trimap)[trimap == 128]
    assert theirs.std() > 0.05
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(333, 517), (500, 512), (640, 480), (512, 512)], ids=str)
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


def test_the_normalisation_that_a_folder_states_is_taken(vitmatte_folder, tmp_path):
    preprocessor = vitmatte_folder / "preprocessor_config.json"
    stated = json.loads(preprocessor.read_text()) | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    preprocessor.write_text(json.dumps(stated))
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    model = read_model_folder(tmp_path / "model")
    assert model.pixel_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.pixel_std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    preprocessor.unlink()
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "without") == 0
    assert read_model_folder(tmp_path / "without").pixel_mean.flatten().tolist() == [0.5, 0.5, 0.5]


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


def change_json(path, changes):
    """Change values of a JSON file by dotted names; "absent" removes one."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *section, key = name.split(".")
        values = content[section[0]] if section else content
        values.pop(key, None)
        if value != "absent":
            values[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("backbone_config.hidden_act", "relu", "the network here has 'gelu' alone"),
        ("backbone_config.qkv_bias", False, "the network here has True alone"),
        ("backbone_config.use_absolute_position_embeddings", False, "the network here has True alone"),
        ("backbone_config.use_relative_position_embeddings", False, "the network here has relative positions"),
        ("backbone_config.use_relative_position_embeddings", "absent", "is None: the network here has relative"),
        ("backbone_config.out_features", ["stage4"], "the decoder takes the last block's map, 'stage12'"),
        ("backbone_config.out_indices", [4], "the decoder takes the last block's map, 12"),
        ("backbone_config.num_channels", 3, "RGB and a trimap, 4 channels"),
        ("backbone_config.num_channels", "absent", "RGB and a trimap, 4 channels"),
        ("backbone_config.model_type", "dinov2", "the network here has 'vitdet' alone"),
        ("backbone_config.patch_size", [16, 8], "takes squares alone"),
        ("backbone_config.image_size", [512, 256], "takes squares alone"),
        ("backbone_config.num_hidden_layers", 10**9, "expected an integer from 0 to 8192"),
        ("backbone_config.num_hidden_layers", True, "expected an integer from 0 to 8192"),
        ("backbone_config.layer_norm_eps", "small", "expected a number"),
        ("backbone_config.window_block_indices", [0.5], "expected a list of integers"),
        ("backbone_config.residual_block_indices", None, "expected a list of integers"),
        ("backbone_config", [], "expected a JSON object, got a list"),
        ("backbone", "facebook/dinov2-base", "the network here has None or False alone"),
        ("hidden_size", 25, "the backbone is 24 wide"),
        ("fusion_hidden_sizes", [8, 8], "each doubles the map, but patch_size is 16"),
        ("batch_norm_eps", 0.1, "the network here has 1e-05 alone"),
        ("model_type", "vitdet", "the network here has 'vitmatte' alone"),
    ],
)
def test_a_setting_that_cannot_be_obeyed_is_one_line(vitmatte_folder, tmp_path, capsys, name, value, words):
    change_json(vitmatte_folder / "config.json", {name: value})
    line = refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)
    assert f"{vitmatte_folder / 'config.json'}: {name}" in line and words in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone_config.residual_block_indices": [2, 5, 8]}, "9 unexpected (backbone.blocks.11.residual."),
        ({"backbone_config.residual_block_indices": "absent"}, "36 unexpected (backbone.blocks."),
        ({"backbone_config.window_size": 7}, "of another shape (backbone.blocks.0.attn.rel_pos_h"),
        ({"backbone_config.num_attention_heads": 6}, "of another shape (backbone.blocks.0.attn.rel_pos_h"),
        ({"backbone_config.mlp_ratio": 2}, "36 of another shape (backbone.blocks.0.mlp.fc1."),
        ({"backbone_config.num_attention_heads": 7}, "width 24 is not divisible by 7 heads"),
        ({"convstream_hidden_sizes": [48, 96]}, "fusion_chans needs one entry more"),
        ({"backbone_config.patch_size": 8}, "each doubles the map, but patch_size is 8"),
    ],
    ids=range(8),
)
def test_settings_that_the_weights_contradict_are_one_line(vitmatte_folder, tmp_path, capsys, changes, words):
    change_json(vitmatte_folder / "config.json", changes)
    assert words in refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000], ids=["list", "cut off", "deep"])
def test_a_config_that_is_no_object_is_one_line(vitmatte_folder, tmp_path, capsys, text):
    (vitmatte_folder / "config.json").write_text(text)
    assert "config.json" in refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)


ALL = dict(
    window_size=5,
    window_block_indices=[0, 2, 3],
    residual_block_indices=[1],
    num_hidden_layers=4,
    mlp_ratio=2,
    layer_norm_eps=1e-3,
    pretrain_image_size=160,
    image_size=256,
    out_features=["stage4"],
)


@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        ({"residual_block_indices": [1, 4]}, {}),
        ({"residual_block_indices": []}, {}),
        ({"window_block_indices": [0, 1]}, {}),
        ({"window_block_indices": []}, {}),
        ({"window_size": 7}, {}),
        ({"window_size": 0}, {}),
        ({"num_attention_heads": 6}, {}),
        ({"mlp_ratio": 3}, {}),
        ({"layer_norm_eps": 0.5}, {}),
        ({"pretrain_image_size": 160}, {}),
        ({"image_size": 256}, {}),
        ({"num_hidden_layers": 6, "out_features": ["stage6"], "drop_path_rate": 0.2, "dropout_prob": 0.1}, {}),
        ({"patch_size": 8}, dict(convstream_hidden_sizes=[48, 96], fusion_hidden_sizes=[256, 64, 32])),
        ({}, dict(convstream_hidden_sizes=[8, 16, 24], fusion_hidden_sizes=[32, 24, 16, 8])),
        (ALL, dict(convstream_hidden_sizes=[8, 16, 24], fusion_hidden_sizes=[32, 24, 16, 8])),
    ],
    ids=range(15),
)
def test_settings_of_a_folder_are_obeyed(tmp_path, backbone, decoder):
    theirs = transformers_vitmatte(24, 3, backbone, **decoder)
    theirs.save_pretrained(tmp_path / "source")
    assert run_export("--from-vitmatte", tmp_path / "source", "--output", tmp_path / "model") == 0
    assert_same_alpha(theirs, read_model_folder(tmp_path / "model"), network_input(160, 224), atol=1e-5)


def test_a_file_beside_its_config_has_the_settings_of_the_folder(tmp_path):
    theirs = transformers_vitmatte(24, 3, ALL)
    theirs.save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    assert run_export("--from-vitmatte", file, "--output", tmp_path / "model") == 0
    assert_same_alpha(theirs, read_model_folder(tmp_path / "model"), network_input(160, 224), atol=1e-5)


def test_a_width_that_nobody_published_is_taken_with_its_settings(tmp_path, capsys):
    theirs = transformers_vitmatte(32, 4)
    theirs.save_pretrained(tmp_path / "source")
    assert run_export("--from-vitmatte", tmp_path / "source", "--output", tmp_path / "model") == 0
    assert "ViTMatte-unlisted" in capsys.readouterr().out
    assert_same_alpha(theirs, read_model_folder(tmp_path / "model"), network_input(64, 96), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_normalize": False},
        {"image_mean": 0.4, "image_std": 0.3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"size_divisor": 64},
        {"size_divisor": "absent", "size_divisibility": 128},
        {"size_divisor": "absent"},
        {"rescale_factor": 0.00392156862745098},
    ],
    ids=str,
)
def test_the_processors_settings_are_obeyed(vitmatte_folder, tmp_path, changes):
    """Network input at a ragged size, against transformers' processor of the same file."""
    change_json(vitmatte_folder / "preprocessor_config.json", changes)
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    model = read_model_folder(tmp_path / "model")
    image, trimap = random_image_and_trimap(70, 45)
    x = VitMatteImageProcessor.from_pretrained(vitmatte_folder)(
        images=image, trimaps=trimap, return_tensors="pt"
    ).pixel_values
    x[:, 3:] = x[:, 3:].mul(2).round().div(2)
    colours = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    found = model.network_input(colours, torch.from_numpy(trimap)[None, None].div(127.5).round().div(2))
    torch.testing.assert_close(found, x, rtol=0, atol=2e-6, check_stride=False)


def test_without_padding_sides_need_be_multiples_of_a_patch_alone(vitmatte_folder, tmp_path):
    change_json(vitmatte_folder / "preprocessor_config.json", {"do_pad": False})
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    assert read_model_folder(tmp_path / "model").network_input(*(torch.zeros(1, n, 48, 80) for n in (3, 1))).shape == (
        1,
        4,
        48,
        80,
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("do_rescale", False, "the network here has True alone"),
        ("rescale_factor", 1 / 127.5, "which is 1 / 255"),
        ("rescale_factor", 1, "which is 1 / 255"),
        ("do_normalize", "no", "expected true or false"),
        ("image_mean", None, "expected three numbers"),
        ("image_std", [0.5, 0.5], "expected three numbers"),
        ("image_std", [0.5, 0.5, float("nan")], "expected three numbers"),
        ("size_divisor", "32", "expected an integer"),
        ("image_processor_type", "ViTImageProcessor", "expected ViTMatte's own processor"),
    ],
    ids=range(9),
)
def test_a_setting_of_the_processor_that_cannot_be_obeyed_is_one_line(
    vitmatte_folder, tmp_path, capsys, name, value, words
):
    change_json(vitmatte_folder / "preprocessor_config.json", {name: value})
    line = refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)
    assert f"preprocessor_config.json: {name} is" in line and words in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_divisor": 24}, "size_divisibility of ViTMatte must be a multiple of the backbone's patch_size 16"),
        ({"size_divisor": 0}, "size_divisibility must be 1 to 1024"),
        ({"image_std": [0, 1, 1]}, "pixel_std must be above 0"),
    ],
    ids=range(3),
)
def test_a_processor_that_no_network_takes_is_one_line(vitmatte_folder, tmp_path, capsys, changes, words):
    change_json(vitmatte_folder / "preprocessor_config.json", changes)
    assert words in refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)


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
    assert run_export("--from-vitmatte", vitmatte_folder, "--output", tmp_path / "model") == 0
    assert "left aside, other files of the folder: optimizer.pt" in capsys.readouterr().out
    assert_same_alpha(tiny_vitmatte, read_model_folder(tmp_path / "model"), network_input(64, 96), atol=1e-5)


def test_two_layouts_at_once_are_one_line(vitmatte_folder, tmp_path, capsys):
    tensors = dict(load_file(vitmatte_folder / "model.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()} | {
        "backbone.pos_embed": torch.zeros(1, 197, 24)
    }
    save_file(tensors, vitmatte_folder / "model.safetensors")
    assert "two tensors are backbone.pos_embed" in refused_export(capsys, tmp_path, "--from-vitmatte", vitmatte_folder)


class Code:
    """A pickle that would make a folder when it is read."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_that_cannot_be_read_are_one_line_and_run_nothing(vitmatte_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name in ("code.pth", "text.pth"):
        line = refused_export(capsys, tmp_path, "--from-vitmatte", tmp_path / name)
        assert f"{name} cannot be read as a checkpoint of tensors" in line and "trusted" not in line
    assert not (tmp_path / "ran").exists()
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


def test_published_weights_run_without_detectron2(vitmatte_folder, tmp_path, capsys):
    """Converted and used where detectron2 and what it brings cannot be imported: the same picture."""
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
    again = [files[0], "--overwrite", "--model", tmp_path / "absent", "--trimap", files[1], "--output", files[2]]
    assert predict.main([str(argument) for argument in again]) == 1
    assert "absent: no such model folder or .onnx file" in capsys.readouterr().err


def test_a_sparse_tensor_is_refused_by_name():
    with pytest.raises(PublishedError, match="backbone.pos_embed is a sparse or quantised tensor"):
        convert_published({"backbone.pos_embed": torch.zeros(1, 197, 24).to_sparse(), "decoder.x": torch.zeros(1)})
