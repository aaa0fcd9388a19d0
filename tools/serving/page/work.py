"""What the buttons of the page do to a session: open a photograph, make its trimap, matte it. No Gradio here."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.colour import convert
from data.image_io.images import (
    Colours,
    DataError,
    read_colours,
    read_image,
    to_uint8,
    write_alpha,
    write_image,
    write_rgba,
)
from data.image_io.metadata import read_metadata
from data.sources.layouts import check_same_size
from data.trimap import (
    UNKNOWN,
    band_width_px,
    read_trimap,
    trimap_for_matting,
    trimap_of_mask,
    write_trimap,
)
from inference.auto.clicks import refine_trimap, trimap_of_clicks
from inference.auto.labels import Point, parse_points
from inference.auto.subject import trimap_of_subject
from inference.foreground import cut_out, estimate_foreground, over
from tools.serving.matting import Matter, check_size
from tools.serving.page.drawing import NO_STROKE, SHOWN_PX, VALUES, checkerboard, draw_trimap, paint, reduce
from tools.serving.page.files import Session, Strokes

FOUND, MASK, TRIMAP = "found", "mask", "trimap"
"""Steps that start a trimap anew."""


@dataclass(frozen=True)
class Results:
    """Files of one matting; composites are made by `compose`.

    Attributes:
        alpha: grey PNG.
        cutout: RGBA PNG.
        shown: the cut-out over a checkerboard.
        trimap: PNG of 0, 128, 255.
        before: the photograph with 8 bits, as large as `shown`, to compare.
    """

    alpha: Path
    cutout: Path
    shown: Path
    trimap: Path
    before: Path


RESULTS = [field.name for field in fields(Results)]


def open_photograph(session: Session, upload: Path, max_pixels: int) -> None:
    """Take a new photograph; what was done to the one before is forgotten.

    Raises:
        TooLargeError: more pixels than the server takes.
        DataError: it is no image that is read.
    """
    check_size(upload, max_pixels, "the photograph")
    with named(upload, "the photograph"):
        image = to_uint8(read_image(upload))
    shutil.copyfile(upload, session.photograph)
    (session.folder / "alpha.npy").unlink(missing_ok=True)
    session.forget("given", "reduced", "composite", *RESULTS)
    reduced = reduce(image, SHOWN_PX)
    write_image(session.new_path("reduced"), reduced / np.float32(255))
    session.size = image.shape[0], image.shape[1]
    session.scale = max(reduced.shape) / max(image.shape)
    session.history = [[]]


@contextmanager
def named(path: Path, name: str) -> Iterator[None]:
    """Name a file in errors as people know it."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from error


@contextmanager
def changed(session: Session, history: list[list[object]]) -> Iterator[None]:
    """Give a session another history; an error takes the change back."""
    before, session.history = session.history, history
    try:
        yield
    except Exception:
        session.history = before
        raise


def change(session: Session, steps: list[object], width_percent: float) -> Path:
    """Replace the steps, and draw what follows; see `draw`."""
    with changed(session, [*session.history, steps]):
        return draw(session, width_percent)


def undo(session: Session, width_percent: float) -> Path:
    """Take the last change back, if there is one, and draw what follows; see `draw`."""
    with changed(session, session.history[:-1] or session.history):
        return draw(session, width_percent)


def add_file(session: Session, upload: Path, is_mask: bool, max_pixels: int, width_percent: float) -> Path:
    """Take a mask or a trimap of the photograph as the start of the trimap, and draw what follows; see `draw`.

    Raises:
        DataError, TooLargeError: it cannot be used.
    """
    check_open(session)
    kind = MASK if is_mask else TRIMAP
    check_size(upload, max_pixels, f"the {kind}")
    path = session.new_path("given", "")
    shutil.copyfile(upload, path)
    return change(session, [*session.steps, (kind, path)], width_percent)


def take_background(session: Session, upload: Path, max_pixels: int) -> Colours:
    """Read an image to lie behind the subject. The session keeps a copy: uploads go after an hour.

    Raises:
        DataError, TooLargeError: it cannot be used.
    """
    if session.background is None or session.background[0] != upload:
        check_size(upload, max_pixels, "the background")
        path = session.new_path("background", "")
        shutil.copyfile(upload, path)
        session.background = upload, path
        session.forget("background", keep=1)
    with named(session.background[1], "the background"):
        return read_colours(session.background[1])


def check_open(session: Session) -> tuple[int, int]:
    """Return (height, width) of the photograph, or raise a DataError that asks for one."""
    if session.size is None:
        raise DataError("There is no photograph yet: upload one, or choose an example")
    return session.size


def make_trimap(session: Session, width_percent: float) -> NDArray[np.float32] | None:
    """Make the trimap that follows from the steps of a session.

    The last of "found", a mask and a trimap starts it. Points after a mask or a trimap correct it. Points after "found"
    grow anew, which uses what is found already. Without a start, subject and background strokes grow as points do.
    Strokes are laid over the result; see `strokes_of`.

    Args:
        session: with a photograph.
        width_percent: width of the band in percent of the photograph's longer side.

    Returns: (H, W) in {0, 0.5, 1}; None if there is no step yet.

    Raises:
        UserError: a step gives no trimap.
    """
    size = check_open(session)
    width_px = band_width_px(width_percent, max(size))
    steps = session.steps[last_start(session.steps) :]
    points, strokes = points_of(steps), strokes_of(steps, size)
    if not steps:
        return None
    photograph, start = read_image(session.photograph), cast(Any, steps[0])
    if start == FOUND and not points:
        trimap = trimap_of_subject(photograph, width_percent, "the photograph")
    elif start == FOUND or not is_start(start):
        labels = np.full(size, UNKNOWN, np.float32)
        labels = labels if strokes is None else paint(labels, strokes)
        scribbles = labels if (labels != UNKNOWN).any() else None
        if scribbles is None and not points:
            raise DataError("Only unknown is painted: paint or click on the subject too, or find it first")
        trimap = trimap_of_clicks(photograph, width_px, points, scribbles, "the photograph")
    else:
        kind, path = start
        with named(path, f"the {kind}"):
            if kind == MASK:
                trimap = trimap_for_matting(trimap_of_mask(path, lambda longer_px: width_px, None, size[::-1]))
            else:
                trimap = read_trimap(path)
                check_same_size(np.empty(size), Path("the photograph"), trimap, Path("the trimap"))
        if points:
            trimap = refine_trimap(photograph, trimap, width_px, points, "the photograph")
    return trimap if strokes is None else paint(trimap, strokes)


