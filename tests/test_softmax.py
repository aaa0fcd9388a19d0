"""Softmax attention by products in bfloat16 against the definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.backbone import softmax
from modeling.backbone.softmax import attend


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
def test_other_precisions_and_gradients_are_torchs_own(dtype: torch.dtype) -> None:
    q, k, v = (random(1, 2, 30, 8, seed=seed).to(dtype) for seed in range(3))
    with torch.no_grad():
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    v = v.bfloat16().requires_grad_()
    attend(q.bfloat16(), k.bfloat16(), v).sum().backward()
    assert v.grad is not None and v.grad.abs().sum() > 0


def test_autocast_changes_nothing() -> None:
    q, k, v = (random(1, 2, 30, 8, seed=seed).bfloat16() for seed in range(3))
    with torch.no_grad():
        expected = attend(q, k, v)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(attend(q, k, v), expected)
