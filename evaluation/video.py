"""Measure clips: the errors of their frames, and the flicker between a frame and the next.

dtSSD and MESSDdt are those of Erofeev et al., Perceptually Motivated Benchmark for Video Matting (BMVC 2015). Both are
averaged over pixels here instead of summed, as recent papers do, so that they do not depend on the size of a frame.

Worker processes import this module, so neither it nor what it imports loads torch.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_unit_floats, read_alpha_values, read_image, read_raw_alpha, to_uint8
from data.optical_flow import Flow, dense_flow, follow, grey_of
from evaluation.folders import Files, evaluate_folders
from evaluation.metrics import PROTOCOLS, Protocol, as_protocol, average, unknown_region
from runtime.worker_pool import map_in_workers

VIDEO_METRICS = {"dtSSD": ("dtSSD x1e-2", 1e2), "MESSDdt": ("MESSDdt x1e-3", 1e3)}  # label and factor in reports

Pair = Sequence[NDArray]


def dtssd(pred_alphas: Pair, alphas: Pair, region: NDArray[np.bool_]) -> float:
    """Compute the root mean square error of the change of alpha from a frame to the next: dtSSD.

    Args:
        pred_alphas: predictions of two frames, (H, W) float in [0, 1] each.
        alphas: their ground truth.
        region: (H, W) boolean, True for pixels that count.

    Returns: in [0, 2]; 0 for an empty region.
    """
    changes = [later[region].astype(np.float64) - earlier[region] for earlier, later in (pred_alphas, alphas)]
    return math.sqrt(float(np.square(changes[0] - changes[1]).sum()) / max(changes[0].size, 1))


def messddt(pred_alphas: Pair, alphas: Pair, flow: Flow, region: NDArray[np.bool_]) -> float:
    """Compute how much the squared error of alpha changes along the motion, on average: MESSDdt.

    Args:
        pred_alphas: as for `dtssd`.
        alphas: as for `dtssd`.
        flow: (H, W, 2) motion from the first frame to the second, in pixels. Positions between pixels are
            interpolated linearly, positions outside moved to the border.
        region: as for `dtssd`, in the first frame.

    Returns: in [0, 1]; 0 for an empty region.
    """
    errors = [np.square(pred.astype(np.float64) - alpha) for pred, alpha in zip(pred_alphas, alphas, strict=True)]
    changes = np.abs(errors[0] - follow(errors[1], flow))[region]
    return float(changes.sum()) / max(changes.size, 1)


def evaluate_clips(
    pred_dir: Path,
    label_dir: Path,
    trimap_dir: Path | None = None,
    image_dir: Path | None = None,
    *,
    protocol: Protocol = PROTOCOLS["whole"],
    num_workers: int = 1,
) -> dict[str, dict[str, float]]:
    """Measure every clip of a test set; each folder holds a subfolder for each clip, with its frames by name.

    Args:
        pred_dir: predicted alphas.
        label_dir: ground truth alphas; every other folder must have the same clips with frames of the same names.
        trimap_dir: trimaps of all frames, for a protocol that counts unknown pixels.
        image_dir: frames, which MESSDdt takes the motion from; None leaves MESSDdt out.
        protocol: one of `PROTOCOLS`.
        num_workers: number of worker processes.

    Returns: clip -> the averages over frames of `evaluation.metrics.METRICS`, those over pairs of `VIDEO_METRICS`, and
        "frames", in natural units, sorted by name.

    Raises:
        DataError: no clip, a clip of one frame, or an error of `evaluate_folders`.
        OSError: no such folder.
    """
    names = _clips(label_dir)
    if extra := sorted(set(_clips(pred_dir)) - set(names)):
        raise DataError(f"{pred_dir / extra[0]} is extra: {label_dir} has no such clip")
    rows = {}
    for name in names:
        folders = [None if folder is None else folder / name for folder in (trimap_dir, image_dir)]
        evaluation = evaluate_folders(
            pred_dir / name, label_dir / name, *folders, protocol=protocol, num_workers=num_workers
        )
        frames = [evaluation.files[frame] for frame in sorted(evaluation.files, key=_numbers_as_numbers)]
        if len(frames) < 2:
            raise DataError(f"{label_dir / name} holds one frame: flicker takes two")
        work = partial(_measure_pair, protocol=protocol)
        pairs = list(map_in_workers(work, pairwise(frames), min(num_workers, len(frames) - 1)))
        flicker = {metric: math.fsum(pair[metric] for pair in pairs) / len(pairs) for metric in pairs[0]}
        rows[name] = {**average(evaluation.rows.values()), **flicker, "frames": len(frames)}
    return rows


def average_clips(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Average the results of `evaluate_clips`, each clip once; "frames" is their sum."""
    columns = next(iter(rows.values()))
    sums = {name: math.fsum(row[name] for row in rows.values()) for name in columns}
    return {name: total if name == "frames" else total / len(rows) for name, total in sums.items()}


def _clips(folder: Path) -> list[str]:
    """List the clips of a folder, sorted by name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise DataError(f"{folder} holds no folder: expected one for each clip, with its frames")
    return names


def _numbers_as_numbers(name: str) -> list[tuple[int, str]]:
    """Make a sort key by which frame 2 comes before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _measure_pair(frames: tuple[Files, Files], protocol: Protocol) -> dict[str, float]:
    """Measure a frame and the next, in a worker; the pixels that count are those of the first."""
    alphas = [[_read_alpha(files[kind], protocol) for files in frames] for kind in ("pred", "label")]
    region = np.ones(alphas[0][0].shape, np.bool_)
    if not protocol.is_whole:
        region = unknown_region(read_raw_alpha(frames[0]["trimap"]), frames[0]["trimap"])
    row = {"dtSSD": dtssd(alphas[0], alphas[1], region)}
    if "image" in frames[0]:
        greys = [grey_of(to_uint8(read_image(files["image"]))) for files in frames]
        row["MESSDdt"] = messddt(alphas[0], alphas[1], dense_flow(greys[0], greys[1]), region)
    return row


def _read_alpha(path: Path, protocol: Protocol) -> NDArray[np.float32]:
    return as_unit_floats(as_protocol(read_alpha_values(path), protocol))
