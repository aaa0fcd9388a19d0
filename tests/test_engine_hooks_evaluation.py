"""engine.hooks.evaluation on a toy model: which weights are kept as the best, also after a stop and a resume."""

import math
import os
import signal

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from engine.batches import LoaderError
from engine.checkpoint.file import read_checkpoint
from engine.distributed.padded_eval import evaluate
from engine.hooks.evaluation import MAX_TRIES, EvaluateAndKeepBest, IncompleteEvaluation
from engine.interrupts import StopRequested, StopSignals, uninterrupted
from engine.out_of_memory import OutOfMemory
from engine.trainer import Trainer
from runtime.errors import ConfigError
from tests.helpers.toy_training import in_two_processes, toy_training

MAX_ITER = 12
SCORES = [5.0, 3.0, math.nan, 4.0, 3.0, 7.0]
OTHER_SCORES = [math.nan, -math.inf, 2.0, 1.0, math.inf, 1.0]


class StoppedError(Exception):
    """What ends a run from outside."""


def weights_score(model):
    """A number in [-1, 1] that jumps about from one training step to the next."""
    with torch.no_grad():
        return math.sin(1e4 * float(sum(parameter.sum() for parameter in model.parameters())))


def training_with_best(
    folder,
    scores=None,
    stop_at=None,
    metric="group/score",
    mode="min",
    period=2,
    num_iter=MAX_ITER,
    batch_size=4,
):
    """Train a toy 12 iterations with a checkpoint every 6, or resume if the folder has one.

    Args:
        folder: folder of the run.
        scores: scores of the evaluations after 2, 4, ... 12 iterations; None computes them from the weights.
        stop_at: iteration at whose end the run breaks off, before its evaluation but after its checkpoint.
        metric, mode, period: as for the hook.
        num_iter: length of the run.
        batch_size: over all processes.

    Returns: iteration -> copy of the weights that were evaluated.
    """
    trainer, checkpointer, _ = toy_training(folder, batch_size=batch_size // comm.get_world_size())
    evaluated = {}

    def evaluate():
        iteration = trainer.samples_seen // batch_size - 1
        if iteration == stop_at:
            raise StoppedError
        evaluated[iteration] = {name: tensor.clone() for name, tensor in checkpointer.model.state_dict().items()}
        score = scores[iteration // 2] if scores else weights_score(checkpointer.model)
        return {"group": {"score": score, "other": 1}} if comm.is_main_process() else {}

    networks = {"": checkpointer.model}
    trainer.register_hooks([EvaluateAndKeepBest(period, evaluate, checkpointer, networks, metric, mode)])
    if checkpointer.has_checkpoint():
        checkpointer.load(checkpointer.get_checkpoint_file())
    trainer.train(min(trainer.next_iteration, num_iter), num_iter)
    return evaluated


def best(folder):
    return read_checkpoint(folder / "model_best.pth")


@pytest.mark.parametrize("scores", [SCORES, OTHER_SCORES])
@pytest.mark.parametrize(("mode", "choose"), [("min", min), ("max", max)])
def test_the_first_of_the_best_finite_evaluations_is_kept(tmp_path, scores, mode, choose):
    evaluated = training_with_best(tmp_path, scores, mode=mode)
    value = choose(filter(math.isfinite, scores))
    iteration = 2 * scores.index(value) + 1
    kept = best(tmp_path)
    weights = kept.pop("model")
    assert kept == {"iteration": iteration, "metric": "group/score", "mode": mode, "value": value}
    assert weights.keys() == evaluated[iteration].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in evaluated[iteration].items())
    assert {path.name for path in tmp_path.glob("*model*")} == {"model_best.pth", "model_0000005.pth",
                                                                 "model_0000011.pth", "model_final.pth"}  # fmt: skip


def test_no_finite_evaluation_keeps_nothing(tmp_path):
    training_with_best(tmp_path, [math.nan, math.inf, -math.inf] * 2)
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize("stop_at", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_stopped_and_resumed_keeps_the_same_best(tmp_path, stop_at, mode):
    evaluated = training_with_best(tmp_path / "whole", mode=mode)
    assert len({weights["out.weight"].sum() for weights in evaluated.values()}) == 6
    with pytest.raises(StoppedError):
        training_with_best(tmp_path / "stopped", mode=mode, stop_at=stop_at)
    training_with_best(tmp_path / "stopped", mode=mode)
    ours, theirs = best(tmp_path / "stopped"), best(tmp_path / "whole")
    weights = ours.pop("model"), theirs.pop("model")
    assert ours == theirs
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_an_evaluation_that_the_stop_cut_off_is_made_up_for(tmp_path):
    scores = [5.0, 4.0, 1.0, 3.0, 3.0, 3.0]
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, scores, stop_at=5)
    assert (best(tmp_path)["iteration"], best(tmp_path)["value"]) == (3, 4.0)
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, scores, stop_at=7)
    assert (best(tmp_path)["iteration"], best(tmp_path)["value"]) == (5, 1.0)
    assert list(training_with_best(tmp_path, scores)) == [7, 9, 11]  # that of 5 was made now


