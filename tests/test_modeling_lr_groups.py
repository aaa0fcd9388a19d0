"""Every parameter in one group, with the rate and the decay that a table written out here lists, or frozen."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import DINOv2, ViT
from modeling.lr_groups import get_optimizer_params, get_vit_lr_decay_rate
from runtime.errors import ConfigError

BASE_LR, WEIGHT_DECAY, RATE, DECODER_FACTOR = 5e-4, 0.1, 0.65, 5.0

# A ViT-S by name, 12 blocks: power of 0.65.
POWERS = {
    "backbone.cls_token": 13,
    "backbone.storage_tokens": 13,
    "backbone.patch_embed.proj.weight": 13,
    "backbone.patch_embed.proj.bias": 13,
    "backbone.blocks.0.norm1.weight": 12,
    "backbone.blocks.0.attn.qkv.weight": 12,
    "backbone.blocks.1.ls1.gamma": 11,
    "backbone.blocks.2.attn.proj.bias": 10,
    "backbone.blocks.2.residual.conv1.weight": 0,
    "backbone.blocks.3.mlp.fc1.weight": 9,
    "backbone.blocks.4.mlp.fc2.bias": 8,
    "backbone.blocks.5.norm2.bias": 7,
    "backbone.blocks.5.residual.norm3.bias": 0,
    "backbone.blocks.6.attn.qkv.bias": 6,
    "backbone.blocks.7.ls2.gamma": 5,
    "backbone.blocks.8.attn.proj.weight": 4,
    "backbone.blocks.9.mlp.fc1.bias": 3,
    "backbone.blocks.10.mlp.fc2.weight": 2,
    "backbone.blocks.11.attn.qkv.weight": 1,
    "backbone.blocks.11.residual.conv2.weight": 0,
    "backbone.norm.weight": 0,
    "backbone.norm.bias": 0,
    "decoder.convstream.convs.0.conv.weight": 0,
    "decoder.fusion_blks.3.conv.bn.bias": 0,
    "decoder.matting_head.matting_convs.3.weight": 0,
}


class Wrapped(nn.Module):
    """As a model is wrapped for several processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture(scope="module")
def model() -> ViTMatte:
    """A ViT-S in everything but its width."""
    return ViTMatte(ViT(embed_dim=24, num_heads=2), DetailCapture(24))


def settings(model: nn.Module, **changes: float) -> dict[str, tuple[float, float]]:
    """Parameter name -> (lr, weight decay); a parameter in two groups or in none fails."""
    arguments = dict(lr_decay_rate=RATE, num_layers=12, decoder_lr_factor=DECODER_FACTOR) | changes
    groups = get_optimizer_params(model, BASE_LR, WEIGHT_DECAY, **arguments)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    placed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def expected_decay(model: nn.Module) -> dict[str, float]:
    """By the kind of module that holds a parameter, not by its shape: kernels and matrices alone decay."""
    decays = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            is_kernel = isinstance(module, (nn.Linear, nn.Conv2d)) and name == "weight"
            decays[f"{prefix}.{name}"] = WEIGHT_DECAY if is_kernel else 0.0
    return decays


def test_rates_of_a_vit_s(model: ViTMatte) -> None:
    rates = settings(model)
    for name, power in POWERS.items():
        factor = DECODER_FACTOR if name.startswith("decoder.") else 1.0
        assert rates[name][0] == pytest.approx(BASE_LR * RATE**power * factor, rel=1e-12), name


def test_rates_of_all_parameters(model: ViTMatte) -> None:
    """13 steps of decay, the undecayed rest of the backbone, and the decoder."""
    rates = {name: lr for name, (lr, _) in settings(model).items()}
    assert {lr for name, lr in rates.items() if name.startswith("decoder.")} == {BASE_LR * DECODER_FACTOR}
    backbone = sorted({lr for name, lr in rates.items() if name.startswith("backbone.")})
    assert backbone == pytest.approx([BASE_LR * RATE**power for power in range(13, -1, -1)], rel=1e-12)
    for index in range(12):
        own = {lr for name, lr in rates.items() if re.match(rf"backbone\.blocks\.{index}\.(?!residual)", name)}
        assert own == {BASE_LR * RATE ** (12 - index)}


