"""Tiny networks with random weights, and what they are built from."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.formats.model_folder import build
from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import DINOv2, ViT

TINY_VIT = dict(embed_dim=32, depth=4, num_heads=2, patch_size=4, window_size=3)

HYBRID = dict(global_block_indexes=(1, 3), conv_residual_block_indexes=(1, 3))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random everything: fresh gammas of 1e-5 and necks of zero would hide what lies before them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        parameter.data = (1.0 + 0.2 * noise if is_scale else 0.2 * noise).to(parameter.dtype)
    return model


def tiny_vit(**changes: Any) -> ViT:
    return randomise(ViT(**(TINY_VIT | HYBRID | changes)))


def tiny_dinov2(**changes: Any) -> DINOv2:
    sizes = TINY_VIT | HYBRID | dict(num_register_tokens=3, position_grid_size=6)
    return randomise(DINOv2(**(sizes | changes)))


def vit_input(height: int = 20, width: int = 28, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(1))


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from tensors(branch)


class LargestTensor(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors(out))])
        return out


def randomise_float64(module: nn.Module) -> nn.Module:
    """Random everything, in float64: a fresh LayerScale or neck would hide what lies before it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.double()


def random_float64(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def randomise_decoder(model: nn.Module) -> nn.Module:
    """Random weights and running statistics: fresh ones of 0 and 1 would hide a norm that is not applied."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() > 1:
                tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(noise)
    return model


def randomise_vitmatte(model):
    """Random weights and running statistics of a network's usual sizes, such that alphas vary."""
    randomise(model.backbone)
    for parameter in model.backbone.parameters():
        if parameter.dim() in (2, 4):
            parameter.data *= 5 * parameter[0].numel() ** -0.5  # randomise gives 0.2
    randomise_decoder(model.decoder)
    return model.eval()


BACKBONES = {
    "ViT": dict(type="ViT", embed_dim=32, depth=2, num_heads=2, layer_scale_init=0.5, mlp_ratio=3, rope_shift=None),
    "DINOv2": dict(
        type="DINOv2",
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_register_tokens=2,
        position_grid_size=5,
        position_interpolation="bicubic_antialias",
    ),
    "ViTDet": dict(type="ViTDet", embed_dim=24, depth=2, num_heads=3, image_size=64, pretrain_image_size=48),
}

BLOCKS = dict(window_size=2, global_block_indexes=[1], conv_residual_block_indexes=[1])

ONE_BLOCK = dict(depth=1, global_block_indexes=[0], conv_residual_block_indexes=[])
"""Changes of a backbone for tests of what surrounds an ONNX graph: each block takes seconds to export."""


def network_description(kind="ViT"):
    """A tiny network whose normalisation is nobody's default."""
    backbone = BACKBONES[kind] | BLOCKS
    chans = dict(convstream_chans=[4, 6, 8], fusion_chans=[8, 8, 8, 8])
    return {
        "type": "ViTMatte",
        "backbone": backbone,
        "decoder": {"type": "DetailCapture", "in_chans": backbone["embed_dim"], **chans},
        "pixel_mean": [0.4, 0.5, 0.6],
        "pixel_std": [0.2, 0.25, 1],
    }


def varied_network(kind, padding="edge", **changes):
    """A tiny network whose alphas vary with image and trimap; `changes` are of its backbone."""
    described = network_description(kind) | {"padding": padding}
    described["backbone"] |= changes
    described["decoder"] |= dict(convstream_chans=[8, 8, 8], fusion_chans=[32, 16, 16, 8])
    return randomise_vitmatte(build("model", described))


def random_pair(height, width, count=1):
    """Image (B, 3, H, W) and trimap (B, 1, H, W) of a size; a third of the pixels is unknown."""
    generator = torch.Generator().manual_seed(height * width)
    image = torch.rand(count, 3, height, width, generator=generator)
    return image, torch.randint(3, (count, 1, height, width), generator=generator) / 2


def random_network(kind="ViT"):
    return randomise_decoder(build("model", network_description(kind))).eval()


def tiny_model():
    """A tiny network whose alphas vary with image and trimap, in training mode as training leaves one."""
    torch.manual_seed(0)
    blocks = dict(global_block_indexes=(1,), conv_residual_block_indexes=(1,), drop_path_rate=0.5)
    backbone = ViT(embed_dim=32, depth=2, num_heads=2, window_size=2, layer_scale_init=1.0, **blocks)
    network = ViTMatte(backbone, DetailCapture(32, convstream_chans=(4, 4, 4), fusion_chans=(8, 8, 8, 8)))
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.normal_(std=0.5)
    return network.train()


def tiny_trainable(area="image", **arguments):
    """A whole network in float64 whose every part has something to learn; `arguments` are of `ViTMatte`."""
    torch.manual_seed(0)
    blocks = {"depth": 2, "window_size": 2, "global_block_indexes": [1], "conv_residual_block_indexes": [1]}
    backbone = ViT(embed_dim=24, num_heads=2, layer_scale_init=0.5, **blocks)
    decoder = DetailCapture(24, convstream_chans=[4, 4, 4], fusion_chans=[8, 8, 4, 4])
    return ViTMatte(backbone, decoder, MattingCriterion(area=area), **arguments).double()
