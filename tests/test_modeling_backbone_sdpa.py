"""Softmax attention by products in bfloat16 against the definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.backbone import sdpa as softmax
from modeling.backbone.sdpa import attend


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_definition(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    return (logits if bias is None else logits + bias.double()).softmax(-1) @ v.double()


@pytest.mark.parametrize("max_logits", [1, 100, 250, 3000, 2**21])
@pytest.mark.parametrize("has_bias", [False, True])
def test_pieces_of_any_size_equal_the_definition(
    has_bias: bool, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query, some queries, some heads or all at a time; values of bfloat16 hold 8 bits."""
    monkeypatch.setattr(softmax, "MAX_LOGITS", max_logits)
    q, k, v = (random(2, 3, n, 16, seed=seed).bfloat16() for seed, n in enumerate((37, 50, 50)))
    bias = random(2, 3, 37, 50, seed=9).bfloat16() if has_bias else None
    with torch.no_grad():
        out = attend(q, k, v, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), by_definition(q, k, v, bias), rtol=0, atol=0.02)


@pytest.mark.parametrize(("deviation", "tolerance"), [(1, 0.02), (5, 0.2)])
def test_errors_grow_with_the_logits_but_not_with_what_keys_have_in_common(deviation: float, tolerance: float) -> None:
    q, k, v = (random(1, 4, 200, 64, seed=seed) for seed in range(3))
    q = (deviation * q).bfloat16()
    errors = []
    for offset in (0.0, 8.0):
        shifted = (k + offset).bfloat16()  # which rounds the keys themselves
        with torch.no_grad():
            errors.append(
                (attend(q, shifted, v.bfloat16()).double() - by_definition(q, shifted, v.bfloat16())).abs().max()
            )
    assert max(errors) < tolerance and errors[1] < 2 * errors[0] + 0.01


def test_queries_keys_and_values_may_be_views_and_stay_as_they_are() -> None:
    packed = random(2, 20, 3, 4, 16).bfloat16()
    before = packed.clone()
    views = [part.transpose(1, 2) for part in packed.unbind(2)]
    with torch.no_grad():
        out = attend(*views)
        torch.testing.assert_close(out, attend(*(view.contiguous() for view in views)), rtol=0, atol=0)
    torch.testing.assert_close(out.double(), by_definition(*views), rtol=0, atol=0.02)
    assert torch.equal(packed, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_precisions_are_torchs_own(dtype: torch.dtype) -> None:
    q, k, v = (random(1, 2, 30, 8, seed=seed).to(dtype) for seed in range(3))
    with torch.no_grad():
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    v.requires_grad_()
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("max_logits", [1, 100, 250, 3000, 2**21])
def test_gradients_of_pieces_of_any_size_equal_the_definitions(
    max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the 8 bits of bfloat16; keys have something in common, which takes no part in it."""
    monkeypatch.setattr(softmax, "MAX_LOGITS", max_logits)
    q, v = (random(2, 3, n, 16, seed=seed).bfloat16() for seed, n in ((0, 37), (2, 50)))
    k = (random(2, 3, 50, 16, seed=1) + 3).bfloat16()
    gradient = random(2, 3, 37, 16, seed=3).bfloat16()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    found = torch.autograd.grad(attend(*leaves), leaves, gradient)
    expected = torch.autograd.grad(by_definition(*leaves), leaves, gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16 and ours.shape == theirs.shape
        assert (ours.double() - theirs.double()).norm() < 0.01 * theirs.double().norm()


def test_gradients_of_many_pieces_add_up_beyond_the_8_bits_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 halves; a sum in bfloat16 would stand still at 128."""
    monkeypatch.setattr(softmax, "MAX_LOGITS", 1)
    q, k = torch.zeros(2, 1, 1, 600, 4).bfloat16(), torch.zeros(2, 1, 1, 2, 4).bfloat16()
    leaves = [x.requires_grad_() for x in (q[0], k[0], k[1])]
    gradients = torch.autograd.grad(attend(*leaves), leaves, torch.ones(1, 1, 600, 4).bfloat16())
    assert (gradients[2] == 300).all()


def test_a_bias_has_gradients_too() -> None:
    q, k, v = (random(1, 2, 30, 8, seed=seed).bfloat16() for seed in range(3))
    bias = random(1, 2, 30, 30, seed=4).bfloat16().requires_grad_()
    found, expected = (torch.autograd.grad(f(q, k, v, bias).double().square().sum(), bias)[0].double()
                       for f in (attend, by_definition))  # fmt: skip
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_what_the_backward_pass_keeps_is_linear_in_the_tokens() -> None:
    stored: list[int] = []
    q, k, v = (random(1, 2, 300, 8, seed=seed).bfloat16().requires_grad_() for seed in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(x.numel()) or x, lambda x: x):
        attend(q, k, v)
    assert stored == [2 * 300 * 8] * 4


def test_autocast_changes_nothing() -> None:
    q, k, v = (random(1, 2, 30, 8, seed=seed).bfloat16() for seed in range(3))
    with torch.no_grad():
        expected = attend(q, k, v)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(attend(q, k, v), expected)
