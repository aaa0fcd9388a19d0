"""Matte a clip: read, matte and write frame by frame, in segments, so that a killed run goes on."""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.image_io.colour import convert
from data.image_io.exr import SceneLinear
from data.image_io.images import Colours, to_float, to_uint8
from data.image_io.light import to_light
from data.image_io.metadata import Metadata
from data.video_io.reading import DamagedClipError, clock
from inference.video.stability import DEFAULT_STRENGTH, Stabiliser
from runtime.atomic_write import WriteError
from runtime.errors import few
from tools.prediction.clips.background import Behind, backdrop
from tools.prediction.clips.plan import Plan, is_finished, make_plan
from tools.prediction.clips.segments import SEGMENT_FRAMES, Segments, State
from tools.prediction.clips.trimaps import TrimapSource, trimap_source
from tools.prediction.light import write_light
from tools.prediction.messages import say
from tools.prediction.steps import Predict, make_result, write_values

NOTE, STABILITY = "note: ", "stability: "
"""Beginnings of names in the state of a segment: frame numbers by what is reported of them, and the stabiliser's."""


class Frame(NamedTuple):
    """A frame of the clip.

    Attributes:
        number: in the clip.
        image: (H, W, 3) RGB in [0, 1] as stored.
        seen: the same in sRGB, as the network sees it.
        trimap: (H, W) in {0, 0.5, 1}.
        note: what to report of it, or "".
    """

    number: int
    image: NDArray[np.float32]
    seen: NDArray[np.float32]
    trimap: NDArray[np.float32]
    note: str


def matte_clip(options: argparse.Namespace, load_predict: Callable[[argparse.Namespace], Predict]) -> int:
    """Matte a clip.

    Args:
        options: of the command line.
        load_predict: loads the network, or chooses the baseline.

    Returns: the exit status.

    Raises:
        OSError, UserError: the clip cannot be matted, or not further. Finished segments stay for --resume.
    """
    plan = make_plan(options)
    if options.resume and is_finished(plan):
        say(f"{plan.output} is there already")
        return 0
    source = trimap_source(options, plan.clip, plan.numbers)
    behind = None
    if options.background:
        behind = backdrop(options.background, options.linear or plan.is_exr, options.exposure)
    predict = load_predict(options)
    run = ClipRun(options, plan, source, behind)
    try:
        run.matte(predict)
        written = run.finish()
    except WriteError as error:
        raise WriteError(f"{error}. The same command with --resume goes on") from error
    run.report()
    print(f"wrote {written} frame{'s' * (written != 1)} to {plan.output}")
    return 1 if run.damage else 0


