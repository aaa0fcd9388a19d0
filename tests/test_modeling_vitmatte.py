"""The meta architecture: what the backbone is given, what comes back, and the slips of peers that it must not share."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT
from modeling.criterion import LOSS_NAMES
from modeling.vitmatte import PADDINGS
from runtime.errors import ConfigError, UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Spy(nn.Module):
    """A backbone of stride 16 that keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return F.avg_pool2d(x, 16)


class Constant(nn.Module):
    """A decoder that says the same everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        return x.new_full((len(x), 1, *x.shape[-2:]), self.value)


class Enlarge(nn.Module):
    """A decoder whose alpha is the first colour of the input, squeezed to (0, 1): it shows where pixels go."""

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(x[:, :1])


def spied(decoder: nn.Module | None = None, **changes) -> ViTMatte:
    return ViTMatte(Spy(), decoder or Enlarge(), **changes).eval()


def batch(height: int = 64, width: int = 96, size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(size, 3, height, width, generator=generator),
        "trimap": torch.randint(0, 3, (size, 1, height, width), generator=generator) / 2.0,
        "alpha": torch.rand(size, 1, height, width, generator=generator),
    }


def small_model() -> ViTMatte:
    """A whole network with every tensor away from its neutral start."""
    torch.manual_seed(0)
    backbone = ViT(
        embed_dim=16,
        depth=2,
        num_heads=2,
        window_size=2,
        global_block_indexes=(1,),
        conv_residual_block_indexes=(1,),
        layer_scale_init=1.0,
    )
    nn.init.normal_(backbone.blocks[1].residual.norm3.weight)
    decoder = DetailCapture(16, convstream_chans=(4, 6, 8), fusion_chans=(16, 12, 8, 6))
    return ViTMatte(backbone, decoder, MattingCriterion())


def hustvl_input(data: dict[str, Tensor]) -> Tensor:
    """What hustvl's ViTMatte makes of a batch: normalised, then into zeros that grow both sides if one is ragged."""
    x = torch.cat(
        ((data["image"] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], data["trimap"]), 1
    )
    height, width = x.shape[-2:]
    if height % 32 != 0 or width % 32 != 0:
        canvas = torch.zeros(*x.shape[:2], height + 32 - height % 32, width + 32 - width % 32)
        canvas[:, :, :height, :width] = x
        return canvas
    return x


@pytest.mark.parametrize(
    ("size", "padded"),
    [((64, 64), (64, 64)), ((65, 64), (96, 64)), ((64, 95), (64, 96)), ((1, 33), (32, 64)), ((96, 97), (96, 128))],
)
@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_sides_are_padded_to_the_next_multiple_never_one_more(
    size: tuple[int, int], padded: tuple[int, int], padding: str
) -> None:
    model = spied(padding=padding)
    pred_alpha = model(batch(*size))["pred_alpha"]
    assert model.padded_size(*size) == padded
    assert model.backbone.seen.shape == (2, 4, *padded)
    assert pred_alpha.shape == (2, 1, *size)


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 95), (1, 33), (31, 32), (32, 33), (95, 97)])
def test_zero_hustvl_pads_as_written_out(size: tuple[int, int]) -> None:
    model, data = spied(padding="zero_hustvl"), batch(*size)
    pred_alpha = model(data)["pred_alpha"]
    expected = hustvl_input(data)
    assert model.padded_size(*size) == expected.shape[-2:] and pred_alpha.shape == (2, 1, *size)
    torch.testing.assert_close(model.backbone.seen, expected, rtol=0, atol=1e-6)


