"""tools/predict.py on several ranks: threads stand for them, torchrun starts real ones."""

import errno

import pytest

from runtime.processes import ALONE
from tests.helpers.prediction import IMAGE_SIZES
from tests.helpers.ranks import contents, in_ranks, torchrun
from tools import predict
from tools.prediction import command_line, steps

RAMP = ("--baseline", "ramp")


def places(folder, output="out"):
    """Images, trimaps and output of tools/predict.py."""
    return [*map(str, (folder / "images", "--trimap-dir", folder / "trimaps", "--output", folder / output))]


def matte(folder, ranks, *more, output="out"):
    """Run tools/predict.py after its command line, in one rank."""
    options = command_line.parse([*places(folder, output), *(more or RAMP)], "")
    return predict.matte(options) if ranks is ALONE else predict.matte_in_ranks(options, ranks)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_images_are_shared_out_and_come_out_the_same(image_folders, world_size, capsys):
    """Of 4 processes and 3 images one has nothing to do."""
    assert matte(image_folders, ALONE, output="alone") == 0
    assert in_ranks(lambda ranks: matte(image_folders, ranks), world_size) == [0] * world_size
    assert contents(image_folders / "out") == contents(image_folders / "alone") and len(IMAGE_SIZES) == 3
    capsys.readouterr()
    (image_folders / "out" / "b.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in (image_folders / "out").iterdir()}
    assert in_ranks(lambda ranks: matte(image_folders, ranks, *RAMP, "--resume"), world_size) == [0] * world_size
    assert capsys.readouterr().err.count("predict.py: 2 of 3 are there already\n") == 1
    assert contents(image_folders / "out") == contents(image_folders / "alone")
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (image_folders / "out").iterdir()}.items()


def test_bad_files_of_all_shares_are_one_list(image_folders, capsys):
    for name in ("a", "b"):
        (image_folders / "images" / f"{name}.png").write_text("no image")
    assert in_ranks(lambda ranks: matte(image_folders, ranks), 2) == [1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3] == "predict.py: 2 of 3 images failed:"
    assert [line.split(":")[0] for line in lines[-2:]] == [f"  {image_folders}/images/{name}.png" for name in "ab"]
    assert list(contents(image_folders / "out")) == ["c.d.png"]


def test_what_ends_one_process_lets_the_others_finish_and_is_named(image_folders, capsys, monkeypatch):
    """Rank 1 has only image b, and its disk is full."""

    def ramp(image, trimap):
        if image.shape[:2] == IMAGE_SIZES["b"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return trimap

    monkeypatch.setitem(steps.BASELINES, "ramp", ramp)
    assert in_ranks(lambda ranks: matte(image_folders, ranks), 2) == [1, 1]
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "predict.py: rank 1 of 2: [Errno 28] No space left on device",
        "predict.py: 1 images were not reached, the same command with --resume makes them:",
        f"  {image_folders}/images/b.png",
    ]
    assert list(contents(image_folders / "out")) == ["a.png", "c.d.png"]


def test_what_cannot_be_begun_is_raised_in_all(image_folders):
    raised = in_ranks(lambda ranks: matte(image_folders, ranks, *RAMP, "--bits", "16", output="images"), 2)
    assert [str(error).partition(": images are")[0] for error in raised] == [f"rank 0 of 2: {image_folders}/images"] * 2


@pytest.mark.slow
def test_torchrun_runs_a_tool_on_two_processes(image_folders):
    (image_folders / "images" / "b.png").write_text("no image")  # the share of rank 1
    status, output, lines = torchrun("tools/predict.py", *places(image_folders), *RAMP)
    assert status == 1 and output == f"wrote 2 files to {image_folders / 'out'}\n"
    assert lines[0] == "predict.py: 1 of 3 images failed:" and len(lines) == 2 and "b.png: not an image" in lines[1]
    assert list(contents(image_folders / "out")) == ["a.png", "c.d.png"]


KILLED = """
import os, signal, sys, time
sys.path.insert(0, os.getcwd())
from tools import predict
from tools.prediction import steps
def ramp(image, trimap):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
    return trimap
steps.BASELINES["ramp"] = ramp
raise SystemExit(predict.main())
"""


@pytest.mark.slow
def test_a_killed_process_is_reported_and_may_be_started_again(image_folders, tmp_path):
    """Rank 1 is killed over image b; rank 0 loses it, and torchrun starts both again."""
    (tmp_path / "killed.py").write_text(KILLED)
    command = [tmp_path / "killed.py", *places(image_folders), *RAMP, "--resume"]
    status, _, lines = torchrun(*command, options=("--max-restarts=1",))
    assert status == 0 and list(contents(image_folders / "out")) == ["a.png", "b.png", "c.d.png"]
    assert lines[0] == "predict.py: 0 of 3 are there already"
    assert "1 images were not reached" in lines[1] and lines[2] == f"  {image_folders}/images/b.png"
    assert "rank 0 of 2 lost another" in lines[3] or "ended by SIGTERM" in lines[3]
    assert lines[4:] == ["predict.py: 2 of 3 are there already"]
