"""main.py with a sharded network: two processes train and evaluate as under DDP, and one goes on from their folder."""

import pytest
import torch

import main
from tests.helpers.main_command import refusal, train_in_two_processes
from tests.helpers.paths import DEMO
from tests.helpers.training import last_evaluation, metrics, overrides, printed_evaluation

pytestmark = pytest.mark.slow


def test_main_trains_a_sharded_network_as_a_whole_one(data, tmp_path, capsys):
    changes = {
        "train.device": "cpu",
        "train.ema_decay": 0.5,
        "train.checkpointer.max_to_keep": 1,
        "train.best_checkpoint.metric": "ema/matting/SAD",
        "model.backbone.use_activation_checkpointing": "true",
        "model.num_frozen_blocks": 1,
    }
    for folder, blocks in (("whole", "''"), ("sharded", "backbone.blocks")):
        train_in_two_processes(*overrides(data, tmp_path / folder, **changes, **{"train.sharded_blocks": blocks}))
    sharded, whole = (metrics(tmp_path / folder) for folder in ("sharded", "whole"))
    assert sharded.keys() == whole.keys()
    for iteration, row in whole.items():
        for name in row:
            if "loss" in name or name in ("grad_norm", "lr") or "matting/" in name:
                assert sharded[iteration][name] == pytest.approx(row[name], rel=1e-5), (iteration, name)
    folders = {path.name for path in (tmp_path / "sharded").iterdir() if path.name.startswith("model_")}
    assert folders == {"model_0000003", "model_final", "model_final.pth", "model_best.pth", "model_final_ema.pth"}
    for name in ("model_best.pth", "model_final_ema.pth"):
        one, other = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("sharded", "whole"))
        torch.testing.assert_close(one["model"], other["model"], rtol=0, atol=1e-6)
        assert one["iteration"] == other["iteration"]

    settings = {**changes, "train.sharded_blocks": "backbone.blocks"}
    plain = {**settings, "train.init_checkpoint": tmp_path / "sharded" / "model_final.pth"}
    main.main(["--config-file", DEMO, "--eval-only", *overrides(data, tmp_path / "alone", **plain)])
    alone = printed_evaluation((tmp_path / "alone" / "log.txt").read_text())
    raw = {name: value for name, value in last_evaluation(tmp_path / "sharded").items() if "/" not in name}
    assert alone == pytest.approx(raw, rel=1e-3)

    more = {**settings, "dataloader.train.batch_size": 4, "train.epochs": 3}
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path / "sharded", **more)])
    rows = metrics(tmp_path / "sharded")
    assert {iteration for iteration in rows if "total_loss" in rows[iteration]} >= set(range(6))
    assert "Starting training from iteration 4" in (tmp_path / "sharded" / "log.txt").read_text()
    message = refusal(1, capsys, "--resume", *overrides(data, tmp_path / "sharded", **changes))
    assert "is a folder, and neither" in message and "gather_checkpoint" in message
