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
from test_detail_capture import randomise as randomise_decoder
from test_vit import randomise
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting, VitMatteImageProcessor

from inference.model_folder import build, read_model_folder
from inference.predictor import Predictor
from inference.published_vitmatte import SIZES, PublishedError, convert_published
from modeling import DetailCapture
from tests.tiny_training import REPOSITORY
from tools import export, predict

GLOBAL = [2, 5, 8, 11]
WINDOWED = [index for index in range(12) if index not in GLOBAL]
POSITIONS = "backbone.pos_embed"
BN = "decoder.convstream.convs.0.bn"


def randomised(model):
    """Random weights and running statistics of a network's usual sizes, such that alphas vary."""
    randomise(model.backbone)
    for parameter in model.backbone.parameters():
        if parameter.dim() in (2, 4):
            parameter.data *= 5 * parameter[0].numel() ** -0.5  # randomise gives 0.2
    randomise_decoder(model.decoder)
    return model.eval()


def transformers_vitmatte(embed_dim, num_heads):
    """Transformers' network with the settings of the published hustvl/vitmatte-* folders."""
    backbone = VitDetConfig(
        hidden_size=embed_dim,
        num_attention_heads=num_heads,
        num_channels=4,
        image_size=512,
        window_size=14,
        window_block_indices=WINDOWED,
        residual_block_indices=GLOBAL,
        use_relative_position_embeddings=True,
        out_features=["stage12"],
    )
    chans = dict(convstream_hidden_sizes=[48, 96, 192], fusion_hidden_sizes=[256, 128, 64, 32])
    return randomised(VitMatteForImageMatting(VitMatteConfig(backbone_config=backbone, hidden_size=embed_dim, **chans)))


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    """A size that nobody published, so that most tests are quick."""
    monkeypatch.setitem(SIZES, "tiny", dict(embed_dim=24, num_heads=3))


@pytest.fixture(scope="module")
def tiny():
    return transformers_vitmatte(24, 3)


@pytest.fixture
def source(tiny, tmp_path):
    """A transformers folder of the tiny network."""
    tiny.save_pretrained(tmp_path / "source")
    VitMatteImageProcessor().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


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


def run(*arguments):
    return export.main([str(argument) for argument in arguments])


