"""The finished segments of a clip's result: what a killed run leaves, and what --resume goes on from."""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError
from data.video_io.joining import join
from data.video_io.writing import SEGMENT_SUFFIX, segment
from runtime.atomic_write import atomic_write
from tools.prediction.clips.plan import Plan

SEGMENT_FRAMES = 30
"""Frames that are matted again, at most, after a killed run."""

SETTINGS_FILE = "settings.json"
NOT_SETTINGS = ("overwrite", "resume", "output", "watch")

State = Mapping[str, NDArray]
"""What the next segment needs of the frames before it, and what is reported of them."""


class Segments:
    """Writes the frames of a result in order, in segments, and joins these.

    A segment is finished when its file of state is there, which is written last.

    Args:
        plan: of the clip.
        options: of the command line; those of an interrupted run must be the same.

    Raises:
        DataError: segments are there, made with other options.
        WriteError: the folder of segments cannot be written.
    """

    def __init__(self, plan: Plan, options: argparse.Namespace) -> None:
        self.plan = plan
        settings = settings_of(plan, options)
        plan.parts.mkdir(parents=True, exist_ok=True)
        record = plan.parts / SETTINGS_FILE
        if record.is_file():
            check_settings(record, settings)
        else:
            with atomic_write(record) as unfinished:
                unfinished.write_text(json.dumps(settings, indent=2))
        num_all = -(-len(plan.numbers) // SEGMENT_FRAMES)
        self.num_finished = next((index for index in range(num_all) if not self._state(index).is_file()), num_all)
        self.first = min(self.num_finished * SEGMENT_FRAMES, len(plan.numbers))
        self._open = ExitStack()
        self._encode: Callable[[NDArray], None] | None = None

    def states(self) -> list[dict[str, NDArray]]:
        """Read the state after each finished segment."""
        found = []
        for index in range(self.num_finished):
            with np.load(self._state(index)) as stored:
                found.append(dict(stored))
        return found

    def encode(self, values: NDArray[np.float32]) -> None:
        """Encode the next frame of a clip.

        Args:
            values: (H, W), (H, W, 3) or (H, W, 4) in [0, 1].

        Raises:
            WriteError, OSError: the disk is full.
        """
        assert self.plan.encoder is not None, "images are files of their own"
        if self._encode is None:
            file = self._file(self.num_finished)
            self._encode = self._open.enter_context(segment(file, self.plan.encoder, self.plan.form))
        return self._encode(values)

    def end(self, state: State) -> None:
        """Finish a segment.

        Raises:
            WriteError: the disk is full.
        """
        self._encode = None
        self._open.close()
        with atomic_write(self._state(self.num_finished)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **state)  # type: ignore[arg-type]  # no array is named allow_pickle
        self.num_finished += 1

    def abort(self, error: BaseException) -> None:
        """Remove the segment that is not finished."""
        self._open.__exit__(type(error), error, error.__traceback__)

    def join(self, numbers: Sequence[int]) -> None:
        """Make the result of all segments, which hold these frames, and remove them.

        Raises:
            WriteError: the result cannot be written.
        """
        plan = self.plan
        if plan.encoder is not None:
            files = [self._file(index) for index in range(self.num_finished)]
            times = plan.times(numbers)
            join(files, plan.output, plan.encoder, plan.form, times, plan.sound(times))
        shutil.rmtree(plan.parts)

    def _file(self, index: int) -> Path:
        return self.plan.parts / f"{index:06}{SEGMENT_SUFFIX}"

    def _state(self, index: int) -> Path:
        return self.plan.parts / f"{index:06}.npz"


def settings_of(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """List what decides on the pixels of a result: the options, and the clip's size and time."""
    found = os.stat(plan.clip.path)
    settings = {name: str(value) for name, value in vars(options).items() if name not in NOT_SETTINGS}
    return {**settings, "clip_bytes": found.st_size, "clip_time_ns": found.st_mtime_ns}


def check_settings(record: Path, settings: Mapping[str, Any]) -> None:
    """Raise a DataError if an interrupted run had other settings."""
    before = json.loads(record.read_text())
    others = [name for name in settings if settings[name] != before.get(name)]
    if others:
        raise DataError(
            f"{record.parent} was begun with another {' and '.join(others)}: give the same, or --overwrite to start "
            "anew"
        )
