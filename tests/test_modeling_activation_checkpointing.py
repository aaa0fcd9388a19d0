"""Activation checkpointing of the decoder: the same step, in less memory, and BatchNorm counts each batch once."""

import pytest
import torch
from torch import Tensor, nn

from engine.distributed.batch_norm import set_batch_norm
from modeling.activation_checkpointing import maybe_checkpoint, spare_buffers
from modeling.detail_capture import DetailCapture

Step = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def small(is_recomputed: bool, kind: str = "own") -> DetailCapture:
    torch.manual_seed(0)
    decoder = DetailCapture(16, 4, (8, 12, 16), (24, 16, 12, 8), use_activation_checkpointing=is_recomputed)
    return set_batch_norm(decoder, kind, "cpu").train()


def inputs(dtype: torch.dtype, side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 16, side // 16, side // 16, generator=generator, dtype=dtype)
    return features.requires_grad_(), torch.randn(2, 4, side, side, generator=generator, dtype=dtype)


def step(decoder: DetailCapture, dtype: torch.dtype = torch.float32) -> Step:
    """Alpha, gradients of weights and features, and buffers after one step."""
    features, image = inputs(dtype)
    alpha = decoder.to(dtype)(features, image)
    alpha.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    return alpha.detach(), gradients | {"features": features.grad}, dict(decoder.named_buffers())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", ["own", "sync", "frozen"])
def test_alpha_gradients_and_statistics_are_those_of_a_step_that_stores(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    plain, recomputed = (step(small(is_recomputed, kind), dtype) for is_recomputed in (False, True))
    assert torch.equal(recomputed[0], plain[0])
    assert recomputed[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(recomputed[1][name], gradient, rtol=tolerance, atol=tolerance, msg=name)
    assert all(torch.equal(recomputed[2][name], buffer) for name, buffer in plain[2].items())


@pytest.mark.parametrize(("kind", "count"), [("own", 3), ("frozen", 0)])
def test_each_batch_is_counted_once(kind: str, count: int) -> None:
    """Three steps, then a batch in evaluation mode, which counts nowhere."""
    decoder = small(True, kind)
    for _ in range(3):
        step(decoder)
    decoder.eval()(*inputs(torch.float32))
    counts = [buffer.item() for name, buffer in decoder.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [count] * 8


def test_autocast_holds_in_the_second_run() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, image = inputs(torch.float32)
        alphas = [small(is_recomputed)(features, image) for is_recomputed in (False, True)]
    assert torch.equal(*alphas)
    plain, recomputed = (torch.autograd.grad(alpha.square().mean(), features)[0] for alpha in alphas)
    assert plain.any() and torch.equal(plain, recomputed)


def stored_bytes(decoder: DetailCapture) -> int:
    """Bytes that autograd holds between forward and backward pass, each storage once, the weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        decoder(*inputs(torch.float32))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in held.items() if address not in weights)


def test_less_is_stored() -> None:
    """Channels by 4 bytes, per pixel of 2 images of 64 px. Recomputed: what goes into each block.

    Stored: of each convolution its input, what BatchNorm takes and what ReLU gives; the joined maps are not there.
    """
    per_pixel = 4 * 2 * 64**2
    stream = 8 / 4 + 12 / 16 + 16 / 64
    fusions = 24 / 64 + 16 / 16 + 12 / 4
    plain, recomputed = (stored_bytes(small(is_recomputed)) / per_pixel for is_recomputed in (False, True))
    assert recomputed == pytest.approx(16 / 256 + 4 + stream + fusions + 8 + 1, rel=0.01)  # 1: alpha, by the sigmoid
    enlarged = 16 / 64 + 24 / 16 + 16 / 4 + 12
    head = 16 + 16
    assert plain == pytest.approx(4 + 2 * stream + enlarged + 2 * (fusions + 8) + head + 1, rel=0.01)


def test_random_draws_are_repeated() -> None:
    x = torch.ones(1000, requires_grad=True)
    torch.manual_seed(0)
    out = maybe_checkpoint(True, nn.Dropout(), x)
    out.sum().backward()
    assert torch.equal(x.grad, out) and 0 < (out == 0).sum() < 1000


def test_own_buffers_come_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(3)
    own = dict(norm.named_buffers())
    with pytest.raises(ZeroDivisionError), spare_buffers(norm):
        norm(torch.randn(2, 3, 4, 4))
        assert norm.num_batches_tracked == 1
        raise ZeroDivisionError
    assert all(buffer is own[name] for name, buffer in norm.named_buffers())
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any()