def network_input(height, width):
    """Normalised colours and a trimap of 0, 0.5, 1, sides being multiples of 32."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.randn(1, 3, height, width, generator=generator)
    return torch.cat((colours, torch.randint(0, 3, (1, 1, height, width), generator=generator) / 2), dim=1)


def picture(height=45, width=70):
    rng = np.random.default_rng(0)
    trimap = rng.choice(np.array([0, 128, 255], np.uint8), (height, width))
    return rng.integers(0, 256, (height, width, 3), np.uint8), trimap


def assert_same_alpha(theirs, ours, x, atol):
    with torch.inference_mode():
        expected = theirs(x).alphas
        found = ours.decoder(ours.backbone(x), x)
    assert expected[x[:, 3:] == 0.5].std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("size", ["ragged", "square"])
def test_transformers_folders_give_the_same_alpha(source, tiny, tmp_path, capsys, size):
    assert run("--from-vitmatte", source, "--output", tmp_path / "model") == 0
    num_tensors = len(tiny.state_dict())
    shown = capsys.readouterr().out
    assert f"ViTMatte-tiny, transformers layout, {num_tensors} tensors read, {num_tensors} converted" in shown
    assert "mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], as transformers' processor" in shown
    x = network_input(*{"ragged": (160, 224), "square": (512, 512)}[size])
    assert_same_alpha(tiny, read_model_folder(tmp_path / "model"), x, atol=1e-5)


def test_the_published_small_network_gives_the_same_alpha(tmp_path):
    theirs = transformers_vitmatte(**SIZES["S"])
    theirs.save_pretrained(tmp_path / "source")
    assert run("--from-vitmatte", tmp_path / "source", "--output", tmp_path / "model") == 0
    ours = read_model_folder(tmp_path / "model")
    for height, width in [(160, 224), (512, 512)]:
        assert_same_alpha(theirs, ours, network_input(height, width), atol=1e-5)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_hustvls_file_gives_the_same_alpha(tiny, tmp_path, capsys, is_wrapped):
    state = hustvl_state(tiny)
    file = tmp_path / "ViTMatte_tiny_Com.pth"
    torch.save({"model": state, "optimizer": {}, "iteration": 1} if is_wrapped else state, file)
    assert run("--from-vitmatte", file, "--output", tmp_path / "model") == 0
    shown = capsys.readouterr().out
    assert f"ViTMatte-tiny, hustvl layout, {len(state)} tensors read, {len(state)} converted" in shown
    assert ("left aside, as not of the network: iteration, optimizer" in shown) == is_wrapped
    assert "mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225], as hustvl's code" in shown
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["source"] == file.name
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    assert_same_alpha(tiny, read_model_folder(tmp_path / "model"), network_input(160, 224), atol=1e-5)


@pytest.mark.parametrize(("size", "embed_dim", "num_heads"), [("S", 384, 6), ("B", 768, 12)])
def test_hustvls_names_and_shapes_of_both_sizes_are_ours(size, embed_dim, num_heads):
    theirs = {f"backbone.{n}": tensor for n, tensor in detectron2_vit(embed_dim, num_heads).state_dict().items()}
    theirs |= {f"decoder.{name}": tensor for name, tensor in DetailCapture(embed_dim).state_dict().items()}
    converted = convert_published(theirs)
    with torch.device("meta"):
        ours = build("model", converted.description).state_dict()
    assert (converted.layout, converted.size) == ("hustvl", size)
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_colours_are_normalised_as_by_the_sources_own_code(source, tiny, tmp_path):
    """At an aligned size: transformers' processor; hustvl's ImageNet values. The trimap stays 0, 0.5, 1 in both."""
    image, trimap = picture(64, 96)
    torch.save(hustvl_state(tiny), tmp_path / "w.pth")
    theirs = VitMatteImageProcessor()(images=image, trimaps=trimap, return_tensors="pt")["pixel_values"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    by_hand = torch.tensor((image / 255 - mean) / std).permute(2, 0, 1)[None].float()
    for origin, colours in ((source, theirs[:, :3]), (tmp_path / "w.pth", by_hand)):
        assert run("--from-vitmatte", origin, "--output", tmp_path / f"of_{origin.name}") == 0
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
def test_any_size_gives_the_alpha_of_transformers_processor_and_network(source, tiny, tmp_path, size):
    """The whole pipelines; alone the unknown value 128 / 255 becomes the 0.5 that the weights were trained with."""
    assert run("--from-vitmatte", source, "--output", tmp_path / "model") == 0
    image, trimap = picture(*size)
    x = VitMatteImageProcessor.from_pretrained(source)(images=image, trimaps=trimap, return_tensors="pt").pixel_values
    x[:, 3:][x[:, 3:] == 128 / 255] = 0.5
    assert (x[:, 3, : size[0], : size[1]] == 0.5).sum() == (trimap == 128).sum()
    assert_pipelines_agree(tmp_path / "model", unknown_alpha(tiny, x, trimap), image, trimap)


@pytest.mark.parametrize("size", [(133, 77), (128, 77), (133, 96), (128, 96)], ids=str)
def test_any_size_gives_the_alpha_of_hustvls_padding(tiny, tmp_path, capsys, size):
    """Both sides grow to 32 (floor(n / 32) + 1) when either is ragged; transformers' network stands for hustvl's."""
    torch.save(hustvl_state(tiny), tmp_path / "w.pth")
    assert run("--from-vitmatte", tmp_path / "w.pth", "--output", tmp_path / "model") == 0
    assert "padding: zero_hustvl, as hustvl's code" in capsys.readouterr().out
    image, trimap = picture(*size)
    height, width = size
    is_ragged = height % 32 or width % 32
    padded = (32 * (height // 32 + 1), 32 * (width // 32 + 1)) if is_ragged else size
    x = torch.zeros(1, 4, *padded)
    colours = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x[0, :3, :height, :width] = torch.tensor(colours).permute(2, 0, 1)
    x[0, 3, :height, :width] = torch.tensor(np.round(trimap / 127.5) / 2)
    assert_pipelines_agree(tmp_path / "model", unknown_alpha(tiny, x, trimap), image, trimap)


def test_the_normalisation_that_a_folder_states_is_taken(source, tmp_path):
    preprocessor = source / "preprocessor_config.json"
    stated = json.loads(preprocessor.read_text()) | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    preprocessor.write_text(json.dumps(stated))
    assert run("--from-vitmatte", source, "--output", tmp_path / "model") == 0
    model = read_model_folder(tmp_path / "model")
    assert model.pixel_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.pixel_std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    preprocessor.unlink()
    assert run("--from-vitmatte", source, "--output", tmp_path / "without") == 0
    assert read_model_folder(tmp_path / "without").pixel_mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_half_precision_becomes_float32(tiny, tmp_path):
    state = {name: t.half() if t.is_floating_point() else t for name, t in hustvl_state(tiny).items()}
    torch.save(state, tmp_path / "w.pth")
    assert run("--from-vitmatte", tmp_path / "w.pth", "--output", tmp_path / "model") == 0
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.float32, torch.int64}


def refused(capsys, tmp_path, *arguments):
    """Run, see status 1 and nothing written, and give the one line."""
    assert run(*arguments, "--output", tmp_path / "model") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("export.py: ")
    assert not (tmp_path / "model").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.blocks.3.attn.rel_pos_w": None}, "1 missing (backbone.blocks.3.attn.rel_pos_w)"),
        (
            {f"{BN}.running_var": None, f"{BN}.num_batches_tracked": None},
            f"2 missing ({BN}.running_var, {BN}.num_batches",
        ),
        ({"backbone.norm.bias": torch.zeros(3)}, "1 left over (backbone.norm.bias)"),
        (
            {POSITIONS: torch.zeros(1, 196, 24)},
            f"1 of another shape ({POSITIONS} (1, 196, 24), the network has (1, 197",
        ),
        (
            {POSITIONS: torch.zeros(1, 197, 192)},
            "the backbone is 192 wide, which no published ViTMatte is (S 384, B 768",
        ),
        (
            {POSITIONS: torch.zeros(197, 24)},
            "expected a ViTMatte, with backbone.pos_embed and decoder. among its names",
        ),
        ({POSITIONS: None}, "expected a ViTMatte, with backbone.pos_embed and decoder. among its names, got "),
        ({POSITIONS: torch.full((1, 197, 24), float("nan"))}, f"1 with values that are not finite ({POSITIONS})"),
        ({"epoch": 3}, "expected tensors by name, got a int as 'epoch'"),
        ({3: torch.zeros(1)}, "expected tensors by name, got a Tensor as 3"),
    ],
    ids=range(10),
)
def test_what_does_not_fit_or_is_left_over_is_one_line(tiny, tmp_path, capsys, change, words):
    state = hustvl_state(tiny) | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "w.pth")
    assert words in refused(capsys, tmp_path, "--from-vitmatte", tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone_config": {"hidden_act": "relu"}}, "backbone_config.hidden_act is 'relu', which no published"),
        ({"backbone_config": {"layer_norm_eps": 1e-5}}, "backbone_config.layer_norm_eps is 1e-05"),
        ({"backbone_config": {"out_features": ["stage4"]}}, "backbone_config.out_features is ['stage4']"),
        ({"batch_norm_eps": 0.1}, "batch_norm_eps is 0.1"),
        ({"model_type": "vitdet"}, "model_type is 'vitdet'"),
        ([], "expected a JSON object, got a list"),
        (None, "config.json is damaged or no JSON"),
    ],
    ids=range(7),
)
def test_a_folder_of_other_settings_is_one_line(source, tmp_path, capsys, settings, words):
    (source / "config.json").write_text("{" if settings is None else json.dumps(settings))
    assert words in refused(capsys, tmp_path, "--from-vitmatte", source)


def test_two_layouts_at_once_are_one_line(source, tmp_path, capsys):
    tensors = dict(load_file(source / "model.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()} | {
        "backbone.pos_embed": torch.zeros(1, 197, 24)
    }
    save_file(tensors, source / "model.safetensors")
    assert "two tensors are backbone.pos_embed" in refused(capsys, tmp_path, "--from-vitmatte", source)


class Code:
    """A pickle that would make a folder when it is read."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_that_cannot_be_read_are_one_line_and_run_nothing(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name in ("code.pth", "text.pth"):
        line = refused(capsys, tmp_path, "--from-vitmatte", tmp_path / name)
        assert f"{name} cannot be read as a checkpoint of tensors" in line and "trusted" not in line
    assert not (tmp_path / "ran").exists()
    assert "absent.pth is missing" in refused(capsys, tmp_path, "--from-vitmatte", "absent.pth")
    (source / "config.json").unlink()
    assert "source/config.json is missing" in refused(capsys, tmp_path, "--from-vitmatte", source)


