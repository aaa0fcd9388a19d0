"""Results in linear light: EXR files, and composites of other formats with --linear."""

import argparse

import numpy as np
from numpy.typing import NDArray

from data.composition import composite
from data.image_io.exr import BITS, SceneLinear
from data.image_io.images import Colours, is_exr, read_light, write_exr
from data.image_io.light import SRGB_CHROMATICITIES, from_light, to_light
from inference.jobs import Job


def write_light(
    options: argparse.Namespace,
    background: Colours | SceneLinear | None,
    job: Job,
    trimap: NDArray[np.float32],
    alpha: NDArray[np.float32],
) -> None:
    """Write an EXR of the alpha, the cut-out or the composite; see `tools.prediction.steps.write_result`.

    Its light is that of the image: `options.exposure` has no effect on it.
    """
    light = read_light(job.image)
    if options.colour == "srgb":
        light = light.with_chromaticities(SRGB_CHROMATICITIES)
    alpha = alpha.astype(BITS[options.bits or light.bits]).astype(np.float32)  # what is 1 in the file is 1 here
    if options.kind == "alpha":
        return write_exr(job.output, {"Y": alpha}, light, options.bits)
    from inference.foreground import estimate_foreground_light

    foreground = estimate_foreground_light(light.values, alpha)
    if background is not None:
        behind = SceneLinear(to_light(*background)) if isinstance(background, Colours) else background
        blended = _over(foreground, alpha, behind.with_chromaticities(light.chromaticities).values)
        return write_exr(job.output, _rgb("", blended), light, options.bits)
    channels = {**_rgb("", foreground * alpha[..., None]), "A": alpha}
    if options.exr_layers:
        channels |= {**_rgb("foreground.", foreground), "alpha.A": alpha, "trimap.A": trimap}
    return write_exr(job.output, channels, light, options.bits)


def composite_in_light(
    options: argparse.Namespace,
    background: Colours | SceneLinear,
    job: Job,
    image: NDArray[np.float32],
    alpha: NDArray[np.float32],
    icc_profile: bytes | None,
) -> NDArray[np.float32]:
    """Blend in linear light, and bring the result to the space in which it is written.

    Args:
        options: of the command line.
        background: see `tools.prediction.steps.read_background`.
        job: whose image it is.
        image: (H, W, 3) in [0, 1], in the space that is written; kept where alpha is 1.
        alpha: (H, W) in [0, 1].
        icc_profile: of that space; None is sRGB.

    Returns: (H, W, 3) in [0, 1].
    """
    from inference.foreground import estimate_foreground_light

    stops = options.exposure
    light = read_light(job.image).exposed(stops) if is_exr(job.image) else to_light(image, icc_profile)
    behind = to_light(*background) if isinstance(background, Colours) else background.exposed(stops)
    blended = from_light(_over(estimate_foreground_light(light, alpha), alpha, behind), icc_profile)
    np.copyto(blended, image, where=(alpha == 1)[..., None])
    return blended


def _over(
    foreground: NDArray[np.float32], alpha: NDArray[np.float32], behind: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Lay a subject over the light of a colour or of an image, which is resized to cover it."""
    from inference.foreground import cover

    covering = behind if behind.shape == (3,) else cover(behind, *alpha.shape)
    return composite(alpha[..., None], foreground, covering)


def _rgb(prefix: str, values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {f"{prefix}{name}": values[..., index] for index, name in enumerate("RGB")}
