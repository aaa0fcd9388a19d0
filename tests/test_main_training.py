"""What a config says of the step and of averages, by main.py on a tiny network: files, names, numbers, a resume."""

import json

import pytest
import torch

import main
from configs.common.train import train
from engine.checkpoint.file import read_checkpoint
from engine.config.config import apply_overrides, load_config
from engine.config.migration import LATER_KEYS
from engine.run import build_networks, check_compiler
from runtime.errors import ConfigError
from tests.helpers.main_command import refusal
from tests.helpers.paths import DEMO
from tests.helpers.training import metrics, overrides, printed_evaluation

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


AVERAGED = {
    "train.ema_decay": 0.6,
    "train.batch_norm": "frozen",
    "train.accumulation": 2,
    "train.clip_norm": 0.5,
    "dataloader.train.batch_size": 1,
    "train.best_checkpoint.metric": "ema/matting/SAD",
    "train.device": "cpu",
}


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory):
    """Output folder of a training run with everything that `AVERAGED` says."""
    output = tmp_path_factory.mktemp("averaged")
    main.main(["--config-file", DEMO, *overrides(data, output, **AVERAGED)])
    return output


def test_both_networks_are_evaluated_and_the_weights_kept_are_those_of_the_metric(averaged, data, tmp_path, capsys):
    rows = metrics(averaged)
    assert set(range(6)) <= rows.keys()  # 12 samples, two batches of one each
    sad = {iteration: rows[iteration]["ema/matting/SAD"] for iteration in (2, 6)}
    assert all(abs(rows[iteration]["matting/SAD"] - value) > 1e-6 for iteration, value in sad.items())
    best, last, final = (
        read_checkpoint(averaged / f"{name}.pth") for name in ("model_best", "model_final", "model_final_ema")
    )
    assert best["metric"] == "ema/matting/SAD" and best["value"] == pytest.approx(min(sad.values()))
    assert best["iteration"] == (2 if sad[2] <= sad[6] else 5)
    assert final["iteration"] == 5
    averages = {name.removeprefix("module."): value for name, value in last["ema"].items()}
    assert averages.pop("n_averaged") == 6
    torch.testing.assert_close(final["model"], averages, rtol=0, atol=0)
    if best["iteration"] == 2:
        ema = read_checkpoint(averaged / "model_0000002.pth")["ema"]
        averages_then = {name.removeprefix("module."): value for name, value in ema.items() if name != "n_averaged"}
    else:
        averages_then = averages
    torch.testing.assert_close(best["model"], averages_then, rtol=0, atol=0)
    assert not torch.equal(averages["backbone.cls_token"], last["model"]["backbone.cls_token"])

    checkpoint = averaged / "model_final_ema.pth"
    only = overrides(data, tmp_path, **AVERAGED, **{"train.init_checkpoint": checkpoint})
    main.main(["--config-file", DEMO, "--eval-only", *only])
    assert printed_evaluation(capsys.readouterr().out)["SAD"] == pytest.approx(sad[6], abs=1e-4)


def test_a_resume_goes_on_with_the_average(averaged, data, tmp_path):
    for name in ("model_0000002.pth", "config.yaml", "last_evaluation"):
        (tmp_path / name).write_bytes((averaged / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "metrics.json").write_text(json.dumps(metrics(averaged)[2]) + "\n")
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path, **AVERAGED)])
    whole, resumed = (read_checkpoint(folder / "model_final.pth") for folder in (averaged, tmp_path))
    for part in ("model", "ema"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)
    assert metrics(tmp_path)[6]["ema/matting/SAD"] == metrics(averaged)[6]["ema/matting/SAD"]


