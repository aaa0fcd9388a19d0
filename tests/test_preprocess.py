"""preprocess.convert against the published implementations: every layout must give the official network's features."""

import math
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import pos_embed_sincos
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

import preprocess
from modeling.backbone import ViT
from modeling.backbone.rope_position_encoding import RopePositionEmbedding
from tests.helpers.preprocess import official_state, randomise_reference, relative_error

SIZES_PX = [(224, 224), (160, 352)]


def timm_model(name: str) -> nn.Module:
    return randomise_reference(timm.create_model(name, num_classes=0))


def transformers_model(gated: bool) -> nn.Module:
    config = DINOv3ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=12,
        intermediate_size=1536,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    return randomise_reference(DINOv3ViTModel(config))


def our_vit(state: dict[str, Tensor]) -> ViT:
    conversion = preprocess.convert(state, keep_prefix=True)
    args = conversion.vit_args
    vit = ViT(**args, global_block_indexes=range(args["depth"]), conv_residual_block_indexes=())
    vit.load_state_dict({k.removeprefix("backbone."): v for k, v in conversion.model.items()})
    if conversion.layout != "official":  # timm and transformers compute in float32 what official files hold in bfloat16
        assert (vit.rope_embed.periods - RopePositionEmbedding(64).periods).abs().max() > 1e-4
        vit.rope_embed.periods = RopePositionEmbedding(64).periods
    return vit.eval()


def our_tokens(vit: ViT, image: Tensor) -> Tensor:
    trimap = torch.rand(len(image), 1, *image.shape[-2:], dtype=image.dtype)  # its weights are zero: it must not matter
    return vit.forward_tokens(torch.cat((image, trimap), dim=1))[0]


def timm_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm in float64 take 2 pi times the coordinate in float32, as the official code does; it casts before."""
    build_grid = pos_embed_sincos._build_grid

    def build_official_grid(*arguments: object, **settings: object) -> Tensor:
        return (2.0 * math.pi * build_grid(*arguments, **settings)).double() / (2.0 * math.pi)

    monkeypatch.setattr(pos_embed_sincos, "_build_grid", build_official_grid)


def timm_reference(name: str, layout: str) -> tuple[nn.Module, dict[str, Tensor], Callable[[Tensor], Tensor]]:
    model = timm_model(name)
    state = model.state_dict() if layout == "timm" else official_state(model)
    return model, state, model.forward_features


REFERENCES = {
    "timm-S": lambda: timm_reference("vit_small_patch16_dinov3_qkvb", "timm"),
    "timm-S+": lambda: timm_reference("vit_small_plus_patch16_dinov3_qkvb", "timm"),
    "official-S": lambda: timm_reference("vit_small_patch16_dinov3_qkvb", "official"),
    "official-S+": lambda: timm_reference("vit_small_plus_patch16_dinov3_qkvb", "official"),
    "transformers-S": lambda: (m := transformers_model(False), m.state_dict(), lambda x: m(x).last_hidden_state),
    "transformers-S+": lambda: (m := transformers_model(True), m.state_dict(), lambda x: m(x).last_hidden_state),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("+") else ()) for name in REFERENCES]
)
@torch.no_grad()
def test_features_equal_the_published_implementations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, forward = REFERENCES[name]()
    vit = our_vit(state)
    for size in SIZES_PX:
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        assert relative_error(our_tokens(vit, image), forward(image)) < 1e-6
    model.double()
    vit.double()
    if name.startswith("transformers"):
        model.rope_embeddings.inv_freq = 1.0 / vit.rope_embed.periods  # which it rounds to float32 in float64 too
    else:
        timm_multiplies_in_float32(monkeypatch)
    for size in SIZES_PX:
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert relative_error(our_tokens(vit, image), forward(image)) < 1e-10