WITHOUT_DETECTRON2 = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detectron2", "omegaconf", "hydra", "fvcore", "iopath", "transformers", "yaml"):
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from inference.published_vitmatte import SIZES
SIZES["tiny"] = dict(embed_dim=24, num_heads=3)
from tools import export, predict
source, model, image, trimap, alpha = sys.argv[1:]
assert export.main(["--from-vitmatte", source, "--output", model]) == 0
assert predict.main([image, "--model", model, "--trimap", trimap, "--output", alpha, "--device", "cpu"]) == 0
"""


def test_published_weights_run_without_detectron2(source, tmp_path, capsys):
    """Converted and used where detectron2 and what it brings cannot be imported: the same picture."""
    image, trimap = picture()
    cv2.imwrite(str(tmp_path / "image.png"), image)
    cv2.imwrite(str(tmp_path / "trimap.png"), trimap)
    files = [tmp_path / name for name in ("image.png", "trimap.png", "alpha.png")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DETECTRON2, source, tmp_path / "model", *files],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = Predictor.load(tmp_path / "model").predict(np.ascontiguousarray(image[:, :, ::-1]), trimap)
    written = cv2.imread(str(files[2]), cv2.IMREAD_UNCHANGED)
    assert np.abs(written - 255 * expected.astype(np.float64)).max() <= 0.5 + 1e-3
    again = [files[0], "--model", tmp_path / "absent", "--trimap", files[1], "--output", files[2]]
    assert predict.main([str(argument) for argument in again]) == 1
    assert "absent is no model folder: it lacks config.json and model.safetensors" in capsys.readouterr().err


def test_a_sparse_tensor_is_refused_by_name():
    with pytest.raises(PublishedError, match="backbone.pos_embed is a sparse or quantised tensor"):
        convert_published({"backbone.pos_embed": torch.zeros(1, 197, 24).to_sparse(), "decoder.x": torch.zeros(1)})