def is_start(step: object) -> bool:
    """Tell whether a step starts the trimap anew."""
    return step == FOUND or (isinstance(step, tuple) and step[0] in (MASK, TRIMAP))


def last_start(steps: list[object]) -> int:
    """Find the last step that starts the trimap anew; what lies before it has no effect. 0 if there is none."""
    return max((number for number, step in enumerate(steps) if is_start(step)), default=0)


def is_point(step: object) -> TypeGuard[Point]:
    """Tell whether a step is a point."""
    return isinstance(step, tuple) and len(step) == 3


def points_of(steps: list[object]) -> list[Point]:
    """List the points that have an effect."""
    return [step for step in steps[last_start(steps) :] if is_point(step)]


def strokes_of(steps: list[object], size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Lay the strokes that have an effect over each other; None without strokes.

    A later point of another label removes the connected part that it lies in.

    Args:
        steps: of a session.
        size: (height, width) of the photograph in px.

    Returns: (h, w) as `Strokes` has it.
    """
    merged: NDArray[np.uint8] | None = None
    for step in steps[last_start(steps) :]:
        if isinstance(step, Strokes):
            merged = step.labels if merged is None else np.where(step.labels == NO_STROKE, merged, step.labels)
        elif is_point(step) and merged is not None:
            merged = _without_part(merged, step, size)
    return merged


def _without_part(strokes: NDArray[np.uint8], point: Point, size: tuple[int, int]) -> NDArray[np.uint8]:
    x, y, label = point
    if not (0 <= x < size[1] and 0 <= y < size[0]):  # growing raises an error for it
        return strokes
    row, column = int(y) * strokes.shape[0] // size[0], int(x) * strokes.shape[1] // size[1]
    found = strokes[row, column]
    if found == NO_STROKE or VALUES[found] == label:
        return strokes
    _, parts = cv2.connectedComponents((strokes == found).astype(np.uint8))
    return np.where(parts == parts[row, column], np.uint8(NO_STROKE), strokes)


def replace_points(steps: list[object], text: str) -> list[object]:
    """Return the steps with other points instead of those that have an effect. A point that stays keeps its place.

    Args:
        steps: of a session.
        text: JSON of the points, see `parse_points`; without a character no points.

    Raises:
        DataError: no such text.
    """
    start, before = last_start(steps), {*points_of(steps)}
    points = parse_points(text) if text.strip() else []
    kept = {*points}
    others = [step for step in steps[start:] if not is_point(step) or step in kept]
    return [*steps[:start], *others, *(point for point in points if point not in before)]


def draw(session: Session, width_percent: float) -> Path:
    """Draw the reduced photograph with its trimap and points."""
    (reduced,) = session.folder.glob("reduced_*/*")
    points = [(session.scale * x, session.scale * y, label) for x, y, label in points_of(session.steps)]
    drawn = draw_trimap(to_uint8(read_image(reduced)), make_trimap(session, width_percent), points)
    session.forget("drawn", keep=2)  # a browser may still load the one before
    path = session.new_path("drawn")
    write_image(path, drawn / np.float32(255))
    return path


def matte(session: Session, matter: Matter, width_percent: float, bits: int) -> Results:
    """Matte the photograph with its trimap.

    Raises:
        UserError: there is no photograph or no trimap, or it cannot be matted.
    """
    check_open(session)
    trimap = make_trimap(session, width_percent)
    if trimap is None:
        raise DataError("There is no trimap yet: find the subject, click, paint, or give a mask or a trimap")
    photograph = read_colours(session.photograph)
    image = convert(*photograph)
    alpha = matter.predict(image, trimap)
    foreground = estimate_foreground(image, alpha)
    metadata = read_metadata(session.photograph)
    stored = estimate_foreground(photograph.values, alpha) if photograph.icc_profile else foreground
    session.forget(*RESULTS)
    results = Results(*map(session.new_path, RESULTS))
    write_alpha(results.alpha, alpha, bits, metadata)
    write_rgba(results.cutout, cut_out(stored, alpha), bits, metadata=metadata)
    write_image(results.shown, over(foreground, alpha, checkerboard(*alpha.shape)))
    write_trimap(results.trimap, trimap)
    write_image(results.before, image)
    np.save(session.folder / "alpha.npy", alpha)
    return results


def compose(session: Session, background: Colours) -> Path | None:
    """Lay the matted subject over a colour (3,) or an image; None before the photograph is matted."""
    stored = session.folder / "alpha.npy"
    if session.size is None or not stored.exists():
        return None
    alpha = np.load(stored)
    photograph = read_colours(session.photograph)
    foreground = estimate_foreground(photograph.values, alpha)
    composite = over(foreground, alpha, convert(*background, photograph.icc_profile))
    session.forget("composite")
    path = session.new_path("composite")
    write_image(path, composite, metadata=read_metadata(session.photograph))
    return path
