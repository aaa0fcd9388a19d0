"""tools/dataset/pack_dataset.py: the same bytes for any interruption and number of workers; its errors."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.image_io.images import DataError
from data.sources.packs import writer as packing
from data.sources.packs.reader import INDEX, find_packed
from engine.config.config import apply_overrides, load_config
from tests.helpers.paths import REPOSITORY
from tools.dataset import pack_dataset

NUM_FOREGROUNDS = 7


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven foregrounds in fg/ with alphas in alpha/, and three cut-outs in rgba/."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for name in ("fg", "alpha", "rgba"):
        (folder / name).mkdir(parents=True)
    for index in range(NUM_FOREGROUNDS):
        size = (40 + index, 70)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "fg" / f"{index}.jpg")
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / "alpha" / f"{index}.png")
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (30, 30, 4), np.uint8)).save(folder / "rgba" / f"{index}.png")
    return folder


def arguments(pictures: Path, output: Path, *more: object) -> list[str]:
    options = ["--foreground-dir", pictures / "fg", "--alpha-dir", pictures / "alpha", "--output", output, *more]
    return [*map(str, options), *([] if "--num-workers" in more else ["--num-workers", "1"])]


def pack(pictures: Path, output: Path, *more: object) -> int:
    return pack_dataset.main(arguments(pictures, output, *more))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_apart(work: Callable[[], object]) -> int | None:
    """Run in a copy of this process, which may be killed.

    Returns: its exit status, negative where a signal ended it.
    """
    process = get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_what_is_packed_can_be_trained_from(pictures, tmp_path, capsys):
    output = tmp_path / "pack, it's 1"
    assert pack(pictures, output) == 0
    said, command = capsys.readouterr().out.splitlines()
    assert said == f"packed 7 foregrounds, 0.3 MB, in {output}; train with"
    cfg = load_config(str(REPOSITORY / "configs/demo.py"))
    apply_overrides(cfg, shlex.split(command))
    assert cfg.dataloader.train.dataset.foreground_dirs == [str(output)]
    assert cfg.dataloader.train.dataset.alpha_dirs is None
    assert [foreground.size for foreground in find_packed(output)] == [(70, 40 + index) for index in range(7)]


def test_cut_outs_pairs_and_several_folders_become_one_pack(pictures, tmp_path):
    folders = ["--foreground-dir", *(str(pictures / name) for name in ("rgba", "fg", "rgba")), "--num-workers", "1"]
    alphas = ["--alpha-dir", "null", str(pictures / "alpha"), "null"]
    assert pack_dataset.main([*folders, *alphas, "--output", str(tmp_path / "pack")]) == 0
    assert len(find_packed(tmp_path / "pack")) == 3 + NUM_FOREGROUNDS + 3


def die_at(step: int) -> Callable[..., object]:
    """Replace os.fsync by one whose n-th call is the end, as by a power cut or `kill -9`."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return fsync


@pytest.mark.parametrize("steps", [[1], [2], [3], [4, 4], [7, 3], [1, 1, 10, 3], [17], [18]])
def test_a_run_killed_at_any_moment_continues_to_the_same_bytes(steps, pictures, tmp_path, monkeypatch):
    assert pack(pictures, tmp_path / "whole") == 0
    expected = contents(tmp_path / "whole")
    output = tmp_path / "pack"
    for step in steps:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", die_at(step))
            assert run_apart(lambda: sys.exit(pack(pictures, output))) == -signal.SIGKILL
        if contents(output) != expected:
            with pytest.raises(DataError):
                find_packed(output)
    assert pack(pictures, output) == 0
    assert contents(output) == expected


def test_a_run_continues_without_packing_again_what_was_finished(pictures, tmp_path, monkeypatch):
    output = tmp_path / "pack"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die_at(10))  # two of the index, two for each foreground
        run_apart(lambda: sys.exit(pack(pictures, output)))
    kept = {path: path.stat().st_ino for path in output.glob("*.safetensors")}
    assert len(kept) == 4
    assert pack(pictures, output) == 0
    assert {path: path.stat().st_ino for path in kept} == kept


def test_the_tool_may_be_killed_with_its_workers_whose_files_are_those_of_one_process(pictures, tmp_path):
    rng = np.random.default_rng(1)
    for index in range(70):
        Image.fromarray(rng.integers(0, 256, (60, 50, 4), np.uint8)).save(pictures / "rgba" / f"{index}.png")
    output = tmp_path / "pack"
    options = ["--foreground-dir", str(pictures / "rgba"), "--num-workers", "2", "--output"]
    process = subprocess.Popen([sys.executable, "tools/dataset/pack_dataset.py", *options, str(output)], cwd=REPOSITORY)
    while process.poll() is None and len(list(output.glob("*.safetensors"))) < 3:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path("/proc", child).exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)  # they end on their own
    options[3] = "1"
    assert pack_dataset.main([*options, str(output)]) == 0
    assert pack_dataset.main([*options, str(tmp_path / "whole"), "--verify"]) == 0
    assert contents(output) == contents(tmp_path / "whole")


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(pictures, tmp_path, capfd):
    assert pack(pictures, tmp_path / "whole") == 0
    output = tmp_path / "pack"

    def pack_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # a foreground needs more
        sys.exit(pack(pictures, output))

    assert run_apart(pack_with_little_room) == 1
    error = capfd.readouterr().err
    assert f"cannot write {output}/00000.safetensors: File too large" in error
    assert "the same command continues from here" in error
    assert list(contents(output)) == [INDEX]
    assert pack(pictures, output) == 0
    assert contents(output) == contents(tmp_path / "whole")


