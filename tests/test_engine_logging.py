"""What a run writes down (engine.logging, engine.hooks.metrics, sample sheets), on a toy model."""

import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from detectron2.engine import hooks
from detectron2.solver import WarmupParamScheduler
from detectron2.utils.events import EventStorage, EventWriter, TensorboardXWriter
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.config.config import load_config
from engine.hooks.metrics import DrawSamples, WriteMetrics
from engine.interrupts import OutputError
from engine.logging.run_record import git_state, read_record, record_run
from engine.logging.writers import JsonWriter, ProgressWriter, WandbWriter, build_writers
from evaluation.output.report import GAP_PX, LABEL_PX
from evaluation.output.sample_sheet import SampleSheet
from runtime.errors import ConfigError
from tests.helpers.paths import REPOSITORY
from tests.helpers.toy_training import Toy, toy_training

CFG = OmegaConf.create(
    {"train": {"output_dir": "x", "max_iter": 12, "iterations_per_epoch": 6, "seed": 7, "wandb": None}}
)


def put_time(seconds):
    """A hook that stands for the clock."""
    return hooks.CallbackHook(after_step=lambda trainer: trainer.storage.put_scalar("time", seconds))


def train_toy(folder, *more, num_iter=12, period=5, writers=None):
    """Train, or go on with, a toy of two named groups of parameters, and write what is seen."""
    trainer, checkpointer, _ = toy_training(folder)
    model, optimizer = trainer.model, trainer.optimizer
    optimizer.param_groups[0]["params"] = [*model.hidden.parameters(), *model.norm.parameters()]
    optimizer.param_groups[0]["name"] = "body"
    optimizer.add_param_group({"params": [*model.out.parameters()], "lr": 0.05, "initial_lr": 0.05})
    metrics = WriteMetrics(period)
    trainer.register_hooks([*more, metrics])
    if checkpointer.has_checkpoint():
        checkpointer.load(checkpointer.get_checkpoint_file())
    start = trainer.next_iteration
    own = [JsonWriter(folder, start), TensorboardXWriter(str(folder), purge_step=start)]
    metrics.writers = own if writers is None else writers
    trainer.train(start, num_iter)
    return trainer


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rates_are_those_of_the_step_by_the_name_of_the_group(tmp_path):
    train_toy(tmp_path, period=1)
    multiplier = WarmupParamScheduler(MultiStepParamScheduler([1, 0.5], 12, [9]), 0.001, 0.25)
    rows = rows_of(tmp_path / "metrics.json")
    assert [row["iteration"] for row in rows] == [*range(12)]
    for row in rows:
        assert row["lr/body"] == pytest.approx(0.01 * multiplier(row["iteration"] / 12))
        assert row["lr/group 1"] == pytest.approx(0.05 * multiplier(row["iteration"] / 12))
        assert {"total_loss", "loss_square", "grad_norm", "data_time", "skipped_steps", "memory_gb"} <= row.keys()


def test_images_per_second_are_those_of_all_processes(tmp_path):
    trainer = train_toy(tmp_path, put_time(0.25))
    rows = rows_of(tmp_path / "metrics.json")
    assert [row["iteration"] for row in rows] == [4, 9, 11]
    assert all(row["images_per_second"] == trainer.samples_per_iteration / 0.25 == 16 for row in rows)


def test_a_resume_goes_on_in_the_same_files_and_a_new_training_does_not(tmp_path):
    train_toy(tmp_path, num_iter=9)
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    file = tmp_path / "metrics.json"
    assert [row["iteration"] for row in rows_of(file)] == [4, 8]
    with file.open("a") as cut_off:
        cut_off.write('{"iteration": 1')
    train_toy(tmp_path, period=2)
    lines = file.read_text().splitlines()
    assert lines[2] == '{"iteration": 1'
    assert [json.loads(line)["iteration"] for line in [*lines[:2], *lines[3:]]] == [4, 8, 7, 9, 11]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [event.step for event in board.Scalars("total_loss")] == [4, 7, 9, 11]  # 8 of before is done again
    (tmp_path / "last_checkpoint").unlink()
    train_toy(tmp_path, num_iter=6)
    assert [row["iteration"] for row in rows_of(file)] == [4, 5]
    assert (tmp_path / "metrics_of_earlier_training_1.json").read_text().splitlines() == lines


