"""The trainer, its checkpoints and its processes on a toy model: exact resume, precisions, several processes."""

from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils import comm
from omegaconf import OmegaConf

from engine.checkpoint.file import Checkpointer, CheckpointError, load_weights, read_checkpoint
from engine.distributed.launch import share_buffers
from engine.optimizer import build_adamw
from engine.trainer import step_seed
from tests.helpers.toy_training import Toy, in_two_processes, toy_training, trained_toy

# In fp16 the scaler skips first steps until its scale fits, and torch suspects a mistake.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def test_stopped_and_resumed_equals_not_stopped(tmp_path):
    whole, whole_losses = trained_toy(tmp_path)
    torch.rand(17)  # another process would stand elsewhere in its random numbers
    trainer, checkpointer, losses = toy_training(tmp_path / "resumed")
    checkpointer.load(str(tmp_path / "model_0000005.pth"))
    assert trainer.next_iteration == 6 and trainer.samples_seen == 24
    trainer.train(trainer.next_iteration, 12)

    assert list(losses.by_iteration) == list(range(6, 12))
    assert losses.by_iteration.items() <= whole_losses.by_iteration.items()
    assert trainer.data_loader.dataset.asked[:24] == whole.data_loader.dataset.asked[24:48]
    for (name, tensor), other in zip(
        whole.model.state_dict().items(), trainer.model.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert len({total for _, _, total, _ in whole_losses.by_iteration.values()}) == 12


def test_another_batch_size_goes_on_in_the_same_stream_and_schedule(tmp_path, caplog):
    trained_toy(tmp_path)
    trainer, checkpointer, losses = toy_training(tmp_path, batch_size=2, max_iter=24)
    checkpointer.load(str(tmp_path / "model_0000005.pth"))
    assert trainer.next_iteration == 12
    trainer.train(trainer.next_iteration, 14)
    assert trainer.data_loader.dataset.asked[:4] == [24, 25, 26, 27]
    assert trainer.samples_seen == 28


def test_what_a_step_draws_depends_on_seed_iteration_and_rank():
    seeds = {step_seed(seed, iteration, rank) for seed in range(3) for iteration in range(200) for rank in range(3)}
    assert len(seeds) == 1800
    assert step_seed(0, 0, 0) == step_seed(0, 0, 0)
    # Had they more bits, torch's CPU generator would drop them and seeds apart would be the same.
    assert max(seeds) < 2**32
    torch.manual_seed(1)
    one = torch.rand(3)
    torch.manual_seed(2**32 + 1)
    assert torch.equal(one, torch.rand(3))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_near_float32_and_keeps_float32_weights(tmp_path, precision):
    seen = []
    hook = hooks.CallbackHook(before_train=lambda trainer: trainer.model.hidden.register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)))  # fmt: skip
    exact, exact_losses = trained_toy(tmp_path)
    trainer, losses = trained_toy(tmp_path, precision=precision, hooks_too=[hook])
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert trainer.model.hidden.weight.dtype == torch.float32
    total, exact_total = (run.by_iteration[0][2] for run in (losses, exact_losses))
    assert total != exact_total and total == pytest.approx(exact_total, rel=0.01)
    torch.manual_seed(0)
    assert not torch.equal(trainer.model.hidden.weight, Toy().hidden.weight)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_training_on_cuda_stops_and_resumes_as_on_the_cpu(tmp_path, precision):
    whole, whole_losses = trained_toy(tmp_path, precision=precision, device="cuda")
    trainer, checkpointer, losses = toy_training(tmp_path / "resumed", precision=precision, device="cuda")
    checkpointer.load(str(tmp_path / "model_0000005.pth"))
    trainer.train(trainer.next_iteration, 12)
    assert trainer.model.hidden.weight.is_cuda
    assert losses.by_iteration.items() <= whole_losses.by_iteration.items()
    assert torch.equal(trainer.model.hidden.weight, whole.model.hidden.weight)


def test_fp16_scales_the_loss_and_the_scale_survives_a_resume(tmp_path):
    trainer, _ = trained_toy(tmp_path, precision="fp16")
    scale = trainer.state_dict()["grad_scaler"]
    assert scale["scale"] > 1 and scale["_growth_tracker"] > 0
    again, checkpointer, _ = toy_training(tmp_path, precision="fp16")
    checkpointer.load(checkpointer.get_checkpoint_file())
    assert again.state_dict()["grad_scaler"] == scale


def test_a_resume_may_change_the_precision(tmp_path):
    trained_toy(tmp_path)
    trainer, checkpointer, _ = toy_training(tmp_path, precision="fp16")
    checkpointer.load(str(tmp_path / "model_0000005.pth"))
    trainer.train(trainer.next_iteration, 12)