def test_kernels_and_matrices_alone_decay(model: ViTMatte) -> None:
    decays = {name: decay for name, (_, decay) in settings(model).items()}
    assert decays == expected_decay(model)
    assert not any(decays[f"backbone.{name}"] for name in ("cls_token", "storage_tokens", "blocks.0.ls1.gamma"))


@pytest.mark.parametrize("name", ["cls_token", "register_tokens", "pos_embed"])
def test_tokens_and_positions_of_dinov2_are_grouped_with_its_patch_embedding(name: str) -> None:
    backbone = DINOv2(embed_dim=24, num_heads=2, num_register_tokens=4, position_grid_size=3)
    rates = settings(ViTMatte(backbone, DetailCapture(24)))
    assert rates[f"backbone.{name}"] == (rates["backbone.patch_embed.proj.weight"][0], 0.0)
    assert rates["backbone.patch_embed.proj.weight"] == pytest.approx((BASE_LR * RATE**13, WEIGHT_DECAY), rel=1e-12)


def test_a_model_wrapped_for_several_processes_is_grouped_alike(model: ViTMatte) -> None:
    wrapped = settings(Wrapped(model))
    assert {name.removeprefix("module."): values for name, values in wrapped.items()} == settings(model)


def test_deeper_backbones_decay_over_their_own_depth() -> None:
    assert get_vit_lr_decay_rate("backbone.blocks.23.attn.qkv.weight", 0.8, 24) == pytest.approx(0.8)
    assert get_vit_lr_decay_rate("backbone.patch_embed.proj.weight", 0.8, 24) == pytest.approx(0.8**25)


def test_a_block_outside_the_depth_is_named(model: ViTMatte) -> None:
    """Left at 11, the last block would learn at the full rate, and deeper ones ever faster."""
    with pytest.raises(ConfigError, match="blocks.11.* lies outside the 11 blocks: set num_layers"):
        settings(model, num_layers=11)


def test_a_group_is_named_by_the_parts_that_have_its_rate(model: ViTMatte) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = get_optimizer_params(model, BASE_LR, WEIGHT_DECAY, RATE, decoder_lr_factor=DECODER_FACTOR)
    by_name = {group["name"]: group["lr"] for group in groups}
    blocks = [f"blocks.{index}" for index in range(12)]
    assert [*by_name] == ["cls_token+storage_tokens+patch_embed", *blocks[:3], "necks+norm", *blocks[3:], "decoder"]
    for group in groups:
        assert by_name[group["name"]] == group["lr"]
        for parameter in group["params"]:
            name = names[id(parameter)].removeprefix("backbone.")
            part = "necks" if ".residual." in name else name
            assert any(f"{part}.".startswith(f"{known}.") for known in group["name"].split("+")), name
    uniform = get_optimizer_params(model, BASE_LR, WEIGHT_DECAY)
    assert {group["name"] for group in uniform} == {"cls_token..decoder"}


def test_frozen_parameters_stay_out() -> None:
    backbone = ViT(embed_dim=24, num_heads=2, depth=2, global_block_indexes=(1,), conv_residual_block_indexes=())
    backbone.patch_embed.requires_grad_(False)
    model = ViTMatte(backbone, DetailCapture(24))
    assert not any("patch_embed" in name for name in settings(model, num_layers=2))


def test_groups_are_what_an_optimiser_takes(model: ViTMatte) -> None:
    groups = get_optimizer_params(model, BASE_LR, WEIGHT_DECAY, RATE, 12, DECODER_FACTOR)
    optimizer = torch.optim.AdamW(groups, lr=BASE_LR)
    assert len(optimizer.param_groups) == len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)