def test_json_lines_ascend_and_repeat_nothing(tmp_path):
    writer = JsonWriter(tmp_path, 0)
    with EventStorage(0) as storage:
        for iteration in range(6):
            storage.iter = iteration
            storage.put_scalar("total_loss", iteration)
            if iteration == 2:
                storage.put_scalar("matting/SAD", 5.0, smoothing_hint=False)
        writer.write()
        writer.write()
    assert rows_of(tmp_path / "metrics.json") == [
        {"iteration": 2, "matting/SAD": 5.0},
        {"iteration": 5, "total_loss": 2.5},  # the median of 0 ... 5
    ]


def test_the_progress_line_tells_place_and_time_left(caplog):
    caplog.set_level(logging.INFO, "engine.logging.writers")
    writer = ProgressWriter(1000, 400)
    with EventStorage(0) as storage:
        storage.iter = 99
        storage.put_scalars(total_loss=2.0, loss_a=1.5, data_time=0.01)
        writer.write()
        storage.iter = 199
        storage.put_scalars(total_loss=1.0, loss_a=0.5, time=2.0, data_time=0.01, grad_norm=3.0)
        storage.put_scalars(lr=0.001, images_per_second=8.0, memory_gb=1.26, skipped_steps=2, smoothing_hint=False)
        storage.put_scalar("faulty_samples", 0, smoothing_hint=False)
        writer.write()
        storage.iter = 1000
        writer.write()
    first, second = caplog.messages
    assert first == "iter: 99 of 1000  epoch: 0.25 of 2.5  total_loss: 2  loss_a: 1.5  data_time: 0.010 s"
    assert second == (
        "eta: 0:26:40  iter: 199 of 1000  epoch: 0.50 of 2.5  total_loss: 1  loss_a: 0.5  grad_norm: 3  lr: 0.001  "
        "time: 2.000 s  data_time: 0.010 s  8.0 images/s  memory: 1.3 GB  skipped_steps: 2"
    )


class FullDisk(EventWriter):
    """A writer on a full disk that counts its calls."""

    calls = 0

    def write(self):
        self.calls += 1
        raise OSError(28, "No space left on device")


def test_a_writer_that_cannot_write_ends_the_training_once(tmp_path):
    writer, other = FullDisk(), JsonWriter(tmp_path, 0)
    with pytest.raises(OutputError, match="cannot write metrics: .*No space left"):
        train_toy(tmp_path, writers=[writer, other])
    assert writer.calls == 1
    assert [row["iteration"] for row in rows_of(tmp_path / "metrics.json")] == [4]  # by the other one, at the end


class Drawings:
    """Keeps what is to be drawn."""

    def __init__(self):
        self.seen = {}

    def __call__(self, batch, outputs, path):
        path.write_text("")
        self.seen[path.name] = (batch, outputs)
        return np.full((2, 3, 3), 0.25, np.float32)


def test_pictures_change_nothing_of_the_training(tmp_path):
    plain = train_toy(tmp_path / "plain")
    trainer, _, _ = toy_training(tmp_path / "other")
    draw, twin = Drawings(), Toy()
    networks = {"": trainer.model, "twin": twin}

    def draw_samples(period, num_samples):
        return DrawSamples(draw, networks, tmp_path / "drawn", period, num_samples)

    (tmp_path / "drawn").mkdir()
    hook = draw_samples(5, 3)
    drawn = train_toy(
        tmp_path / "drawn", hooks.CallbackHook(before_train=lambda t: networks.update({"": t.model})), hook
    )
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, drawn.model.state_dict()[name]), name
    assert drawn.model.training and twin.training
    assert sorted(path.name for path in (tmp_path / "drawn" / "pictures").iterdir()) == sorted(draw.seen)
    assert [*draw.seen] == ["iter_0000004.jpg", "iter_0000009.jpg", "iter_0000011.jpg"]
    batch, outputs = draw.seen["iter_0000011.jpg"]
    assert batch["x"].shape == (3, 3) and np.array_equal(batch["x"], drawn.batches[-1]["x"][:3].numpy())
    samples = {name: torch.from_numpy(values) for name, values in batch.items()}
    for name, network in (("", drawn.model), ("twin", twin)):  # without dropout, by the running statistics
        with torch.no_grad():
            expected = network.eval()(samples)
        assert {key: float(value) for key, value in expected.items()} == outputs[name]
    board = EventAccumulator(str(tmp_path / "drawn"))
    board.Reload()
    assert [event.step for event in board.Images("samples")] == [4, 9, 11]


