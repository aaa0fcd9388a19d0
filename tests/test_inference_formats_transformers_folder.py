"""inference/formats/transformers_folder.py: transformers itself reads what is written; the way back is exact."""

import json

import numpy as np
import pytest
import torch
from transformers import VitMatteForImageMatting, VitMatteImageProcessor

from inference.formats.model_folder import build, read_model_folder, write_model_folder
from inference.formats.transformers_folder import settings_of
from inference.formats.transformers_settings import PublishedError
from inference.predictor import Predictor
from tests.helpers.networks import network_description, randomise_vitmatte
from tests.helpers.published_vitmatte import random_image_and_trimap
from tools import export


def run_export(*arguments):
    return export.main([*map(str, arguments)])


@pytest.fixture
def model_folder(tmp_path):
    """A ViTDet network of ours whose every setting is nobody's default."""
    torch.manual_seed(0)
    described = network_description("ViTDet") | {"padding": "zero", "size_divisibility": 32}
    described["decoder"] |= dict(convstream_chans=[8, 8, 8], fusion_chans=[32, 16, 16, 8])
    described["backbone"] |= dict(norm_eps=1e-3, mlp_ratio=3.0, window_size=3)
    model = randomise_vitmatte(build("model", described))
    write_model_folder(tmp_path / "ours", described, model.state_dict(), "a test", "Some terms.\n")
    return tmp_path / "ours"


@pytest.mark.parametrize("size", [(133, 77), (96, 133), (128, 96)], ids=str)
def test_transformers_reads_it_and_gives_our_alpha(model_folder, tmp_path, size):
    """At any size, where padding is with zeros; the processor's 128 / 255 is replaced by the 0.5 of both networks."""
    assert run_export("--model", model_folder, "--format", "transformers", "--output", tmp_path / "theirs") == 0
    network, info = VitMatteForImageMatting.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values()), info
    image, trimap = random_image_and_trimap(*size)
    processor = VitMatteImageProcessor.from_pretrained(tmp_path / "theirs")
    x = processor(images=image, trimaps=trimap, return_tensors="pt").pixel_values
    with torch.inference_mode():
        unreplaced = network.eval()(x).alphas[0, 0, : size[0], : size[1]].numpy()
        x[:, 3:][x[:, 3:] == 128 / 255] = 0.5
        found = network(x).alphas[0, 0, : size[0], : size[1]].numpy()
    expected = Predictor.load(model_folder, device="cpu").predict(image, trimap)
    assert expected[trimap == 128].std() > 0.05
    np.testing.assert_allclose(found[trimap == 128], expected[trimap == 128], rtol=0, atol=1e-4)
    off = np.abs(unreplaced - expected)[trimap == 128]
    assert 2e-4 < off.max() < 0.1 and off.mean() < 1 / 255, "docs/convert_vitmatte.md: what 128 / 255 changes"
    assert (tmp_path / "theirs" / "LICENSE.txt").read_text() == "Some terms.\n"


def test_the_way_back_gives_the_same_network(model_folder, tmp_path):
    assert run_export("--model", model_folder, "--format", "transformers", "--output", tmp_path / "theirs") == 0
    assert run_export("--from-vitmatte", tmp_path / "theirs", "--output", tmp_path / "back") == 0
    folders = model_folder, tmp_path / "back"
    ours, back = (json.loads((folder / "config.json").read_text())["model"] for folder in folders)
    for part in ("backbone", "decoder"):
        assert ours.pop(part).items() <= back.pop(part).items()
    assert ours.items() <= back.items()
    states = [read_model_folder(folder).state_dict() for folder in folders]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_a_network_that_pads_otherwise_is_written_with_a_note(model_folder, tmp_path, capsys):
    config = json.loads((model_folder / "config.json").read_text())
    config["model"]["padding"] = "edge"
    (model_folder / "config.json").write_text(json.dumps(config))
    assert run_export("--model", model_folder, "--format", "transformers", "--output", tmp_path / "theirs") == 0
    assert (
        "transformers pads with zeros, this network by edge: alpha differs unless sides are" in capsys.readouterr().out
    )


def test_what_transformers_does_not_have_and_a_taken_folder_are_one_line(model_folder, tmp_path, capsys):
    described = network_description("ViT")
    write_model_folder(tmp_path / "vit", described, build("model", described).state_dict(), "a test", "No terms.\n")
    command = ["--format", "transformers", "--output", tmp_path / "theirs"]
    assert run_export("--model", tmp_path / "vit", *command) == 1
    assert capsys.readouterr().err == (
        "export.py: the backbone is ViT, and transformers has ViTMatte on ViTDet alone (configs/*_original.py)\n"
    )
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(PublishedError, match="mlp_ratio is 2.5, and transformers takes whole numbers alone"):
        settings_of({"backbone": {"type": "ViTDet", "mlp_ratio": 2.5}, "decoder": {"in_chans": 24}})
    settings = {"backbone": {"type": "ViTDet"}, "decoder": {"in_chans": 24}}
    with pytest.raises(PublishedError, match=r"backbone_scale_range is \[0.3, 0.5\], and transformers shows"):
        settings_of(settings | {"backbone_scale_range": [0.3, 0.5]})
    assert settings_of(settings | {"backbone_scale_range": [0.3, 1.0]}) == settings_of(settings)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine").touch()
    assert run_export("--model", model_folder, *command) == 1
    assert "exists and is no empty folder" in capsys.readouterr().err
