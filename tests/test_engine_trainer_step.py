"""A training step: what is one batch in parts, clipped, averaged or skipped, against plain loops and closed forms."""

import copy
import math

import pytest
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader

from engine.distributed.batch_norm import CpuSyncBatchNorm2d, FrozenBatchNorm2d, set_batch_norm
from engine.distributed.launch import distribute
from engine.ema import Ema
from engine.optimizer import build_adamw
from engine.trainer import NonFiniteError, Trainer, set_float32_products
from runtime.errors import ConfigError
from tests.helpers.networks import tiny_trainable
from tests.helpers.sharding import NUM_STEPS, NumberedImages
from tests.helpers.toy_training import Samples, Stream, Toy, in_two_processes


def train_pictures(batch_size, accumulation=1, batch_norm="frozen", area="image", num_steps=NUM_STEPS):
    """Train so many steps; give total losses and the tensors at the end."""
    model = set_batch_norm(tiny_trainable(area), batch_norm, "cpu")
    optimizer = build_adamw([{"params": [p for p in model.parameters() if p.requires_grad]}], 1e-3, (0.9, 0.999), 0.1)
    loader = DataLoader(
        NumberedImages(), batch_size, sampler=Stream(batch_size, comm.get_rank(), comm.get_world_size())
    )
    trainer = Trainer(distribute(model), loader, optimizer, accumulation=accumulation, clip_norm=20.0)
    trainer.train(0, num_steps)
    history = trainer.storage.history("total_loss").values()
    return {"losses": [loss for loss, _ in history], "weights": model.state_dict()}


def train_in_each_process(folder):
    """What each of two processes does."""
    torch.set_num_threads(1)
    for batch_norm in ("frozen", "sync"):
        result = train_pictures(4, batch_norm=batch_norm)
        if comm.is_main_process():
            torch.save(result, folder / f"{batch_norm}.pth")
    pooled = train_pictures(4, area="batch", num_steps=3)
    if comm.is_main_process():
        torch.save(pooled, folder / "pooled.pth")
    torch.save(skip_in_the_second(), folder / f"skipped_{comm.get_rank()}.pth")
    torch.save(normalise_own_shape(comm.get_rank()), folder / f"normalised_{comm.get_rank()}.pth")


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """The folder in which two processes left what they saw."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(train_in_each_process, folder)
    return folder


def assert_equal(one, other):
    assert one["losses"] == pytest.approx(other["losses"], rel=0, abs=1e-9)
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(tensor, other["weights"][name], rtol=0, atol=1e-9, msg=name)


@pytest.fixture(scope="module")
def whole_batches():
    """The same training by one process in batches of 8, with each kind of BatchNorm."""
    trained = {kind: train_pictures(8, batch_norm=kind) for kind in ("frozen", "own")}
    for result in trained.values():
        assert len(set(result["losses"])) == NUM_STEPS
    assert abs(trained["frozen"]["losses"][-1] - trained["own"]["losses"][-1]) > 1e-3
    return trained


def test_four_accumulated_batches_of_two_are_one_of_eight(whole_batches):
    assert_equal(train_pictures(2, accumulation=4), whole_batches["frozen"])


def test_areas_of_micro_batches_are_pooled_alike_in_one_process_and_in_several(of_two_processes):
    """Each of the two forward passes of a step counts its own area, as hustvl's code. The undivided batch differs."""
    accumulated = train_pictures(4, accumulation=2, area="batch", num_steps=3)
    assert_equal(accumulated, torch.load(of_two_processes / "pooled.pth", weights_only=True))
    assert len(accumulated["losses"]) == 3
    undivided = train_pictures(8, area="batch", num_steps=1)
    assert abs(accumulated["losses"][0] - undivided["losses"][0]) > 1e-4


