"""Published layouts of backbone weights, filled at random."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from modeling.backbone import ViT
from modeling.backbone.rope_position_encoding import RopePositionEmbedding

State = dict[str, Tensor]


def tiny_state(**changes: Any) -> State:
    """A small network in the official layout, of a size that is not published: width 96, 3 heads, depth 2."""
    args = dict(embed_dim=96, depth=2, num_heads=3, in_chans=3, global_block_indexes=(0, 1))
    torch.manual_seed(0)
    vit = ViT(**(args | changes), conv_residual_block_indexes=())
    state = {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}
    state["rope_embed.periods"] = vit.rope_embed.periods.bfloat16().float()
    state["mask_token"] = torch.zeros(1, 96)
    for index in range(2):
        name = f"blocks.{index}.attn.qkv.bias"
        state[f"{name}_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(96)
    return state


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def randomise_reference(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random everything: a fresh LayerScale of 1e-5 would hide every error inside a block."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if re.search(r"gamma|lambda1", name):
            parameter.data = 0.5 + torch.rand(parameter.shape, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            parameter.data = 1.0 + 0.1 * noise
        else:
            parameter.data = noise * (0.03 if parameter.dim() > 1 else 0.2)
    return model.eval()


def official_state(model: nn.Module) -> dict[str, Tensor]:
    """The official layout, built from timm's by the table: with bias_mask, stored periods and a mask token."""
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.endswith("q_bias"):
            key = key.replace("q_bias", "qkv.bias")
            dead_key_bias = torch.full_like(value, 7.0)  # masked away by the stored mask
            value = torch.cat((value, dead_key_bias, model.state_dict()[key.replace("qkv.bias", "v_bias")]))
            state[f"{key}_mask"] = torch.cat([torch.full((384,), float(on)) for on in (1, 0, 1)])
        elif key.endswith("v_bias"):
            continue
        gated = "blocks.0.mlp.fc1_g.weight" in model.state_dict()
        for old, new in {
            "reg_token": "storage_tokens",
            "gamma_": "ls",
            "mlp.fc1_g": "mlp.w1",
            "mlp.fc1_x": "mlp.w2",
            "mlp.fc2": "mlp.w3" if gated else "mlp.fc2",
        }.items():
            key = key.replace(old, new)
        state[re.sub(r"\.ls([12])$", r".ls\1.gamma", key)] = value
    state["rope_embed.periods"] = RopePositionEmbedding(64).periods.clone()
    state["mask_token"] = torch.zeros(1, 384)
    return state


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
