"""The decoder against transformers' ViTMatte, and its names against the published checkpoints'."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

from modeling.detail_capture import DetailCapture
from runtime.errors import ConfigError
from tests.helpers.networks import randomise_decoder

WIDTH = 384


def inputs(height: int = 64, width: int = 96, chans: int = WIDTH, stride: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, chans, height // stride, width // stride, generator=generator)
    return features, torch.randn(2, 4, height, width, generator=generator)


def published_names() -> list[str]:
    """Parameters and buffers of hustvl's ViTMatte .pth files, "decoder." left out."""

    def conv_and_norm(prefix: str) -> list[str]:
        norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{prefix}.conv.weight", *(f"{prefix}.bn.{name}" for name in norms)]

    names = [name for i in range(3) for name in conv_and_norm(f"convstream.convs.{i}")]
    names += [name for i in range(4) for name in conv_and_norm(f"fusion_blks.{i}.conv")]
    names += [name.replace("bn", "1") for name in conv_and_norm("matting_head.matting_convs") if ".conv." not in name]
    return names + [f"matting_head.matting_convs.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")]


@torch.no_grad()
def test_output_equals_transformers_vitmatte() -> None:
    backbone = VitDetConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=6, num_channels=4)
    config = VitMatteConfig(
        backbone_config=backbone,
        hidden_size=WIDTH,
        convstream_hidden_sizes=[48, 96, 192],
        fusion_hidden_sizes=[256, 128, 64, 32],
    )
    theirs = randomise_decoder(VitMatteForImageMatting(config).decoder).eval()
    ours = DetailCapture(WIDTH).eval()
    state = theirs.state_dict().items()
    ours.load_state_dict({k.replace("fusion_blocks", "fusion_blks").replace("batch_norm", "bn"): v for k, v in state})
    features, image = inputs()
    expected = theirs(features, image)
    assert expected.std() > 0.05  # not saturated
    torch.testing.assert_close(ours(features, image), expected, rtol=0, atol=1e-5)


def test_names_are_those_of_the_published_checkpoints() -> None:
    assert set(DetailCapture(WIDTH).state_dict()) == set(published_names())


def test_channels_are_those_of_the_paper() -> None:
    """ViTMatte-S: fusions take 576, 352, 176, 68 channels, the stream ends with 192; the head alone has biases."""
    decoder = DetailCapture(WIDTH)
    fusions = [block.conv.conv for block in decoder.fusion_blks]
    streams = [block.conv for block in decoder.convstream.convs]
    heads = [decoder.matting_head.matting_convs[i] for i in (0, 3)]
    assert [(conv.in_channels, conv.out_channels) for conv in fusions] == [(576, 256), (352, 128), (176, 64), (68, 32)]
    assert [(conv.in_channels, conv.out_channels) for conv in streams] == [(4, 48), (48, 96), (96, 192)]
    assert [(conv.in_channels, conv.out_channels) for conv in heads] == [(32, 16), (16, 1)]
    assert all(conv.bias is None for conv in fusions + streams) and all(conv.bias is not None for conv in heads)


def test_every_parameter_gets_a_gradient() -> None:
    decoder = randomise_decoder(DetailCapture(WIDTH)).train()
    decoder(*inputs()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in decoder.parameters())


def test_alpha_is_float32_in_the_unit_interval_under_autocast() -> None:
    decoder = randomise_decoder(DetailCapture(WIDTH)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alpha = decoder(*inputs())
    assert alpha.dtype == torch.float32 and alpha.shape == (2, 1, 64, 96)
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_other_sizes_and_lists_of_a_config() -> None:
    """A decoder with two stages fits a backbone of stride 4."""
    chans = OmegaConf.create(dict(convstream_chans=[6], fusion_chans=[12, 8]))
    decoder = DetailCapture(10, **chans)
    assert decoder.stride == 4
    assert decoder(*inputs(32, 48, chans=10, stride=4)).shape == (2, 1, 32, 48)


def test_lists_that_do_not_fit_are_named() -> None:
    message = "fusion_chans needs one entry more than convstream_chans, got 3 and 3"
    with pytest.raises(ConfigError, match=re.escape(message)):
        DetailCapture(WIDTH, fusion_chans=(256, 128, 64))