class Drawing(Toy):
    """Keeps the first number that each call draws."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, batch):
        self.drawn.append(float(torch.rand(1)))
        return super().forward(batch)


def test_each_batch_of_a_step_draws_by_a_seed_of_its_own_in_each_process(monkeypatch):
    models = [Drawing(), Drawing(), Drawing()]
    for rank, model in enumerate(models, -1):
        trainer = toy_trainer(model, accumulation=3)
        with monkeypatch.context() as patch:
            patch.setattr("engine.trainer.comm.get_rank", lambda rank=rank: max(rank, 0))
            trainer.train(0, 2)
    assert models[0].drawn == models[1].drawn
    assert len({*models[0].drawn, *models[2].drawn}) == 12


def test_two_processes_with_four_samples_each_are_one_with_eight(of_two_processes, whole_batches):
    for kind, other in (("frozen", "frozen"), ("sync", "own")):
        assert_equal(torch.load(of_two_processes / f"{kind}.pth", weights_only=True), whole_batches[other])


def own_shape(rank):
    """Pixels of a process, as many as it likes, far from zero."""
    return torch.randn(1 + rank, 3, 4, 5 + rank, generator=torch.Generator().manual_seed(rank)) + 100


def normalise_own_shape(rank):
    """Normalise by all processes, in bfloat16 too, and then by what is known of them in evaluation mode."""
    norm = CpuSyncBatchNorm2d(3)
    out, low = norm(own_shape(rank)), norm(own_shape(rank).bfloat16())
    norm.load_state_dict(torch.nn.BatchNorm2d(3).state_dict())
    return {"train": out, "bfloat16": low, "eval": norm.eval()(own_shape(rank))}


def test_statistics_of_unlike_shapes_are_those_of_all_pixels_together(of_two_processes):
    found = [torch.load(of_two_processes / f"normalised_{rank}.pth", weights_only=True) for rank in (0, 1)]
    shapes = [own_shape(rank) for rank in (0, 1)]
    for name, parts in (("train", shapes), ("bfloat16", [x.bfloat16().float() for x in shapes])):
        pixels = torch.cat([x.transpose(0, 1).flatten(1) for x in parts], dim=1)
        mean, variance = (value[:, None, None] for value in (pixels.mean(1), pixels.var(1, correction=0)))
        for rank, x in enumerate(parts):
            expected = (x - mean) / (variance + 1e-5).sqrt()
            assert found[rank][name].dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
            torch.testing.assert_close(found[rank][name].float(), expected, rtol=0.005, atol=1e-3)
    for rank, x in enumerate(shapes):
        torch.testing.assert_close(found[rank]["eval"], x / (1 + 1e-5) ** 0.5, rtol=0, atol=1e-4)


def test_frozen_statistics_and_factors_stay_and_the_names_too(whole_batches):
    start, end = tiny_trainable().state_dict(), whole_batches["frozen"]["weights"]
    assert start.keys() == end.keys()
    frozen = [name for name in start if ".bn." in name or "matting_convs.1." in name]
    assert len(frozen) == 5 * 8
    assert all(torch.equal(start[name], end[name]) for name in frozen)
    moved = [name for name in start if name not in frozen and not torch.equal(start[name], end[name])]
    assert len(moved) > 40


def test_each_kind_of_batch_norm_keeps_the_mode_and_the_tensors():
    for kind, expected in (("own", torch.nn.BatchNorm2d), ("sync", CpuSyncBatchNorm2d), ("frozen", FrozenBatchNorm2d)):
        plain = tiny_trainable().eval()
        model = set_batch_norm(copy.deepcopy(plain), kind, "cpu")
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert len(norms) == 8 and all(type(norm) is expected and not norm.training for norm in norms)
        torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="train.batch_norm must be one of own, sync, frozen, got 'none'"):
        set_batch_norm(tiny_trainable(), "none", "cpu")


def toy_trainer(model=None, precision="float32", accumulation=1, **settings):
    """A trainer of a toy, without hooks."""
    if model is None:
        torch.manual_seed(0)
        model = Toy()
    optimizer = build_adamw([{"params": list(model.parameters())}], 0.01, (0.9, 0.99), 0.1)
    loader = DataLoader(Samples(), 4, sampler=Stream(4, comm.get_rank(), comm.get_world_size()))
    return Trainer(distribute(model), loader, optimizer, precision, 3, accumulation, **settings)


def one_step(trainer):
    """Do the next step."""
    trainer.train(trainer.next_iteration, trainer.next_iteration + 1)


def test_gradients_of_a_large_norm_are_scaled_down_and_the_norm_before_is_written():
    trainer = toy_trainer()
    one_step(trainer)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.model.parameters()))
    assert trainer.storage.latest()["grad_norm"][0] == pytest.approx(norm, rel=1e-6)
    clipped = toy_trainer(clip_norm=norm / 3)
    one_step(clipped)
    assert clipped.storage.latest()["grad_norm"][0] == pytest.approx(norm, rel=1e-6)
    for gradient, whole in zip(clipped.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(gradient.grad, whole.grad / 3, rtol=1e-4, atol=1e-8)


def test_the_average_follows_its_closed_form_buffers_included():
    trainer = toy_trainer()
    trainer.ema = Ema(trainer.model, decay=0.3)
    seen = []
    for _ in range(6):
        one_step(trainer)
        seen.append({name: tensor.double() for name, tensor in copy.deepcopy(trainer.model).state_dict().items()})
    expected = seen[0]
    for number, values in enumerate(seen[1:], 1):
        decay = min(0.3, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in values.items()}
    expected["norm.num_batches_tracked"] = torch.tensor(6.0, dtype=torch.float64)
    averages = trainer.ema.module.state_dict()
    assert not trainer.ema.module.training and not any(p.requires_grad for p in trainer.ema.module.parameters())
    assert {"norm.running_mean", "hidden.weight"} < averages.keys() == expected.keys()
    for name, tensor in averages.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    for decay in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="ema_decay"):
            Ema(trainer.model, decay)


class Poisoned(Toy):
    """In some of its calls something is not finite: the "input" and what follows, or "gradient" or "loss" alone."""

    def __init__(self, calls, what="input"):
        super().__init__()
        self.calls, self.what, self.count = calls, what, 0

    def forward(self, batch):
        self.count += 1
        what = self.what if self.count - 1 in self.calls else ""
        if what == "input":
            batch = {**batch, "x": batch["x"] * math.nan}  # BatchNorm's statistics would remember it
        losses = super().forward(batch)
        if what == "gradient":
            zero = sum(p.sum() for p in self.parameters()) * 0.0
            losses = {name: torch.sqrt(zero.abs()) for name in losses}  # its slope at 0 is infinite
        return {name: loss + math.inf if what == "loss" else loss for name, loss in losses.items()}


def poisoned_trainer(calls, precision="float32", accumulation=1, **options):
    """A trainer of a poisoned toy, with an average."""
    torch.manual_seed(0)
    model = Poisoned(calls, **options)
    return toy_trainer(model, precision, accumulation, ema=Ema(model, 0.5))


def everything(trainer):
    """What a skipped step must not touch."""
    state = trainer.optimizer.state_dict()["state"]
    return copy.deepcopy((trainer.model.state_dict(), trainer.ema.state_dict(), state))


@pytest.mark.parametrize("what", ["input", "gradient", "loss"])
@pytest.mark.parametrize(("calls", "accumulation"), [({1}, 1), ({3}, 2)])
def test_a_step_that_is_not_finite_changes_nothing_is_counted_and_passes_over_its_samples(what, calls, accumulation):
    trainer = poisoned_trainer(calls, accumulation=accumulation, what=what)
    one_step(trainer)
    before = everything(trainer)
    one_step(trainer)
    torch.testing.assert_close(everything(trainer), before, rtol=0, atol=0)
    assert trainer.skipped_steps == 1
    assert trainer.samples_seen == 2 * 4 * accumulation
    written = trainer.storage.latest()
    assert written["skipped_steps"][0] == 1
    assert all(math.isfinite(value) for value, _ in written.values())
    one_step(trainer)
    assert trainer.skipped_steps == 1
    assert not torch.equal(trainer.model.hidden.weight, before[0]["hidden.weight"])
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_five_in_a_row_stop_and_bring_the_batch_four_do_not():
    poisoned_trainer({1, 2, 3, 4, 6, 7, 8, 9}).train(0, 12)
    trainer = poisoned_trainer({2, 3, 4, 5, 6})
    with pytest.raises(NonFiniteError, match="5 iterations in a row were not finite") as caught:
        trainer.train(0, 12)
    assert trainer.next_iteration == 7 and trainer.skipped_steps == 5
    resumed = poisoned_trainer({0, 1, 2, 3, 4})  # a resume begins to count anew
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(NonFiniteError):
        resumed.train(resumed.next_iteration, 20)
    assert resumed.next_iteration == 12 and resumed.skipped_steps == 10
    asked = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(p)) for p in range(24, 28)])
    assert torch.equal(caught.value.batches[0]["x"], asked)
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_a_resume_remembers_what_was_skipped_and_how_many_in_a_row():
    trainer = poisoned_trainer({0, 1, 2, 3})
    trainer.train(0, 4)
    resumed = poisoned_trainer({0})
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.skipped_steps == 4
    with pytest.raises(NonFiniteError):
        resumed.train(resumed.next_iteration, 12)


def test_the_scaler_of_fp16_skips_its_overflows_uncounted_and_nans_are_counted():
    trainer = poisoned_trainer(set(), precision="fp16")
    one_step(trainer)
    trainer._grad_scaler.update(2.0**127)
    before = everything(trainer)
    one_step(trainer)
    assert trainer._grad_scaler.get_scale() == 2.0**126
    assert trainer.skipped_steps == 0
    after = everything(trainer)
    assert torch.equal(after[0]["hidden.weight"], before[0]["hidden.weight"])
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)

    for what, scale in (("loss", 1024.0), ("gradient", 1.0)):
        trainer = poisoned_trainer({1}, precision="fp16", what=what)
        one_step(trainer)
        trainer._grad_scaler.update(scale)
        one_step(trainer)
        assert trainer.skipped_steps == 1


def skip_in_the_second():
    """Do four steps of which the third is poisoned in the second process; give the weights after each."""
    torch.manual_seed(0)
    model = Poisoned({2} if comm.get_rank() else set(), what="loss")  # gradients tell the others by themselves
    trainer = toy_trainer(model)
    weights = []
    for _ in range(4):
        one_step(trainer)
        weights.append(model.hidden.weight.detach().clone())
    return {"weights": weights, "skipped": trainer.skipped_steps}


def test_all_processes_skip_what_is_not_finite_in_one(of_two_processes):
    results = [torch.load(of_two_processes / f"skipped_{rank}.pth", weights_only=True) for rank in (0, 1)]
    for result in results:
        one, two, three, four = result["weights"]
        assert result["skipped"] == 1
        assert torch.equal(two, three) and not torch.equal(one, two) and not torch.equal(three, four)
    assert torch.equal(results[0]["weights"][3], results[1]["weights"][3])


def test_tf32_is_on_in_its_own_precision_alone():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for precision, is_on in (("tf32", True), ("float32", False), ("tf32", True), ("bf16", False)):
            set_float32_products(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is is_on
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
