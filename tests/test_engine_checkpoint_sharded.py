"""Sharded networks and their checkpoints in one process; the rest is in test_engine_distributed_fsdp.py."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from engine.checkpoint import sharded as sharded_checkpoint
from engine.checkpoint.file import CheckpointError
from engine.checkpoint.sharded import WHOLE_PART, ShardedCheckpointer, find_damage, read_folder
from engine.distributed import fsdp as sharding
from engine.distributed.fsdp import listed_blocks
from engine.distributed.padded_eval import EvenLoader, FirstBatches
from engine.interrupts import OutputError
from runtime.errors import ConfigError
from tests.helpers.sharding import FiniteNumberedImages, SumPredictions, build, finish, start
from tools.runs import gather_checkpoint


def test_a_folder_of_one_process_resumes(tmp_path):
    trainer, checkpointer = start(tmp_path, True, batch_size=2)
    finish(trainer, 1)
    checkpointer.save("one", iteration=0)
    content = read_folder(tmp_path / "one")
    torch.testing.assert_close(content["model"], trainer.model.state_dict(), rtol=0, atol=0)
    saved, own = content["trainer"]["optimizer"], trainer.optimizer.state_dict()
    assert_equal(saved["state"], own["state"])
    assert saved["param_groups"] == own["param_groups"]
    other, checkpointer = start(tmp_path / "other", True, batch_size=2)
    assert checkpointer.load(str(tmp_path / "one")) == {"iteration": 0}
    assert other.samples_seen == 4
    states = [each.optimizer.state_dict()["state"] for each in (other, trainer)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    torch.testing.assert_close(other.ema.state_dict(), trainer.ema.state_dict(), rtol=0, atol=0)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_run_without_an_average_ignores_that_of_a_folder_and_one_with_a_new_average_starts_it(tmp_path, caplog):
    trainer, checkpointer = start(tmp_path, True, batch_size=2)
    finish(trainer, 1)
    checkpointer.save("averaged", iteration=0)
    del checkpointer.checkpointables["ema"]
    checkpointer.save("plain", iteration=0)
    assert "ema" not in read_folder(tmp_path / "plain")
    trainer.ema.module.load_state_dict(build().state_dict())
    checkpointer.load(str(tmp_path / "averaged"))
    other, checkpointer = start(tmp_path / "other", True, batch_size=2)
    checkpointer.load(str(tmp_path / "plain"))
    assert_equal(other.ema.module.state_dict(), trainer.model.state_dict())
    assert "train.ema_decay is new" in caplog.text


def test_a_folder_of_another_network_or_with_other_moments_is_one_message(tmp_path):
    trainer, checkpointer = start(tmp_path, True, batch_size=2)
    finish(trainer, 1)
    checkpointer.save("one", iteration=0)
    ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("other", iteration=0)
    with pytest.raises(CheckpointError, match=r"other does not match .* missing \(model.* unexpected \(model"):
        checkpointer.load(str(tmp_path / "other"))
    other, checkpointer = start(tmp_path / "fewer", True, batch_size=2)
    del other.optimizer.param_groups[0]
    with pytest.raises(CheckpointError, match=r"one does not match .* unexpected \(optimizer\."):
        checkpointer.load(str(tmp_path / "one"))


def test_a_folder_of_an_earlier_version_is_one_message(tmp_path):
    checkpointer = ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("one", iteration=0)
    content = torch.load(tmp_path / "one" / WHOLE_PART)
    torch.save({**content, "model": {"weight": torch.zeros(2, 2, device="meta")}}, tmp_path / "one" / WHOLE_PART)
    with pytest.raises(CheckpointError, match="one was written by an earlier version .* version's tools/gather"):
        checkpointer.find_last()


def test_where_a_name_is_written_anew_it_is_whole_at_any_time_that_the_disk_fails(tmp_path, monkeypatch):
    checkpointer = ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("one", iteration=0)

    def half(path, ignore_errors=False):
        if (path / WHOLE_PART).exists():
            (path / WHOLE_PART).rename(path / "rest")
        if not ignore_errors:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sharded_checkpoint.shutil, "rmtree", half)
    checkpointer.save("one", iteration=1)
    assert find_damage(tmp_path / "one") == "" and read_folder(tmp_path / "one")["iteration"] == 1
    monkeypatch.undo()
    checkpointer.save("one", iteration=2)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "last_checkpoint"}


def test_damage_that_another_process_finds_is_found_and_a_part_of_another_kind_is_none(tmp_path, monkeypatch):
    checkpointer = ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("one", iteration=0)
    monkeypatch.setattr(sharded_checkpoint.comm, "all_gather", lambda own: [own, "damaged"])
    assert find_damage(tmp_path / "one") == "damaged"
    monkeypatch.undo()
    torch.save({"model": {}}, tmp_path / "one" / WHOLE_PART)
    assert re.search(r"one is no checkpoint .*: its whole\.pth lacks the checksums", find_damage(tmp_path / "one"))
    with pytest.raises(CheckpointError, match="lacks the checksums of the files beside it, it is a plain checkpoint"):
        read_folder(tmp_path / "one")


def test_a_folder_has_its_name_and_is_what_a_resume_starts_from_when_it_is_on_the_disk(tmp_path, monkeypatch):
    checkpointer = ShardedCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    (tmp_path / "one.unfinished").mkdir()
    (tmp_path / "one.unfinished" / "left").touch()  # by a killed process
    synced = []
    fsync = os.fsync
    names = sorted(("last_checkpoint", "one", "two"))
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: (
            synced.append((Path(os.readlink(f"/proc/self/fd/{number}")), [(tmp_path / n).exists() for n in names])),
            fsync(number),
        ),
    )
    checkpointer.save("one", iteration=0)
    part = tmp_path / "one.unfinished" / f"{WHOLE_PART}.unfinished"
    written = [part.with_name(name) for name in (".metadata", "__0_0.distcp")]
    before, after = [False, False, False], [False, True, False]
    assert synced[:5] == [*((path, before) for path in (*written, part, part.parent)), (tmp_path, after)]
    assert not (tmp_path / "one" / "left").exists()

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sharded_checkpoint, "synchronize", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        checkpointer.save("two", iteration=1)
    assert (tmp_path / "last_checkpoint").read_text() == "one"


@pytest.fixture
def training(tmp_path):
    """Folder of a training run with two checkpoints, and one that was not finished."""
    folder = tmp_path / "training"
    checkpointer = ShardedCheckpointer(torch.nn.Linear(2, 2), str(folder))
    for name in ("model_0000009", "model_0000004"):
        checkpointer.save(name, iteration=0)
    shutil.copytree(folder / "model_0000009", folder / "model_0000014.unfinished")
    return folder


def gather_refused(capsys, *options):
    """Run the tool, and give its status and its last line."""
    try:
        status = gather_checkpoint.main([*map(str, options)])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert printed.out == ""
    return status, printed.err.splitlines()[-1].removeprefix("gather_checkpoint.py: ")


@pytest.mark.parametrize(
    "output", ["model_0000009/whole.pth", "link/x/y.pth", "model_0000004/../model_0000009/new.pth"]
)
def test_the_tool_never_writes_among_the_files_that_it_reads(training, capsys, output):
    (training / "link").symlink_to(training / "model_0000009")
    before = {path: path.read_bytes() for path in (training / "model_0000009").iterdir()}
    status, line = gather_refused(capsys, "--folder", training / "model_0000009", "--output", training / output)
    assert status == 2 and "is in --folder, whose files are read: name a place outside" in line
    assert {path: path.read_bytes() for path in (training / "model_0000009").iterdir()} == before


@pytest.mark.parametrize("output", ["plain", "plain.pt", "model_0000009"])
def test_the_tool_writes_files_of_one_kind(training, capsys, output):
    status, line = gather_refused(capsys, "--folder", training / "nowhere", "--output", training / output)
    assert status == 2 and line.endswith(f"--output {training / output}: expected the name of a file ending in .pth")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("nowhere", "there is no folder {}/nowhere"),
        ("last_checkpoint", "{}/last_checkpoint is a file: give the folder of a checkpoint of a sharded network"),
        (
            "",
            "{} is no checkpoint of a sharded network, it has no whole.pth: give one of {}/model_0000004, "
            "{}/model_0000009",
        ),
        ("empty", "{}/empty is no checkpoint of a sharded network, it has no whole.pth"),
    ],
)
def test_what_is_no_checkpoint_is_told_with_those_that_are(training, tmp_path, capsys, folder, words):
    (training / "empty").mkdir()
    found = gather_refused(capsys, "--folder", training / folder, "--output", tmp_path / "new" / "plain.pth")
    assert found == (1, words.replace("{}", str(training))) and not (tmp_path / "new").exists()


def test_a_training_without_an_average_has_none_to_gather(training, capsys):
    path = training / "model_0000009"
    found = gather_refused(capsys, "--folder", path, "--output", training / "plain.pth", "--ema")
    assert found == (1, f"{path} has no moving average (train.ema_decay was null): leave out --ema")


def test_a_list_that_is_none_and_a_torch_without_the_operation_are_one_line(monkeypatch):
    model = build()
    assert listed_blocks(model, "backbone.blocks") is model.backbone.blocks
    with pytest.raises(ConfigError, match="train.sharded_blocks must be empty or name a list .*backbone.blocks, .*'x'"):
        listed_blocks(model, "x")

    def missing(*args):
        raise RuntimeError("no support for _reduce_scatter_base in Gloo process group\nmore")

    monkeypatch.setattr(torch.distributed, "reduce_scatter_tensor", missing)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(ConfigError, match=r"reduce_scatter on cpu, which torch .* for gloo: .*\(no support .*\)$"):
        sharding.check_backend("cpu")

    def lost(*args):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "reduce_scatter_tensor", lost)
    with pytest.raises(RuntimeError, match="closed by peer"):
        sharding.check_backend("cpu")


def test_ranks_with_fewer_images_make_as_many_passes_and_count_their_own():
    for num in (0, 2, 3):
        shard = DataLoader(FiniteNumberedImages(5), 1, sampler=range(num))
        loader, evaluator = EvenLoader(shard, 3, 60), FirstBatches(SumPredictions(), num)
        batches = list(loader)
        assert [batch["position"].item() for batch in batches] == [*range(num), 0, 0, 0][:3] and len(loader) == 3
        for _ in range(2):  # another evaluation begins anew
            evaluator.reset()
            for batch in batches:
                evaluator.process(batch, {"pred_alpha": batch["alpha"]})
            assert list(evaluator._evaluator.sums) == [f"picture {position}" for position in range(num)]
