"""The backbone on a reduced copy: what it is given, where its features land, and that the full size changes nothing."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference.network import TorchNetwork, alpha_by_tiles
from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT
from modeling.vitmatte import reduce_input, reduced_features
from runtime.errors import ConfigError
from tests.helpers.networks import randomise

BACKBONE = dict(
    patch_size=16,
    in_chans=4,
    embed_dim=24,
    depth=2,
    num_heads=2,
    window_size=4,
    global_block_indexes=[1],
    conv_residual_block_indexes=[1],
)


def network(**arguments) -> ViTMatte:
    decoder = DetailCapture(24, 4, (4, 6, 8), (12, 8, 6, 4))
    return randomise(ViTMatte(ViT(**BACKBONE), decoder, MattingCriterion(), **arguments))


def batch(height: int = 96, width: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(2, 3, height, width, generator=generator),
        "trimap": torch.randint(0, 3, (2, 1, height, width), generator=generator) / 2.0,
        "alpha": torch.rand(2, 1, height, width, generator=generator),
    }


def test_a_pixel_of_the_copy_is_the_mean_of_its_area_and_known_where_the_area_is_known_alike() -> None:
    image = torch.rand(1, 3, 12, 6, generator=torch.Generator().manual_seed(0))
    trimap = torch.zeros(1, 1, 12, 6)
    trimap[..., 0:3, 3:6] = 1
    trimap[..., 3, 0] = 0.5  # one unknown pixel in a known area
    trimap[..., 6:9, 3:5] = 1  # an edge without an unknown pixel
    copy = reduce_input(torch.cat((image, trimap), dim=1), (4, 2))
    for row in range(4):
        for column in range(2):
            area = image[0, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            torch.testing.assert_close(copy[0, :3, row, column], area.mean(dim=(1, 2)))
    assert copy[0, 3].tolist() == [[0, 1], [0.5, 0], [0, 0.5], [0, 0]]


class Places(nn.Module):
    """A backbone whose features are the mean coordinates that its patches show, as the first two channels hold them."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x[:, :2], 16)


@pytest.mark.parametrize("scale", [0.5, 0.34])
def test_features_land_at_the_patches_they_describe(scale: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(192.0), torch.arange(256.0), indexing="ij")
    x = torch.stack((rows, columns, 0 * rows, 0 * rows))[None]
    found, expected = reduced_features(Places(), x, scale, 16), Places()(x)
    assert found.shape == expected.shape
    inside = slice(2, -2)  # features are not extrapolated past the last ones
    # Pixels; averaged areas begin and end at whole pixels.
    torch.testing.assert_close(found[..., inside, inside], expected[..., inside, inside], atol=0.05, rtol=0)


def test_losses_of_a_reduced_copy_are_those_of_its_features() -> None:
    model, inputs = network(backbone_scale_range=[0.5, 0.5]).train(), batch()
    x = model.network_input(inputs["image"], inputs["trimap"])
    features = reduced_features(model.backbone, x, 0.5, 16)
    expected = model.criterion(model.decoder(features, x), inputs["alpha"], inputs["trimap"])
    found, full_size = model(inputs), network().train()(inputs)
    assert found == expected
    assert found["loss_unknown_l1"] != full_size["loss_unknown_l1"]


def test_a_step_draws_a_size_and_evaluation_takes_the_largest() -> None:
    model, plain, inputs = network(backbone_scale_range=[0.3, 1.0]), network(), batch()
    model.train()
    losses = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        losses.append(float(model(inputs)["loss_unknown_l1"].detach()))
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(
        network(backbone_scale_range=[0.3, 1.0]).eval()(inputs)["pred_alpha"], plain.eval()(inputs)["pred_alpha"]
    )


def generator_states() -> tuple[bytes, ...]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), repr(random.getstate()).encode()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_without_a_range_no_generator_is_drawn_from(scale: float) -> None:
    model, before = network(backbone_scale_range=[scale, scale]).train(), generator_states()
    model(batch())
    assert generator_states() == before


def test_by_default_the_losses_are_bit_exact_those_of_backbone_and_decoder_alone() -> None:
    model, inputs = network().train(), batch()
    x = model.network_input(inputs["image"], inputs["trimap"])
    expected = model.criterion(model.decoder(model.backbone(x), x), inputs["alpha"], inputs["trimap"])
    assert model(inputs) == expected
    assert network(backbone_scale_range=[1.0, 1.0]).train()(inputs) == expected


def test_training_on_a_fixed_size_computes_the_features_of_a_prediction_on_it() -> None:
    trained, predicting = network(backbone_scale_range=[0.5, 0.5]).train(), network().eval()
    x = trained.network_input(batch()["image"], batch()["trimap"])
    assert torch.equal(trained.features(x), predicting.features(x, backbone_scale=0.5))
    assert not torch.equal(trained.features(x), predicting.features(x))


def test_tiles_give_the_alpha_of_the_whole_image() -> None:
    model, inputs = network(backbone_scale_range=[0.5, 0.5]).eval(), batch(160, 192)
    unknown = inputs["trimap"] == 0.5
    with torch.inference_mode():
        whole = model(inputs)["pred_alpha"]
        tiled = alpha_by_tiles(model, model.network_input(inputs["image"], inputs["trimap"]), 32)
    torch.testing.assert_close(tiled[unknown], whole[unknown], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "sizes", [(0.0, 1.0), (0.5, 1.5), (1.0, 0.5), (0.5,), (float("nan"), 1.0), ("0.5", "1"), "12", 0.5, None]
)
def test_sizes_out_of_range_are_refused(sizes: object) -> None:
    with pytest.raises(ConfigError, match="^backbone_scale_range must be two ascending sizes above 0 and up to 1, .*$"):
        network(backbone_scale_range=sizes)


@pytest.mark.parametrize(("backbone_px", "scale"), [(64, 0.4), (70, 0.4), (1, 0.1), (160, 1.0), (5000, 1.0)])
def test_a_network_in_use_reduces_the_longer_side_to_what_it_is_told(backbone_px: int, scale: float) -> None:
    """Of 130 x 150 px, padded to 160 x 160."""
    inputs = batch(130, 150)
    trained = network() if scale == 1 else network(backbone_scale_range=[scale, scale])
    expected, found = (
        TorchNetwork(model.eval(), backbone_px=px).alpha(inputs["image"], inputs["trimap"])
        for model, px in ((trained, "full"), (network(), backbone_px))
    )
    unknown = inputs["trimap"] == 0.5
    assert torch.equal(found[unknown], expected[unknown])
    exact = TorchNetwork(network().eval()).alpha(inputs["image"], inputs["trimap"])
    assert torch.equal(found[unknown], exact[unknown]) == (scale == 1)


def test_a_network_trained_on_copies_never_sees_larger_ones() -> None:
    model, inputs = network(backbone_scale_range=[0.3, 0.5]).eval(), batch(128, 128)
    x = model.network_input(inputs["image"], inputs["trimap"])
    assert torch.equal(model.features(x, backbone_scale=0.9), model.features(x))
    assert not torch.equal(model.features(x, backbone_scale=0.25), model.features(x))


@pytest.mark.parametrize("backbone_px", [0, -16, 0.5, "auto", None])
def test_a_copy_without_pixels_is_refused(backbone_px: object) -> None:
    with pytest.raises(ConfigError, match="^backbone_px must be full or a number of pixels from 1, got .*$"):
        TorchNetwork(network().eval(), backbone_px=backbone_px)