@pytest.mark.parametrize("metric", ["group/score", None])
@pytest.mark.parametrize("scores", [[5.0, 4.0, 3.0, 3.0, 3.0, 1.0], [1.0] * 6], ids=["best", "not the best"])
def test_the_last_evaluation_is_made_up_for_once(tmp_path, metric, scores):
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, scores, stop_at=11, metric=metric)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert list(training_with_best(tmp_path, scores, metric=metric)) == [11]
    assert list(training_with_best(tmp_path, scores, metric=metric)) == []
    assert list(training_with_best(tmp_path, scores, metric="group/other")) == [11]


def test_without_a_period_the_end_alone_is_evaluated_and_made_up_for(tmp_path):
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, period=0, stop_at=11)
    assert list(training_with_best(tmp_path, period=0)) == [11]
    assert list(training_with_best(tmp_path, period=0, num_iter=6)) == []  # of a shorter schedule


def test_a_last_step_that_failed_is_not_evaluated_in_place_of_the_end(tmp_path, monkeypatch):
    """The weights are those of the step before, which no evaluation is due for."""
    monkeypatch.setattr(Trainer, "run_step", fail_in_the_last_step(Trainer.run_step))
    with pytest.raises(StoppedError):
        training_with_best(tmp_path / "stopped", mode="max")
    monkeypatch.undo()
    assert best(tmp_path / "stopped")["iteration"] < 10
    assert list(training_with_best(tmp_path / "stopped", mode="max"))[-3:] == [7, 9, 11]


def fail_in_the_last_step(run_step):
    def run_step_or_fail(trainer):
        if trainer.iter == MAX_ITER - 1:
            raise StoppedError
        run_step(trainer)

    return run_step_or_fail


def test_with_another_batch_size_no_evaluation_is_taken_for_another(tmp_path):
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, [1.0] * 6, period=3, stop_at=5)
    assert best(tmp_path)["iteration"] == 2  # and 5 would be 2 as well in the new count
    assert list(training_with_best(tmp_path, [0.5] * 6, period=3, num_iter=6, batch_size=8)) == [2, 5]
    assert (best(tmp_path)["iteration"], best(tmp_path)["value"]) == (2, 0.5)


@pytest.mark.parametrize("change", [{"metric": "group/other"}, {"mode": "max"}], ids=lambda change: next(iter(change)))
def test_a_resume_by_another_metric_or_mode_compares_anew_and_loses_nothing(tmp_path, change):
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, [0.5] * 6, stop_at=9)
    before = (tmp_path / "model_best.pth").read_bytes()
    training_with_best(tmp_path, [0.25] * 6, **change)
    kept = best(tmp_path)
    assert {"metric": kept["metric"], "mode": kept["mode"]} == {"metric": "group/score", "mode": "min"} | change
    assert kept["iteration"] == 5  # the first evaluation after the resume
    assert (tmp_path / "model_best_of_earlier_training_1.pth").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "other", "cut off"])
def test_a_damaged_best_is_told_of_and_moved_aside(tmp_path, caplog, content):
    scores = [5.0, 1.0, 3.0, 4.0, 2.0, 7.0]
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, scores, stop_at=7)
    path = tmp_path / "model_best.pth"
    content = path.read_bytes()[:-99] if content is None else content
    path.write_bytes(content)
    training_with_best(tmp_path, scores)
    assert (tmp_path / "model_best_of_earlier_training_1.pth").read_bytes() == content
    assert (best(tmp_path)["iteration"], best(tmp_path)["value"]) == (9, 2.0)
    assert any(record.levelname == "WARNING" and str(path) in record.getMessage() for record in caplog.records)


