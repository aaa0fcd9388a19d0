"""A long clip through tools/predict.py: its memory stays flat, and a killed run goes on to the same frames and times.

    make soak-clip

makes a clip of 600 frames of 1920 x 1080 of moving photographs, and mattes it with keyframes and stability. It prints
the memory of the process along the way. It exits with status 1 if that is more than 100 MB higher after frame 60 than
in the 30 frames up to it, or if a run that is killed in the middle and resumed differs in a frame or a time. Linux
only: memory is of /proc.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from data.video_io.reading import Clip
from tests.helpers.clips import encoded

WIDTH, HEIGHT = 1920, 1080
MAX_GROWTH_MB, WARM_UP_FRAMES = 100, 60
NUM_COMPARED = 30  # frames before: a single one differs by what is read, matted and written just then
TIME_BASE = Fraction(1, 90000)

CHILD = """
import os, signal, sys
from pathlib import Path
from tools import predict
from tools.prediction import steps

stop, log = int(sys.argv[1]), open(sys.argv[2], "w")
plain, count = steps.BASELINES["trivial"], 0

def watched(image, trimap):
    global count
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmRSS")), file=log, flush=True)
    count += 1
    if count == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(image, trimap)

steps.BASELINES["trivial"] = watched
sys.exit(predict.main(sys.argv[3:]))
"""
"""Mattes as the command does, logs the memory in kB before each frame, and kills itself at a frame; 0 is never."""


def draw(number: int, num_frames: int, behind: NDArray, subject: NDArray) -> tuple[NDArray, NDArray]:
    """Draw a frame (H, W, 3) and its trimap (H, W): a photograph that moves in a soft disc over another one."""
    phase = 2 * np.pi * number / num_frames
    left, top = round(60 + 60 * np.sin(3 * phase)), round(40 + 40 * np.cos(2 * phase))
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    distance = np.hypot(y - HEIGHT / 2 - 80 * np.sin(phase), x - WIDTH / 2 - 300 * np.cos(phase))
    alpha = np.clip((320 - distance) / 24 + 0.5, 0, 1)
    shift = np.float32([[1, 0, 300 * np.cos(phase)], [0, 1, 80 * np.sin(phase)]])
    moved = cv2.warpAffine(subject, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    seen = alpha[..., None] * moved + (1 - alpha[..., None]) * behind[top : top + HEIGHT, left : left + WIDTH]
    return np.rint(seen).astype(np.uint8), np.select([alpha == 0, alpha == 1], [0, 255], 128).astype(np.uint8)


def make(folder: Path, num_frames: int) -> tuple[Path, Path]:
    """Write the clip, of a variable frame rate, and its keyframes: first, middle and last frame."""
    behind = cv2.resize(skimage.data.coffee(), (WIDTH + 120, HEIGHT + 80))
    subject = cv2.resize(skimage.data.astronaut(), (WIDTH, HEIGHT))
    path, keyframes = folder / "clip.mp4", folder / "keyframes"
    keyframes.mkdir()
    with av.open(str(path), "w", container_options={"video_track_timescale": "90000"}) as container:
        stream = container.add_stream("libx264", 30, {"preset": "veryfast", "crf": "18"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        for number in range(num_frames):
            pixels, trimap = draw(number, num_frames, behind, subject)
            if number in (0, num_frames // 2, num_frames - 1):
                cv2.imwrite(str(keyframes / f"{number}.png"), trimap)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = 3000 * number + 700 * (number % 3), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path, keyframes


def run(stop: int, log: Path, *arguments: object) -> int:
    """Run the command in a process; see `CHILD`."""
    return subprocess.run([sys.executable, "-c", CHILD, str(stop), str(log), *map(str, arguments)]).returncode


def memory_mb(log: Path) -> list[float]:
    """Read the memory before each frame."""
    return [int(line) / 1024 for line in log.read_text().split()]


def main() -> int:
    """Run the soak.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--as", dest="kind", default="rgba", help="kind of the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name, "log")
        clip, keyframes = make(folder, options.frames)
        suffix = ".mov" if options.kind == "rgba" else ".mkv"
        common = ("--keyframes", keyframes, "--baseline", "trivial", "--as", options.kind, "--output")
        whole, parts = folder / f"whole{suffix}", folder / f"parts{suffix}"
        assert run(0, log, clip, *common, whole) == 0
        memory = memory_mb(log)
        for number in sorted({0, WARM_UP_FRAMES, *range(0, len(memory), 100), len(memory) - 1}):
            print(f"frame {number}: {memory[number]:.0f} MB", flush=True)
        peaks = max(memory[WARM_UP_FRAMES - NUM_COMPARED : WARM_UP_FRAMES + 1]), max(memory[WARM_UP_FRAMES + 1 :])
        growth = peaks[1] - peaks[0]
        print(f"highest before and after frame {WARM_UP_FRAMES}: {peaks[0]:.0f} and {peaks[1]:.0f} MB")
        assert run(options.frames // 2 + 7, log, clip, *common, parts) == -signal.SIGKILL
        assert run(0, log, clip, *common, parts, "--resume") == 0
        print(f"resumed: {len(memory_mb(log))} of {options.frames} frames were made after the kill")
        one, other, source = Clip(whole), Clip(parts), Clip(clip)
        expected = [tick * source.time_base for tick in source.times]
        is_timed = all([tick * made.time_base for tick in made.times] == expected for made in (one, other))
        if suffix == ".mkv":
            is_timed = one.times == other.times
        differing = sum(first != second for first, second in zip(encoded(whole), encoded(parts), strict=True))
        print(f"{len(expected)} frames; times equal: {is_timed}; frames that differ after --resume: {differing}")
    return 0 if growth <= MAX_GROWTH_MB and is_timed and differing == 0 else 1


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    raise SystemExit(main())
