"""Settings of a transformers ViTMatte folder: each is obeyed as by transformers' own code, or refused in one line."""

import json

import pytest
import torch
from transformers import VitMatteImageProcessor

from tests.helpers.published_vitmatte import (
    assert_same_alpha,
    exported,
    network_input,
    random_image_and_trimap,
    refused_export,
    transformers_vitmatte,
)

pytestmark = pytest.mark.usefixtures("tiny_size_is_published")


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
        ("backbone_config.use_absolute_position_embeddings", False, "the network here has True alone"),
        ("backbone_config.use_relative_position_embeddings", False, "the network here has relative positions"),
        ("backbone_config.out_features", ["stage4"], "the decoder takes the last block's map, 'stage12'"),
        ("backbone_config.out_indices", [4], "the decoder takes the last block's map, 12"),
        ("backbone_config.num_channels", 3, "RGB and a trimap, 4 channels"),
        ("backbone_config.model_type", "dinov2", "the network here has 'vitdet' alone"),
        ("backbone_config.patch_size", [16, 8], "takes squares alone"),
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
        ({"backbone_config.residual_block_indices": "absent"}, "36 unexpected (backbone.blocks."),
        ({"backbone_config.window_size": 7}, "of another shape (backbone.blocks.0.attn.rel_pos_h"),
        ({"backbone_config.mlp_ratio": 2}, "36 of another shape (backbone.blocks.0.mlp.fc1."),
        ({"backbone_config.num_attention_heads": 7}, "width 24 is not divisible by 7 heads"),
        ({"convstream_hidden_sizes": [48, 96]}, "fusion_chans needs one entry more"),
        ({"backbone_config.patch_size": 8}, "each doubles the map, but patch_size is 8"),
    ],
    ids=range(6),
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
        ({"residual_block_indices": []}, {}),
        ({"window_block_indices": []}, {}),
        ({"window_size": 0}, {}),
        ({"num_attention_heads": 6}, {}),
        ({"num_hidden_layers": 6, "out_features": ["stage6"], "drop_path_rate": 0.2, "dropout_prob": 0.1}, {}),
        ({"patch_size": 8}, dict(convstream_hidden_sizes=[48, 96], fusion_hidden_sizes=[256, 64, 32])),
        (ALL, dict(convstream_hidden_sizes=[8, 16, 24], fusion_hidden_sizes=[32, 24, 16, 8])),
    ],
    ids=range(7),
)
def test_settings_of_a_folder_are_obeyed(tmp_path, backbone, decoder):
    theirs = transformers_vitmatte(24, 3, backbone, **decoder)
    theirs.save_pretrained(tmp_path / "source")
    assert_same_alpha(theirs, exported(tmp_path / "source", tmp_path / "model"), network_input(160, 224))


def test_a_file_beside_its_config_has_the_settings_of_the_folder(tmp_path, capsys):
    """Its width is none that was published."""
    theirs = transformers_vitmatte(32, 4, ALL)
    theirs.save_pretrained(tmp_path / "source")
    ours = exported(tmp_path / "source" / "model.safetensors", tmp_path / "model")
    assert "ViTMatte-unlisted" in capsys.readouterr().out
    assert_same_alpha(theirs, ours, network_input(64, 96))


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
    model = exported(vitmatte_folder, tmp_path / "model")
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
    model = exported(vitmatte_folder, tmp_path / "model")
    assert model.padded_size(48, 80) == (48, 80)


def test_a_folder_without_a_processor_has_the_processors_defaults(vitmatte_folder, tmp_path):
    (vitmatte_folder / "preprocessor_config.json").unlink()
    model = exported(vitmatte_folder, tmp_path / "model")
    assert model.pixel_mean.flatten().tolist() == model.pixel_std.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("do_rescale", False, "the network here has True alone"),
        ("rescale_factor", 1 / 127.5, "which is 1 / 255"),
        ("do_normalize", "no", "expected true or false"),
        ("image_mean", None, "expected three numbers"),
        ("image_std", [0.5, 0.5], "expected three numbers"),
        ("image_std", [0.5, 0.5, float("nan")], "expected three numbers"),
        ("size_divisor", "32", "expected an integer"),
        ("image_processor_type", "ViTImageProcessor", "expected ViTMatte's own processor"),
    ],
    ids=range(8),
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