def test_a_configs_own_list_does_not_reach_the_optimizer(monkeypatch):
    # The installed torch may copy it into a tuple by itself; not every torch does.
    monkeypatch.setattr("engine.optimizer.AdamW", lambda params, **settings: settings)
    settings = build_adamw([], lr=0.01, betas=OmegaConf.create([0.9, 0.99]), weight_decay=0.1)
    assert settings == {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "fused": True}
    assert type(settings["betas"]) is tuple


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("out.bias"), r"1 missing \(out.bias\)"),
        (lambda w: w.update(head=torch.zeros(1)), r"1 unexpected \(head\)"),
        (lambda w: w.update({"out.weight": torch.zeros(1, 9)}), r"out.weight \(1, 9\), expected \(1, 8\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, change, words):
    weights = Toy().state_dict()
    change(weights)
    torch.save({"model": weights}, tmp_path / "bad.pth")
    model = Toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        Checkpointer(model, str(tmp_path)).load(str(tmp_path / "bad.pth"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_initial_weights_may_lack_what_the_config_names_and_nothing_else():
    weights = {name: tensor + 1 for name, tensor in Toy().state_dict().items() if not name.startswith("out.")}
    model = Toy()
    fresh = model.out.weight.clone()
    load_weights(model, weights, "initial", may_lack=["out."])
    assert torch.equal(model.hidden.weight, weights["hidden.weight"]) and torch.equal(model.out.weight, fresh)
    with pytest.raises(CheckpointError, match=r"initial .*2 missing \(out.weight, out.bias\).*prefix tokens"):
        load_weights(Toy(), weights, "initial", may_lack=["hidden."])


def test_weights_alone_cannot_be_resumed(tmp_path):
    torch.save({"model": Toy().state_dict()}, tmp_path / "weights.pth")
    _, checkpointer, _ = toy_training(tmp_path)
    with pytest.raises(CheckpointError, match="weights.pth lacks trainer"):
        checkpointer.load(str(tmp_path / "weights.pth"))
    checkpointer.checkpointables["ema"] = None  # what alone may be new
    with pytest.raises(CheckpointError, match="weights.pth lacks trainer, ema"):
        checkpointer.load(str(tmp_path / "weights.pth"))


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'absent.pth'.*train.init_checkpoint"):
        read_checkpoint("absent.pth")
    torch.save({"state": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth: expected a dict with 'model'.* preprocess.py"):
        read_checkpoint(tmp_path / "other.pth")
    torch.save({"model": {}, "code": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="code.pth is no checkpoint of tensors"):
        read_checkpoint(tmp_path / "code.pth")


def test_files_that_are_empty_cut_off_or_text_are_refused_in_one_line(tmp_path):
    torch.save({"model": Toy().state_dict()}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    torch.save({"model": Toy().state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    contents = [b"", b"version https://example\n", b"hello world", b"{}", whole[:100], whole[: len(whole) // 2],
                whole[:-1], *(old[:cut] for cut in range(1, len(old), 97))]  # fmt: skip
    for content in contents:
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match="bad.pth is no checkpoint of .* or cut off: [A-Za-z]") as refused:
            read_checkpoint(tmp_path / "bad.pth")
        assert "\n" not in str(refused.value)


def train_in_each_process(folder):
    """What each of two processes does: train, resume one half, compare, leave what it saw in a file."""
    assert comm.get_world_size() == 2 and torch.distributed.get_backend() == "gloo"
    torch.set_num_threads(1)
    rank = comm.get_rank()
    trainer, losses = trained_toy(folder, batch_size=2)
    resumed, checkpointer, _ = toy_training(folder / "resumed", batch_size=2)
    checkpointer.load(str(folder / "model_0000005.pth"))
    resumed.train(resumed.next_iteration, 12)
    model = trainer.model.module
    own_mean = model.norm.running_mean.clone()
    share_buffers(model)
    torch.save(
        {
            "asked": trainer.data_loader.dataset.asked,
            "weights": model.state_dict(),
            "resumed": resumed.model.module.state_dict(),
            "own_mean": own_mean,
            "losses": losses.by_iteration,
        },
        folder / f"rank{rank}.pth",
    )


def test_two_gloo_processes_train_one_model_on_one_stream(tmp_path):
    in_two_processes(train_in_each_process, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in (0, 1))
    assert sorted(first["asked"][:24] + second["asked"][:24]) == list(range(48))
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
        if name in dict(Toy().named_parameters()):
            assert torch.equal(tensor, first["resumed"][name]), name
            assert torch.equal(tensor, second["resumed"][name]), name
    # What share_buffers is for: each process has statistics of its own after a step.
    assert not torch.equal(first["own_mean"], second["own_mean"])
    assert torch.equal(first["weights"]["norm.running_mean"], first["own_mean"])
    assert len(first["losses"]) == 12 and not second["losses"]
