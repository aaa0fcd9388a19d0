"""Matte uploaded files: store them in a private folder, check their size, run the steps of tools/predict.py."""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import LargeImageError
from data.image_io.images import Colours, read_colours, write_rgba
from data.image_io.metadata import read_metadata, read_size
from data.trimap import write_trimap
from inference.foreground import estimate_foreground
from inference.jobs import KINDS, Job, check_outputs
from runtime.errors import UserError
from tools.prediction.steps import Predict, read_pair, write_result
from tools.serving.errors import RefusedError, TooLargeError, describe

MEDIA_TYPES = {"png": "image/png", "tif": "image/tiff", "webp": "image/webp", "jpg": "image/jpeg"}
"""Format of a result -> its media type."""

DEFAULTS = {
    "auto": False, "points": None, "scribbles": None, "trimap": None, "trimap_dir": None, "mask": None,
    "width_px": None, "width_percent": None,
    "threshold": None, "kind": "rgba", "bits": 8, "premultiplied": False, "format": "png",
    "colour": "keep", "exposure": 0.0, "linear": False, "exr_layers": False,
}  # fmt: skip
"""Options of tools/predict.py as they are if its command line does not give them."""


@dataclass
class Answer:
    """An encoded result.

    Attributes:
        content: the file.
        media_type: of the file.
        width: of the image in px.
        height: of the image in px.
        seconds: step -> time that it took.
    """

    content: bytes = b""
    media_type: str = ""
    width: int = 0
    height: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Give size and timing as HTTP headers; Server-Timing is a W3C standard that browsers show."""
        timing = ", ".join(f"{step};dur={1000 * seconds:.1f}" for step, seconds in self.seconds.items())
        return {"X-Image-Width": str(self.width), "X-Image-Height": str(self.height), "Server-Timing": timing}

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step."""
        started_s = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - started_s


@dataclass(frozen=True)
class Matter:
    """Mattes uploads in the calling thread.

    Attributes:
        predict: a network's or a baseline's.
        max_pixels: of each uploaded image.
    """

    predict: Predict
    max_pixels: int

    def matte(
        self,
        files: Mapping[str, BinaryIO],
        background: NDArray[np.float32] | None = None,
        backdrop: tuple[int, ...] | None = None,
        **options: Any,
    ) -> Answer:
        """Make alpha, cut-out or composite.

        Args:
            files: "image", and "trimap", "mask" or "background" where they are given.
            background: colour (3,) in [0, 1] of a composite.
            backdrop: red, green, blue and opacity, 0 to 255, to lay under a cut-out, which stays RGBA.
            options: of tools/predict.py, see `DEFAULTS`.

        Raises:
            RefusedError: the files cannot be used.
        """

        def write(chosen: argparse.Namespace, job: Job, answer: Answer) -> None:
            self._write(chosen, job, answer, background, backdrop)

        return self._answer(files, options, write)

    def find_trimap(self, files: Mapping[str, BinaryIO], **options: Any) -> Answer:
        """Make the trimap of a mask, of points, or of what stands out, as a PNG; see `matte`."""

        def write(chosen: argparse.Namespace, job: Job, answer: Answer) -> None:
            with answer.timed("trimap"):
                image, trimap = read_pair(chosen, {}, job)
            with answer.timed("encode"):
                write_trimap(job.output, trimap)
            answer.height, answer.width = trimap.shape

        return self._answer(files, options, write)

    def warm_up(self) -> None:
        """Compile what is compiled at its first call, so that the first request does not wait for it."""
        image = np.random.default_rng(0).random((32, 32, 3), np.float32)
        trimap = np.full((32, 32), 0.5, np.float32)
        trimap[:8], trimap[-8:] = 0, 1
        estimate_foreground(image, self.predict(image, trimap))

    def _answer(
        self,
        files: Mapping[str, BinaryIO],
        options: Mapping[str, Any],
        write: Callable[[argparse.Namespace, Job, Answer], None],
    ) -> Answer:
        answer = Answer()
        with TemporaryDirectory() as name:
            folder = Path(name)
            try:
                for part, file in files.items():
                    self._store(file, folder / part)
                paths = {part: folder / part for part in ("trimap", "mask") if part in files}
                chosen = argparse.Namespace(**{**DEFAULTS, **options, **paths})
                job = Job(folder / "image", folder / f"result.{chosen.format}")
                write(chosen, job, answer)
                answer.content, answer.media_type = job.output.read_bytes(), MEDIA_TYPES[chosen.format]
            except UserError as error:
                status, reason = describe(error)
                raise RefusedError(status, reason.replace(f"{folder}{os.sep}", "")) from error
        return answer

    def _store(self, file: BinaryIO, path: Path) -> None:
        """Write an upload to a file of our own name, and refuse it by its size before it is decoded."""
        with path.open("wb") as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy)
        check_size(path, self.max_pixels, path.name)

    def _write(
        self,
        options: argparse.Namespace,
        job: Job,
        answer: Answer,
        background: NDArray[np.float32] | None,
        backdrop: tuple[int, ...] | None,
    ) -> None:
        check_outputs([job], [], KINDS[options.kind], options.bits)
        with answer.timed("read"):
            image, trimap = read_pair(options, {}, job)
            behind = None if background is None else Colours(background)
            if (path := job.image.with_name("background")).exists():
                behind = read_colours(path)
        answer.height, answer.width = trimap.shape
        with answer.timed("matte"):
            alpha = self.predict(image, trimap)
        with answer.timed("encode"):
            if backdrop is None:
                write_result(options, behind, job, image, trimap, alpha)
            else:
                rgba = lay_over(estimate_foreground(image, alpha), alpha, backdrop)
                write_rgba(job.output, rgba, metadata=read_metadata(job.image)._replace(icc_profile=None))


def check_size(path: Path, max_pixels: int, name: str) -> None:
    """Refuse an image of too many pixels before it is decoded. What is no image is left to its reader.

    Raises:
        TooLargeError: it states more pixels.
    """
    try:
        width, height = read_size(path)
    except LargeImageError as error:
        raise TooLargeError(f"{name}: {error}") from error
    except UserError:
        return
    if width * height > max_pixels:
        raise TooLargeError(
            f"{name} is {width} x {height} px: this server takes {max_pixels} pixels at most. Reduce it"
        )


def lay_over(
    foreground: NDArray[np.float32], alpha: NDArray[np.float32], backdrop: tuple[int, ...]
) -> NDArray[np.float32]:
    """Lay a subject over a colour that may be transparent.

    Args:
        foreground: (H, W, 3) RGB in [0, 1], not premultiplied.
        alpha: (H, W) in [0, 1].
        backdrop: red, green, blue and opacity, 0 to 255.

    Returns: (H, W, 4) RGBA in [0, 1], not premultiplied.

    Source: Porter and Duff 1984, "over".
    """
    *colour, opacity = np.divide(backdrop, 255, dtype=np.float32)
    behind = (1 - alpha) * opacity
    total = alpha + behind
    weight = np.divide(alpha, total, out=np.zeros_like(total), where=total > 0)[..., None]
    return np.dstack([weight * foreground + (1 - weight) * np.array(colour), total]).astype(np.float32)
