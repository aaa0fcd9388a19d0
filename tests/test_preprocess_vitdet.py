"""DINO, MAE and other plain vision transformers as the start of the *_original baseline."""

import argparse
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

import preprocess
from engine.checkpoint.pretrained import load_initial
from engine.config.config import load_config
from engine.config.targets import instantiate
from modeling.backbone import ViTDet
from modeling.conversion import ConversionError, convert
from tests.helpers.paths import REPOSITORY
from tests.helpers.preprocess import randomise_reference

State = dict[str, Tensor]
SIZE = dict(embed_dim=128, depth=2, num_heads=2)


def timm_vit(**changes) -> nn.Module:
    return randomise_reference(timm.create_model("vit_tiny_patch16_224", **(SIZE | dict(num_classes=0) | changes)))


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def plain_state() -> State:
    return dict(timm_vit().state_dict())


def decoder() -> State:
    names = ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight"]
    return {name: torch.zeros(2, 2) for name in [*names, "decoder_norm.bias", "decoder_pred.weight"]}


HEAD = {"head.weight": torch.zeros(5, 128), "head.bias": torch.zeros(5)}
DINO_HEAD = {"head.mlp.0.weight": torch.zeros(9, 128), "head.last_layer.weight_g": torch.zeros(5)}
PLAIN = plain_state()
INPUTS = {
    "bare": PLAIN,
    "DINO": PLAIN,
    "DINO, full": {
        "student": under("module.backbone.", {n: torch.zeros_like(t) for n, t in PLAIN.items()})
        | under("module.head.", DINO_HEAD),
        "teacher": under("backbone.", PLAIN) | under("head.", DINO_HEAD),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(arch="vit_small"),
        "epoch": 7,
    },
    "MAE": {"model": PLAIN | decoder()},
    "MAE, fine-tuned": {
        "model": {n.replace("norm.", "fc_norm.") if n.startswith("norm.") else n: t for n, t in PLAIN.items()} | HEAD,
        "args": argparse.Namespace(lr=0.1),
    },
    "timm, with head": PLAIN | HEAD,
    "MoCo v3": {
        "state_dict": under("module.base_encoder.", PLAIN)
        | under("module.momentum_encoder.", {n: torch.zeros_like(t) for n, t in PLAIN.items()})
        | {"module.predictor.0.weight": torch.zeros(2, 2)}
    },
}


def patch_features(model: nn.Module, image: Tensor) -> Tensor:
    """timm's blocks on the patches alone: ViTDet has neither a cls token nor a norm after the last block."""
    x = model.patch_embed(image) + model.pos_embed[:, 1:]
    for block in model.blocks:
        x = block(x)
    return x


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_features_are_those_of_the_blocks(name: str) -> None:
    result = convert(INPUTS[name])
    assert (result.layout, result.network) == ("plain ViT", "ViTDet")
    args = result.vit_args
    vit = ViTDet(**args, global_block_indexes=range(2), conv_residual_block_indexes=()).eval()
    missing, unexpected = vit.load_state_dict(
        {n.removeprefix("backbone."): tensor for n, tensor in result.model.items()}, strict=False
    )
    assert not unexpected and missing and all(".rel_pos_" in n for n in missing)
    for position in missing:
        assert not vit.state_dict()[position].any()
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found = vit(torch.cat((image, torch.rand(1, 1, 224, 224)), dim=1)).flatten(2).transpose(1, 2)
    expected = patch_features(timm_vit(), image)
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", INPUTS)
def test_every_key_is_accounted_for(name: str) -> None:
    account = convert(INPUTS[name]).account
    assert all(re.match("converted|inflated|dropped: .", fate) for fate in account.values())
    assert account["cls_token"].startswith("dropped: ViTDet has no cls token")
    for key, words in {
        "norm.weight": "ViTDet has no norm",
        "mask_token": "pre-training only",
        "decoder_pos_embed": "decoder of masked",
        "decoder_blocks.0.attn.qkv.weight": "decoder of masked",
        "fc_norm.weight": "of a classification head",
        "head.weight": "classification head",
        "args": "no tensor",
        "student.module.backbone.norm.bias": "of another copy (student); taken is teacher",
        "state_dict.module.momentum_encoder.norm.bias": "of another copy (EMA)",
        "optimizer.state.0.exp_avg": "not of the network",
    }.items():
        assert key not in account or words in account[key], key