def test_a_finished_pack_is_left_alone_and_says_what_changed_since(pictures, tmp_path, capsys):
    output = tmp_path / "pack"
    assert pack(pictures, output) == 0
    before = contents(output)
    assert pack(pictures, output) == 0
    assert "packed 7 foregrounds" in capsys.readouterr().out
    os.utime(pictures / "fg" / "3.jpg", ns=(1, 1))
    (pictures / "fg" / "5.jpg").unlink()
    (pictures / "alpha" / "5.png").unlink()
    assert pack(pictures, output) == 1
    error = capsys.readouterr().err.splitlines()
    error = error[error.index(next(line for line in error if "was packed" in line)) :]
    assert "was packed of other files, or they changed since: name another folder, or remove it" in error[0]
    paths = [pictures / "alpha" / "5.png", pictures / "fg" / "3.jpg", pictures / "fg" / "5.jpg"]
    assert error[-3:] == list(map(str, paths))
    assert contents(output) == before


def test_what_changed_while_a_run_stood_still_is_packed_again(pictures, tmp_path, monkeypatch):
    output = tmp_path / "pack"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die_at(10))
        run_apart(lambda: sys.exit(pack(pictures, output)))
    black = Image.new("RGB", (70, 42))
    black.save(pictures / "fg" / "2.jpg")
    for index in (5, 6):  # their files are not needed any more
        (pictures / "fg" / f"{index}.jpg").unlink()
        (pictures / "alpha" / f"{index}.png").unlink()
    (output / "00006.safetensors").touch()
    (output / "00007.safetensors.unfinished").touch()
    assert pack(pictures, output) == 0
    assert (find_packed(output)[2].read((0, 0, 70, 42), 1)[0] == 0).all()
    assert pack(pictures, tmp_path / "whole") == 0
    assert contents(output) == contents(tmp_path / "whole")


def test_a_damaged_byte_is_found(pictures, tmp_path, capsys):
    output = tmp_path / "pack"
    assert pack(pictures, output, "--verify") == 0
    assert f"all 7 foregrounds of {output} are intact" in capsys.readouterr().out
    path = find_packed(output)[3].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert pack_dataset.main(["--output", str(output), "--verify", "--num-workers", "1"]) == 1
    error = capsys.readouterr().err
    assert "1 of 7 foregrounds are damaged:" in error
    assert f"{output}:3.jpg in {path} is damaged" in error


def test_all_images_that_cannot_be_packed_are_listed_and_the_others_done(pictures, tmp_path, capsys):
    (pictures / "fg" / "0.jpg").write_bytes((pictures / "fg" / "0.jpg").read_bytes()[:500])
    Image.new("L", (9, 9)).save(pictures / "alpha" / "5.png")
    output = tmp_path / "pack"
    assert pack(pictures, output) == 1
    error = capsys.readouterr().err
    assert "2 foregrounds cannot be packed, replace or remove:" in error
    assert f"cannot read {pictures}/fg/0.jpg" in error
    assert f"{pictures}/fg/5.jpg is 70 x 45 px" in error
    assert "the same command continues from here" in error
    kept = (output / "00002.safetensors").stat().st_ino
    Image.new("RGB", (70, 40)).save(pictures / "fg" / "0.jpg")
    Image.new("L", (70, 45)).save(pictures / "alpha" / "5.png")
    assert pack(pictures, output) == 0
    assert (output / "00002.safetensors").stat().st_ino == kept


def test_a_folder_of_other_things_is_no_place_for_a_pack(pictures, tmp_path, capsys):
    assert pack(pictures, pictures / "fg") == 1
    assert "holds 0.jpg: expected an empty folder or a pack. Name another folder" in capsys.readouterr().err
    assert len(contents(pictures / "fg")) == NUM_FOREGROUNDS


def test_a_pack_cannot_be_packed(pictures, tmp_path, capsys):
    assert pack(pictures, tmp_path / "pack") == 0
    options = ["--foreground-dir", str(tmp_path / "pack"), "--output", str(tmp_path / "again")]
    assert pack_dataset.main(options) == 1
    assert "where there is a pack already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wrong", "pictures"])
def test_what_is_no_pack_is_not_verified(name, pictures, tmp_path, capsys):
    assert pack_dataset.main(["--output", str(tmp_path / name), "--verify"]) == 1
    message = f"pack_dataset.py: {tmp_path / name} is no pack: expected a folder with pack.json in it"
    assert capsys.readouterr().err.startswith(message)


def test_files_are_the_same_however_they_are_named(pictures, tmp_path, monkeypatch):
    output = tmp_path / "pack"
    assert pack(pictures, output) == 0
    before = contents(output)
    (tmp_path / "link").symlink_to(pictures)
    monkeypatch.chdir(pictures.parent)
    for named in (Path("pictures"), Path("link/../link"), tmp_path / "link"):
        assert pack(named, output) == 0
    assert pack(Path("link"), tmp_path / "again") == 0
    assert contents(tmp_path / "again") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --foreground-dir, or --verify alone"),
        (["--alpha-dir", "a", "--verify"], "expected --foreground-dir, or --verify alone"),
        (["--verify", "--num-workers", "0"], "--num-workers: must be at least 1, got 0"),
    ],
)
def test_wrong_usage(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        pack_dataset.main(["--output", str(tmp_path), *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_is_one_line(pictures, tmp_path, monkeypatch, capsys):
    def interrupt(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "map_in_workers", interrupt)
    assert pack(pictures, tmp_path / "pack") == 130
    assert "stopped; the same command continues from here" in capsys.readouterr().err