class ClipRun:
    """Mattes a clip from the first segment that is missing."""

    def __init__(self, options: argparse.Namespace, plan: Plan, source: TrimapSource, behind: Behind | None) -> None:
        self.options, self.plan, self.behind = options, plan, behind
        self.segments = Segments(plan, options)
        self.stabiliser = Stabiliser(DEFAULT_STRENGTH if options.stability is None else options.stability)
        self.notes: dict[str, list[int]] = defaultdict(list)
        for state in self.segments.states():
            for note, numbers in _part(state, NOTE).items():
                self.notes[note] += numbers.tolist()
            self.stabiliser.restore(_part(state, STABILITY))
        self.numbers = plan.numbers[self.segments.first :]
        self.trimap_of = source(self.numbers) if self.numbers else None
        self.damage = plan.clip.damage if plan.numbers.stop == plan.clip.num_frames else None
        self.ending: DamagedClipError | None = None
        self.num_written = self.segments.first
        self._new_notes: dict[str, list[int]] = defaultdict(list)  # of this segment

    def matte(self, predict: Predict) -> None:
        """Matte the missing frames: the next is read, and the last is written, while one is matted.

        Raises:
            OSError, UserError: a frame cannot be matted or written.
        """
        frames = self._frames()
        overlaps = self.options.max_memory_gb is None
        bar = tqdm(total=len(self.plan.numbers), initial=self.segments.first, unit="frame")
        with bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            try:
                reading, writing = reader.submit(next, frames, None), writer.submit(lambda: None)
                while (frame := reading.result()) is not None:
                    if overlaps:
                        reading = reader.submit(next, frames, None)
                    alpha = predict(frame.seen, frame.trimap)
                    alpha = self.stabiliser.next(to_uint8(frame.seen), frame.trimap, alpha)
                    self.num_written += 1
                    writing.result()
                    writing = writer.submit(self._write, frame, alpha, self._state_after(frame))
                    if not overlaps:
                        writing.result()
                        reading = reader.submit(next, frames, None)
                    bar.update()
                writing.result()
                if self.num_written % SEGMENT_FRAMES:
                    self.segments.end(self._state())
            except BaseException as error:
                writer.submit(self.segments.abort, error).result()
                raise

    def finish(self) -> int:
        """Join the segments.

        Returns: the number of frames.

        Raises:
            DamagedClipError: no frame could be read.
            WriteError: the result cannot be written.
        """
        if self.num_written == 0:
            assert self.ending is not None, "only damage leaves no frame"
            raise self.ending
        self.segments.join(self.plan.numbers[: self.num_written])
        return self.num_written

    def report(self) -> None:
        """Print what is to know of single frames, and where the clip ended early."""
        for note, numbers in self.notes.items():
            places = [f"{number} ({clock(self.plan.clip.seconds(number))})" for number in sorted(numbers)]
            say(f"{note}: {len(places)} frame{'s' * (len(places) != 1)}, {few(places, 5)}")
        if self.damage:
            say(self.damage)

    def _frames(self) -> Iterator[Frame]:
        """Read the missing frames, up to where the clip is damaged."""
        if self.trimap_of is None:
            return
        clip, step = self.plan.clip, self.plan.numbers.step
        pictures = clip.frames(self.numbers[0], self.numbers[-1] + 1)
        for number in range(self.numbers[0], self.numbers[-1] + 1):
            try:
                pixels = next(pictures)
            except DamagedClipError as error:
                self.ending, self.damage = error, str(error)
                return
            if (number - self.numbers[0]) % step:
                continue
            image = to_float(pixels)
            seen = convert(image, clip.icc_profile)
            trimap, note = self.trimap_of(number, seen)
            yield Frame(number, image, seen, trimap, note)

    def _state_after(self, frame: Frame) -> State | None:
        """Return the state if this is the last frame of a segment."""
        if frame.note:
            self.notes[frame.note].append(frame.number)
            self._new_notes[frame.note].append(frame.number)
        return None if self.num_written % SEGMENT_FRAMES else self._state()

    def _state(self) -> State:
        """Return what the next segment needs, and the notes of this one."""
        notes = {f"{NOTE}{note}": np.array(numbers) for note, numbers in self._new_notes.items()}
        self._new_notes.clear()
        return notes | {f"{STABILITY}{name}": values for name, values in self.stabiliser.state().items()}

    def _write(self, frame: Frame, alpha: NDArray[np.float32], state: State | None) -> None:
        """Write alpha, cut-out or composite of a frame, as an image or to the segment; and end the segment."""
        options, plan, clip = self.options, self.plan, self.plan.clip
        since_start = clip.seconds(frame.number) - clip.seconds(plan.numbers[0])
        behind = self.behind(since_start) if self.behind else None
        colours = Colours(frame.image, clip.icc_profile) if options.colour == "keep" else Colours(frame.seen)
        if plan.is_exr:
            aspect = {"pixelAspectRatio": float(clip.pixel_aspect)} if clip.pixel_aspect else {}
            light = SceneLinear(to_light(frame.image, clip.icc_profile), aspect)
            write_light(plan.image(frame.number), options, behind, light, frame.trimap, alpha)
        elif plan.encoder is None:
            values = make_result(options, behind, colours, alpha)
            write_values(plan.image(frame.number), options, values, Metadata(colours.icc_profile))
        else:
            self.segments.encode(make_result(options, behind, colours, alpha))
        if state is not None:
            self.segments.end(state)


def _part(state: State, beginning: str) -> dict[str, NDArray]:
    """Return the arrays whose names have a beginning, by the rest of the name."""
    return {name.removeprefix(beginning): values for name, values in state.items() if name.startswith(beginning)}