def transformers_vit(kind: str) -> nn.Module:
    size = dict(hidden_size=128, num_attention_heads=2, num_hidden_layers=2, intermediate_size=256)
    if kind == "ViT":
        return randomise_reference(ViTForImageClassification(ViTConfig(**size, layer_norm_eps=1e-6)))
    small = dict(decoder_num_hidden_layers=1, decoder_hidden_size=16, decoder_num_attention_heads=2)
    return randomise_reference(ViTMAEForPreTraining(ViTMAEConfig(**size, **small, layer_norm_eps=1e-6)))


@pytest.mark.parametrize("kind", ["ViT", "ViTMAE"])
@torch.no_grad()
def test_transformers_files_give_the_same_features(kind: str, tmp_path: Path) -> None:
    theirs = transformers_vit(kind)
    theirs.save_pretrained(tmp_path)
    result = convert(load_file(tmp_path / "model.safetensors"))
    assert (result.layout, result.copy) == ("transformers ViT", 'under "vit."')
    vit = ViTDet(**result.vit_args, global_block_indexes=range(2), conv_residual_block_indexes=()).eval()
    vit.load_state_dict({n.removeprefix("backbone."): tensor for n, tensor in result.model.items()}, strict=False)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    embeddings = theirs.vit.embeddings
    x = embeddings.patch_embeddings(image) + embeddings.position_embeddings[:, 1:]
    for layer in theirs.vit.layers:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    found = vit(torch.cat((image, torch.rand(1, 1, 224, 224)), dim=1)).flatten(2).transpose(1, 2)
    assert (found - x).norm() / x.norm() < 1e-5


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (timm_vit(patch_size=8).state_dict(), "patches of 8 x 8 px cannot be used"),
        (PLAIN | {"blocks.0.gamma_1": torch.ones(128)}, "LayerScale"),
        (timm_vit(reg_tokens=4).state_dict(), "register or distillation tokens"),
        (timm_vit(qk_norm=True).state_dict(), "unknown keys for the plain ViT layout: .*q_norm"),
        (timm_vit(class_token=False, global_pool="avg").state_dict(), r"pos_embed \(1, 196, 128\): expected"),
        (timm_vit(qkv_bias=False).state_dict(), r"missing \(blocks.0.attn.qkv.bias"),
        (timm_vit(embed_dim=384, num_heads=6).state_dict(), "the width is that of vits16, which has 12 blocks, not 2"),
        (timm_vit(embed_dim=96).state_dict(), "width 96 is no multiple of 64"),
        (PLAIN | {"pos_embed": torch.zeros(197, 128)}, "pos_embed"),
        (PLAIN | {"blocks.1.mlp.fc1.bias": torch.full((512,), torch.nan)}, "not finite"),
    ],
    ids=range(10),
)
def test_what_the_baseline_cannot_take_is_named(state: State, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        convert(dict(state))


def test_prefix_tokens_cannot_be_kept_where_the_backbone_has_none() -> None:
    with pytest.raises(ConversionError, match="no prefix tokens to keep"):
        convert(PLAIN, keep_prefix=True)


@pytest.mark.parametrize(("size", "image_px"), [((128, 2), 224), ((128, 2), 384)])
def test_the_grid_of_the_positions_is_told(size: tuple[int, int], image_px: int) -> None:
    state = timm_vit(img_size=image_px).state_dict()
    result = convert(dict(state))
    assert result.vit_args["pretrain_image_size"] == image_px
    assert torch.equal(result.model["backbone.pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("kind", ["DINO", "MAE"])
def test_the_baseline_starts_from_the_converted_file(kind: str, tmp_path: Path) -> None:
    """The command of configs/ViTMatte_S_original.py: its network takes all but the fresh parts from the file."""
    state = dict(timm.create_model("vit_small_patch16_224", num_classes=0).state_dict())
    content = {"model": state | decoder()} if kind == "MAE" else {"teacher": under("backbone.", state)}
    torch.save(content, tmp_path / "published.pth")
    initial = tmp_path / "initial.pth"
    assert preprocess.main(["--checkpoint", str(tmp_path / "published.pth"), "--output", str(initial)]) == 0
    converted = torch.load(initial, weights_only=True)["model"]
    assert torch.equal(converted["backbone.pos_embed"], state["pos_embed"])
    cfg = load_config(REPOSITORY / "configs" / "ViTMatte_S_original.py")
    model = instantiate(cfg.model)
    load_initial(model, str(initial), cfg.train.init_checkpoint_may_lack)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in converted.items())
    fresh = loaded.keys() - converted.keys()
    assert all("decoder." in name or ".residual." in name or ".rel_pos_" in name for name in fresh)
