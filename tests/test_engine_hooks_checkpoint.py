"""Checkpoints on the way: which stay, which a resume starts from, and what is said of damaged ones."""

import os
import random
import shutil
import signal

import pytest
import torch
from detectron2.config import LazyCall
from omegaconf import OmegaConf
from torch import nn

from engine.checkpoint.file import Checkpointer, CheckpointError, read_checkpoint
from engine.config.config import describe_differences, save_config
from engine.ema import Ema
from engine.hooks.checkpoint import PeriodicCheckpointer
from engine.interrupts import OutputError, StopRequested, StopSignals, uninterrupted
from engine.run import find_last_weights
from runtime.errors import ConfigError
from tests.helpers.toy_training import toy_training_with_checkpoints


def numbered(folder):
    return [int(path.stem.removeprefix("model_")) for path in sorted(folder.glob("model_0*.pth"))]


def keeping(folder, period=1, max_to_keep=3, **options):
    trainer, checkpointer, _ = toy_training_with_checkpoints(folder, **options)
    trainer._hooks.pop()
    checkpoints = PeriodicCheckpointer(checkpointer, period, max_to_keep)
    trainer.register_hooks([checkpoints])
    return trainer, checkpointer, checkpoints


def test_the_newest_stay_over_resumes_and_files_of_others_do(tmp_path):
    for name in ("model_0000000", "model_0000003", "model_0000099", "model_best"):  # of an earlier training
        Checkpointer(nn.Linear(1, 1), str(tmp_path)).save_weights(name)
    trainer, _, _ = keeping(tmp_path)
    trainer.train(0, 5)
    assert numbered(tmp_path) == [2, 3, 4, 99]  # 0 and 3 were written anew
    for stop, expected in ((6, [3, 4, 5, 99]), (9, [6, 7, 8, 99])):
        trainer, checkpointer, _ = keeping(tmp_path)
        checkpointer.load(checkpointer.find_last())
        trainer.train(trainer.next_iteration, stop)
        assert numbered(tmp_path) == expected
    assert (tmp_path / "model_best.pth").exists() and (tmp_path / "model_final.pth").exists()


def test_after_a_resume_with_more_samples_a_step_a_number_that_comes_again_is_a_new_one(tmp_path):
    keeping(tmp_path, batch_size=2)[0].train(0, 4)
    trainer, checkpointer, _ = keeping(tmp_path, batch_size=4)
    checkpointer.load(str(tmp_path / "model_0000003.pth"))
    trainer.train(trainer.next_iteration, 4)
    assert numbered(tmp_path) == [1, 2, 3]
    assert read_checkpoint(tmp_path / "model_0000002.pth")["trainer"]["samples_seen"] == 12


