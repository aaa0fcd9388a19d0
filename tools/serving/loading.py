"""Load what predicts, and derive the largest image from the memory that may be used."""

import argparse

import torch

from inference.closed_form import closed_form_alpha
from inference.memory import GB, used_bytes
from inference.predictor import Predictor
from runtime.errors import ConfigError
from tools.serving.matting import Matter

BYTES_PER_PIXEL = 160
"""Of an image from its upload to the encoded result, beside a network. A 16-bit cut-out took 117 at 2 megapixels, 93 at
4 and 85 at 12; a 16-bit composite over an image took 90 at 2 megapixels. An 8-bit cut-out by closed-form matting took
229 at 2 megapixels with its equations, which `FIXED_BYTES` is for."""

FIXED_BYTES = 1_000_000_000
"""Of what does not grow with the image: closed-form matting's equations, the subject's network."""


def load_matter(options: argparse.Namespace) -> tuple[Matter, str]:
    """Load the network, or choose closed-form matting.

    Args:
        options: of the command line.

    Returns: what mattes, and where it runs, for people.

    Raises:
        OSError, UserError: the network cannot be used, or the limit of memory leaves nothing for an image.
    """
    if options.model is None:
        predict, name = closed_form_alpha, "cpu"
    else:
        predictor = Predictor.load(options.model, **options.settings)
        predict, name = predictor.alpha, predictor.network.name
    return Matter(predict, largest_image(options.max_pixels, options.max_memory_gb)), name


def largest_image(max_pixels: int, max_memory_gb: float | None) -> int:
    """Lower a limit of pixels to what the memory allows for reading, cutting out and encoding.

    A network's own memory is checked for each image, see `inference.memory.plan_tile`.

    Raises:
        ConfigError: the memory is used up already.
    """
    if max_memory_gb is None:
        return max_pixels
    left_bytes = max_memory_gb * GB - used_bytes(torch.device("cpu")) - FIXED_BYTES
    if left_bytes < BYTES_PER_PIXEL:
        raise ConfigError(f"--max-memory {max_memory_gb:g}: the program and its fixed parts alone take more")
    return min(max_pixels, int(left_bytes / BYTES_PER_PIXEL))