def test_pictures_compile_nothing(tmp_path):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    hook = DrawSamples(Drawings(), networks := {}, tmp_path, 1, 3)
    trainer, _, _ = toy_training(tmp_path, hooks_too=[hook])
    networks[""] = trainer.model
    trainer.model.compile(backend=count)
    trainer.train(0, 1)
    assert len(graphs) == 1  # that of the step
    with torch.no_grad():
        trainer.model.eval()(trainer.batches[-1])
    assert len(graphs) == 2  # as it would have been


@pytest.mark.parametrize(("period", "num_samples"), [(-1, 4), (2.5, 4), (10, 0)])
def test_pictures_of_no_sense_are_refused(tmp_path, period, num_samples):
    with pytest.raises(ConfigError, match=r"train.pictures\.(period|num_samples) must be a whole number of at least"):
        DrawSamples(Drawings(), {}, tmp_path, period, num_samples)


def test_a_sheet_shows_samples_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    size = 48
    image, alpha, other = (rng.random((2, chans, size, size), np.float32) for chans in (3, 1, 1))
    trimap = rng.choice(np.float32([0, 0.5, 1]), (2, 1, size, size))
    broken = np.where(alpha > 0.9, np.nan, alpha)
    batch = {"image": image, "trimap": trimap, "alpha": alpha}
    sheet = SampleSheet(size)(batch, {"": {"pred_alpha": broken}, "ema": {"pred_alpha": other}}, tmp_path / "s.png")
    columns = [image, trimap, np.nan_to_num(broken), alpha, abs(np.nan_to_num(broken) - alpha), other]
    for row in range(2):
        top = LABEL_PX + row * (LABEL_PX + size) + LABEL_PX
        for column, pictures in enumerate(columns):
            left = column * (size + GAP_PX)
            assert np.array_equal(
                sheet[top : top + size, left : left + size],
                np.broadcast_to(pictures[row].transpose(1, 2, 0), (size, size, 3)),
            )
    written = np.asarray(Image.open(tmp_path / "s.png"))
    assert np.array_equal(written, np.round(255 * sheet).astype(np.uint8))
    with pytest.raises(ConfigError, match="cell_px must be at least 1"):
        SampleSheet(0)


def test_each_start_is_on_record(tmp_path, monkeypatch):
    cfg = load_config(REPOSITORY / "configs" / "demo.py")
    cfg.train.output_dir, cfg.train.device, cfg.train.seed = str(tmp_path), "cpu", 11
    cfg.dataloader.train.batch_size, cfg.train.accumulation = 3, 2
    monkeypatch.setattr(sys, "argv", ["main.py", "--config-file", "a b"])
    record_run(cfg, 0)
    record_run(cfg, 30)
    first, second = json.loads((tmp_path / "run.json").read_text())
    assert (first["start_iteration"], second["start_iteration"]) == (0, 30)
    assert first["command"] == [sys.executable, "main.py", "--config-file", "a b"] and first["seed"] == 11
    assert first["versions"]["torch"] == torch.__version__ == second["versions"]["torch"]
    assert first["num_processes"] == 1 and first["processes"][0]["device"].startswith("cpu, ")
    assert (first["micro_batch"], first["accumulation"]) == (3, 2)
    resolved = load_config(tmp_path / "config_resolved.yaml")
    assert "${" not in (tmp_path / "config_resolved.yaml").read_text()
    assert resolved.train.max_iter == cfg.train.max_iter and resolved.model.decoder.in_chans == 96
    (tmp_path / "run.json").write_text("{}")
    assert read_record(tmp_path / "run.json") == [] and (tmp_path / "run.unreadable").read_text() == "{}"


