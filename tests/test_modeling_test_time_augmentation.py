"""Test-time augmentation against networks that it must not change, and against loops in numpy and Pillow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling import DetailCapture, ViTMatte
from modeling.backbone import ViT
from modeling.test_time_augmentation import AverageViews, resize, resize_trimap, turn, turn_back
from runtime.errors import ConfigError

ALL = dict(flips=True, rotations=True, scales=[1.0, 0.5, 1.5])


def pair(height: int = 21, width: int = 34, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    """Random image and trimap with regions of some size."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch_size, 3, height, width, generator=generator)
    coarse = torch.randint(0, 3, (batch_size, 1, height // 6, width // 6), generator=generator) / 2
    return image, F.interpolate(coarse, size=(height, width))


def lopsided(image: Tensor, trimap: Tensor) -> Tensor:
    """A network that sees above from below, left from right, and the size."""
    x = image.mean(dim=1, keepdim=True) * 0.9 + trimap * 0.1
    height, width = x.shape[-2:]
    ramp = torch.linspace(0, 1, width) * torch.linspace(1, 0, height)[:, None] ** 2
    return (0.5 * x + 0.3 * ramp.expand_as(x) + 0.2 * x.roll((1, 2), (-2, -1))).clamp(0, 1)


def symmetric(image: Tensor, trimap: Tensor) -> Tensor:
    """A network whose alpha turns with the image: neighbours all count alike."""
    x = image.mean(dim=1, keepdim=True) * 0.7 + trimap * 0.3
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def paste(alpha: Tensor, trimap: Tensor) -> Tensor:
    return torch.where(trimap == 0.5, alpha, trimap)


def test_no_augmentation_is_the_network_itself() -> None:
    image, trimap = pair()
    views = AverageViews()
    assert len(views) == 1
    assert torch.equal(views(lopsided, image, trimap), paste(lopsided(image, trimap), trimap))
    model = torch.nn.Identity()
    assert views.wrap(model) is model


@pytest.mark.parametrize(("flips", "rotations", "count"), [(True, False, 2), (False, True, 4), (True, True, 8)])
def test_a_network_that_turns_with_the_image_stays_what_it_is(flips: bool, rotations: bool, count: int) -> None:
    image, trimap = pair()
    calls = []
    views = AverageViews(flips, rotations)
    alpha = views(lambda *x: (calls.append(x), symmetric(*x))[1], image, trimap)
    torch.testing.assert_close(alpha, paste(symmetric(image, trimap), trimap), rtol=0, atol=1e-6)
    assert len(views) == len(calls) == count
    assert len({x[0].numpy().tobytes() for x in calls}) == count  # none is seen twice


def test_one_scale_alone_is_seen_at_it() -> None:
    image, trimap = pair()
    views = AverageViews(scales=[0.5])
    small = resize(image, (11, 17)), resize_trimap(trimap, (11, 17))
    expected = paste(resize(lopsided(*small), (21, 34)), trimap)
    torch.testing.assert_close(views(lopsided, image, trimap), expected, rtol=0, atol=1e-6)
    assert len(views) == 1


def by_hand(image: Tensor, trimap: Tensor, scale: float) -> NDArray:
    """Mean over the eight symmetries of one image, at a scale, with numpy and Pillow alone."""
    height, width = trimap.shape[-2:]
    small = (int(width * scale + 0.5), int(height * scale + 0.5))

    def resized(plane: NDArray, size: tuple[int, int]) -> NDArray:
        return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))

    colours = np.stack([resized(plane, small) for plane in image.numpy()])
    known = resized(trimap.numpy()[0], small)
    known = np.where(known < 1e-5, 0, np.where(known > 1 - 1e-5, 1, 0.5)).astype(np.float32)
    total = np.zeros((height, width))
    for transposed in (False, True):
        for upside_down in (False, True):
            for mirrored in (False, True):
                planes = []
                for plane in (*colours, known):
                    plane = plane.T if transposed else plane
                    plane = plane[::-1] if upside_down else plane
                    planes.append(plane[:, ::-1] if mirrored else plane)
                stack = torch.from_numpy(np.stack(planes).copy())[None]
                alpha = lopsided(stack[:, :3], stack[:, 3:])[0, 0].numpy()
                alpha = np.where(stack[0, 3] == 0.5, alpha, stack[0, 3])
                alpha = alpha[:, ::-1] if mirrored else alpha
                alpha = alpha[::-1] if upside_down else alpha
                total += resized(alpha.T if transposed else alpha, (width, height))
    return total / 8


