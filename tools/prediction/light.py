"""Results in linear light: EXR files, and composites of other formats with --linear."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.composition import composite
from data.image_io.exr import BITS, SUFFIX, SceneLinear
from data.image_io.images import Colours, DataError, write_exr
from data.image_io.light import SRGB_CHROMATICITIES, from_light, to_light


def check_layers(options: argparse.Namespace, suffix: str) -> None:
    """Refuse --exr-layers for files of another suffix than EXR's.

    Raises:
        DataError: it is asked for.
    """
    if options.exr_layers and suffix.lower() != SUFFIX:
        raise DataError(f"--exr-layers is for EXR: add --format {SUFFIX[1:]}, or name an --output of this suffix")


def write_light(
    path: Path,
    options: argparse.Namespace,
    background: Colours | SceneLinear | None,
    light: SceneLinear,
    trimap: NDArray[np.float32],
    alpha: NDArray[np.float32],
) -> None:
    """Write an EXR of the alpha, the cut-out or the composite, in a folder that is made if it is missing.

    Args:
        path: of the file.
        options: of the command line. The light is written as it is: `exposure` has no effect on it.
        background: see `tools.prediction.steps.read_background`.
        light: of the image.
        trimap: (H, W) of {0, 0.5, 1}.
        alpha: (H, W) in [0, 1].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.colour == "srgb":
        light = light.with_chromaticities(SRGB_CHROMATICITIES)
    alpha = alpha.astype(BITS[options.bits or light.bits]).astype(np.float32)  # what is 1 in the file is 1 here
    if options.kind == "alpha":
        return write_exr(path, {"Y": alpha}, light, options.bits)
    from inference.foreground import estimate_foreground_light

    foreground = estimate_foreground_light(light.values, alpha)
    if background is not None:
        behind = SceneLinear(to_light(*background)) if isinstance(background, Colours) else background
        blended = _over(foreground, alpha, behind.with_chromaticities(light.chromaticities).values)
        return write_exr(path, _rgb("", blended), light, options.bits)
    channels = {**_rgb("", foreground * alpha[..., None]), "A": alpha}
    if options.exr_layers:
        channels |= {**_rgb("foreground.", foreground), "alpha.A": alpha, "trimap.A": trimap}
    return write_exr(path, channels, light, options.bits)


def composite_in_light(
    options: argparse.Namespace,
    background: Colours | SceneLinear,
    colours: Colours,
    alpha: NDArray[np.float32],
    light: SceneLinear | None,
) -> NDArray[np.float32]:
    """Blend in linear light, and bring the result to the space in which it is written.

    Args:
        options: of the command line.
        background: see `tools.prediction.steps.read_background`.
        colours: (H, W, 3) of the image, in the space that is written; kept where alpha is 1.
        alpha: (H, W) in [0, 1].
        light: of an EXR; None takes that of `colours`.

    Returns: (H, W, 3) in [0, 1].
    """
    from inference.foreground import estimate_foreground_light

    seen = light.exposed(options.exposure) if light else to_light(*colours)
    behind = to_light(*background) if isinstance(background, Colours) else background.exposed(options.exposure)
    blended = from_light(_over(estimate_foreground_light(seen, alpha), alpha, behind), colours.icc_profile)
    np.copyto(blended, colours.values, where=(alpha == 1)[..., None])
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
