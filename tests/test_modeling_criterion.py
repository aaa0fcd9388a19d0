"""The four losses against naive numpy and scipy, and what they must not depend on: crop, batch split, empty regions."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import ndimage
from torch import Tensor

from modeling.criterion import LOSS_NAMES, MIN_SIDE_PX, MattingCriterion
from runtime.errors import ConfigError, UserError

SIZES = [(64, 64), (64, 97), (101, 70), (150, 83)]


def batch(height: int, width: int, size: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, ground truth and trimap in float64; the regions' areas differ from image to image."""
    rng = np.random.default_rng(seed)
    pred_alpha, alpha = rng.random((2, size, 1, height, width))
    shares = rng.dirichlet((2, 2, 2), size)
    trimap = np.stack([rng.choice([0.0, 0.5, 1.0], (1, height, width), p=share) for share in shares])
    return torch.from_numpy(pred_alpha), torch.from_numpy(alpha), torch.from_numpy(trimap)


def naive_l1(pred_alpha: np.ndarray, alpha: np.ndarray, region: np.ndarray) -> float:
    total, area = 0.0, 0
    for y in range(alpha.shape[0]):
        for x in range(alpha.shape[1]):
            if region[y, x]:
                total += abs(pred_alpha[y, x] - alpha[y, x])
                area += 1
    return total / max(area, 1)


def laplacian_pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Five levels: the image less its halved and again enlarged self; an odd side loses its last row or column."""
    binomial = np.array([1, 4, 6, 4, 1]) / 16

    def blur(picture: np.ndarray) -> np.ndarray:
        for axis in (0, 1):  # "mirror" is what torch and numpy call reflect
            picture = ndimage.correlate1d(picture, binomial, axis=axis, mode="mirror")
        return picture

    pyramid = []
    for _ in range(5):
        image = image[: image.shape[0] - image.shape[0] % 2, : image.shape[1] - image.shape[1] % 2]
        halved = blur(image)[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = halved
        pyramid.append(image - 4 * blur(spread))
        image = halved
    return pyramid


def naive_laplacian(pred_alpha: np.ndarray, alpha: np.ndarray) -> float:
    pyramids = zip(laplacian_pyramid(pred_alpha), laplacian_pyramid(alpha), strict=True)
    return sum(2**level / 5 * np.abs(ours - theirs).mean() for level, (ours, theirs) in enumerate(pyramids))


def naive_gradient(pred_alpha: np.ndarray, alpha: np.ndarray, region: np.ndarray) -> float:
    """Sobel 1-2-1 over zero padding, not normalised; x and y."""
    loss = 0.0
    for axis in (0, 1):
        ours, theirs = (ndimage.sobel(image, axis=axis, mode="constant") for image in (pred_alpha, alpha))
        loss += naive_l1(ours, theirs, region) + 0.01 * naive_l1(ours, np.zeros_like(ours), region)
    return loss


def naive_losses(pred_alpha: np.ndarray, alpha: np.ndarray, trimap: np.ndarray) -> dict[str, float]:
    unknown = trimap == 0.5
    return {
        "loss_unknown_l1": naive_l1(pred_alpha, alpha, unknown),
        "loss_known_l1": naive_l1(pred_alpha, alpha, ~unknown),
        "loss_laplacian": naive_laplacian(pred_alpha, alpha),
        "loss_gradient": naive_gradient(pred_alpha, alpha, unknown),
    }


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def double(area: str = "image") -> MattingCriterion:
    return MattingCriterion(area=area).double()


@pytest.mark.parametrize("size", SIZES)
def test_each_loss_equals_a_naive_one(size: tuple[int, int]) -> None:
    """Of a batch, the mean over its images."""
    tensors = batch(*size)
    each = [naive_losses(*(t[i, 0].numpy() for t in tensors)) for i in range(2)]
    expected = {name: sum(losses[name] for losses in each) / 2 for name in LOSS_NAMES}
    assert values(double()(*tensors)) == pytest.approx(expected, rel=1e-10)


def test_an_area_of_the_batch_weighs_each_image_by_its_area() -> None:
    """As hustvl's code, which divides a sum over the batch by the areas of all its images."""
    pred_alpha, alpha, trimap = batch(64, 97, size=3)
    losses = values(double("batch")(pred_alpha, alpha, trimap))
    areas = (trimap == 0.5).sum(dim=(1, 2, 3)).tolist()
    each = [naive_losses(*(t[i, 0].numpy() for t in (pred_alpha, alpha, trimap))) for i in range(3)]
    for name, counts in (
        ("loss_unknown_l1", areas),
        ("loss_gradient", areas),
        ("loss_known_l1", [64 * 97 - area for area in areas]),
    ):
        expected = sum(losses_of_one[name] * area for losses_of_one, area in zip(each, counts, strict=True)) / sum(
            counts
        )
        assert losses[name] == pytest.approx(expected, rel=1e-10)
    assert losses["loss_laplacian"] == values(double()(pred_alpha, alpha, trimap))["loss_laplacian"]


