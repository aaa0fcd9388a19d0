"""engine.checkpoint.output_folders and main.py: folders that a run locks, and a resume that finds nothing."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from engine.checkpoint.output_folders import _end_at_once, check_resume, hold_outputs
from engine.config.config import apply_overrides, load_config, save_config
from engine.interrupts import OutputError
from engine.logging.run_record import RECORD_NAME, is_restarted
from runtime.dist_env import describe_tasks
from runtime.errors import ConfigError
from runtime.folder_lock import LOCK_NAME, hold_folder
from tests.helpers.main_command import at_iteration, refusal, stopped
from tests.helpers.paths import DEMO
from tests.helpers.training import overrides

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


def config(output, predictions=None):
    return OmegaConf.create(
        {"train": {"output_dir": str(output)}, "dataloader": {"evaluator": {"output_dir": predictions}}}
    )


@pytest.mark.parametrize(
    ("is_evaluation", "predictions", "held"),
    [
        (False, None, {"out"}),
        (False, "seen", {"out", "seen"}),
        (False, "../x/out", {"out"}),  # one folder by two names
        (True, None, set()),
        (True, "seen", {"seen"}),
    ],
)
def test_a_run_holds_the_folders_that_it_writes_to(is_evaluation, predictions, held, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    with hold_outputs(config("out", predictions), is_evaluation):
        assert {path.parent.name for path in (tmp_path / "x").glob(f"*/{LOCK_NAME}")} == held
    assert not [*(tmp_path / "x").glob(f"*/{LOCK_NAME}")]


def test_a_config_without_an_evaluator_is_held_too(tmp_path):
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path)}, "dataloader": {"evaluator": None}})
    with hold_outputs(cfg, is_evaluation=False):
        assert (tmp_path / LOCK_NAME).exists()


def test_all_processes_know_that_the_main_one_was_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.output_folders.comm.is_main_process", lambda: False)
    monkeypatch.setattr("engine.checkpoint.output_folders.comm.all_gather", lambda own: ["in use", own])
    with pytest.raises(OutputError, match="in use"), hold_outputs(config(tmp_path / "out"), is_evaluation=False):
        raise AssertionError("the block is not entered")
    assert not (tmp_path / "out").exists()


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(data, tmp_path, monkeypatch, capsys):
    changes = overrides(data, tmp_path)
    with hold_folder(tmp_path, {}, lambda: None):
        message = refusal(6, capsys, *changes)
        assert f"{tmp_path} is in use by process " in message and "take another folder" in message
        assert message.count("\n") == 1
        monkeypatch.setenv("SLURM_NTASKS", "4")
        with pytest.raises(OutputError, match="SLURM_NTASKS=4"), hold_outputs(config(tmp_path), is_evaluation=False):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_run_that_stood_still_and_lost_its_folder_writes_nothing_more(monkeypatch):
    ended = []
    monkeypatch.setattr("engine.checkpoint.output_folders.os._exit", ended.append)
    _end_at_once()
    assert ended == [OutputError.status]


def test_a_run_releases_its_folder_by_a_stop_and_warns_of_tasks_beside_it(data, tmp_path, monkeypatch, capsys):
    def stop(_):
        assert (tmp_path / LOCK_NAME).exists()
        raise OutputError("enough")

    at_iteration(monkeypatch, 0, stop)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert stopped("--resume", *overrides(data, tmp_path, **{"dataloader.test": "null"})) == 6
    assert not (tmp_path / LOCK_NAME).exists()
    output, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in (output, log):
        assert text.count("OMPI_COMM_WORLD_SIZE=2 says that several tasks were started") == 1
        assert text.count(f"There is no checkpoint in {tmp_path} to resume from: a new run starts") == 1


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, ""),
        ({"SLURM_NTASKS": "1", "PMI_SIZE": ""}, ""),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2"),
        ({"PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2, PMI_SIZE=2"),
        ({"SLURM_NTASKS": "2", "WORLD_SIZE": "2"}, ""),
    ],
)
def test_variables_of_slurm_and_mpi_that_contradict_a_single_process_are_named(environment, named):
    assert describe_tasks(environment).partition(" says")[0] == named


def test_a_resume_by_the_config_of_a_moved_run_is_refused(tmp_path, monkeypatch):
    moved, gone = tmp_path / "moved", tmp_path / "gone"
    moved.mkdir()
    for name in ("config.yaml", "config.yml"):
        with pytest.raises(ConfigError, match=f"train.output_dir={gone}, .*add train.output_dir={moved}"):
            check_resume(config(gone), moved / name)
    check_resume(config(gone), tmp_path / "demo.py")  # a first start by a scheduler's script
    check_resume(config(moved), moved / "config.yaml")
    monkeypatch.chdir(tmp_path)
    check_resume(config("moved"), moved / "config.yaml")
    for name in ("last_checkpoint", "model_final.pth", "model_0000003.pth", "model_0000003"):
        gone.mkdir()
        (gone / name).touch()
        check_resume(config(gone), moved / "config.yaml")
        shutil.rmtree(gone)
    gone.mkdir()
    for name in ("model_best.pth", "model_final_of_earlier_training_1.pth", "log.txt", "config.yaml"):
        (gone / name).touch()
    with pytest.raises(ConfigError, match="finds no checkpoint"):
        check_resume(config(gone), moved / "config.yaml")
    with pytest.raises(ConfigError, match="add 'train.output_dir=.*/moved again'"):
        check_resume(config(gone), tmp_path / "moved again" / "config.yaml")


@pytest.mark.parametrize("more", [(), ("--eval-only",)])
def test_a_misspelt_output_folder_is_wrong_usage_and_is_not_made(data, tmp_path, capsys, more):
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(data, tmp_path / "right"))
    (tmp_path / "right").mkdir()
    save_config(cfg, tmp_path / "right" / "config.yaml")
    path = str(tmp_path / "right" / "config.yaml")
    message = refusal(2, capsys, "--config-file", path, "--resume", *more, f"train.output_dir={tmp_path / 'wrong'}")
    assert f"train.output_dir={tmp_path / 'wrong'}" in message and message.count("\n") == 1
    assert not (tmp_path / "wrong").exists()


def test_a_run_that_a_launcher_starts_again_is_known_by_its_record(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not is_restarted(tmp_path)
    for jobs, is_own in (({"TORCHELASTIC_RUN_ID=b": 0}, False), ({}, False), ({"TORCHELASTIC_RUN_ID=a": 0}, True)):
        (tmp_path / RECORD_NAME).write_text(json.dumps([{"jobs": {"TORCHELASTIC_RUN_ID=a": 0}}, {"jobs": jobs}]))
        assert is_restarted(tmp_path) is is_own
    (tmp_path / RECORD_NAME).write_text('[{"seed": 0}]')  # of an earlier version
    assert not is_restarted(tmp_path)