def test_a_resume_with_fewer_iterations_than_are_done_ends_with_the_final_weights_once(tmp_path):
    keeping(tmp_path, batch_size=4)[0].train(0, 11)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000010.pth")

    def resume():
        trainer, checkpointer, _ = keeping(tmp_path, batch_size=1)
        trainer.ema = Ema(trainer.bare_model, 0.9)
        checkpointer.load(checkpointer.find_last())
        trainer.train(min(trainer.next_iteration, 40), 40)
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("model_final*")}

    written = resume()
    assert written.keys() == {"model_final.pth", "model_final_ema.pth"} and resume() == written
    assert read_checkpoint(tmp_path / "model_final.pth")["trainer"]["samples_seen"] == 44
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_kill_between_writing_and_removing_is_made_up_for(tmp_path, monkeypatch):
    trainer, _, _ = keeping(tmp_path, max_to_keep=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpointer, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        trainer.train(0, 5)
    assert numbered(tmp_path) == [0, 1, 2]
    trainer, checkpointer, _ = keeping(tmp_path, max_to_keep=2)
    checkpointer.load(checkpointer.find_last())
    trainer.train(trainer.next_iteration, 5)
    assert numbered(tmp_path) == [3, 4]


def test_a_kill_before_the_final_checkpoint_is_made_up_for(tmp_path):
    keeping(tmp_path)[0].train(0, 4)
    whole = read_checkpoint(tmp_path / "model_final.pth")
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    trainer, checkpointer, _ = keeping(tmp_path)
    checkpointer.load(checkpointer.find_last())
    trainer.train(trainer.next_iteration, 4)
    made_up = read_checkpoint(tmp_path / "model_final.pth")
    assert made_up["iteration"] == 3 and (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert all(torch.equal(made_up["model"][name], tensor) for name, tensor in whole["model"].items())


def test_where_the_new_one_cannot_be_written_no_old_one_goes(tmp_path, monkeypatch):
    trainer, _, _ = keeping(tmp_path, max_to_keep=2)
    save = Checkpointer.save_weights

    def fail(self, name, *args, **more):
        if name == "model_0000003":
            raise OutputError
        save(self, name, *args, **more)

    monkeypatch.setattr(Checkpointer, "save_weights", fail)
    with pytest.raises(OutputError):
        trainer.train(0, 5)
    assert numbered(tmp_path) == [1, 2] and (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


def test_a_stop_writes_what_is_not_written_yet(tmp_path):
    trainer, _, checkpoints = keeping(tmp_path, period=3, max_to_keep=None)
    trainer.train(0, 4)
    (tmp_path / "model_0000002.pth").unlink()
    checkpoints.save()  # the final checkpoint holds all
    assert numbered(tmp_path) == []
    trainer.samples_seen += trainer.samples_per_iteration
    checkpoints.save()
    assert numbered(tmp_path) == [4] and checkpoints.saved_iterations == 5


def test_a_stop_before_the_first_step_of_a_resume_writes_nothing(tmp_path):
    keeping(tmp_path)[0].train(0, 3)
    trainer, checkpointer, checkpoints = keeping(tmp_path)
    checkpointer.load(checkpointer.find_last())
    (tmp_path / "model_0000002.pth").unlink()
    with StopSignals(), pytest.raises(StopRequested), uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        trainer.train(trainer.next_iteration, 5)
    checkpoints.save()
    assert numbered(tmp_path) == [0, 1] and checkpoints.saved_iterations == 3


@pytest.mark.parametrize("settings", [{"period": 0}, {"max_to_keep": -1}, {"max_to_keep": 0}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match=f"train.checkpointer.{[*settings][0]} must be at least 1"):
        keeping(tmp_path, **settings)


@pytest.fixture
def three(tmp_path):
    """A folder with checkpoints of 2, 4 and 6 iterations."""
    checkpointer = Checkpointer(nn.Linear(3, 3), str(tmp_path))
    for iteration in (1, 3, 5):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return checkpointer, tmp_path


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 80] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(cut_off, "cut off"), (flip_a_bit, "is damaged"), (lambda path: path.unlink(), "is gone"),
     (lambda path: path.write_bytes(b""), "cut off")],
    ids=["cut off", "flipped", "gone", "empty"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(three, caplog, damage, words):
    checkpointer, folder = three
    assert checkpointer.find_last() == str(folder / "model_0000005.pth")
    damage(folder / "model_0000005.pth")
    assert checkpointer.find_last() == str(folder / "model_0000003.pth")
    assert f"{folder / 'model_0000005.pth'}" in caplog.text and words in caplog.text
    for name in ("model_0000001.pth", "model_0000003.pth"):
        cut_off(folder / name)
    caplog.clear()
    all_three = "no checkpoint in .* is whole: .*model_0000005.*model_0000003.*0001"
    with pytest.raises(CheckpointError, match=all_three) as error:
        checkpointer.find_last()
    assert str(error.value).count("model_0000003.pth") == 1 and not caplog.records  # each reason once


@pytest.mark.parametrize("content", [b"\xff{", b"\0" * 12, b"", b"a" * 5000], ids=["text", "zeros", "empty", "long"])
def test_a_damaged_note_of_the_last_checkpoint_is_as_none(three, caplog, content):
    checkpointer, folder = three
    (folder / "last_checkpoint").write_bytes(content)
    assert checkpointer.find_last() == str(folder / "model_0000005.pth")
    assert f"{folder / 'last_checkpoint'} is damaged" in caplog.text


def test_which_checkpoint_is_the_last(three):
    checkpointer, folder = three
    checkpointer.save_weights("model_0000099")  # of an earlier training: its number is above the last one's
    checkpointer.save_weights("model_best")
    assert checkpointer.find_last().endswith("model_0000005.pth")
    (folder / "last_checkpoint").unlink()  # killed before it was written for the first time
    assert checkpointer.find_last().endswith("model_0000099.pth")
    checkpointer.save("model_final")
    assert checkpointer.find_last().endswith("model_final.pth")
    (folder / "last_checkpoint").unlink()
    assert checkpointer.find_last().endswith("model_final.pth")
    cut_off(folder / "model_final.pth")
    (folder / "model_0000099.pth").unlink()
    assert checkpointer.find_last().endswith("model_0000005.pth")


def test_the_one_before_was_written_before_whatever_its_number(tmp_path):
    """As after a resume on more processes: fewer iterations for as many samples."""
    checkpointer = Checkpointer(nn.Linear(3, 3), str(tmp_path))
    for second, iteration in enumerate((49, 99, 59, 69)):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (second, second))
    for iteration, expected in ((69, 59), (59, 99), (99, 49)):
        (tmp_path / f"model_{iteration:07d}.pth").unlink()
        assert checkpointer.find_last().endswith(f"model_{expected:07d}.pth")


def test_the_last_weights_of_a_sharded_network_are_in_the_file_beside_its_folder(three):
    checkpointer, folder = three
    (folder / "model_final").mkdir()
    checkpointer.tag_last_checkpoint("model_final")
    for iteration in (1, 3, 5):
        (folder / f"model_{iteration:07d}.pth").unlink()
    with pytest.raises(CheckpointError, match="model_final is a folder"):
        find_last_weights(checkpointer.model, str(folder))
    checkpointer.save_weights("model_final")
    assert find_last_weights(checkpointer.model, str(folder)) == str(folder / "model_final.pth")


def test_a_folder_without_checkpoints_has_none(tmp_path):
    checkpointer = Checkpointer(nn.Linear(3, 3), str(tmp_path))
    checkpointer.save_weights("model_best")
    assert checkpointer.find_last() == ""
    (tmp_path / "model_best.pth").rename(tmp_path / "model_final_ema.pth")
    assert checkpointer.find_last() == ""


def test_no_flipped_bit_changes_what_is_read(three):
    """Each is seen, or in a place that means nothing. torch alone reads on."""
    _, folder = three
    path = folder / "model_0000005.pth"
    content = path.read_bytes()
    whole = read_checkpoint(path)["model"]
    draw = random.Random(0)
    num_seen = 0
    for _ in range(60):
        position = draw.randrange(len(content))
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :]
        )
        try:
            found = read_checkpoint(path)["model"]
        except CheckpointError:
            num_seen += 1
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert num_seen > 30


def test_what_differs_in_a_config_is_named_by_its_key(tmp_path):
    cfg = OmegaConf.create(
        {
            "train": {"epochs": 2, "max_iter": "${.epochs}", "device": "cpu", "betas": [0.9, 0.99], "sets": {}},
            "model": LazyCall(nn.Linear)(in_features=3, out_features=4),
        }
    )
    save_config(cfg, tmp_path / "config.yaml")
    assert describe_differences(tmp_path / "config.yaml", cfg) == []
    shutil.copy(tmp_path / "config.yaml", tmp_path / "before.yaml")
    changed = OmegaConf.merge(cfg, {"train": {"epochs": 3, "betas": [0.9, 0.9], "sets": {"a": 1}}})
    changed.model = LazyCall(nn.Bilinear)(in_features=3, out_features=4)
    del changed.train.device
    assert describe_differences(tmp_path / "before.yaml", changed) == [
        "model._target_: 'torch.nn.Linear' -> 'torch.nn.Bilinear'",
        "train.betas: [0.9, 0.99] -> [0.9, 0.9]",
        "train.epochs: 2 -> 3",
        "train.sets.a: absent -> 1",
        "train.device: 'cpu' -> absent",
        "train.sets: {} -> absent",
    ]
