"""preprocess.convert against the published implementations: every layout must give the official network's features."""

import copy
import math
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import pos_embed_sincos
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

import modeling.backbone.attention as attention_module
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


def key_bias_not_masked(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in vit.blocks:
        block.attn.qkv.bias_mask = torch.ones_like(block.attn.qkv.bias_mask)
        block.attn.qkv.bias.data[384:768] = torch.randn(384, dtype=torch.float64)
    # a shared key bias leaves a softmax alone until RoPE turns the patches' keys by different angles


def bfloat16_periods(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    vit.rope_embed.periods = vit.rope_embed.periods.bfloat16().double()


def other_epsilon(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def tanh_gelu(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: exact(x, approximate="tanh"))


def prefix_dropped(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    vit.cls_token = vit.storage_tokens = None


def coordinates_by_longer_side(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    table = vit.rope_embed.forward

    def by_longer_side(height: int, width: int, window_size: int) -> tuple[Tensor, Tensor]:
        assert window_size == 0
        side = max(height, width)
        return tuple(t.view(side, side, -1)[:height, :width].flatten(0, 1) for t in table(side, side))

    monkeypatch.setattr(vit.rope_embed, "forward", by_longer_side)


def no_final_norm(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    vit.norm = nn.Identity()


def rescale_left_on(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vit.rope_embed.rescale = 2.0
    vit.rope_embed.train()


def rope_on_prefix(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    def turn_all(sin: Tensor, cos: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
        return torch.cat((sin[:num_prefix], sin)), torch.cat((cos[:num_prefix], cos))

    monkeypatch.setattr(attention_module, "with_prefix", turn_all)


@pytest.mark.parametrize(
    "slip",
    [
        key_bias_not_masked,
        bfloat16_periods,
        other_epsilon,
        tanh_gelu,
        prefix_dropped,
        coordinates_by_longer_side,
        no_final_norm,
        rescale_left_on,
        rope_on_prefix,
    ],
)
@torch.no_grad()
def test_each_slip_would_be_seen(
    slip: Callable[..., None],
    converted_small: tuple[ViT, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parity test can fail: each known slip moves the patch features beyond its limits."""
    vit, image, expected = converted_small
    vit = copy.deepcopy(vit)
    slip(vit, monkeypatch)
    assert relative_error(our_tokens(vit, image)[:, -expected.shape[1] :], expected) > 1e-6


@pytest.fixture(scope="module")
def converted_small() -> tuple[ViT, Tensor, Tensor]:
    """Our ViT-S with timm's weights, an oblong image and timm's patch features of it, in float64; they agree."""
    model, state, forward = REFERENCES["timm-S"]()
    vit = our_vit(state).double()
    image = torch.randn(1, 3, *SIZES_PX[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad(), pytest.MonkeyPatch.context() as monkeypatch:
        timm_multiplies_in_float32(monkeypatch)
        expected = model.double().forward_features(image)[:, 5:]
        assert relative_error(our_tokens(vit, image)[:, 5:], expected) < 1e-10
    return vit, image, expected