def test_an_area_of_the_batch_depends_on_its_split() -> None:
    """The limit that docs/train.md states: each forward pass counts its own area."""
    tensors = batch(64, 64, 4)
    whole = values(double("batch")(*tensors))
    halves = [values(double("batch")(*(t[part] for t in tensors))) for part in (slice(0, 2), slice(2, 4))]
    mean = {name: sum(losses[name] for losses in halves) / 2 for name in LOSS_NAMES}
    assert mean["loss_unknown_l1"] != pytest.approx(whole["loss_unknown_l1"], rel=1e-4)
    assert mean["loss_laplacian"] == pytest.approx(whole["loss_laplacian"], rel=1e-12)


def test_a_perfect_prediction_costs_its_own_gradient_alone() -> None:
    _, alpha, trimap = batch(64, 64)
    losses = values(double()(alpha, alpha, trimap))
    assert losses.pop("loss_gradient") > 0
    assert losses == {"loss_unknown_l1": 0, "loss_known_l1": 0, "loss_laplacian": 0}


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_losses_do_not_depend_on_the_batch_split(seed: int, size: int) -> None:
    tensors = batch(64, 64, size, seed)
    whole = values(double()(*tensors))
    each = [values(double()(*(t[i : i + 1] for t in tensors))) for i in range(size)]
    for name in LOSS_NAMES:
        assert whole[name] == pytest.approx(sum(losses[name] for losses in each) / size, rel=1e-12)


def test_losses_of_regions_do_not_depend_on_the_crop_size() -> None:
    """A crop laid out 2 x 2 costs what one costs; the gradient's region keeps off the seams, where edges arise."""
    pred_alpha, alpha, trimap = batch(64, 70)
    inner = torch.zeros_like(trimap)
    inner[..., 1:-1, 1:-1] = trimap[..., 1:-1, 1:-1]
    tensors = (pred_alpha, alpha, inner)
    once, tiled = (values(double()(*picked)) for picked in (tensors, [t.tile(2, 2) for t in tensors]))
    for losses in (once, tiled):
        losses.pop("loss_laplacian")  # blurs across the seams; its oracle above divides by the area at every size
    assert tiled == pytest.approx(once, rel=1e-12)


@pytest.mark.parametrize(("known", "empty"), [(0.0, ["loss_unknown_l1", "loss_gradient"]), (0.5, ["loss_known_l1"])])
def test_an_empty_region_gives_zero_and_finite_gradients(known: float, empty: list[str]) -> None:
    """Also in one image of a batch: the other one's loss counts half."""
    pred_alpha, alpha, trimap = batch(64, 64)
    alone = values(double()(pred_alpha[1:], alpha[1:], trimap[1:]))
    trimap[0] = known
    pred_alpha.requires_grad_()
    losses = double()(pred_alpha, alpha, trimap)
    first = double()(pred_alpha[:1], alpha[:1], trimap[:1])
    assert [first[name].item() for name in empty] == [0.0] * len(empty)
    assert [losses[name].item() for name in empty] == pytest.approx([alone[name] / 2 for name in empty])
    (sum(losses.values()) + sum(first.values())).backward()
    assert torch.isfinite(pred_alpha.grad).all()


