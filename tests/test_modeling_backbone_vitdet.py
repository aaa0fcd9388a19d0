"""ViTDet's backbone against detectron2's and transformers', chunked against unchunked, linear in memory."""

from functools import partial
from typing import Any

import pytest
import torch
from detectron2.modeling.backbone.vit import ViT as DetectronViT
from torch import Tensor, nn

from modeling.backbone import ViTDet, vitdet
from runtime.errors import ConfigError
from tests.helpers.networks import LargestTensor, randomise

TINY: dict[str, Any] = dict(
    embed_dim=24,
    depth=4,
    num_heads=3,
    patch_size=4,
    window_size=3,
    image_size=16,
    pretrain_image_size=12,
    global_block_indexes=(1, 3),
    conv_residual_block_indexes=(1, 3),
)
# Grids of patches: the stored one, that of the absolute positions, ragged, oblong, within one window, one patch.
GRIDS = [(4, 4), (3, 3), (5, 11), (2, 7), (6, 3), (1, 1)]


def tiny(**changes: Any) -> ViTDet:
    return randomise(ViTDet(**(TINY | changes)))


def image(grid: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 4 * grid[0], 4 * grid[1], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_features_equal_detectron2s(grid: tuple[int, int]) -> None:
    """Every name of detectron2's network is one of ours, and with random weights the maps agree."""
    oracle = DetectronViT(
        img_size=16,
        patch_size=4,
        in_chans=4,
        embed_dim=24,
        depth=4,
        num_heads=3,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        window_block_indexes=(0, 2),
        residual_block_indexes=(1, 3),
        pretrain_img_size=12,
    )
    oracle = randomise(oracle).double().eval()
    ours = ViTDet(**TINY).double().eval()
    ours.load_state_dict(oracle.state_dict())
    x = image(grid).double()
    expected = oracle(x)["last_feat"]
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["rel_pos_h", "rel_pos_w", "pos_embed"])
def test_every_position_has_a_say(name: str) -> None:
    model = tiny().eval()
    x = image((5, 7))
    before = model(x)
    for key, parameter in model.named_parameters():
        if key.endswith(name):
            parameter.data.zero_()
    assert (model(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("max_numel", [1, 400, 1000, 3000])
def test_pieces_equal_the_whole(max_numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Map and gradients of one query, parts of a row, some rows or an image at a time are those of all at once."""
    model = tiny().double()
    x = image((5, 7)).double()

    pieces: list[int] = []
    counts: list[int] = []

    def run() -> tuple[Tensor, list[Tensor]]:
        out = model(x)
        counts.append(len(pieces))
        return out, list(torch.autograd.grad(out.square().sum(), list(model.parameters())))

    whole, whole_gradients = run()
    attend = vitdet._attend_piece
    monkeypatch.setattr(vitdet, "_attend_piece", lambda *piece: (pieces.append(1), attend(*piece))[1])
    monkeypatch.setattr(vitdet, "MAX_BIAS_NUMEL", max_numel)
    out, gradients = run()
    assert counts[-1] > 4 and len(pieces) == 2 * counts[-1]  # more than one a block, and again in the backward pass
    torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)
    for gradient, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_memory_is_linear_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of forward and backward at N and 4 N tokens, pieces being smaller than either."""
    monkeypatch.setattr(vitdet, "MAX_BIAS_NUMEL", 100_000)
    model = tiny()
    elements = []
    for side in (20, 40):
        with LargestTensor() as largest:
            model(image((side, side), batch=1)).square().mean().backward()
        elements.append(largest.elements)
    num_tokens = 40 * 40
    assert elements[1] <= 4.2 * elements[0]
    assert elements[1] < num_tokens**2 / 4


def saved_bytes(model: ViTDet, side: int) -> int:
    """What the backward pass of a square image keeps, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept.append(tensor)  # or another tensor could take its place
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(image((side, side), batch=1)).sum()
    return sum(sizes.values())


def test_what_training_keeps_is_linear_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitdet, "MAX_BIAS_NUMEL", 100_000)
    model = tiny(embed_dim=48)
    small, large = saved_bytes(model, 24), saved_bytes(model, 48)
    assert 3.5 < large / small < 4.2


@pytest.mark.parametrize("grid", [(1, 600), (600, 1)], ids=str)
def test_memory_of_a_long_strip_is_linear_too(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitdet, "MAX_BIAS_NUMEL", 80_000)
    model = tiny(global_block_indexes=range(4), conv_residual_block_indexes=()).eval()
    with torch.no_grad(), LargestTensor() as largest:
        model(image(grid, batch=1))
    assert largest.elements < 600 * 24 * 6  # and not 600 * 600 * 8


def test_activation_checkpointing_changes_neither_map_nor_gradients() -> None:
    results = []
    for is_used in (False, True):
        model = tiny(use_activation_checkpointing=is_used)
        out = model(image((5, 7)))
        out.square().mean().backward()
        results.append([out, *(parameter.grad for parameter in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny()
    model(image((5, 7))).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []
    assert not model.pos_embed.grad[:, 0].any()  # the unread cls position


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_heads=5), "width 24 is not divisible by 5 heads"),
        (dict(global_block_indexes=[4]), r"global_block_indexes: \[4\] lie outside the 4 blocks"),
        (dict(conv_residual_block_indexes=[-1]), r"conv_residual_block_indexes: \[-1\] lie outside"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("changes", [{}, dict(conv_residual_block_indexes=()), dict(global_block_indexes=())], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_features_that_are_read_equal_those_of_the_whole(seed: int, changes: dict[str, Any]) -> None:
    model = tiny(**changes).double().eval()
    x = image((5, 7)).double()
    query_mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed)) < (0.03, 0.1, 0.5, 1)[seed]
    query_mask[seed, 2] = True
    with torch.no_grad():
        whole, partial = model(x), model(x, query_mask)
    torch.testing.assert_close(partial[..., query_mask], whole[..., query_mask], rtol=0, atol=1e-10)
    assert partial.isfinite().all()


@pytest.mark.parametrize("has_neck", [False, True])
def test_the_last_block_attends_for_what_is_read_and_its_neighbours_alone(
    has_neck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(global_block_indexes=range(4), conv_residual_block_indexes=(3,) if has_neck else ()).eval()
    numbers: list[int] = []
    attend = vitdet.attend
    monkeypatch.setattr(vitdet, "attend", lambda q, k, v, b: (numbers.append(q.shape[2]), attend(q, k, v, b))[1])
    query_mask = torch.zeros(5, 7, dtype=torch.bool)
    query_mask[0, 3] = query_mask[4, 6] = True
    with torch.no_grad():
        model(image((5, 7)), query_mask)
    assert numbers == [35, 35, 35, 6 + 4 if has_neck else 2]
