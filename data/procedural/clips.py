"""Draw clips with exact alpha: a drawn foreground that moves, turns and deforms over a moving photograph.

A frame is drawn at `SAMPLES` times its size and averaged. All lengths are in heights of the frame, all times in frames.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.composition import composite
from data.image_io.images import to_float, to_uint8
from data.procedural.canvas import Array
from data.procedural.surfaces import noise

SIZE = 640, 360  # width and height in px
NUM_FRAMES = 60
SAMPLES = 2  # along a pixel's side
SHUTTER_STEPS = 8  # positions that are averaged to a frame with motion blur
FADE = 0.04  # of a foreground's square, along which it ends at three borders; at the lower one it continues
PHOTOGRAPH_MARGIN = 1.3  # a photograph is so many times larger than the frame, which moves over it


class Motion(NamedTuple):
    """How a foreground moves; its square image is 1 wide at zoom 1.

    Attributes:
        place: x and y of the square's middle, from the frame's middle.
        drift: way in x and y in a frame.
        sway: amplitudes in x and y of a swing around the place.
        turn: amplitude of the turning, in radians.
        zoom: size of the square.
        breathing: amplitude of the zoom, a share.
        wave: amplitude of the deformation.
        period: of sway, turn, breathing and wave, in frames.
        absence: way in x to which the foreground leaves from frame 6 to 24 and from where it returns from 36 to 54.
        shutter: share of a frame for which the shutter is open.
    """

    place: tuple[float, float] = (0.0, 0.0)
    drift: tuple[float, float] = (0.0, 0.0)
    sway: tuple[float, float] = (0.1, 0.03)
    turn: float = 0.1
    zoom: float = 1.0
    breathing: float = 0.05
    wave: float = 0.012
    period: float = 45.0
    absence: float = 0.0
    shutter: float = 0.0


class Frame(NamedTuple):
    """A frame: image (H, W, 3) RGB in [0, 1], and alpha (H, W) in steps of 1 / 255, with which it is composited."""

    image: Array
    alpha: Array


def draw_shot(
    rng: Generator, foreground: Array, alpha: Array, photograph: Array, motion: Motion, start: int, stop: int
) -> Iterator[Frame]:
    """Draw the frames of a shot without a cut.

    Args:
        rng: source of phases and of the photograph's path.
        foreground: (N, N, 3) RGB in [0, 1].
        alpha: (N, N) in [0, 1]. What touches the lower border continues below it.
        photograph: (H, W, 3) RGB in [0, 1], of any size.
        motion: of the foreground.
        start: number of the first frame.
        stop: end of the frames, which it leaves out.
    """
    ramp = np.clip((np.arange(len(alpha)) + 0.5) / (FADE * len(alpha)), 0, 1).astype(np.float32)
    alpha = alpha * np.minimum(np.minimum(ramp, ramp[::-1]), ramp[:, None])
    layer = np.dstack([foreground * alpha[..., None], alpha])
    phases = rng.uniform(0, 2 * np.pi, 6)
    bend = np.dstack([noise(rng, 256, 3, 2) - 0.5 for _ in range(2)]) * 2 * np.pi
    path, spin = rng.uniform(-1, 1, (2, 2)), rng.uniform(-0.03, 0.03)
    steps = SHUTTER_STEPS if motion.shutter else 1
    for number in range(start, stop):
        times = number + motion.shutter * (np.arange(steps) / steps - 0.5)
        covered = np.mean([_moved(layer, motion, time, phases, bend) for time in times], 0)
        exact = to_float(to_uint8(np.clip(covered[..., 3:], 0, 1)))
        colour = np.clip(covered[..., :3] / np.maximum(covered[..., 3:], 1e-6), 0, 1)
        share = number / (NUM_FRAMES - 1)
        behind = _background(photograph, path[0] * (1 - share) + path[1] * share, spin * (share - 0.5), share)
        yield Frame(composite(exact, colour, behind), exact[..., 0])


def _moved(layer: Array, motion: Motion, time: float, phases: NDArray, bend: NDArray) -> Array:
    """Draw a premultiplied foreground (N, N, 4) at a time into a frame, (H, W, 4)."""
    width, height = SIZE[0] * SAMPLES, SIZE[1] * SAMPLES
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x + 0.5 - width / 2) / height, (y + 0.5 - height / 2) / height
    swing = np.sin(2 * np.pi * time / motion.period + phases)
    away = motion.absence * (_smooth((time - 6) / 18) - _smooth((time - 36) / 18))
    x -= motion.place[0] + motion.drift[0] * (time - NUM_FRAMES / 2) + motion.sway[0] * swing[0] + away
    y -= motion.place[1] + motion.drift[1] * (time - NUM_FRAMES / 2) + motion.sway[1] * swing[1]
    angle, zoom = motion.turn * swing[2], motion.zoom * (1 + motion.breathing * swing[3])
    u = ((np.cos(angle) * x + np.sin(angle) * y) / zoom + 0.5).astype(np.float32)
    v = ((np.cos(angle) * y - np.sin(angle) * x) / zoom + 0.5).astype(np.float32)
    # Each place waves with a phase of its own, which changes smoothly over the foreground.
    phase = cv2.remap(bend, 256 * u, 256 * v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    waves = motion.wave * np.sin(2 * phase + 2 * np.pi * time / motion.period + phases[4:].astype(np.float32))
    side = len(layer)
    across, down = ((side * place - 0.5).astype(np.float32) for place in (u + waves[..., 0], v + waves[..., 1]))
    fine = cv2.remap(layer, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(fine, SIZE, interpolation=cv2.INTER_AREA), np.float32)


def _background(photograph: Array, place: Array, angle: float, share: float) -> Array:
    """Cut a frame out of a photograph at a place, -1 to 1 from border to border, turned by a small angle."""
    height, width = photograph.shape[:2]
    fine = SIZE[0] * SAMPLES, SIZE[1] * SAMPLES
    scale = min(width / fine[0], height / fine[1]) / PHOTOGRAPH_MARGIN * (1 + 0.1 * share)
    room = np.maximum([width - scale * fine[0], height - scale * fine[1]], 0) / 2
    centre = np.array([width, height]) / 2 + 0.8 * place * room
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([turn, centre - turn @ (np.array(fine) / 2)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    samples = cv2.warpAffine(photograph, matrix, fine, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(cv2.resize(samples, SIZE, interpolation=cv2.INTER_AREA), np.float32)


def _smooth(share: float) -> float:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    share = min(max(share, 0.0), 1.0)
    return share * share * (3 - 2 * share)