@pytest.mark.parametrize(("known", "empty"), [(0.0, ["loss_unknown_l1", "loss_gradient"]), (0.5, ["loss_known_l1"])])
def test_an_area_of_the_batch_leaves_out_images_without_the_region(known: float, empty: list[str]) -> None:
    pred_alpha, alpha, trimap = batch(64, 64)
    alone = values(double("batch")(pred_alpha[1:], alpha[1:], trimap[1:]))
    trimap[0] = known
    pred_alpha.requires_grad_()
    losses = double("batch")(pred_alpha, alpha, trimap)
    nowhere = double("batch")(pred_alpha, alpha, torch.full_like(trimap, known))
    assert [losses[name].item() for name in empty] == pytest.approx([alone[name] for name in empty])
    assert [nowhere[name].item() for name in empty] == [0.0] * len(empty)
    (sum(losses.values()) + sum(nowhere.values())).backward()
    assert torch.isfinite(pred_alpha.grad).all()


def test_float32_under_bfloat16_autocast() -> None:
    pred_alpha, alpha, trimap = (t.float() for t in batch(64, 64))
    expected = MattingCriterion()(pred_alpha, alpha, trimap)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = MattingCriterion()(pred_alpha, alpha, trimap)
        narrow = MattingCriterion()(pred_alpha.bfloat16(), alpha, trimap)
    assert values(losses) == values(expected)
    assert {loss.dtype for loss in narrow.values()} == {torch.float32}


def test_weights_multiply_their_own_loss() -> None:
    tensors = batch(64, 64)
    weights = dict(zip(LOSS_NAMES, (2.0, 3.0, 0.0, 0.5), strict=True))
    plain = values(double()(*tensors))
    for given_weights in (weights, OmegaConf.create(weights)):
        weighted = values(MattingCriterion(given_weights).double()(*tensors))
        assert weighted == pytest.approx({name: weights[name] * plain[name] for name in LOSS_NAMES}, rel=1e-12)


def test_no_buffer_reaches_a_checkpoint() -> None:
    assert MattingCriterion().state_dict() == {}


@pytest.mark.parametrize("weights", [{"loss_unknown_l1": 1.0}, dict.fromkeys([*LOSS_NAMES, "loss_l2"], 1.0)])
def test_weights_must_name_every_loss(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="weights must name exactly.*loss_gradient.*got"):
        MattingCriterion(weights)


def test_an_unknown_area_is_refused() -> None:
    with pytest.raises(ConfigError, match="area must be image or batch, got 'pixel'"):
        MattingCriterion(area="pixel")


def test_shapes_and_sides_that_do_not_fit_are_named() -> None:
    small = torch.zeros(1, 1, MIN_SIDE_PX, MIN_SIDE_PX)
    MattingCriterion()(small, small, small)
    short = small[..., 1:]
    with pytest.raises(UserError, match=re.escape(f"at least {MIN_SIDE_PX} px, got torch.Size([64, 63])")):
        MattingCriterion()(short, short, short)
    with pytest.raises(ValueError, match=re.escape("(1, 1, 64, 64), (1, 1, 64, 64), (1, 1, 64, 63)")):
        MattingCriterion()(small, small, short)


def test_pasted_known_pixels_are_of_no_account() -> None:
    """What a network predicts where the trimap knows alpha changes no loss and gets no gradient."""
    pred_alpha, alpha, trimap = batch(64, 97)
    alpha = torch.where(trimap == 0.5, alpha, trimap)
    criterion = MattingCriterion(pastes_known=True)
    other = torch.where(trimap == 0.5, pred_alpha, torch.rand_like(pred_alpha)).requires_grad_()
    losses = criterion(other, alpha, trimap)
    assert losses == criterion(pred_alpha, alpha, trimap)
    assert losses == MattingCriterion()(torch.where(trimap == 0.5, pred_alpha, trimap), alpha, trimap)
    assert losses["loss_known_l1"] == 0 < MattingCriterion()(pred_alpha, alpha, trimap)["loss_known_l1"]
    sum(losses.values()).backward()
    assert ((other.grad == 0) == (trimap != 0.5)).all()
