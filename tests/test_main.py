"""main.py from the command line to metrics.json, with a tiny real network on a tiny data set."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
import yaml
from detectron2.config import LazyConfig

import main
from engine.config.migration import LATER_KEYS
from engine.distributed.padded_eval import evaluate
from evaluation.folders import evaluate_folders
from evaluation.metrics import METRICS, PROTOCOLS, average
from evaluation.output.report import format_table
from runtime.folder_lock import hold_folder
from tests.helpers.main_command import refusal, train_in_two_processes
from tests.helpers.paths import DEMO
from tests.helpers.training import (
    best_evaluation,
    last_evaluation,
    metrics,
    overrides,
    printed_evaluation,
    run_two_processes,
    start_two_processes,
)

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


def test_a_training_leaves_its_config_metrics_and_checkpoints(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.yaml",
        "config_resolved.yaml",
        "run.json",
        "log.txt",
        "metrics.json",
        "last_checkpoint",
        "model_0000002.pth",
        "model_final.pth",
        "model_best.pth",
    } <= names
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    assert any(name.startswith("events.out.tfevents") for name in names)
    rows = metrics(trained)
    losses = {"total_loss", "loss_unknown_l1", "loss_known_l1", "loss_laplacian", "loss_gradient", "grad_norm", "lr"}
    assert {path.name for path in (trained / "pictures").iterdir()} == {"iter_0000002.jpg", "iter_0000005.jpg"}
    assert all(losses <= set(rows[iteration]) for iteration in range(6))
    assert all({f"matting/{name}" for name in METRICS} <= set(rows[iteration]) for iteration in (2, 6))
    log = (trained / "log.txt").read_text()
    assert "detectron2 " in log and "not built correctly" not in log
    assert "eta: " in log
    assert log.count(PROTOCOLS["dim"].description) == 2
    assert not LazyConfig.load(str(trained / "config.yaml")).optimizer.params.model
    assert log.count("epochs kept at 2") == 1


def test_stopped_and_resumed_equals_not_stopped(trained, data, tmp_path, capsys):
    shutil.copy(trained / "model_0000002.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    # Workers that prefetch change nothing either.
    changes = {"dataloader.train.num_workers": 2}
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path, **changes)])
    assert "Cannot find the hook" not in capsys.readouterr().out
    assert [run["start_iteration"] for run in json.loads((tmp_path / "run.json").read_text())] == [3]
    assert set(metrics(tmp_path)) == {2, 3, 4, 5, 6}  # the evaluation after 2 is made up for
    assert last_evaluation(tmp_path) == last_evaluation(trained)
    ours, theirs = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (tmp_path, trained))
    assert ours["trainer"]["samples_seen"] == theirs["trainer"]["samples_seen"] == 12
    for name, tensor in theirs["model"].items():
        assert torch.equal(ours["model"][name], tensor), name
    # The evaluation at the checkpoint's iteration is made up for: the training may have stopped before it.
    bests = [torch.load(folder / "model_best.pth", weights_only=True) for folder in (tmp_path, trained)]
    assert [(best["iteration"], best["value"]) for best in bests] == [best_evaluation(trained)[0]] * 2
    moments = [run["trainer"]["optimizer"]["state"] for run in (ours, theirs)]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[1])


def test_eval_only_gives_the_numbers_of_the_training(trained, data, tmp_path):
    weights = {"train.init_checkpoint": trained / "model_final.pth"}
    main.main(["--config-file", DEMO, "--eval-only", *overrides(data, tmp_path, **weights)])
    named = printed_evaluation((tmp_path / "log.txt").read_text())
    with hold_folder(trained, {}, lambda: None):  # of a run that goes on, say
        main.main(["--config-file", str(trained / "config.yaml"), "--eval-only", "--resume"])
    resumed = printed_evaluation((trained / "log.txt").read_text())
    assert named == resumed == last_evaluation(trained)


def test_evaluating_and_refused_runs_keep_the_config_of_the_training(trained, data, capsys):
    saved = (trained / "config.yaml").read_text()
    changes = {"train.init_checkpoint": trained / "model_final.pth", "train.seed": 7}
    main.main(["--config-file", DEMO, "--eval-only", *overrides(data, trained, **changes)])
    assert "train.precision" in refusal(2, capsys, *overrides(data, trained, **changes, **{"train.precision": "fp8"}))
    assert (trained / "config.yaml").read_text() == saved


def test_resuming_a_finished_training_says_so_and_changes_nothing(trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.suffix in (".yaml", ".json", ".pth")}
    main.main(["--config-file", str(trained / "config.yaml"), "--resume", "train.log_period=7"])
    assert capsys.readouterr().out.count("is finished: 12 of 12 samples are done") == 1
    assert {name: (trained / name).read_bytes() for name in before} == before


def test_a_stop_in_the_last_evaluation_is_made_up_for_once(trained, data, tmp_path, monkeypatch, capsys):
    # By the mode in which the last evaluation is the best, so that without it the best is another.
    first, last = (metrics(trained)[iteration]["matting/SAD"] for iteration in (2, 6))
    assert first != last
    changes = {"train.best_checkpoint.mode": "min" if last < first else "max"}
    calls = []

    def stopped_evaluation(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr("engine.hooks.evaluation.evaluate", stopped_evaluation)
    with pytest.raises(SystemExit, match="130"):
        main.main(["--config-file", DEMO, *overrides(data, tmp_path, **changes)])
    assert (
        capsys.readouterr().err == "main.py: interrupted; --resume goes on from the last checkpoint, if there is one\n"
    )
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (best["iteration"], best["value"]) == (2, first) and (tmp_path / "model_final.pth").exists()
    saved = (tmp_path / "config.yaml").read_text()

    main.main(["--config-file", str(tmp_path / "config.yaml"), "--resume"])
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (best["iteration"], best["value"]) == (5, last) and len(calls) == 3
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(best["model"][name], tensor) for name, tensor in final.items())
    assert last_evaluation(tmp_path) == last_evaluation(trained) and max(metrics(tmp_path)) == 6
    assert " iter: " not in capsys.readouterr().out.rpartition("is finished: 12 of 12 samples are done")[2]
    assert (tmp_path / "config.yaml").read_text() == saved

    main.main(["--config-file", str(tmp_path / "config.yaml"), "--resume"])
    assert len(calls) == 3


def test_a_config_saved_by_an_earlier_version_resumes(trained, tmp_path, capsys):
    cfg = LazyConfig.load(str(trained / "config.yaml"))
    del cfg.dataloader.evaluator.protocol
    del cfg.dataloader.train.prefetch_factor, cfg.dataloader.train.on_fault
    cfg.train.output_dir = str(tmp_path)
    LazyConfig.save(cfg, str(tmp_path / "earlier.yaml"))
    saved = yaml.safe_load((tmp_path / "earlier.yaml").read_text())
    for section, keys in LATER_KEYS.items():
        for key in keys:
            del saved[section][key]
    text = yaml.safe_dump(saved)
    text = re.sub(r",\$\{(train)?\.accumulation\}", "", text)
    (tmp_path / "earlier.yaml").write_text(text)
    shutil.copy(trained / "model_0000002.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    main.main(["--config-file", str(tmp_path / "earlier.yaml"), "--resume", "train.timeout_s=77"])
    assert LazyConfig.load(str(tmp_path / "config.yaml")).train.timeout_s == 77
    assert last_evaluation(tmp_path) == last_evaluation(trained)
    assert "No best weights are kept: train.best_checkpoint names no metric" in capsys.readouterr().out
    assert not (tmp_path / "model_best.pth").exists()


def test_a_run_needs_neither_a_test_set_nor_a_best_checkpoint(data, tmp_path):
    for folder, setting in (("a", "dataloader.test"), ("b", "train.best_checkpoint")):
        changes = {setting: "null", "train.max_iter": 3}
        main.main(["--config-file", DEMO, *overrides(data, tmp_path / folder, **changes)])
        assert not (tmp_path / folder / "model_best.pth").exists()
    assert set(metrics(tmp_path / "a")) == {0, 1, 2} and "matting/SAD" in metrics(tmp_path / "b")[3]


def test_the_weights_of_the_lowest_sad_stay_and_give_it_again(data, tmp_path):
    """At this rate the network gets worse; `max_to_keep` removes periodic checkpoints, not the best."""
    changes = {"train.eval_period": 1, "train.checkpointer.max_to_keep": 1, "optimizer.lr": 0.1}
    main.main(["--config-file", DEMO, *overrides(data, tmp_path, **changes)])
    (iteration, sad), evaluated = best_evaluation(tmp_path)
    assert evaluated == list(range(6)) and iteration < 5
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (best["iteration"], best["metric"], best["value"]) == (iteration, "matting/SAD", sad)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "model_best.pth",
        "model_0000005.pth",
        "model_final.pth",
    }

    weights = {"train.init_checkpoint": tmp_path / "model_best.pth"}
    main.main(["--config-file", DEMO, "--eval-only", *overrides(data, tmp_path / "alone", **weights)])
    alone = printed_evaluation((tmp_path / "alone" / "log.txt").read_text())
    row = metrics(tmp_path)[iteration]
    assert alone == {name: round(row[f"matting/{name}"], 4) for name in METRICS}


def test_predictions_are_written_on_request_and_measure_the_same(trained, data, tmp_path):
    changes = {
        "train.init_checkpoint": trained / "model_best.pth",
        "dataloader.evaluator.output_dir": tmp_path / "pred",
    }
    main.main(["--config-file", DEMO, "--eval-only", *overrides(data, tmp_path, **changes)])
    log = (tmp_path / "log.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "pred").iterdir()) == ["0.png", "1.png", "2.png"]
    rows = evaluate_folders(tmp_path / "pred", data / "alpha", data / "trimap").rows
    expected = average(rows.values())
    assert printed_evaluation(log) == {name: round(value, 4) for name, value in expected.items()}
    assert format_table([{"images": 3, **expected}]) in log and PROTOCOLS["dim"].description in log
    assert torch.load(trained / "model_best.pth", weights_only=True)["value"] == expected["SAD"]


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        ([], {"train.init_checkpoint": "absent.pth"}, "no checkpoint 'absent.pth'"),
        ([], {"dataloader.train.dataset.background_dirs": "[nowhere]"}, "nowhere"),
        ([], {"dataloader.test.dataset.image_dir": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_missing_is_one_message_and_status_1(arguments, changes, words, data, tmp_path, capsys):
    assert words in refusal(1, capsys, *arguments, *overrides(data, tmp_path / "out", **changes))


def test_every_missing_folder_of_training_and_test_set_is_named_at_once(data, tmp_path, capsys):
    changes = {
        "dataloader.train.dataset.foreground_dirs": f"[{data}/rgba,no_foregrounds]",
        "dataloader.train.dataset.background_dirs": "[no_backgrounds]",
        "dataloader.test.dataset.trimap_dir": "no_trimaps",
        "dataloader.test.dataset.alpha_dir": "no_alphas",
    }
    message = refusal(1, capsys, *overrides(data, tmp_path / "out", **changes))
    missing = [line.strip() for line in message.splitlines() if line.startswith("  no_")]
    assert missing == ["no_foregrounds", "no_backgrounds", "no_trimaps", "no_alphas"]
    assert "dataloader.test=null" in message


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (["--eval-only"], {}, "nothing to evaluate: name trained weights by train.init_checkpoint=FILE"),
        (["--eval-only", "--resume"], {}, "nothing to evaluate: no checkpoint in"),
        (["--eval-only"], {"dataloader.test": "null"}, "dataloader.test is null"),
        ([], {"model.backbone.num_heads": 5}, "not divisible by 5 heads"),
        ([], {"model.backbone.drop_path_rate": 2}, "drop_path_rate must be at least 0 and below 1, got 2"),
        ([], {"dataloader.evaluator.protocol": "sad"}, "protocol must be one of dim, float, whole, got 'sad'"),
        ([], {"lr_multiplier.scheduler.kind": "linear"}, "lr_multiplier.scheduler cannot be built of its settings: "),
        ([], {"train.sharded_blocks": "backbone"}, "must be empty or name a list of modules (backbone.blocks, "),
        ([], {"train.checkpointer.period": 0}, "train.checkpointer.period must be at least 1, got 0"),
        ([], {"train.precision": "fp8"}, "train.precision must be one of"),
        ([], {"train.batch_norm": "group"}, "train.batch_norm must be one of own, sync, frozen"),
        ([], {"train.ema_decay": 2}, "train.ema_decay must be in"),
        ([], {"train.clip_norm": -1}, "train.clip_norm must be above 0"),
        ([], {"train.best_checkpoint.mode": "low"}, "train.best_checkpoint.mode must be min or max, got 'low'"),
        ([], {"train.best_checkpoint.metric": "ema/matting/SAD"}, "'ema/matting/SAD', but the evaluation gives"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_message_and_status_2(arguments, changes, words, data, tmp_path, capsys):
    assert words in refusal(2, capsys, *arguments, *overrides(data, tmp_path / "out", **changes))


def test_foregrounds_without_transparency_are_one_message_before_anything_starts(data, tmp_path, capsys):
    changes = {"dataloader.train.dataset.foreground_dirs": f"[{data}/backgrounds]"}
    assert "has no transparency" in refusal(1, capsys, *overrides(data, tmp_path, **changes))
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("arguments", [[], ["--eval-only"]], ids=["train", "eval-only"])
def test_evaluating_without_ground_truth_is_one_message_before_anything_starts(
    trained, data, tmp_path, capsys, arguments
):
    changes = {"train.init_checkpoint": trained / "model_final.pth", "dataloader.test.dataset.alpha_dir": "null"}
    message = refusal(1, capsys, *arguments, *overrides(data, tmp_path, **changes))
    assert ": expected a test batch with its ground truth" in message and "set alpha_dir" in message
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "config.yaml").exists()


def test_initial_weights_instead_of_trained_ones_are_no_evaluation(trained, data, tmp_path, capsys):
    weights = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    initial = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.")}
    torch.save({"model": initial}, tmp_path / "initial.pth")
    changes = {"train.init_checkpoint": tmp_path / "initial.pth"}
    message = refusal(1, capsys, "--eval-only", *overrides(data, tmp_path / "out", **changes))
    assert message.endswith(
        "name trained weights by train.init_checkpoint=FILE, or take the run's last checkpoint by --resume\n"
    )


def test_a_metric_that_nothing_gives_is_one_message_before_anything_starts(data, tmp_path, capsys):
    changes = {"train.best_checkpoint.metric": "matting/SDA"}
    names = ", ".join(f"matting/{name}" for name in METRICS)
    message = refusal(2, capsys, *overrides(data, tmp_path, **changes))
    assert message.endswith(f"'matting/SDA', but the evaluation gives {names}\n")
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "config.yaml").exists()


def test_crops_too_small_for_a_loss_are_one_message(data, tmp_path, capsys):
    changes = {"dataloader.train.dataset.crop_px": 30}
    assert "the Laplacian loss needs sides of at least" in refusal(1, capsys, *overrides(data, tmp_path, **changes))


def test_a_checkpoint_of_another_network_is_one_message(trained, data, tmp_path, capsys):
    changes = {"train.init_checkpoint": trained / "model_final.pth", "model.backbone.keep_prefix_tokens": "false"}
    message = refusal(1, capsys, *overrides(data, tmp_path, **changes))
    assert "unexpected (backbone.cls_token, backbone.storage_tokens" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config-file", DEMO, "train.epoch=3"], "did you mean train.epochs?"),
        (["--config-file", DEMO, "train.world_size=3"], "follows from --num-gpus"),
        (["--config-file", DEMO, "--num-gpus", "0"], "--num-gpus must be at least 1, got 0"),
        (["--config-file", DEMO, "--num-machines", "-1"], "--num-machines must be at least 1, got -1"),
        (["--config-file", DEMO, "train.device=gpu"], "train.device must be cpu, cuda or mps, got 'gpu'"),
        (["--config-file", DEMO, "train.seed=1.5"], "train.seed must be a whole number of at least 0, got 1.5"),
        (["--config-file", DEMO, "train.seed=null"], "train.seed must be a whole number of at least 0, got None"),
        (["--config-file", DEMO, "train.log_period=0"], "train.log_period must be a whole number of at least 1, got 0"),
        (["--config-file", "absent.py"], "existing .py or .yaml file, got 'absent.py'"),
        ([], "no config: name a .py config"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_one_line_and_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and words in message


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_with_a_checkpoint_and_one_message(data, tmp_path):
    changes = {"train.device": "cpu", "dataloader.train.num_workers": 1, "train.epochs": 10_000}
    process = start_two_processes(*overrides(data, tmp_path, **changes))
    while " iter: 9 " not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.count("Stopped: SIGINT asked for the end of the run") == 1
    assert "Traceback" not in output + errors and "main.py:" not in errors
    saved = int(output.rpartition("--resume goes on from iteration ")[2].split()[0])
    assert saved >= 10 and (tmp_path / f"model_{saved - 1:07d}.pth").is_file()


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_and_evaluate_together(data, tmp_path):
    # A rate at which BatchNorm's statistics, of which each process has its own, show in the numbers.
    train_in_two_processes(*overrides(data, tmp_path, **{"train.device": "cpu", "optimizer.lr": 0.05}))
    assert "world_size: 2" in (tmp_path / "config.yaml").read_text()
    rows = metrics(tmp_path)
    # 6 samples are 2 iterations of 2 x 2, so 2 epochs are 4.
    assert [iteration for iteration in rows if "total_loss" in rows[iteration]] == [0, 1, 2, 3]
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["trainer"]["samples_seen"] == 16
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (best["iteration"], best["value"]) == best_evaluation(tmp_path)[0]
    # The checkpoint gives the same numbers in one process as its training did in two.
    changes = {"train.init_checkpoint": tmp_path / "model_final.pth", "train.device": "cpu"}
    # Another number of threads may move a prediction from one of 256 values to the next.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main.main(["--config-file", DEMO, "--eval-only", *overrides(data, tmp_path / "alone", **changes)])
    torch.set_num_threads(num_threads)
    alone = printed_evaluation((tmp_path / "alone" / "log.txt").read_text())
    assert alone == last_evaluation(tmp_path)


@pytest.mark.slow
def test_two_processes_that_miss_the_data_end_with_status_1(data, tmp_path):
    changes = {"train.device": "cpu", "dataloader.train.dataset.background_dirs": "[nowhere]"}
    ended = run_two_processes(*overrides(data, tmp_path, **changes))
    assert ended.returncode == 1
    assert "main.py: The data set is not there" in ended.stderr and "Traceback" not in ended.stderr
