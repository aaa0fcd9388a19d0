"""What a resume takes of a checkpoint and what of its config: settings of the optimiser, groups, later keys."""

import copy

import pytest
import torch
from detectron2.engine import hooks
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch.utils.data import DataLoader

from engine.checkpoint.file import Checkpointer, CheckpointError
from engine.lr_scheduler import GroupedMultiplier
from engine.optimizer import build_adamw
from engine.trainer import Trainer
from tests.helpers.networks import tiny_trainable
from tests.helpers.sharding import NumberedImages
from tests.helpers.toy_training import Stream, toy_training, trained_toy

CHANGED = {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.2}

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def resumed_with(folder, settings):
    """A training run whose optimiser has other settings, gone on with after six steps."""
    trainer, checkpointer, losses = toy_training(folder)
    trainer.optimizer.param_groups[0].update(settings)
    checkpointer.load(str(folder / "model_0000005.pth"))
    return trainer, losses


def test_a_resume_takes_the_moments_and_its_own_settings_of_the_optimiser(tmp_path):
    _, whole = trained_toy(tmp_path)
    trainer, losses = resumed_with(tmp_path, CHANGED)
    saved = torch.load(tmp_path / "model_0000005.pth", weights_only=True)["trainer"]["optimizer"]["state"]
    torch.testing.assert_close(trainer.optimizer.state_dict()["state"], saved, rtol=0, atol=0)
    by_hand = copy.deepcopy(trainer.model)
    (group,) = trainer.optimizer.param_groups
    trainer.train(trainer.next_iteration, 12)
    assert {name: group[name] for name in ("betas", "weight_decay")} == {"betas": (0.8, 0.95), "weight_decay": 0.2}
    rates, rates_before = ([run.by_iteration[i][3] for i in range(6, 12)] for run in (losses, whole))
    assert rates == pytest.approx([3 * rate for rate in rates_before])

    # The same steps by an optimiser that never had other settings, the moments handed over.
    optimizer = torch.optim.AdamW(by_hand.parameters(), fused=True, **CHANGED)
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    alone = Trainer(by_hand, toy_training(tmp_path)[0].data_loader, optimizer, seed=3)
    alone.samples_seen = 24
    for iteration, rate in enumerate(rates, 6):
        optimizer.param_groups[0]["lr"] = rate
        alone.train(iteration, iteration + 1)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(by_hand.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_a_resume_takes_its_own_start_of_a_group(tmp_path):
    trained_toy(tmp_path)
    trainer, _ = resumed_with(tmp_path, {"start": 0.75})
    rates = GroupedMultiplier(trainer.optimizer, ConstantParamScheduler(1.0), 12, last_iter=5)
    found = [rates.get_last_lr()[0]]
    for _ in range(5):
        rates.step()
        found += rates.get_last_lr()
    assert found == [0, 0, 0, 0.01, 0.01, 0.01]


def scaled_training(folder):
    """A run with random sizes of the backbone's copy that saves after 3 steps, and the widths that its backbone saw."""
    folder.mkdir(exist_ok=True)
    model = tiny_trainable(backbone_scale_range=(0.25, 1.0))
    widths = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[-1]))
    optimizer = build_adamw([{"params": list(model.parameters())}], 1e-3, (0.9, 0.999), 0.1)
    trainer = Trainer(model, DataLoader(NumberedImages(), 2, sampler=Stream(2)), optimizer, seed=3)
    checkpointer = Checkpointer(model, str(folder), trainer=trainer)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 3)])
    return trainer, checkpointer, widths


def test_a_resume_draws_the_same_sizes_of_the_backbones_copy(tmp_path):
    whole, _, widths = scaled_training(tmp_path)
    whole.train(0, 6)
    assert len(widths) == 6 and len(set(widths[:3])) > 1 and len(set(widths[3:])) > 1
    torch.rand(17)  # another process would stand elsewhere in its random numbers
    trainer, checkpointer, resumed_widths = scaled_training(tmp_path / "resumed")
    checkpointer.load(str(tmp_path / "model_0000002.pth"))
    trainer.train(trainer.next_iteration, 6)
    assert resumed_widths == widths[3:]
    for (name, tensor), other in zip(
        whole.model.state_dict().items(), trainer.model.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name


def test_groups_that_do_not_fit_are_told_of_with_the_file_and_what_to_do(tmp_path):
    trained_toy(tmp_path)
    trainer, checkpointer, _ = toy_training(tmp_path)
    trainer.optimizer.param_groups[0]["params"].pop()  # as if it were frozen
    path = tmp_path / "model_0000005.pth"
    with pytest.raises(CheckpointError) as error:
        checkpointer.load(str(path))
    message = str(error.value)
    assert message.startswith(
        f"{path}: its trainer does not fit this training (the optimiser had groups of [6] tensors"
    )
    assert f"train.init_checkpoint={path}" in message and "\n" not in message


def test_all_processes_resume_from_what_the_main_one_finds(tmp_path, monkeypatch):
    _, checkpointer, _ = toy_training(tmp_path)
    checkpointer.save("model_0000005")
    told = {list: [tmp_path / "model_0000001.pth"], str: ""}
    monkeypatch.setattr("engine.checkpoint.file.comm.is_main_process", lambda: False)
    monkeypatch.setattr("engine.checkpoint.file.comm.all_gather", lambda own: [told[type(own)], own])
    assert checkpointer.find_last() == str(tmp_path / "model_0000001.pth")
    told[str] = "it is damaged"
    with pytest.raises(CheckpointError, match="it is damaged"):
        checkpointer.find_last()
