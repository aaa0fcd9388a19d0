"""tools/predict.py on clips: --resume after a kill, other options, a full disk; results that exist."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data.image_io.images import read_raw
from tests.helpers.clips import encoded, make_clip, times
from tests.helpers.paths import REPOSITORY
from tests.helpers.predict_clips import (
    run,
)

KILLED = """
import os, signal, sys
from tools import predict
from tools.prediction.clips import segments
segments.SEGMENT_FRAMES = 5
if sys.argv[1] != "-":
    from tools.prediction import steps
    count, stop = 0, int(sys.argv[1])
    plain = steps.BASELINES["trivial"]
    def killing(image, trimap):
        global count
        count += 1
        if count > stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(image, trimap)
    steps.BASELINES["trivial"] = killing
sys.exit(predict.main(sys.argv[2:]))
"""


def in_process(after, *arguments):
    """Run in segments of 5 frames; kill -9 after some frames, unless `after` is "-"."""
    command = [sys.executable, "-c", KILLED, after, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.mp4", "alpha"), ("frames", "alpha"), pytest.param("a.mov", "rgba", marks=pytest.mark.slow),
     pytest.param("a.webm", "rgba", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_frames_and_times(clip, name, kind):
    """Stabilised by the frames before, so that the next segment needs what the killed process held of the last one."""
    common = [
        "--trimap-dir",
        clip.parent / "trimaps",
        "--baseline",
        "trivial",
        "--as",
        kind,
        "--stability",
        "0.8",
        "--output",
    ]
    whole, parts = clip.with_name(f"whole_{name}"), clip.with_name(name)
    assert in_process("-", clip, *common, whole).returncode == 0
    assert in_process("7", clip, *common, parts).returncode == -signal.SIGKILL
    left = clip.with_name(f"{name}.parts")
    assert left.is_dir()
    again = in_process("-", clip, *common, parts)
    assert again.returncode == 1
    assert "--resume goes on, --overwrite starts anew" in again.stderr or "there already" in again.stderr
    done = in_process("-", clip, *common, parts, "--resume")
    assert done.returncode == 0, done.stderr
    assert "5/12" in done.stderr  # the first segment was not made again
    assert not left.exists()
    if name == "frames":
        for path in whole.iterdir():
            np.testing.assert_array_equal(read_raw(parts / path.name), read_raw(path))
    else:
        assert times(parts) == times(whole)
        assert encoded(parts) == encoded(whole)
    before = time.time()
    assert in_process("-", clip, *common, parts, "--resume").stderr.endswith("is there already\n")
    assert parts.stat().st_mtime < before


def test_resume_with_other_options_is_refused(clip):
    common = ["--trimap-dir", clip.parent / "trimaps", "--baseline", "trivial", "--output", clip.with_name("a.mov")]
    in_process("7", clip, *common)
    done = in_process("-", clip, *common, "--resume", "--every", "2")
    assert (done.returncode, "begun with another every: give the same" in done.stderr) == (1, True)
    assert in_process("-", clip, *common, "--overwrite", "--every", "2").returncode == 0
    assert len(times(clip.with_name("a.mov"))) == 6


def test_existing_results_are_kept(clip, capsys):
    made = clip.with_name("a.mov")
    made.write_text("mine")
    run(clip, "--as", "rgba", "--output", made, status=1)
    assert made.read_text() == "mine"
    assert "a.mov is there already: --overwrite replaces it, --resume" in capsys.readouterr().err
    run(clip, "--as", "rgba", "--output", made, "--overwrite")
    assert len(times(made)) == 12


@pytest.mark.slow
def test_a_full_disk_loses_nothing(clip):
    """A limit of the file size stands for it: the second segment does not fit, and --resume goes on."""
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    noise[:6] = 90
    source = make_clip(clip.with_name("noise.mkv"), list(noise), codec="ffv1", pixel_format="bgr0")
    made = clip.with_name("a.mkv")
    arguments = [
        source,
        "--trimap-dir",
        clip.parent / "trimaps",
        "--baseline",
        "trivial",
        "--as",
        "rgba",
        "--output",
        made,
    ]
    command = [sys.executable, "-c", code + KILLED, "-", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "predict.py: cannot write" in line
    assert "File too large" in line
    assert line.endswith("The same command with --resume goes on")
    assert not made.exists()
    assert sorted(path.name for path in clip.with_name("a.mkv.parts").iterdir())[:2] == ["000000.mkv", "000000.npz"]
    assert in_process("-", *arguments, "--resume").returncode == 0
    assert len(times(made)) == 12
