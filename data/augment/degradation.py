"""Degrade composites as a lens, a sensor and a file degrade a photograph.

Foreground and background are from different images, often cleaner than real inputs. If the composite is blurred, noisy
and compressed, the network cannot find a seam of different sharpness or grain (Li et al. 2022, "Bridging Composite and
Real", IJCV, section 4.2; JPEG and blur: Hou and Liu 2019, "Context-Aware Image Matting").
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_float, to_uint8
from data.validation import check_number, checked_range

Image = NDArray[np.float32]


class DegradeImage:
    """Blur the "image", add noise and compress it, in this order, each with its own probability.

    Alpha and trimap are unchanged. All random numbers except the noise itself are always drawn, so that switching one
    kind on or off does not change the others. With all probabilities 0 nothing is drawn and the sample is returned
    unchanged.

    Args:
        blur_probability: how often; 0 is off, as for all three.
        blur_sigma_px: range of the Gaussian's standard deviation, uniform; at least 0. Beyond a pixel or so, edges are
            visibly softer than the alpha that is their ground truth.
        noise_probability: how often.
        noise_sigma: range of the read noise r, uniform, in steps of 1/255; at least 0.
        shot_noise_sigma: range of the shot noise s at white, likewise. See `add_noise`.
        jpeg_probability: how often.
        jpeg_quality: range of libjpeg's quality, uniform over its whole numbers, both ends included; within 1 to 100.

    Raises:
        ConfigError: an invalid probability, or a range that is invalid or out of its limits.
    """

    def __init__(
        self,
        blur_probability: float = 0.0,
        blur_sigma_px: Sequence[float] = (0.3, 1.2),
        noise_probability: float = 0.0,
        noise_sigma: Sequence[float] = (0.5, 4.0),
        shot_noise_sigma: Sequence[float] = (0.0, 6.0),
        jpeg_probability: float = 0.0,
        jpeg_quality: Sequence[int] = (50, 95),
    ) -> None:
        self.probabilities = (blur_probability, noise_probability, jpeg_probability)
        for name, probability in zip(("blur", "noise", "jpeg"), self.probabilities, strict=True):
            check_number(f"{name}_probability", probability, 0, 1)
        ranges = [
            checked_range("blur_sigma_px", blur_sigma_px, 0),
            checked_range("noise_sigma", noise_sigma, 0, 255),
            checked_range("shot_noise_sigma", shot_noise_sigma, 0, 255),
            checked_range("jpeg_quality", jpeg_quality, 1, 100, is_whole=True),
        ]
        self.lows, highs = np.array(ranges, float).T
        self.spans = highs - self.lows + [0, 0, 0, 1]  # a whole number, rounded down

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not any(self.probabilities):
            return sample
        is_blurred, is_noisy, is_compressed = rng.random(3) < self.probabilities
        blur_px, read, shot, quality = self.lows + rng.random(4) * self.spans
        image = sample["image"]
        if is_blurred and blur_px > 0:
            image = cv2.GaussianBlur(image, (0, 0), blur_px, borderType=cv2.BORDER_REPLICATE)
        if is_noisy:
            image = add_noise(image, read / 255, shot / 255, rng)
        if is_compressed:
            image = compress(image, int(quality))
        return {**sample, "image": image.clip(0, 1)}  # float rounding of the blur may leave [0, 1]


def add_noise(image: Image, read: float, shot: float, rng: np.random.Generator) -> Image:
    """Add independent Gaussian noise of variance read^2 + shot^2 I to every value I, and clip.

    This is the Poissonian-Gaussian model of a sensor (Foi et al. 2008), on encoded instead of linear values.

    Args:
        image: (H, W, 3) in [0, 1].
        read: standard deviation at black, of full scale.
        shot: standard deviation that is added at white.
        rng: generator to draw from.

    Returns: (H, W, 3) in [0, 1], a new array.
    """
    sigma = np.sqrt(read**2 + shot**2 * image, dtype=np.float32)
    return (image + sigma * rng.standard_normal(image.shape, np.float32)).clip(0, 1)


def compress(image: Image, quality: int) -> Image:
    """Compress an image (H, W, 3) in [0, 1] as JPEG with colours at half the resolution (4:2:0), and decode it."""
    pixels = cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    read_back = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))
    return to_float(np.asarray(cv2.cvtColor(read_back, cv2.COLOR_BGR2RGB)))