def test_a_damaged_record_of_the_last_evaluation_is_told_of_and_that_is_made_again(tmp_path, caplog):
    training_with_best(tmp_path)
    (tmp_path / "last_evaluation").write_bytes(b"\xff{")
    assert list(training_with_best(tmp_path)) == [11]
    assert f"{tmp_path}/last_evaluation cannot be read" in caplog.text
    assert list(training_with_best(tmp_path)) == []


def test_new_trainings_in_one_folder_keep_the_best_of_each_apart(tmp_path):
    earlier = []
    for scores in ([1.0] * 6, [2.0] * 6):
        training_with_best(tmp_path, scores)
        (tmp_path / "last_checkpoint").unlink()
        earlier.append((tmp_path / "model_best.pth").read_bytes())
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, period=6, stop_at=5)  # has a checkpoint, and no evaluation yet
    assert [(tmp_path / f"model_best_of_earlier_training_{n}.pth").read_bytes() for n in (1, 2)] == earlier
    assert not (tmp_path / "last_evaluation").exists()
    training_with_best(tmp_path, [9.0] * 6, period=6)
    assert (best(tmp_path)["iteration"], best(tmp_path)["value"]) == (5, 9.0)


@pytest.mark.parametrize("at", [1, 5, 11])
@pytest.mark.parametrize("results", [{}, {"group": {"score": 0.5}}], ids=["nothing", "other networks"])
def test_out_of_memory_in_an_evaluation_leaves_it_out_and_training_goes_on(tmp_path, monkeypatch, at, results):
    evaluate_now = EvaluateAndKeepBest._evaluate_now

    def without_memory(hook, iteration=None):
        made = hook._evaluate
        if hook.trainer.samples_seen == 4 * (at + 1):
            monkeypatch.setattr(hook, "_evaluate", lambda: raise_incomplete(results))
        evaluate_now(hook, iteration)
        hook._evaluate = made

    monkeypatch.setattr(EvaluateAndKeepBest, "_evaluate_now", without_memory)
    evaluated = training_with_best(tmp_path, [5.0, 4.0, 3.0, 2.0, 4.0, 1.0])
    assert list(evaluated) == [iteration for iteration in range(1, 12, 2) if iteration != at]
    expected = (at, 0.5) if results else {1: (11, 1.0), 5: (11, 1.0), 11: (7, 2.0)}[at]
    assert (best(tmp_path)["iteration"], best(tmp_path)["value"]) == expected
    assert list(training_with_best(tmp_path, [0.0] * 6)) == []  # a resume makes none of them up


def raise_incomplete(results):
    raise IncompleteEvaluation("out of memory", results)


def test_an_evaluation_that_ends_the_process_each_time_is_left_out_after_some_resumes(tmp_path, caplog):
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, stop_at=5)
    for _ in range(MAX_TRIES):
        with pytest.raises(StoppedError):
            training_with_best(tmp_path, stop_at=5)
    assert list(training_with_best(tmp_path)) == [7, 9, 11]
    assert "The evaluation after iteration 5 is left out: it was begun 3 times" in caplog.text


@pytest.mark.parametrize("error", [StopRequested("SIGTERM"), LoaderError("a.png is gone")], ids=["signal", "image"])
def test_an_evaluation_that_may_succeed_the_next_time_is_not_given_up(tmp_path, monkeypatch, error):
    with pytest.raises(StoppedError):
        training_with_best(tmp_path, stop_at=5)
    with monkeypatch.context() as patch:
        patch.setattr(EvaluateAndKeepBest, "_evaluate_now", lambda *_: throw(error))
        for _ in range(MAX_TRIES + 1):
            with pytest.raises(type(error)):
                training_with_best(tmp_path)
    assert list(training_with_best(tmp_path)) == [5, 7, 9, 11]


def throw(error):
    raise error


class Counted(DatasetEvaluator):
    """Adds up what a network gave in all processes."""

    def reset(self):
        self.sum = 0

    def process(self, inputs, outputs):
        self.sum += outputs

    def evaluate(self):
        return {"group": {"sum": sum(comm.all_gather(self.sum))}}


class Failing(torch.nn.Module):
    """Counts images, and fails at one of them in the last process."""

    def __init__(self, error):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.error = error

    def forward(self, batch):
        if self.error and comm.get_rank() == comm.get_world_size() - 1 and batch.item() >= 2:
            raise self.error
        return 1


