"""Links between frames: known motions, what is hidden, cuts, reduced copies."""

import cv2
import numpy as np
import pytest

from inference.video.flow import FLOW_PX, enlarged, link, missed_by, reduced_grey
from tests.helpers.moving_disc import moving_disc, texture


def grey(seed):
    return cv2.cvtColor(texture(seed), cv2.COLOR_RGB2GRAY)


def test_the_way_there_and_back_agrees_except_where_the_disc_hides_and_shows():
    """The disc's rear border shows 6 px of background that the frame before hid."""
    frames, alphas = moving_disc(2, speed=(6, 0))
    joint = link(*(reduced_grey(frame) for frame in reversed(frames)))
    shown = (alphas[0] == 1) & (alphas[1] == 0)
    inside, far = cv2.erode(alphas[1], np.ones((9, 9))) == 1, cv2.dilate(alphas[1], np.ones((21, 21))) == 0
    assert np.median(joint.error[inside]) < 0.2 and np.median(joint.error[far]) < 0.2
    assert np.median(joint.error[shown]) > 0.5
    assert np.abs(joint.flow[inside] - (-6, 0)).mean() < 0.3


def test_leaving_the_image_is_an_error():
    there = np.zeros((8, 8, 2), np.float32)
    there[..., 0] = 3
    missed = missed_by(there, -there)
    assert np.array_equal(missed[:, :5], np.zeros((8, 5))) and missed_by(there, np.zeros_like(there)).min() == 3


@pytest.mark.parametrize("swapped", [False, True])
def test_another_scene_is_a_cut(swapped):
    pairs = [(grey(1), grey(2)), (np.zeros((72, 96), np.uint8), np.full((72, 96), 200, np.uint8))]
    for pair in pairs:
        assert link(*pair[::-1] if swapped else pair) is None


def test_noise_in_a_flat_scene_is_no_cut():
    rng = np.random.default_rng(0)
    first, second = (np.clip(rng.normal(20, 3, (72, 96)), 0, 255).astype(np.uint8) for _ in range(2))
    assert link(first, second) is not None


def test_large_frames_are_reduced_and_their_flow_is_enlarged():
    image = np.zeros((1080, 1920, 3), np.uint8)
    copy = reduced_grey(image)
    assert copy.shape == (540, FLOW_PX) and copy.dtype == np.uint8
    flow = np.broadcast_to(np.float32([3, -2]), (*copy.shape, 2))
    assert np.allclose(enlarged(flow, image.shape), (6, -4)) and enlarged(flow, image.shape).shape == (1080, 1920, 2)
    assert enlarged(flow, copy.shape) is flow
