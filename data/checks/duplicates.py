"""Find images that training and test share, by fingerprints small enough to keep for all files."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.checks.faults import Finding

THUMBNAIL_PX = 32
DETAIL_SIGMA_PX = 2  # of a thumbnail: what is coarser, such as a bright sky over a dark ground, many images share
MIN_DETAIL = 2.0  # standard deviation of 255; below there is too little to compare
MIN_CORRELATION = 0.95  # copies reduced to a tenth or of JPEG quality 30: above 0.969; other photographs: below 0.40
MIN_SUBJECT_PIXELS = 256  # opaque ones, or a speck would be found in other images
ROWS_AT_ONCE = 4096


class Fingerprint(NamedTuple):
    """A small description of a file, to find its copies.

    Fields:
        path: of the file.
        digests: of the exact pixels: of the image, and of what is opaque in it with its alpha, as far as it has them.
        thumbnail: (32, 32) uint8 grey; None of cut-outs.
    """

    path: Path
    digests: tuple[bytes, ...]
    thumbnail: NDArray[np.uint8] | None


def make_fingerprint(path: Path, colours: NDArray, alpha: NDArray | None, is_cutout: bool) -> Fingerprint:
    """Make the fingerprint of an image. Formats that store the same pixels give the same fingerprint.

    Args:
        path: of the image.
        colours: (H, W, 3) uint8 or uint16, of which the upper 8 bits count.
        alpha: (H, W) uint8 or uint16, if there is one.
        is_cutout: the colours where alpha is 0 mean nothing.
    """
    colours = to_upper_byte(colours)
    digests = [] if is_cutout else [digest(colours)]
    if alpha is not None:
        alpha = to_upper_byte(alpha)
        is_opaque = alpha == 255
        if np.count_nonzero(is_opaque) >= MIN_SUBJECT_PIXELS:
            digests.append(digest(alpha, colours[is_opaque]))
    if is_cutout:
        return Fingerprint(path, tuple(digests), None)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail = cv2.cvtColor(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return Fingerprint(path, tuple(digests), thumbnail.astype(np.uint8, copy=False))


def to_upper_byte(pixels: NDArray) -> NDArray[np.uint8]:
    """Take the upper 8 bits of uint16, so that 8-bit values stored in 16 bits come back; uint8 stays as it is."""
    return np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8))


def digest(*arrays: NDArray) -> bytes:
    """Digest shapes and values of arrays."""
    summary = hashlib.sha256()
    for array in arrays:
        summary.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return summary.digest()


def find_duplicates(training: Sequence[Fingerprint], test: Sequence[Fingerprint]) -> Iterator[Finding]:
    """Find training files that contain a test image. Each is reported once, with the first test file."""
    by_digest: dict[bytes, Path] = {}
    for fingerprint in test:
        for value in fingerprint.digests:
            by_digest.setdefault(value, fingerprint.path)
    found: set[Path] = set()
    for fingerprint in training:
        copies = [by_digest[value] for value in fingerprint.digests if value in by_digest]
        if copies and fingerprint.path not in found:
            found.add(fingerprint.path)
            yield Finding("duplicate", fingerprint.path, f"the pixels of {copies[0]}")
    for path, other, correlation in find_alike(training, test):
        if path not in found:
            found.add(path)
            yield Finding("near-duplicate", path, f"looks like {other} (their details correlate by {correlation:.3f})")


def find_alike(training: Iterable[Fingerprint], test: Iterable[Fingerprint]) -> Iterator[tuple[Path, Path, float]]:
    """Find pairs of training and test images whose thumbnails correlate, the best test image for each."""
    rows, columns = ([f for f in part if f.thumbnail is not None] for part in (training, test))
    if not columns:
        return
    test_details = normalised_details(columns)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        correlations = normalised_details(some) @ test_details.T
        best = correlations.argmax(axis=1)
        for row in np.flatnonzero(correlations.max(axis=1) > MIN_CORRELATION):
            yield some[row].path, columns[best[row]].path, float(correlations[row, best[row]])


def normalised_details(fingerprints: Sequence[Fingerprint]) -> NDArray[np.float32]:
    """Stack what is finer than `DETAIL_SIGMA_PX` in thumbnails, each a row of length 1, or 0 where it is faint."""
    details = np.empty((len(fingerprints), THUMBNAIL_PX**2), np.float32)
    for row, fingerprint in zip(details, fingerprints, strict=True):
        assert fingerprint.thumbnail is not None, "chosen by its thumbnail"
        thumbnail = fingerprint.thumbnail.astype(np.float32)
        detail = (thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), DETAIL_SIGMA_PX)).ravel()
        detail -= detail.mean()
        length = float(np.linalg.norm(detail))
        row[:] = detail / length if length >= MIN_DETAIL * THUMBNAIL_PX else 0
    return details