FAILURES = {
    "none": (None, "{'group': {'sum': 4}}"),
    "memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), OutOfMemory),
    "image": (OSError("a.png is gone"), LoaderError),
}


def how_it_ends(error):
    """What one evaluation of four images gives in this process, and the mode that it leaves the network in."""
    model = Failing(error)
    loader = DataLoader(torch.arange(4), 1, sampler=range(comm.get_rank(), 4, comm.get_world_size()))
    try:
        return str(evaluate(model, loader, Counted())), model.training, ""
    except (OutOfMemory, LoaderError) as stop:
        return type(stop), model.training and stop.is_shared, str(stop)


@pytest.mark.parametrize("name", FAILURES)
def test_what_stops_an_evaluation_leaves_the_network_in_training_mode(name):
    error, expected = FAILURES[name]
    assert how_it_ends(error)[:2] == (expected, True)


def stop_and_resume_in_each_process(folder):
    """What each of two processes does; which iterations it evaluated is left in a file."""
    torch.set_num_threads(1)
    whole = training_with_best(folder / "whole")
    with pytest.raises(StoppedError):
        training_with_best(folder / "stopped", stop_at=5)
    comm.synchronize()
    resumed = training_with_best(folder / "stopped")
    # What only the main process reads, all must act by: the best is of the last checkpoint, so that nothing is missing.
    scores = [5.0, 4.0, 1.0, 3.0, 3.0, 3.0]
    with pytest.raises(StoppedError):
        training_with_best(folder / "known", scores, stop_at=7)
    comm.synchronize()
    kept = []
    keep = EvaluateAndKeepBest._keep_if_best
    EvaluateAndKeepBest._keep_if_best = lambda hook, *args: (keep(hook, *args), kept.append(hook._best))[0]
    known = training_with_best(folder / "known", scores)
    ends = [tuple(map(str, how_it_ends(error))) for error, _ in FAILURES.values()]
    torch.save([list(whole), list(resumed), list(known), kept, ends], folder / f"rank{comm.get_rank()}.pth")


def test_two_processes_keep_one_best_and_make_up_together(tmp_path):
    in_two_processes(stop_and_resume_in_each_process, tmp_path)
    for rank in (0, 1):
        evaluated = [[1, 3, 5, 7, 9, 11], [5, 7, 9, 11], [7, 9, 11]]
        *found, ends = torch.load(tmp_path / f"rank{rank}.pth")
        assert found == [*evaluated, [1.0] * 3]  # the best so far, in both
        assert [end[:2] for end in ends] == [(str(expected), "True") for _, expected in FAILURES.values()]
        assert ends[1][2].startswith("process 1 is out of memory (CUDA out of memory. Tried to allocate 9 GiB)")
    whole, stopped = (best(tmp_path / name) for name in ("whole", "stopped"))
    assert (stopped["iteration"], stopped["value"]) == (whole["iteration"], whole["value"])
    assert all(torch.equal(stopped["model"][name], tensor) for name, tensor in whole["model"].items())


def test_a_signal_in_the_evaluation_of_a_sharded_network_waits_for_the_next_draw(tmp_path, monkeypatch):
    """All processes save it, and so all have to stop together."""
    monkeypatch.setattr("engine.hooks.evaluation.is_sharded", lambda _: True)
    score = weights_score
    monkeypatch.setitem(
        globals(), "weights_score", lambda model: (os.kill(os.getpid(), signal.SIGTERM), score(model))[1]
    )
    with StopSignals(), pytest.raises(StopRequested) as stop, uninterrupted():
        training_with_best(tmp_path)
    assert stop.value.is_shared and best(tmp_path)["iteration"] == 1


def test_a_metric_that_the_evaluation_does_not_give_is_refused_with_those_that_it_gives(tmp_path):
    with pytest.raises(ConfigError, match="'group/scores', but the evaluation gives group/score, group/other"):
        training_with_best(tmp_path, SCORES, metric="group/scores")


def test_no_metric_keeps_none_and_evaluates(tmp_path):
    assert list(training_with_best(tmp_path, SCORES, metric=None)) == [1, 3, 5, 7, 9, 11]
    assert not (tmp_path / "model_best.pth").exists()
