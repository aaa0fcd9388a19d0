"""Tiled decoding against the decoder on the whole image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.tiling import HALO_TOKENS, decode_tiled, needed_boxes
from modeling import DetailCapture

SEEDS = range(12)


class Decoder(DetailCapture):
    """Random weights and running statistics; notes the sizes that it is given, and stays in float64."""

    def __init__(self, seed: int = 0, num_fusions: int = 4) -> None:
        stream, fusions = (5, 6, 7, 8), (9, 8, 7, 6, 5)
        super().__init__(8, convstream_chans=stream[: num_fusions - 1], fusion_chans=fusions[:num_fusions])
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                if tensor.dim() > 1:
                    noise *= (2 / tensor[0].numel()) ** 0.5
                tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise)
        self.seen: list[tuple[int, ...]] = []
        self.matting_head.register_forward_hook(lambda module, inputs, logits: setattr(self, "logits", logits))
        self.eval()

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape[-2:]))
        alpha = super().forward(features, image)  # float32 even where its input is not
        return torch.sigmoid(self.logits) if image.dtype == torch.float64 else alpha


def scene(seed: int, stride: int = 16, batch_size: int = 1) -> tuple[Tensor, Tensor, Tensor, int]:
    """Features, input and needed pixels of a random size, and a tile's side in pixels, seldom a divisor of the size."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 16, 2))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch_size, 8, height, width, generator=generator, dtype=torch.float64)
    shape = (batch_size, 4, height * stride, width * stride)
    network_input = torch.randn(shape, generator=generator, dtype=torch.float64)
    network_input = network_input.contiguous(memory_format=torch.channels_last)
    is_needed = torch.zeros(batch_size, 1, *shape[-2:], dtype=torch.bool)
    for _ in range(rng.integers(1, 5)):
        (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in shape[-2:])
        is_needed[rng.integers(batch_size), 0, top:bottom, left:right] = True
    is_needed[0, 0, rng.integers(shape[-2]), rng.integers(shape[-1])] = True
    return features, network_input, is_needed, int(rng.integers(stride, 7 * stride))


def largest_error(decoder: Decoder, seed: int, dtype: torch.dtype) -> float:
    """Between tiled and untiled alpha, over the needed pixels."""
    features, network_input, is_needed, tile_px = scene(seed, decoder.stride, batch_size=1 + seed % 2)
    given = (features.to(dtype), network_input.to(dtype))
    decoder = decoder.to(dtype)
    with torch.no_grad():
        expected = decoder(*given)
        alpha = decode_tiled(decoder, *given, is_needed, tile_px)
    assert alpha.dtype == expected.dtype == dtype and alpha.shape == expected.shape
    assert expected.std() > 1e-3  # or an oracle would agree with anything
    return float((alpha - expected)[is_needed].abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_tiled_equals_untiled_at_every_needed_pixel(seed, dtype, tolerance):
    assert largest_error(Decoder(seed), seed, dtype) < tolerance


@pytest.mark.parametrize("num_fusions", [1, 2, 3, 5])
def test_the_halo_does_for_decoders_of_other_strides(num_fusions):
    errors = [largest_error(Decoder(seed, num_fusions), seed, torch.float64) for seed in range(6)]
    assert max(errors) < 1e-10


def test_one_tile_over_all_is_the_whole_to_the_bit():
    decoder = Decoder()
    features, network_input, *_ = (part.float() for part in scene(3)[:2])
    is_needed = torch.ones_like(network_input[:, :1], dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(
            decode_tiled(decoder, features, network_input, is_needed, tile_px=1000), decoder(features, network_input)
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_elsewhere_alpha_is_right_too_or_0(seed):
    decoder = Decoder(seed).double()
    features, network_input, is_needed, tile_px = scene(seed)
    with torch.no_grad():
        alpha = decode_tiled(decoder, features, network_input, is_needed, tile_px)
        is_right = (alpha - decoder(features, network_input)).abs() < 1e-10
    assert (is_right | (alpha == 0)).all()


def test_no_more_is_decoded_than_a_tile_with_its_halo_and_nothing_where_nothing_is_needed():
    decoder = Decoder()
    features, network_input = torch.randn(1, 8, 20, 30), torch.randn(1, 4, 320, 480)
    with torch.no_grad():
        decode_tiled(decoder, features, network_input, torch.ones(1, 1, 320, 480, dtype=torch.bool), tile_px=79)
        assert max(decoder.seen) == (64 + 2 * 32, 64 + 2 * 32) and len(decoder.seen) == 5 * 8
        decoder.seen.clear()
        nothing = torch.zeros(1, 1, 320, 480, dtype=torch.bool)
        assert not decode_tiled(decoder, features, network_input, nothing, tile_px=64).any()
    assert not decoder.seen


@pytest.mark.parametrize("seed", range(10))
def test_boxes_against_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    height, width, tile = (int(n) for n in rng.integers(1, 12, 3))
    is_needed = rng.random((height, width)) < rng.choice([0.03, 0.3, 1.0])
    cells_of: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y in range(height):
        for x in range(width):
            if is_needed[y, x]:
                cells_of.setdefault((y // tile, x // tile), []).append((y, x))
    expected = []
    for _, cells in sorted(cells_of.items()):
        rows, columns = zip(*cells, strict=True)
        expected.append((min(rows), max(rows) + 1, min(columns), max(columns) + 1))
    assert list(needed_boxes(torch.from_numpy(is_needed), tile)) == expected


def test_a_smaller_halo_is_seen_and_a_larger_one_changes_nothing(monkeypatch):
    assert HALO_TOKENS == 2
    errors = []
    for halo in range(4):
        monkeypatch.setattr("inference.tiling.HALO_TOKENS", halo)
        errors.append(max(largest_error(Decoder(seed), seed, torch.float64) for seed in range(8)))
    assert errors[0] > 1e-3 and errors[1] > 1e-3 and errors[2] < 1e-10 and errors[3] < 1e-10
