"""tools/predict.py with files that cannot be used, interruptions, full disks and wrong usage."""

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from inference import closed_form as classical
from runtime.optional_packages import MissingExtraError
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.prediction import by_network, read_grey, run
from tools import predict
from tools.prediction import steps

RAMP = ("--baseline", "ramp")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder, capsys, *more, **paths):
    """Run, see status 1 and nothing written, and give the message."""
    before = contents(folder)
    run(folder, *(more or RAMP), **paths, status=1)
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("predict.py: ") and "Traceback" not in output.err
    assert contents(folder) == before and not (folder / "out").exists()
    return output.err.splitlines()


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"image": "nowhere.png"}, "{}/nowhere.png: no such file or folder"),
        ({"trimap": "nowhere"}, "--trimap-dir {}/nowhere: no such file or folder"),
        ({"trimap": "nowhere.bmp"}, "--trimap {}/nowhere.bmp: no such file or folder"),
        ({"trimap": "dotted.d"}, "--trimap {}/dotted.d is a folder: give it by --trimap-dir"),
        ({"trimap": "empty"}, "no image in {}/empty"),
        ({"trimap": "trimaps/a.bmp"}, "a.bmp is one file for 3 images: give a folder of trimaps or masks"),
        ({"output": "link"}, "{}/link: images are looked for there too"),
        ({"image": "images/a.png", "output": "out/../trimaps/b.bmp"}, "b.bmp is an input and would be overwritten"),
        ({"output": "dangling"}, "cannot write into {}/dangling: File exists; name another place"),
    ],
)
def test_what_cannot_be_begun_is_one_line(image_folders, capsys, paths, words):
    for name in ("empty", "dotted.d"):
        (image_folders / name).mkdir()
    (image_folders / "link").symlink_to(image_folders / "images")
    (image_folders / "dangling").symlink_to(image_folders / "gone")
    lines = refused(image_folders, capsys, **paths)
    assert len(lines) == 1 and words.format(image_folders) in lines[0]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--bits", "16", "--format", "webp"], "WebP holds no 16 bit"),
        (["--background", "no colour"], "--background no colour: no such file, and no colour"),
        (["--background", "#11223344"], "background #11223344: expected an opaque colour"),
        (["--background", str(REPOSITORY / "README.md")], "README.md: not an image of a format that is read"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_an_option_that_cannot_be_met_is_one_line(image_folders, capsys, option, words):
    more = option if "--model" in option else [*RAMP, *option]
    lines = refused(image_folders, capsys, *more)
    assert len(lines) == 1 and words in lines[0]


def test_weights_and_configs_that_do_not_fit_are_one_line(image_folders, run_folder, capsys):
    config, weights = run_folder / "config.yaml", run_folder / "weights.pth"
    part = REPOSITORY / "configs" / "common" / "train.py"
    for more, words in (
        (["--config-file", config, "--weights", "absent.pth"], "no checkpoint 'absent.pth'"),
        (["--config-file", "absent.py", "--weights", weights], "'absent.py'"),
        (["--config-file", DEMO, "--weights", weights], "weights.pth does not fit the model"),
        (["--config-file", part, "--weights", weights], f"{part}: expected the sections model, got train"),
        ([*by_network(run_folder), "--device", "nosuch"], "device 'nosuch' cannot be used: "),
    ):
        lines = refused(image_folders, capsys, *more)
        assert len(lines) == 1 and words in lines[0]


def test_bad_files_stop_no_other_and_are_listed_at_the_end(image_folders, capsys):
    """Then --resume makes what is missing and touches nothing else."""
    for name in ("d", "e", "f", "g"):
        cv2.imwrite(str(image_folders / "images" / f"{name}.png"), np.zeros((9, 9, 3), np.uint8))
        cv2.imwrite(str(image_folders / "trimaps" / f"{name}.bmp"), np.full((9, 9), 128, np.uint8))
    (image_folders / "images" / "a.png").write_text("no image")
    (image_folders / "trimaps" / "b.bmp").unlink()
    cv2.imwrite(str(image_folders / "trimaps" / "d.bmp"), np.full((8, 9), 128, np.uint8))
    cv2.imwrite(str(image_folders / "trimaps" / "e.bmp"), np.eye(9, dtype=np.uint8))
    cv2.imwrite(str(image_folders / "trimaps" / "f.png"), np.full((9, 9), 128, np.uint8))
    run(image_folders, *RAMP, status=1)
    assert sorted(path.name for path in (image_folders / "out").iterdir()) == ["c.d.png", "g.png"]
    lines = capsys.readouterr().err.splitlines()
    start = lines.index("predict.py: 5 of 7 images failed:")
    assert len(lines) == start + 7 and "--mask FILE" in lines[-1]
    reasons = {
        "a": "a.png: not an image of a format that is read",
        "b": "trimaps holds no image named b.*: add it",
        "d": "d.png is 9 x 9 px but",
        "e": "e.bmp holds only 0 and 1",
        "f": "trimaps holds 2 images named f.*: keep one of them",
    }
    for line, (name, reason) in zip(lines[start + 1 : -1], reasons.items(), strict=True):
        path = f"{image_folders}/images/{name}.png"
        assert line.startswith(f"  {path}") and line.count(path) == 1 and reason in line

    cv2.imwrite(str(image_folders / "trimaps" / "d.bmp"), np.full((9, 9), 128, np.uint8))
    (image_folders / "out" / "g.png").write_text("complete, by its name")
    before = contents(image_folders / "out")
    run(image_folders, *RAMP, "--resume", status=1)
    assert "predict.py: 2 of 7 are there already" in capsys.readouterr().err
    after = contents(image_folders / "out")
    assert after.keys() - before.keys() == {image_folders / "out" / "d.png"} and before.items() <= after.items()


def test_resuming_what_is_done_loads_no_network(image_folders, capsys):
    run(image_folders, *RAMP)
    capsys.readouterr()
    run(image_folders, "--model", "nowhere", "--resume")
    assert capsys.readouterr().err == "predict.py: 3 of 3 are there already\n"


def test_what_is_there_is_named_and_replaced_when_asked_alone(image_folders, capsys):
    run(image_folders, *RAMP, image="images/a.png", output="out")
    assert capsys.readouterr().out == f"wrote {image_folders}/out/a.png\n"
    (image_folders / "out" / "b.png").write_text("of the user")
    before = contents(image_folders)
    run(image_folders, *RAMP, status=1)
    error = capsys.readouterr().err
    assert error.startswith(f"predict.py: {image_folders}/out/a.png, {image_folders}/out/b.png are there already")
    assert "--overwrite" in error and "--resume" in error and contents(image_folders) == before
    run(image_folders, *RAMP, "--overwrite")
    assert capsys.readouterr().out == f"wrote 3 files to {image_folders}/out\n"
    assert read_grey(image_folders / "out" / "b.png").shape == (48, 33)


def test_an_empty_mask_of_a_sequence_is_background(cases, tmp_path, capsys, caplog):
    folder = cases / "c13_empty_mask_frame"
    command = [str(folder / "frames"), "--mask", str(folder / "masks"), "--output", str(tmp_path), *RAMP]
    assert predict.main(command) == 0
    assert capsys.readouterr().out == f"wrote 3 files to {tmp_path}\n"
    opaque = [cv2.imread(str(tmp_path / f"{n}.png"), cv2.IMREAD_UNCHANGED)[:, :, 3].any() for n in (1, 2, 3)]
    assert opaque == [True, False, True] and "masks/2.png is empty" in caplog.text


def test_names_match_however_an_accent_is_stored(image_folders):
    for folder in ("images", "trimaps"):
        (path,) = (image_folders / folder).glob("a.*")
        path.rename(path.with_stem("caf\u00e9" if folder == "images" else "cafe\u0301"))
    run(image_folders, *RAMP)
    assert (image_folders / "out" / "caf\u00e9.png").is_file()


def test_an_interruption_is_130_and_resume_goes_on(image_folders, capsys, monkeypatch):
    interrupted = False

    def ramp(image, trimap):
        nonlocal interrupted
        if image.shape[:2] == (48, 33) and not interrupted:  # the second
            interrupted = True
            raise KeyboardInterrupt
        return trimap

    monkeypatch.setitem(steps.BASELINES, "ramp", ramp)
    run(image_folders, *RAMP, status=130)
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == "predict.py: interrupted; the same command with --resume goes on"
    assert [path.name for path in (image_folders / "out").iterdir()] == ["a.png"]
    run(image_folders, *RAMP, "--resume")
    assert sorted(path.name for path in (image_folders / "out").iterdir()) == ["a.png", "b.png", "c.d.png"]


def test_a_full_disk_ends_the_run_and_leaves_no_half_file(image_folders, capsys, monkeypatch):
    """The disk is full at the second file; a bad first image is listed all the same."""
    (image_folders / "images" / "a.png").write_text("no image")
    write_bytes = Path.write_bytes

    def full(path, content):
        write_bytes(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    run(image_folders, *RAMP, status=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"predict.py: [Errno 28] No space left on device: '{image_folders}/out/b.png'"
    assert lines[-3] == "predict.py: 1 of 3 images failed:" and "images/a.png: " in lines[-2]
    assert list((image_folders / "out").iterdir()) == []


def test_a_file_that_cannot_be_written_stops_no_other(image_folders, capsys):
    """A folder of its name is no file that is there already."""
    (image_folders / "out" / "b.png").mkdir(parents=True)
    run(image_folders, *RAMP, "--resume", status=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "predict.py: 0 of 3 are there already"
    assert lines[-2] == "predict.py: 1 of 3 images failed:" and lines[-1].startswith(
        f"  {image_folders}/images/b.png: "
    )
    assert read_grey(image_folders / "out" / "a.png").shape == (40, 56) and (image_folders / "out" / "c.d.png").exists()


def test_no_memory_for_an_image_stops_no_other_and_says_what_to_do(image_folders, capsys, monkeypatch):
    def ramp(image, trimap):
        if image.shape[:2] == (48, 33):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return trimap

    monkeypatch.setitem(steps.BASELINES, "ramp", ramp)
    run(image_folders, *RAMP, status=1)
    failure, advice = capsys.readouterr().err.splitlines()[-2:]
    assert "images/b.png: out of memory" in failure and "--max-memory" in advice and "--tile-px" in advice
    assert sorted(path.name for path in (image_folders / "out").iterdir()) == ["a.png", "c.d.png"]


def test_an_optional_package_that_is_missing_is_one_line(image_folders, capsys, monkeypatch):
    def missing(name, purpose):
        raise MissingExtraError(f"{purpose} needs the optional package {name}")

    monkeypatch.setattr(classical, "import_extra", missing)
    one = {"image": "images/a.png", "trimap": "trimaps/a.bmp"}
    lines = refused(image_folders, capsys, "--baseline", "closed-form", **one)
    assert lines == ["predict.py: closed-form matting needs the optional package pymatting"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give exactly one of --auto, --points"),
        (
            ["--trimap", "t.png", "--auto"],
            "give exactly one of --auto, --points",
        ),
        (
            ["--mask", "m.png", "--width-px", "3", "--width-percent", "3"],
            "give --width-px or --width-percent, not both",
        ),
        (["--auto", "--resume", "--overwrite"], "not allowed with argument"),
        (["--mask", "m.png", "--width-px", "0"], "argument --width-px: must be at least 1, got 0"),
        (["--mask", "m.png", "--width-percent", "101"], "must be above 0 and at most 100, got 101"),
        (["--mask", "m.png", "--width-px", "3", "--threshold", "1.5"], "must be above 0 and at most 1, got 1.5"),
        (["--auto", "--width-px", "3"], "--width-px is for --mask, --keyframes, --points and --scribbles"),
        (["--trimap", "t.png", "--threshold", "0.5"], "--threshold is for --mask"),
        (
            ["--trimap", "t.png", "--width-percent", "3"],
            "--width-percent is for --mask, --keyframes, --auto",
        ),
        (["--auto", "--config-file", "c.py"], "--config-file and --weights belong together"),
        (["--auto", "--model", "m", "--weights", "w.pth"], "--config-file and --weights belong together"),
        (["--auto", "--model", "m", "--baseline", "ramp"], "give one of --model, --config-file with --weights"),
        (["--auto", "--model", "m", "--config-file", "c.py", "--weights", "w.pth"], "give one of --model"),
        (["--auto", "--baseline", "ramp", "--device", "cpu"], "need a network: give --model"),
        (["--auto", "--model", "m", "--tta", "flip"], "argument --tta: expected flips, rotations and scales"),
        (["--auto", "--as", "composite"], "--as composite needs a background: add --background"),
        (["--auto", "--as", "rgba", "--background", "teal"], "makes a composite: leave out --as rgba"),
        (["", "--auto"], "IMAGES holds an empty name"),
        (["--auto", "--background", ""], "--background needs a colour or an image"),
        (["--auto", "--as", "alpha", "--premultiplied"], "--premultiplied is for --as rgba"),
    ],
)
def test_wrong_usage_is_status_2(image_folders, capsys, more, words):
    before = contents(image_folders)
    with pytest.raises(SystemExit) as stop:
        predict.main([str(image_folders / "images" / "a.png"), *more])
    assert stop.value.code == 2
    usage, more_usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ") and "--help" in more_usage and words in error.partition(": error: ")[2]
    assert contents(image_folders) == before