def test_the_commit_is_told_and_whether_files_differ(tmp_path):
    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) is None  # no repository
    git("init")
    assert git_state(tmp_path) is None  # no commit
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    (tmp_path / "untracked").touch()
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "is_dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "is_dirty": True}
    assert git_state(tmp_path / "absent") is None


def test_weights_and_biases_are_asked_for_by_name(tmp_path, monkeypatch):
    cfg = OmegaConf.merge(CFG, {"train": {"output_dir": str(tmp_path)}})
    assert [type(writer) for writer in build_writers(cfg, 0)] == [ProgressWriter, JsonWriter, TensorboardXWriter]
    for project in (True, "", 3):
        with pytest.raises(ConfigError, match="train.wandb must be the name of a project, or null"):
            build_writers(OmegaConf.merge(cfg, {"train": {"wandb": project}}), 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="train.wandb is 'matting', but wandb cannot be imported .*pip install wandb"):
        build_writers(OmegaConf.merge(cfg, {"train": {"wandb": "matting"}}), 0)


def test_what_an_evaluation_writes_is_one_row_with_the_metrics_of_the_step(tmp_path):
    trainer, _, _ = toy_training(tmp_path)
    metrics = WriteMetrics(2)
    metrics.writers = [JsonWriter(tmp_path, 0)]

    def evaluate(_):
        trainer.storage.put_scalar("score", 1.0, smoothing_hint=False)
        metrics.write()

    trainer.register_hooks([hooks.CallbackHook(after_step=evaluate), metrics])
    trainer.train(0, 3)
    for row, is_due in zip(rows_of(tmp_path / "metrics.json"), (False, True, True), strict=True):
        assert "score" in row and ("lr/group 0" in row) == is_due


def wandb_records(path):
    """Read what wandb keeps of a run: 7 bytes, then records of a checksum (4 bytes), length (2), kind (1) and data."""
    from wandb.proto import wandb_internal_pb2

    content, place = path.read_bytes(), 7
    assert content.startswith(b":W&B") and len(content) < 2**15  # larger files come in blocks
    while place + 7 <= len(content):
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        if place + 7 + length > len(content):
            return
        yield wandb_internal_pb2.Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = OmegaConf.merge(CFG, {"train": {"output_dir": str(tmp_path), "epochs": "${.max_iter}"}})
    ids = []
    for start in (0, 10, 0):  # a run, its resume, another run
        writer = WandbWriter("matting", tmp_path, cfg, start)
        with EventStorage(start) as storage:
            for iteration in (start + 4, start + 9):
                storage.iter = iteration
                storage.put_scalar("total_loss", 0.5 * iteration, smoothing_hint=False)
                if iteration == 9:
                    storage.put_image("samples", np.linspace(0, 1, 3 * 8 * 24).reshape(3, 8, 24))
                writer.write()
        writer.close()
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1] != ids[2] and wandb.run is None
    (file,) = tmp_path.glob(f"wandb/offline-run-*-{ids[2]}/*.wandb")
    deadline, records = time.monotonic() + 20, []
    while not any(record.HasField("exit") for record in records):  # the process that writes may not be done yet
        assert time.monotonic() < deadline
        time.sleep(0.05)
        records = [*wandb_records(file)]
    history = [
        {entry.key or entry.nested_key[0]: json.loads(entry.value_json) for entry in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    *losses, picture = history
    assert [(row["iteration"], row["total_loss"]) for row in losses] == [(4, 2.0), (9, 4.5)]
    (path,) = file.parent.glob("files/media/images/samples*.jpg")
    assert Image.open(path).size == (24, 8) and picture["iteration"] == 9
    (run,) = [record.run for record in records if record.HasField("run")]
    sent = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert sent["train"]["epochs"] == 12 and (run.project, run.display_name) == ("matting", tmp_path.name)
