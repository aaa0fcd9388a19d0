"""Dense flow against known motions, and `follow` against shifts of the array."""

import cv2
import numpy as np
import pytest

from data.optical_flow import dense_flow, follow
from tests.helpers.moving_disc import texture

INSIDE = np.s_[16:-16, 16:-16]


@pytest.mark.parametrize("way", [(3.0, 0.0), (-2.5, 1.25), (0.0, -6.0)])
def test_a_translation_is_found(way):
    first = cv2.cvtColor(texture(0, (96, 128)), cv2.COLOR_RGB2GRAY)
    second = cv2.warpAffine(first, np.float32([[1, 0, way[0]], [0, 1, way[1]]]), first.shape[::-1])
    assert np.abs(dense_flow(first, second)[INSIDE] - way).mean() < 0.1


def test_a_rotation_is_found():
    """The pixel p moves to c + R (p - c)."""
    first = cv2.cvtColor(texture(0, (96, 128)), cv2.COLOR_RGB2GRAY)
    centre, angle = np.array([63.5, 47.5]), np.deg2rad(4)
    matrix = cv2.getRotationMatrix2D(centre.tolist(), -4, 1)
    flow = dense_flow(first, cv2.warpAffine(first, matrix, first.shape[::-1]))
    y, x = np.mgrid[:96, :128]
    dx, dy = x - centre[0], y - centre[1]
    expected = np.dstack([np.cos(angle) * dx - np.sin(angle) * dy - dx, np.sin(angle) * dx + np.cos(angle) * dy - dy])
    assert np.abs(flow - expected)[INSIDE].mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (8, 40), (40, 8)])
def test_frames_smaller_than_a_patch_have_a_flow(shape):
    frame = np.full(shape, 90, np.uint8)
    assert np.array_equal(dense_flow(frame, frame), np.zeros((*shape, 2)))


def test_follow_fetches_what_the_flow_points_to_and_continues_at_the_border():
    values = np.arange(20, dtype=np.float32).reshape(4, 5)
    flow = np.zeros((4, 5, 2), np.float32)
    flow[..., 0] = 2
    assert np.array_equal(follow(values, flow), values[:, [2, 3, 4, 4, 4]])
    flow[..., 0], flow[..., 1] = 0, -1.5
    expected = np.stack([values[0], values[0], (values[0] + values[1]) / 2, (values[1] + values[2]) / 2])
    assert np.allclose(follow(values, flow), expected)