def test_the_average_is_that_of_a_loop() -> None:
    image, trimap = pair()
    alpha = AverageViews(**ALL)(lopsided, image, trimap)
    for index in range(len(image)):
        mean = np.mean([by_hand(image[index], trimap[index], scale) for scale in ALL["scales"]], axis=0)
        expected = paste(torch.from_numpy(mean).float()[None], trimap[index])
        torch.testing.assert_close(alpha[index], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_turned_image_turns_back(turns: int, is_flipped: bool) -> None:
    image, _ = pair()
    assert torch.equal(turn_back(turn(image, turns, is_flipped), turns, is_flipped), image)


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.77, 1.4, 2.0])
def test_a_resized_trimap_knows_only_what_was_known(scale: float) -> None:
    """A pixel of the coarser grid is known where all that its filter reaches is, by a loop over pixels."""
    trimap = pair(24, 36)[1][:1]
    height, width = round(24 * scale), round(36 * scale)
    resized = resize_trimap(trimap, (height, width))[0, 0].numpy()
    assert set(np.unique(resized)) <= {0.0, 0.5, 1.0} and len(np.unique(resized)) == 3

    def reached(index: int, size: int, whole: int) -> slice:
        step = whole / size
        centre, reach = (index + 0.5) * step, max(step, 1.0)
        touched = [i for i in range(whole) if abs(i + 0.5 - centre) < reach - 1e-6]
        return slice(touched[0], touched[-1] + 1)

    for i in range(height):
        for j in range(width):
            values = trimap[0, 0, reached(i, height, 24), reached(j, width, 36)]
            expected = float(values.min()) if values.min() == values.max() else 0.5
            assert resized[i, j] == expected, (i, j)


@pytest.fixture(scope="module")
def model() -> ViTMatte:
    torch.manual_seed(0)
    blocks = dict(global_block_indexes=(0,), conv_residual_block_indexes=())
    backbone = ViT(embed_dim=16, depth=1, num_heads=2, layer_scale_init=1.0, **blocks)
    network = ViTMatte(backbone, DetailCapture(16, convstream_chans=(4, 4, 4), fusion_chans=(4, 4, 4, 4)))
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.normal_(std=0.5)
    return network.eval()


@pytest.mark.slow
@torch.no_grad()
def test_predictor_and_evaluation_average_alike(model: ViTMatte) -> None:
    """One through tiles and fused norms on 8-bit arrays, the other through the training's own forward."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (45, 70, 3), np.uint8)
    trimap = np.full((45, 70), 128, np.uint8)
    trimap[:9], trimap[-9:] = 0, 255
    views = AverageViews(**ALL)
    alpha = Predictor(TorchNetwork(model), views).predict(image, trimap)
    batch = {
        "image": torch.from_numpy(image).permute(2, 0, 1)[None] / 255,
        "trimap": torch.from_numpy(trimap / 255).round(decimals=1).float()[None, None],
    }
    expected = views.wrap(model).eval()(batch)["pred_alpha"][0, 0].numpy()
    plain = Predictor(TorchNetwork(model)).predict(image, trimap)
    np.testing.assert_allclose(alpha, expected, rtol=0, atol=1e-5)
    assert np.abs(alpha - plain)[trimap == 128].mean() > 1e-3
    assert (alpha[:9] == 0).all() and (alpha[-9:] == 1).all()


def test_the_words_of_the_command_line() -> None:
    views = AverageViews.parse("flips, rotations,0.75,1")
    assert (len(views), views.scales) == (16, [0.75, 1.0])
    assert (len(AverageViews.parse("flips")), AverageViews.parse("rotations").scales) == (2, [1.0])
    for text, words in {"flip": "got 'flip'", "": "got ''", "0": "above 0", "nan": "above 0", "9": "at most 8"}.items():
        with pytest.raises(ConfigError, match=words):
            AverageViews.parse(text)
    with pytest.raises(ConfigError, match="got \\[\\]"):
        AverageViews(scales=[])
