"""Each ablation of docs/ablation.md is one override of a config, and does what the argument does by hand."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import instantiate

import preprocess
from engine.checkpoint.file import CheckpointError
from engine.checkpoint.pretrained import load_initial
from engine.config.config import apply_overrides, load_config
from modeling.backbone import ViT
from tests.helpers.networks import randomise, vit_input
from tests.helpers.paths import REPOSITORY
from tests.helpers.preprocess import tiny_state

CONFIGS = REPOSITORY / "configs"


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("keep_prefix_tokens=False", dict(keep_prefix_tokens=False)),
        ("rope_per_window=True", dict(rope_per_window=True)),
        ("conv_residual_block_indexes=[]", dict(conv_residual_block_indexes=())),
    ],
)
def test_the_backbone_of_an_override_is_the_one_built_by_hand(override: str, changes: dict[str, Any]) -> None:
    cfg = load_config(CONFIGS / "demo.py")
    arguments = {key: value for key, value in cfg.model.backbone.items() if key != "_target_"}
    plain, expected = (randomise(ViT(**arguments | extra)).eval() for extra in ({}, changes))
    apply_overrides(cfg, [f"model.backbone.{override}"])
    built = randomise(instantiate(cfg.model.backbone)).eval()
    assert built.state_dict().keys() == expected.state_dict().keys()
    x = vit_input(96, 112, batch=1)  # a 6 x 7 grid, window 4
    assert torch.equal(built(x), expected(x))
    assert not torch.allclose(built(x), plain(x), atol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "backbone", "decoder"),
    [
        ([], [0.65**power for power in range(14)], 5.0),
        (["optimizer.params.lr_decay_rate=1.0"], [1.0], 5.0),
        (["optimizer.params.decoder_lr_factor=1.0"], [0.65**power for power in range(14)], 1.0),
    ],
)
def test_rates_of_an_override(overrides: list[str], backbone: list[float], decoder: float) -> None:
    """Which rates the parameters of a ViT-S have, as shares of the config's."""
    cfg = load_config(CONFIGS / "ViTMatte_S_10ep.py")
    apply_overrides(cfg, ["model.backbone.embed_dim=24", "model.backbone.keep_prefix_tokens=True", *overrides])
    cfg.optimizer.params.model = model = instantiate(cfg.model)
    names = {parameter: name.partition(".")[0] for name, parameter in model.named_parameters()}
    rates: dict[str, Counter[float]] = {"backbone": Counter(), "decoder": Counter()}
    for group in instantiate(cfg.optimizer.params):
        for parameter in group["params"]:
            rates[names[parameter]][group["lr"] / cfg.optimizer.lr] += 1
    assert sorted(rates["backbone"], reverse=True) == pytest.approx(backbone)
    assert list(rates["decoder"]) == pytest.approx([decoder])


@pytest.mark.parametrize(("number", "refusal"), [(0, "2 unexpected"), (1, "2 missing")], ids=["dropped", "kept"])
def test_prefix_tokens_go_with_their_checkpoint(
    number: int, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own commands, for a tiny backbone: each network takes its file and refuses the other's."""
    page = (REPOSITORY / "docs" / "ablation.md").read_text(encoding="utf-8")
    conversions = re.findall(r"python preprocess\.py (.+)", page)
    runs = re.findall(
        r"--config-file (\S+) .*\\\n +(model\.backbone\.keep_prefix\S+) train\.init_checkpoint=(\S+)", page
    )
    assert (len(conversions), len(runs)) == (2, 2)
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_state(), "dinov3_vits16_pretrain.pth")
    assert [preprocess.main(command.split()) for command in conversions] == [0, 0]
    config, override, own = runs[number]
    other = runs[1 - number][2]
    cfg = load_config(REPOSITORY / config)
    assert cfg.train.init_checkpoint == other
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 3, "global_block_indexes": "[1]"}
    apply_overrides(cfg, [*(f"model.backbone.{name}={value}" for name, value in sizes.items()), override])
    model = instantiate(cfg.model)
    load_initial(model, own, cfg.train.init_checkpoint_may_lack)
    assert torch.equal(model.backbone.blocks[1].attn.proj.weight, tiny_state()["blocks.1.attn.proj.weight"])
    with pytest.raises(CheckpointError, match=f"{refusal} .backbone.cls_token, backbone.storage_tokens"):
        load_initial(model, other, cfg.train.init_checkpoint_may_lack)