def tiny(**settings: Any) -> ViTMatte:
    """Three blocks, necks at the first and the last, in float64, gammas around 1."""
    torch.manual_seed(0)
    indexes = dict(global_block_indexes=(0, 2), conv_residual_block_indexes=(0, 2))
    backbone = ViT(embed_dim=16, num_heads=2, depth=3, window_size=2, layer_scale_init=1.0, **indexes)
    decoder = DetailCapture(16, convstream_chans=(4, 4, 4), fusion_chans=(4, 4, 4, 4))
    model = ViTMatte(backbone, decoder, MattingCriterion(), **settings).double().train()
    with torch.no_grad():
        for index in (0, 2):  # or the necks pass on what they get, and nothing before their last norm a gradient
            model.backbone.blocks[index].residual.norm3.weight.normal_()
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"image": 3, "trimap": 1, "alpha": 1}
    made = {key: torch.rand(2, n, 64, 64, generator=generator, dtype=torch.float64) for key, n in shapes.items()}
    return {**made, "trimap": (made["trimap"] * 3).floor() / 2}


def is_frozen(name: str, num_blocks: int, patch_embed: bool) -> bool:
    """By name, as the documentation says it."""
    block = re.match(r"backbone\.blocks\.(\d+)\.", name)
    is_early = name.startswith(("backbone.patch_embed.", "backbone.cls_token", "backbone.storage_tokens"))
    return int(block.group(1)) < num_blocks if block else patch_embed and is_early


@pytest.mark.parametrize("patch_embed", [False, True])
@pytest.mark.parametrize("num_blocks", [0, 2, 3])
def test_what_is_frozen_stands_still_and_the_rest_learns_as_before(num_blocks: int, patch_embed: bool) -> None:
    """By the gradients of a network in which nothing is frozen, and a step with weight decay."""
    free, model = tiny(), tiny(num_frozen_blocks=num_blocks, freeze_patch_embed=patch_embed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = get_optimizer_params(model, BASE_LR, WEIGHT_DECAY, RATE, 3, DECODER_FACTOR)
    optimizer = torch.optim.AdamW(groups, lr=BASE_LR)
    for network in (free, model):
        torch.stack(list(network(batch()).values())).sum().backward()
    optimizer.step()
    assert settings(model, num_layers=3).keys() == {n for n in before if n in dict(model.named_parameters())} - {
        n for n in before if is_frozen(n, num_blocks, patch_embed)
    }
    expected = {name: parameter.grad for name, parameter in free.named_parameters()}
    for name, parameter in model.named_parameters():
        if is_frozen(name, num_blocks, patch_embed):
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-14, msg=name)
            assert not torch.equal(parameter, before[name]), name


def kept_bytes(model: nn.Module) -> int:
    """What a forward pass keeps for the backward pass beside parameters, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch())
    assert losses
    return sum(size for size, _ in kept.values())


def test_nothing_of_frozen_first_blocks_is_kept_for_the_backward_pass() -> None:
    """Each frozen block saves; with all of them only the decoder's part is kept, as of a backbone without gradients."""
    kept = [kept_bytes(tiny(num_frozen_blocks=number, freeze_patch_embed=True)) for number in range(4)]
    assert kept[0] > kept[1] > kept[2] > kept[3]
    without = tiny()
    without.backbone.requires_grad_(False)
    without.backbone.norm.requires_grad_(True)
    assert kept[3] == kept_bytes(without)
    # The patch embedding learns: gradients pass through the blocks, which keep nearly all of it.
    assert kept_bytes(tiny(num_frozen_blocks=3)) > 0.6 * kept_bytes(tiny())


@pytest.mark.parametrize("number", [-1, 4])
def test_more_frozen_blocks_than_there_are_is_an_error(number: int) -> None:
    with pytest.raises(ConfigError, match=f"num_frozen_blocks must be 0 to 3, the backbone's depth, got {number}"):
        tiny(num_frozen_blocks=number)


def test_what_is_pretrained_starts_late_and_what_is_new_at_once(model: ViTMatte) -> None:
    groups = get_optimizer_params(model, BASE_LR, WEIGHT_DECAY, RATE, 12, DECODER_FACTOR, pretrained_start=0.25)
    starts = {id(parameter): group["start"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        is_new = name.startswith("decoder.") or ".residual." in name
        assert starts[id(parameter)] == (0.0 if is_new else 0.25), name
    with pytest.raises(ConfigError, match="pretrained_start must be a fraction"):
        settings(model, pretrained_start=1.0)
