"""runtime.atomic_write where writing fails or is cut off: the old file stays, and nothing half done has its name."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from engine.checkpoint.file import Checkpointer, read_checkpoint
from engine.checkpoint.sharded import ShardedCheckpointer, find_damage, read_folder
from engine.interrupts import OutputError, output_file, write_text
from runtime import atomic_write
from runtime.atomic_write import SUFFIX, backup, remove_unfinished


class CrashError(Exception):
    """What is no error of the disk."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(names(tmp_path)), fsync(descriptor)))
    with output_file(tmp_path / "a") as unfinished:
        unfinished.write_text("new")
    assert seen == [[f"a{SUFFIX}"], ["a"]]  # the file before it is renamed, the folder afterwards
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_warned_of_once(tmp_path, monkeypatch, caplog, number):
    """Some network and FUSE file systems refuse it, mostly of folders."""

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    atomic_write._warn_of_refusal.cache_clear()
    model = torch.nn.Linear(2, 2)
    for name in ("one", "two"):
        Checkpointer(model, str(tmp_path)).save(name, iteration=1)
        ShardedCheckpointer(model, str(tmp_path)).save(f"{name}_sharded", iteration=1)
    assert read_checkpoint(tmp_path / "two.pth")["iteration"] == 1 and find_damage(tmp_path / "two_sharded") == ""
    warnings = [record for record in caplog.records if record.name == "runtime.atomic_write"]
    assert len(warnings) == 1 and os.strerror(number) in warnings[0].getMessage()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_an_fsync_is_no_refusal(tmp_path, monkeypatch, number):
    """Where files are kept on a server, a full disk is often said first here."""

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=os.strerror(number)):
        write_text(tmp_path / "a", "text")
    with pytest.raises(OutputError, match=os.strerror(number)):
        ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("c", iteration=1)
    assert names(tmp_path) in ([], ["c.unfinished"])


def test_what_was_there_stays_where_the_block_fails(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(CrashError), output_file(tmp_path / "a") as unfinished:
        unfinished.write_text("half")
        raise CrashError
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_an_error_that_is_not_the_disks_comes_through(tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not fit"), output_file(tmp_path / "a"):
        raise RuntimeError("shapes do not fit")


def test_a_folder_that_went_or_is_a_file_is_told_of_by_the_path(tmp_path):
    write_text(tmp_path / "a", "")
    for folder, reason in ((tmp_path / "gone", "No such file or directory"), (tmp_path / "a", "Not a directory")):
        with pytest.raises(OutputError, match=f"cannot write {folder}/x: {reason}"):
            write_text(folder / "x", "text")


def test_a_folder_in_the_place_of_a_file_is_told_to_be_moved(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/a: Is a directory; move that folder away$"):
        write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["b"]


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    for name in ("model_0000002.pth", f"model_0000005.pth{SUFFIX}", f"last_checkpoint{SUFFIX}", "notes.txt"):
        (tmp_path / name).touch()
    for name in ("model_0000002", f"model_0000005{SUFFIX}"):  # checkpoints of a sharded network
        (tmp_path / name / "part").mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["model_0000002", "model_0000002.pth", "notes.txt"]


def test_a_folder_that_a_kill_kept_from_being_replaced_is_back(tmp_path, monkeypatch):
    checkpointer = ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("one", iteration=0)
    replace = Path.replace

    def killed(path, target):
        if path.name == f"one{SUFFIX}":
            raise CrashError
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(CrashError):
        patch.setattr(Path, "replace", killed)
        checkpointer.save("one", iteration=1)
    assert names(tmp_path) == ["last_checkpoint", f"one.before{SUFFIX}", f"one{SUFFIX}"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["last_checkpoint", "one"] and find_damage(tmp_path / "one") == ""
    assert read_folder(tmp_path / "one")["iteration"] == 0


def test_a_folder_that_was_replaced_before_a_kill_stays(tmp_path):
    for name in ("one", f"one.before{SUFFIX}"):
        (tmp_path / name / name).mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert names(tmp_path) == names(tmp_path / "one") == ["one"]


def test_what_is_set_aside_overwrites_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    for number in range(3):
        write_text(tmp_path / "best.of.pth", str(number))
        backup(tmp_path / "best.of.pth", "no use")
    kept = [tmp_path / f"best.of_of_earlier_training_{number}.pth" for number in (1, 2, 3)]
    assert [path.read_text() for path in kept] == ["0", "1", "2"] and names(tmp_path) == [path.name for path in kept]
    assert caplog.messages[-1] == f"{tmp_path}/best.of.pth is of no use: moved to {kept[2]}"


@pytest.fixture
def small_files():
    """No file of this process may grow above 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_too_large_for_the_disk_leaves_the_one_before(tmp_path, small_files):
    small = Checkpointer(torch.nn.Linear(9, 9), str(tmp_path))
    small.save("model_0000002", iteration=2)
    large = Checkpointer(torch.nn.Linear(99, 99), str(tmp_path))
    with pytest.raises(OutputError, match="cannot write .*model_0000005.pth: File too large"):
        large.save("model_0000005", iteration=5)
    assert names(tmp_path) == ["last_checkpoint", "model_0000002.pth"]
    assert read_checkpoint(small.find_last())["iteration"] == 2