def test_zero_padding_lies_behind_the_normalisation() -> None:
    model, data = spied(padding="zero"), batch(40, 64)
    model(data)
    torch.testing.assert_close(
        model.backbone.seen, F.pad(hustvl_input(data)[..., :40, :64], (0, 0, 0, 24)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("padding", "padded"), [("zero", (48, 144)), ("zero_hustvl", (96, 144))])
def test_every_padding_obeys_the_size_divisibility(padding: str, padded: tuple[int, int]) -> None:
    assert spied(size_divisibility=48, padding=padding).padded_size(48, 100) == padded


def test_input_is_normalised_colour_and_the_plain_trimap() -> None:
    model, data = spied(), batch()
    model(data)
    for channel in range(3):
        expected = (data["image"][:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(model.backbone.seen[:, channel], expected, rtol=0, atol=1e-6)
    assert torch.equal(model.backbone.seen[:, 3:], data["trimap"])


def test_padding_replicates_the_image_and_knows_the_trimap_as_background() -> None:
    model, data = spied(), batch(40, 50)
    data["trimap"].fill_(0.5)
    model(data)
    rows, columns = torch.arange(64).clamp(max=39), torch.arange(64).clamp(max=49)
    assert torch.equal(model.backbone.seen[:, :3], model.backbone.seen[:, :3][:, :, rows][..., columns])
    assert torch.equal(model.backbone.seen[:, 3:, :40, :50], data["trimap"])
    assert not model.backbone.seen[:, 3, 40:].any() and not model.backbone.seen[:, 3, :, 50:].any()


@pytest.mark.parametrize("padding", PADDINGS)
def test_alpha_is_cropped_back_to_where_the_image_lies(padding: str) -> None:
    data = batch(40, 64)
    data["trimap"].fill_(0.5)
    expected = torch.sigmoid((data["image"][:, :1] - MEAN[0]) / STD[0])
    torch.testing.assert_close(spied(padding=padding)(data)["pred_alpha"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 96), (40, 50)])
def test_known_pixels_are_pasted_back_exactly(size: tuple[int, int]) -> None:
    data = batch(*size)
    pred_alpha = spied(Constant(0.3))(data)["pred_alpha"]
    unknown = data["trimap"] == 0.5
    assert torch.equal(pred_alpha[~unknown], data["trimap"][~unknown])
    assert torch.equal(pred_alpha[unknown], torch.full_like(pred_alpha[unknown], 0.3))


@pytest.mark.parametrize("is_training", [False, True])
def test_batch_is_left_as_it_was(is_training: bool) -> None:
    """Peers quantise the trimap in place: a batch used twice loses its unknown region."""
    model, data = spied(criterion=MattingCriterion()).train(is_training), batch(70, 80)
    before = copy.deepcopy(data)
    first, second = model(data), model(data)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(data[name], before[name]) for name in before)


def test_network_input_is_the_same_in_training_and_evaluation() -> None:
    """Peers quantise trimaps in training alone, and feed 128 / 255 to what has seen 0.5."""
    model, data = spied(criterion=MattingCriterion()), batch(70, 80)
    model(data)
    evaluated = model.backbone.seen
    model.train()(data)
    assert torch.equal(model.backbone.seen, evaluated)


@pytest.mark.parametrize("padding", PADDINGS)
def test_training_gives_the_criterions_losses_on_the_cropped_prediction(padding: str) -> None:
    model, data = spied(Constant(0.3), criterion=MattingCriterion(), padding=padding).train(), batch(70, 96)
    losses = model(data)
    expected = MattingCriterion()(torch.full((2, 1, 70, 96), 0.3), data["alpha"], data["trimap"])
    assert set(losses) == set(LOSS_NAMES)
    assert all(losses[name] == expected[name] for name in expected)


def test_training_step_reaches_every_parameter() -> None:
    model = small_model().train()
    sum(model(batch(70, 80)).values()).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not idle


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    model, data = small_model().eval(), batch(70, 80)
    whole = model(data)["pred_alpha"]
    alone = [model({name: value[i : i + 1] for name, value in data.items()})["pred_alpha"] for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-5)


def test_normalisation_is_no_part_of_a_checkpoint() -> None:
    prefixes = {name.split(".")[0] for name in small_model().state_dict()}
    assert prefixes == {"backbone", "decoder"}


@pytest.mark.gpu
def test_a_batch_is_moved_to_the_models_device() -> None:
    model = small_model().eval()
    expected = model(batch())["pred_alpha"]
    pred_alpha = model.cuda()(batch())["pred_alpha"]
    assert pred_alpha.is_cuda
    torch.testing.assert_close(pred_alpha.cpu(), expected, rtol=0, atol=1e-2)  # tf32 convolutions


def test_training_without_a_criterion_says_so() -> None:
    with pytest.raises(UserError, match="without a criterion"):
        spied().train()(batch())


@pytest.mark.parametrize(
    ("image", "trimap"),
    [
        ((2, 4, 64, 64), (2, 1, 64, 64)),
        ((3, 64, 64), (1, 64, 64)),
        ((2, 3, 64, 64), (2, 3, 64, 64)),
        ((2, 3, 64, 64), (2, 1, 64, 63)),
        ((2, 3, 64, 64), (1, 1, 64, 64)),
    ],
)
def test_other_shapes_are_named(image: tuple[int, ...], trimap: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {image} and {trimap}")):
        spied()({"image": torch.zeros(image), "trimap": torch.zeros(trimap)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(size_divisibility=0), "size_divisibility must be 1 to 1024 px, got 0"),
        (dict(size_divisibility=65536), "size_divisibility must be 1 to 1024 px, got 65536"),
        (dict(padding="reflect"), "padding must be edge, zero or zero_hustvl, got 'reflect'"),
        (dict(pixel_std=(0.2, 0.0, 0.2)), r"pixel_std must be above 0, got \[0.2, 0.0, 0.2\]"),
    ],
)
def test_settings_that_no_image_survives_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTMatte(nn.Identity(), nn.Identity(), **changes)
