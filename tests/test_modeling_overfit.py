"""The network, its losses and its optimiser groups learn one batch by heart."""

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import DINOv2, ViT, ViTDet
from modeling.lr_groups import get_optimizer_params

NUM_STEPS = 100


def two_discs() -> dict[str, Tensor]:
    """Two soft-edged discs over noise, 64 px, with unknown bands of 20 px."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    distance = np.stack([np.hypot(y - 30, x - 26) - 18, np.hypot(y - 36, x - 34) - 22])
    alpha = np.clip(0.5 - distance / 8, 0, 1)[:, None]
    red = 0.2 * random.random((2, 3, 64, 64)) + np.array([0.8, 0.1, 0.0])[:, None, None]
    image = alpha * red + (1 - alpha) * 0.5 * random.random((2, 3, 64, 64))
    trimap = np.where(np.abs(distance) < 10, 0.5, distance < 0)[:, None]
    return {
        name: torch.from_numpy(array).float() for name, array in dict(image=image, trimap=trimap, alpha=alpha).items()
    }


@pytest.mark.parametrize("kind", [ViT, DINOv2, ViTDet])
def test_a_batch_is_overfitted(kind):
    torch.manual_seed(0)
    backbone = kind(
        embed_dim=48, depth=2, num_heads=2, window_size=2, global_block_indexes=[1], conv_residual_block_indexes=[1]
    )
    decoder = DetailCapture(48, convstream_chans=[8, 16, 16], fusion_chans=[32, 24, 16, 8])
    model = ViTMatte(backbone, decoder, MattingCriterion()).train()
    groups = get_optimizer_params(model, base_lr=3e-3, weight_decay=0.0, lr_decay_rate=0.9, num_layers=2)
    optimizer = torch.optim.AdamW(groups)
    batch = two_discs()
    losses = []
    for _ in range(NUM_STEPS):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.inference_mode():
        error = (model.eval()(batch)["pred_alpha"] - batch["alpha"])[batch["trimap"] == 0.5].abs().mean()
    assert losses[-1] < 0.15 * losses[0]
    assert error < 0.03
