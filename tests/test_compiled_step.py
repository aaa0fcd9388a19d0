"""torch.compile on a training step: one graph, the same losses, gradients, statistics and names; slow to trace."""

import pytest
import torch
from torch import Tensor

from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT


def tiny(is_recomputed: bool) -> ViTMatte:
    torch.manual_seed(0)
    backbone = ViT(4, 4, 16, 1, 1, global_block_indexes=(0,), conv_residual_block_indexes=())
    backbone.use_activation_checkpointing = is_recomputed
    decoder = DetailCapture(16, 4, (4,), (8, 4), use_activation_checkpointing=is_recomputed)
    return ViTMatte(backbone, decoder, MattingCriterion()).train()


def train_twice(model: ViTMatte) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of the second pass, and the buffers after it."""
    generator = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.rand(2, 3, 64, 64, generator=generator),
        "trimap": torch.randint(0, 3, (2, 1, 64, 64), generator=generator) / 2,
        "alpha": torch.rand(2, 1, 64, 64, generator=generator),
    }
    for _ in range(2):
        losses = model(batch)
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
    return losses, {name: weight.grad for name, weight in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_compiled_step_is_the_step(is_recomputed: bool) -> None:
    """Traced and differentiated ahead of time, but run by torch's own kernels: the C++ compiler takes minutes."""
    plain, compiled = tiny(is_recomputed), tiny(is_recomputed)
    names = list(compiled.state_dict())
    compiled.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    assert list(compiled.state_dict()) == names
    for ours, theirs in zip(train_twice(compiled), train_twice(plain), strict=True):
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    assert compiled.decoder.fusion_blks[0].conv.bn.num_batches_tracked == 2
