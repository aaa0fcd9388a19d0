"""tools/predict.py with clicks and scribbles, with standard input and output, and --watch."""

import io
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from data.image_io.images import read_image, read_raw
from data.trimap import band_width_px
from inference.auto.clicks import trimap_of_clicks
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import read_grey
from tools import predict
from tools.prediction import watch

pytestmark = pytest.mark.usefixtures("no_saliency")

TRIVIAL = ("--baseline", "trivial", "--as", "alpha")  # 0.5 where unknown: the trimap
POINTS = "[[30, 20, 1], [2, 2, 0]]"


@pytest.fixture
def photo(tmp_path):
    """A red rectangle on green, 60 x 40 px."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :, 1] = 150
    image[10:30, 20:40] = (0, 0, 200)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), image)
    return path


class Pipe(io.TextIOWrapper):
    """A standard stream of bytes that is no terminal, or says that it is one."""

    def __init__(self, content=b"", is_terminal=False):
        super().__init__(io.BytesIO(content))
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def pipe(monkeypatch, content, *arguments, terminals=()):
    """Run with this on standard input; give the status and what came out."""
    monkeypatch.setattr(sys, "stdin", Pipe(content, "stdin" in terminals))
    monkeypatch.setattr(sys, "stdout", Pipe(is_terminal="stdout" in terminals))
    status = predict.main(["-", *map(str, arguments)])
    return status, sys.stdout.buffer.getvalue()


@pytest.mark.parametrize(("width", "width_px"), [([], 2), (["--width-px", "6"], 6), (["--width-percent", "10"], 6)])
def test_points_become_a_trimap(photo, tmp_path, width, width_px):
    assert band_width_px(3, 60) == 2
    output = tmp_path / "alpha.png"
    assert predict.main([str(photo), "--points", POINTS, *width, *TRIVIAL, "--output", str(output)]) == 0
    trimap = trimap_of_clicks(read_image(photo), width_px, [(30, 20, 1), (2, 2, 0)])
    np.testing.assert_array_equal(read_grey(output), np.ceil(255 * trimap))
    assert 0 < (trimap == 1).sum() < 20 * 20 and (trimap == 0.5).any()


def test_scribbles_with_and_without_points_become_a_cut_out(photo, tmp_path):
    scribbles = np.full((40, 60), 128, np.uint8)
    scribbles[18:22, 28:32] = 255
    cv2.imwrite(str(tmp_path / "s.png"), scribbles)
    for more, points in (([], []), (["--points", "[[2, 2, 0]]"], [(2, 2, 0)])):
        arguments = [str(photo), "--scribbles", str(tmp_path / "s.png"), *more, "--baseline", "trivial", "--overwrite"]
        assert predict.main(arguments) == 0
        trimap = trimap_of_clicks(read_image(photo), 2, points, scribbles)
        np.testing.assert_array_equal(read_raw(tmp_path / "photo_cutout.png")[:, :, 3], np.ceil(255 * trimap))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--points", "[[1, 2,"], "argument --points: points [[1, 2, are no JSON: expected [[x, y, 1], [x, y, 0]]"),
        (["--points", "[[1, 2, 3]]"], "argument --points: point [1, 2, 3]: expected the label 1 (subject) or 0"),
        (["--points", POINTS, "--auto"], "give exactly one of --auto, --points"),
        (["--auto", "--width-px", "5"], "--width-px is for --mask, --keyframes, --points and --scribbles"),
        (["--points", POINTS, "--threshold", "0.5"], "--threshold is for --mask"),
        (["--auto", "--watch"], "--watch needs one folder"),
    ],
)
def test_wrong_usage_of_clicks_is_status_2(photo, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        predict.main([str(photo), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error.splitlines()[-1] and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--points", "[[60, 2, 1]]"], "point [60, 2] lies outside {0}/photo.png, which is 60 x 40 px"),
        (["--points", "[[2, 2, 0]]"], "photo.png: only background is labelled, and no subject stands out"),
        (["--scribbles", "nowhere.png"], "--scribbles nowhere.png: no such file or folder"),
        (["--scribbles", "{0}"], "--scribbles {0} is a folder: give one image"),
        (["--scribbles", "{0}/small.png"], "photo.png is 60 x 40 px but {0}/small.png is 6 x 4 px"),
        (["--scribbles", "{0}/photo.png"], "photo.png is coloured where grey values are expected"),
        (["--points", POINTS, "{0}/small.png"], "--points are those of one image, and here are 2"),
        (["--scribbles", "{0}/small.png", "{0}/small.png"], "small.png is one file for 2 images: give one image"),
    ],
)
def test_clicks_that_cannot_be_used_are_one_line(photo, tmp_path, capsys, arguments, words):
    cv2.imwrite(str(tmp_path / "small.png"), np.eye(4, 6, dtype=np.uint8) * 127 + 128)
    given = [argument.replace("{0}", str(tmp_path)) for argument in arguments]
    assert predict.main([str(photo), *given[2:], *given[:2], *TRIVIAL]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words.format(tmp_path) in line


def test_standard_input_becomes_standard_output(photo, tmp_path, monkeypatch, capfd):
    assert predict.main([str(photo), "--points", POINTS, *TRIVIAL, "--output", str(tmp_path / "file.png")]) == 0
    assert capfd.readouterr().out == f"wrote {tmp_path / 'file.png'}\n"
    result = pipe(monkeypatch, photo.read_bytes(), "--points", POINTS, *TRIVIAL)
    assert result == (0, (tmp_path / "file.png").read_bytes())
    named = tmp_path / "named.png"
    result = pipe(monkeypatch, photo.read_bytes(), "--points", POINTS, *TRIVIAL, "--output", named)
    assert result == (0, b"") and named.read_bytes() == (tmp_path / "file.png").read_bytes()


def test_a_real_pipe_gives_a_png_and_nothing_else(photo, tmp_path, no_shipped_network):
    """With closed-form matting and a message, which goes to stderr."""
    command = [sys.executable, "tools/predict.py", "-", "--points", POINTS, "--baseline", "closed-form"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, input=photo.read_bytes(), capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"\x89PNG") and done.stdout.endswith(b"IEND\xaeB`\x82")
    (tmp_path / "cut.png").write_bytes(done.stdout)
    assert read_raw(tmp_path / "cut.png").shape == (40, 60, 4)
    assert b"photo" not in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_is_no_image_on_standard_input_is_one_line(monkeypatch, capfd, content):
    assert pipe(monkeypatch, content, "--points", POINTS, *TRIVIAL) == (1, b"")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("predict.py: standard input: ") and "/" not in line


@pytest.mark.parametrize(("stream", "words"), [("stdin", "pipe one in"), ("stdout", "redirect it to a file")])
def test_a_terminal_is_no_image(monkeypatch, photo, capfd, stream, words):
    assert pipe(monkeypatch, photo.read_bytes(), "--auto", terminals=[stream]) == (1, b"")
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "photo.png", "--auto"], "- is one image from standard input: give no other images"),
        (["-", "--trimap-dir", "somewhere"], "- has no name: give its trimap or mask as a file"),
        (["-", "--auto", "--overwrite"], "--resume and --overwrite are for files"),
        (["-", "--auto", "--watch"], "--watch needs one folder, got -"),
        (["nowhere", "--auto", "--watch"], "--watch needs one folder, got nowhere"),
        ([".", "--auto", "--watch", "--overwrite"], "leave out --overwrite"),
        ([".", "--points", POINTS, "--watch"], "--watch needs --auto, or a folder of trimaps or masks"),
    ],
)
def test_wrong_usage_of_streams_and_watch_is_status_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments)
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["-", "--auto"], ["{0}", "--auto", "--watch"], ["{0}/clip.mp4", "--auto"]])
def test_streams_watch_and_clips_are_refused_in_several_processes(monkeypatch, tmp_path, capsys, arguments):
    (tmp_path / "clip.mp4").touch()
    ranks = SimpleNamespace(rank=0, world_size=2, first_speaks=nullcontext)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(predict, "find_ranks", lambda: nullcontext(ranks))
    assert predict.main([argument.replace("{0}", str(tmp_path)) for argument in arguments]) == 2
    assert capsys.readouterr().err == "predict.py: -, --watch and clips run in one process: start it without torchrun\n"


@pytest.fixture
def watched(tmp_path, photo, monkeypatch):
    """Run --watch on a folder; before each look something happens to it, and Ctrl-C at the end."""
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), np.eye(40, 60, dtype=np.uint8) * 255)

    def run(*steps, more=()):
        remaining = iter(steps)

        def sleep(seconds):
            step = next(remaining, None)
            if step is None:
                raise KeyboardInterrupt
            step(folder)

        monkeypatch.setattr(watch.time, "sleep", sleep)
        options = ["--watch", "--mask", tmp_path / "masks", *TRIVIAL, *more]
        return predict.main([str(folder), *map(str, options)])

    return run


def nothing(folder):
    pass


def test_watch_mattes_what_is_complete_and_ends_with_130(watched, photo, tmp_path, capsys):
    content = photo.read_bytes()
    growing = [lambda folder, end=end: (folder / "a.png").write_bytes(content[:end]) for end in (0, 50, 90, None)]
    assert watched(nothing, *growing, nothing, nothing) == 130
    output = capsys.readouterr()
    assert output.out == f"wrote {tmp_path / 'in_alpha' / 'a.png'}\n"
    assert output.err.splitlines()[-1] == "predict.py: interrupted; the same command with --resume goes on"
    assert read_grey(tmp_path / "in_alpha" / "a.png").shape == (40, 60)
    made = (tmp_path / "in_alpha" / "a.png").stat().st_mtime_ns
    assert watched(lambda folder: (folder / "b.png").write_bytes(content), nothing, nothing) == 130
    assert capsys.readouterr().out == f"wrote {tmp_path / 'in_alpha' / 'b.png'}\n"
    assert (tmp_path / "in_alpha" / "a.png").stat().st_mtime_ns == made


def test_watch_does_not_take_a_file_that_still_grows(watched, photo, tmp_path, capsys):
    content = photo.read_bytes()
    growing = [lambda folder, end=end: (folder / "a.png").write_bytes(content[:end]) for end in (50, 60, 70, 80)]
    empty = [lambda folder: (folder / "b.png").touch(), nothing, nothing]  # as some programs make a file first
    assert watched(*empty, *growing) == 130
    output = capsys.readouterr()
    assert not (tmp_path / "in_alpha").exists() and output.out == "" and "could not" not in output.err
    assert not [name for name in ("a.png", "b.png") if name in output.err]


def test_watch_lists_a_bad_file_once_and_tries_it_again_when_it_changes(watched, photo, tmp_path, capsys):
    steps = [lambda folder: (folder / "a.png").write_bytes(b"no image"), nothing, nothing, nothing]
    steps += [lambda folder: (folder / "a.png").write_bytes(photo.read_bytes()), nothing]
    steps += [lambda folder: (folder / "a.jpg").write_bytes(photo.read_bytes()), nothing, nothing]
    assert watched(*steps) == 130
    output = capsys.readouterr()
    assert output.err.count("a.png: not an image") == 1
    assert output.out == f"wrote {tmp_path / 'in_alpha' / 'a.png'}\n"
    assert output.err.count("would both be written to") == 1


def test_watch_tries_an_image_again_when_its_mask_comes(watched, photo, tmp_path, capsys):
    mask = tmp_path / "masks" / "late.png"
    content = (tmp_path / "masks" / "a.png").read_bytes()
    steps = [lambda folder: (folder / "late.png").write_bytes(photo.read_bytes()), nothing, nothing]
    steps += [lambda folder, end=end: mask.write_bytes(content[:end]) for end in (0, 30, None)]
    assert watched(*steps, nothing, nothing) == 130
    output = capsys.readouterr()
    assert output.err.count("holds no image named late.*") == 1 and "truncated" not in output.err
    assert output.out == f"wrote {tmp_path / 'in_alpha' / 'late.png'}\n"


def test_watch_refuses_results_in_its_folder_and_ends_where_the_folder_goes(watched, tmp_path, capsys):
    assert watched(more=["--output", tmp_path / "in"]) == 1
    assert "images are looked for there too" in capsys.readouterr().err
    assert watched(nothing, lambda folder: folder.rmdir()) == 1
    assert f"no such folder: {tmp_path / 'in'}" in capsys.readouterr().err