@pytest.mark.parametrize("blocks", ["''", "backbone.blocks"], ids=["file", "folder"])
def test_an_average_that_a_resume_asks_for_first_starts_from_the_weights(data, tmp_path, capsys, blocks):
    changes = {"train.device": "cpu", "train.sharded_blocks": blocks, "dataloader.test": "null"}
    main.main(["--config-file", DEMO, *overrides(data, tmp_path, **changes)])
    last = (tmp_path / "last_checkpoint").read_text().replace("final", "0000002")
    (tmp_path / "last_checkpoint").write_text(last)
    changes |= {"train.ema_decay": 0.9, "train.max_iter": 3}  # no step is left that would move the average
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path, **changes)])
    assert f"{tmp_path / last} has no average of weights" in capsys.readouterr().out
    average, final = (read_checkpoint(tmp_path / f"model_final{end}.pth")["model"] for end in ("_ema", ""))
    torch.testing.assert_close(average, final, rtol=0, atol=0)


def test_the_norm_of_gradients_and_the_count_of_skipped_steps_are_written(averaged):
    rows = metrics(averaged)
    assert all(rows[iteration]["grad_norm"] > 0 and rows[iteration]["skipped_steps"] == 0 for iteration in range(6))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.accumulation=0", "train.accumulation must be a whole number of at least 1, got 0"),
        ("train.accumulation=1.5", "train.accumulation must be a whole number of at least 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_one_line(data, tmp_path, capsys, override, message):
    said = refusal(2, capsys, *overrides(data, tmp_path), override)
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--eval-only"]], ids=["train", "eval-only"])
def test_both_ways_round_products_as_the_precision_says(data, tmp_path, monkeypatch, capsys, arguments):
    def look(*_):
        raise FileNotFoundError(f"TF32: {torch.backends.cuda.matmul.allow_tf32}")

    monkeypatch.setattr("engine.run.build_section", look)
    monkeypatch.setattr("engine.run.build_data", look)
    for precision in ("tf32", "float32"):
        changes = overrides(data, tmp_path, **{"train.precision": precision})
        assert f"TF32: {precision == 'tf32'}" in refusal(1, capsys, *arguments, *changes)


def test_what_earlier_configs_lack_is_what_a_config_says_by_default():
    """But for what was not done at all before there was the setting."""
    cfg = load_config(DEMO)
    differing = {key for key, value in LATER_KEYS["train"].items() if train[key] != value}
    assert differing == {"best_checkpoint", "pictures"} and cfg.train.keys() == train.keys()


def test_a_training_without_finite_losses_stops_with_its_batch(data, tmp_path, capsys):
    nan = {"model.criterion.weights.loss_gradient": "nan", "train.device": "cpu"}
    with pytest.raises(SystemExit) as ended:
        main.main(["--config-file", DEMO, *overrides(data, tmp_path, **nan)])
    assert ended.value.code == 4
    log = (tmp_path / "log.txt").read_text()
    assert "Stopped: 5 iterations in a row were not finite" in log and "Traceback" not in log
    (batch_file,) = tmp_path.glob("not_finite_*")
    assert batch_file.name == "not_finite_0000004_process_0.pth"
    (batch,) = torch.load(batch_file, weights_only=True)["batches"]
    assert batch["image"].shape == (2, 3, 64, 64) and "alpha" in batch
    kept = read_checkpoint(tmp_path / "model_0000004.pth")
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())
    assert kept["trainer"]["samples_seen"] == 10
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path)])
    assert metrics(tmp_path)[5]["skipped_steps"] == 5


def test_on_cuda_batch_norm_is_synchronised_by_torchs_own(data, tmp_path, monkeypatch):
    cfg = load_config(DEMO)
    apply_overrides(cfg, [*overrides(data, tmp_path), "train.device=cuda", "train.batch_norm=sync"])
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)  # there may be no such device
    model, _ = build_networks(cfg)
    kinds = {type(module) for module in model.modules() if "BatchNorm" in type(module).__name__}
    assert kinds == {torch.nn.SyncBatchNorm}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiling_without_a_compiler_is_one_line_at_the_start(device, tmp_path, monkeypatch):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=f"^train.compile=true needs a compiler on train.device={device}, and there"):
        check_compiler(device)
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(0o755)
    check_compiler(device)
    monkeypatch.setenv("CC", "absent -v")
    monkeypatch.setenv("CXX", "absent -v")
    with pytest.raises(ConfigError, match="there is no 'absent -v'"):
        check_compiler(device)
