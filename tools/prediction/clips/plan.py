"""What to make of a clip: which frames, which file, and what it must not replace."""

import argparse
import os
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.image_io import exr
from data.image_io.images import DataError, is_exr
from data.video_io.joining import Sound, Times, check_sound
from data.video_io.pixels import BT709, ColourTags
from data.video_io.reading import Clip, clock
from data.video_io.writing import Encoder, FrameFormat, encoder_for
from inference.jobs import KINDS, Job, check_folder, check_outputs
from runtime.command_line import OutputExistsError, refuse_existing
from tools.prediction.light import check_layers

DEFAULT_SUFFIXES = {"alpha": ".mp4", "rgba": ".mov", "composite": ".mp4"}
PARTS_ENDING = ".parts"
"""What the name of a result gets for the folder of its segments."""


class Plan(NamedTuple):
    """What to make of a clip.

    Attributes:
        clip: to matte.
        numbers: of the frames to matte.
        output: clip, or folder of images.
        encoder: of a clip; None for images.
        suffix: of images, such as ".png".
        has_sound: whether the clip's sound is copied.
        tags: colours of the result.
    """

    clip: Clip
    numbers: range
    output: Path
    encoder: Encoder | None
    suffix: str
    has_sound: bool
    tags: ColourTags

    @property
    def parts(self) -> Path:
        """Folder of the finished segments."""
        return self.output.with_name(self.output.name + PARTS_ENDING)

    @property
    def form(self) -> FrameFormat:
        """What all frames of the result share."""
        return FrameFormat(self.clip.width, self.clip.height, self.tags, self.clip.pixel_aspect)

    @property
    def is_exr(self) -> bool:
        """Tell whether images are written as EXR."""
        return self.suffix == exr.SUFFIX

    def image(self, number: int) -> Path:
        """Return the file of a frame's image."""
        return self.output / f"{number:06}{self.suffix}"

    def times(self, numbers: Sequence[int]) -> Times:
        """Return when frames of the result are shown: as in the clip or, behind a start, from 0 on."""
        ticks = self.clip.times
        after = min(numbers[-1] + self.numbers.step, self.numbers.stop)
        end = ticks[after] if after < len(ticks) else ticks[-1] + self.clip.duration
        offset = ticks[numbers[0]] if self.numbers.start else 0
        return Times([ticks[number] - offset for number in numbers], end - offset, self.clip.time_base)

    def sound(self, times: Times) -> Sound | None:
        """Return the sound that belongs to frames of the result."""
        if not self.has_sound:
            return None
        if self.numbers.start == 0 and self.numbers.stop == self.clip.num_frames:
            return Sound(self.clip.path)
        offset = self.clip.times[self.numbers.start] - times.ticks[0]
        first, last = ((tick + offset) * times.time_base for tick in (times.ticks[0], times.end))
        return Sound(self.clip.path, float(first), float(last), Fraction(-offset * times.time_base))


def make_plan(options: argparse.Namespace) -> Plan:
    """Open the clip and plan what to make of it; nothing is written yet.

    Raises:
        OSError, UserError: the clip cannot be read, or the result cannot be written.
    """
    check_options(options)
    clip = Clip(options.images[0])
    numbers = choose_frames(clip, options.start, options.end, options.every)
    ending = f"{KINDS[options.kind].ending}{'' if options.has_format else DEFAULT_SUFFIXES[options.kind]}"
    output: Path = options.output or clip.path.with_name(f"{clip.path.stem}{ending}")
    makes_images = output.is_dir() or not output.suffix if options.output else options.has_format
    tags = ColourTags(BT709, BT709, clip.tags.matrix) if options.colour == "srgb" else clip.tags
    if makes_images:
        plan = Plan(clip, numbers, output, None, f".{options.format}", False, tags)
        images = [Job(clip.path, plan.image(number)) for number in numbers]
    else:
        encoder = encoder_for(output, options.kind, options.bits or 8, (clip.width, clip.height))
        has_sound = options.kind == "composite" and check_sound(clip.path, output)
        plan = Plan(clip, numbers, output, encoder, "", has_sound, tags)
        images = []
    check_images_options(options, plan)
    check_places(options, plan, images)
    return plan


def check_options(options: argparse.Namespace) -> None:
    """Refuse what is for images alone.

    Raises:
        DataError: it is asked for.
    """
    name = options.images[0]
    if len(options.images) > 1:
        raise DataError(f"{name} is a clip: give it alone, {len(options.images)} inputs were given")
    if options.points or options.scribbles:
        raise DataError(f"{name} is a clip, and --points and --scribbles are for one image: give --auto or trimaps")
    if options.mask and not options.mask.is_dir():
        raise DataError(f"--mask {options.mask} is one file for a clip: give a folder of masks, one for each frame")


def check_images_options(options: argparse.Namespace, plan: Plan) -> None:
    """Refuse options of images that have no effect on a result.

    Raises:
        DataError: one is given.
    """
    if options.has_format and plan.encoder:
        raise DataError(f"--format is for images, and {plan.output} is a clip: leave it out, or name a folder")
    check_layers(options, plan.suffix)
    behind = Path(options.background or "")
    if options.exposure and (plan.is_exr or not (behind.is_file() and is_exr(behind))):
        raise DataError(
            f"{plan.clip.path} is a clip, and --exposure is for EXR images: leave it out, or give an EXR --background "
            "and another format than EXR"
        )


def choose_frames(clip: Clip, start: float | None, end: float | None, every: int) -> range:
    """Choose the frames from `start` on and before `end`, both in seconds since the first frame.

    Raises:
        DataError: there are none.
    """
    first = clip.first_from(start) if start else 0
    stop = clip.num_frames if end is None else clip.first_from(end)
    if first >= stop:
        span = f"from {clock(start or 0)} to {clock(end)}" if end is not None else f"from {clock(start or 0)} on"
        raise DataError(f"{clip.path}: no frame {span}; it lasts {clock(clip.seconds(clip.num_frames))}")
    return range(first, stop, every)


def check_places(options: argparse.Namespace, plan: Plan, images: Sequence[Job]) -> None:
    """Raise an error if a result exists already, would replace an input or cannot be written.

    Raises:
        OutputExistsError: it exists, or a part of it, without --overwrite and --resume.
        DataError, OSError: see above.
    """
    inputs = [plan.clip.path, *map(Path, filter(None, (options.trimap, options.background)))]
    if images:
        check_outputs(images, inputs, KINDS[options.kind], options.bits)
    if os.path.realpath(plan.output) in map(os.path.realpath, inputs):
        raise DataError(f"{plan.output} is an input and would be overwritten; name another place")
    check_folder(plan.output if images else plan.output.parent)
    if options.overwrite:
        shutil.rmtree(plan.parts, ignore_errors=True)
    elif not options.resume:
        refuse_existing([plan.output, *(job.output for job in images)], can_resume=True)
        if plan.parts.is_dir():
            raise OutputExistsError(
                f"{plan.parts} is there, of a run that was interrupted: --resume goes on, --overwrite starts anew"
            )


def is_finished(plan: Plan) -> bool:
    """Tell whether a result is complete already."""
    if plan.parts.is_dir():
        return False
    return plan.output.is_file() if plan.encoder else all(plan.image(number).is_file() for number in plan.numbers)
