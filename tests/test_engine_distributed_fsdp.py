"""A network sharded over two processes (FSDP2), and its checkpoints, against DDP and one process, in float64."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader

from engine.checkpoint import sharded as sharded_checkpoint
from engine.checkpoint.file import CheckpointError, load_weights, read_checkpoint
from engine.checkpoint.sharded import WHOLE_PART, ShardedCheckpointer, read_folder
from engine.distributed.padded_eval import evaluate
from engine.interrupts import OutputError
from inference.network import TiledEvaluation
from runtime.atomic_write import remove_unfinished
from tests.helpers.sharding import (
    CLIP_NORM,
    NUM_STEPS,
    FiniteNumberedImages,
    SumPredictions,
    build,
    finish,
    start,
)
from tests.helpers.toy_training import in_two_processes
from tools.runs import gather_checkpoint

# Two processes start, and train five times.
pytestmark = pytest.mark.slow

HALF_WAY = f"model_{NUM_STEPS // 2 - 1:07d}"


def sums_of(model, num, wrap=None):
    """What an evaluation of so many images gives."""
    pictures = FiniteNumberedImages(num)
    loader = DataLoader(pictures, 1, sampler=range(comm.get_rank(), num, comm.get_world_size()))
    model.eval()
    found = evaluate(model, loader, SumPredictions(), wrap)["sums"]
    model.train()
    return found


class FullDiskOfSecond(sharded_checkpoint.dcp.FileSystemWriter):
    """Fails in the second process."""

    def write_data(self, *args):
        if comm.get_rank() == 1:
            raise OSError(28, "No space left on device")
        return super().write_data(*args)


def train_in_each_process(folder):
    """What each of two processes does; the main one saves what it saw."""
    torch.set_num_threads(1)
    seen = {}
    seen["ddp"] = finish(start(folder / "ddp", False)[0])
    trainer, checkpointer = start(folder / "sharded", True)
    seen["sharded"] = finish(trainer)
    parameters = list(trainer.model.parameters())
    states = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    averages = list(trainer.ema.module.parameters())
    for name, tensors in (("parameters", parameters), ("states", states), ("averages", averages)):
        shares = comm.all_gather(sum(tensor.to_local().numel() for tensor in tensors))
        seen[name] = shares, sum(tensor.numel() for tensor in tensors)
    seen["sums"] = {num: sums_of(trainer.model, num) for num in (1, 3)}
    seen["sums by tiles"] = sums_of(trainer.model, 3, TiledEvaluation(tile_px=16).wrap)
    seen["last"] = checkpointer.find_last()

    trainer, checkpointer = start(folder / "resumed", True)
    checkpointer.load(str(folder / "sharded" / HALF_WAY))
    seen["resumed"] = finish(trainer)

    trainer, checkpointer = start(folder / "from_file", True)
    checkpointer.load(str(folder / "ddp" / f"{HALF_WAY}.pth"))
    seen["from file"] = finish(trainer)

    for precision in ("bf16", "fp16"):
        seen[precision] = [finish(start(folder / precision, sharded, precision=precision)[0], 2) for sharded in (0, 1)]

    if comm.is_main_process():
        shutil.copytree(folder / "sharded", folder / "full")
    comm.synchronize()
    sharded_checkpoint.dcp.FileSystemWriter = FullDiskOfSecond
    try:
        ShardedCheckpointer(trainer.model, str(folder / "full"), trainer=trainer).save("model_0000019", iteration=19)
    except OutputError as error:
        seen["errors"] = comm.all_gather(str(error))
    if comm.is_main_process():
        torch.save(seen, folder / "seen.pth")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes trained, and what they saw."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(train_in_each_process, folder)
    return folder, torch.load(folder / "seen.pth", weights_only=True)


def assert_same(one, other, tolerance=1e-9):
    """Losses, norms, weights and averaged weights; of `other` the last steps, where it has more."""
    for name in ("losses", "norms"):
        assert one[name] == pytest.approx(other[name][-len(one[name]) :], rel=0, abs=tolerance)
    for name in ("weights", "average"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


def test_a_sharded_training_is_that_of_whole_copies(two):
    seen = two[1]
    assert len(seen["sharded"]["losses"]) == NUM_STEPS
    assert sum(norm > CLIP_NORM for norm in seen["ddp"]["norms"]) > NUM_STEPS // 2
    assert_same(seen["sharded"], seen["ddp"])
    start = build().state_dict()
    moved = [name for name, tensor in seen["sharded"]["weights"].items() if not torch.equal(tensor, start[name])]
    assert len(moved) > 40 and not any("patch_embed" in name for name in moved)
    lag = [(seen["sharded"]["weights"][name] - seen["sharded"]["average"][name]).abs().max() for name in moved]
    assert min(lag) > 1e-5


def test_each_process_holds_about_half_of_parameters_states_and_averages(two):
    for name in ("parameters", "states", "averages"):
        shares, total = two[1][name]
        assert sum(shares) == total and max(shares) < 0.51 * total


def test_a_resume_by_as_many_processes_is_equal_to_the_bit(two):
    assert len(two[1]["resumed"]["losses"]) == NUM_STEPS // 2
    assert_same(two[1]["resumed"], two[1]["sharded"], tolerance=0)


def test_a_plain_checkpoint_goes_on_sharded(two):
    assert_same(two[1]["from file"], two[1]["ddp"])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_one_process_goes_on_where_two_stopped(two, kind, tmp_path):
    """From the folder as it is, or from the plain file that is made of it."""
    path = two[0] / "sharded" / HALF_WAY
    trainer, checkpointer = start(tmp_path, kind == "folder", batch_size=2)
    if kind == "file":
        torch.save(read_folder(path), tmp_path / "gathered.pth")
        path = tmp_path / "gathered.pth"
    assert checkpointer.load(str(path)) == {"iteration": NUM_STEPS // 2 - 1}
    result = finish(trainer)
    assert len(result["losses"]) == NUM_STEPS // 2
    assert_same(result, two[1]["ddp"])


def test_the_final_folder_has_a_plain_file_beside_it(two):
    folder, seen = two
    final = read_checkpoint(folder / "sharded" / "model_final.pth")
    model = build()
    load_weights(model, final["model"], "final")
    torch.testing.assert_close(model.state_dict(), seen["sharded"]["weights"], rtol=0, atol=0)
    assert final["iteration"] == NUM_STEPS - 1 and final.keys() == {"model", "iteration"}
    gathered = read_folder(folder / "sharded" / "model_final", only=["model"])
    torch.testing.assert_close(gathered["model"], final["model"], rtol=0, atol=0)
    assert gathered.keys() == {"model"}


@pytest.mark.parametrize("kept", ["model", "ema", "all"])
def test_the_tool_makes_a_plain_file(two, kept, tmp_path, capsys):
    folder, seen = two
    option = [] if kept == "model" else [f"--{kept}"]
    output = tmp_path / "new" / "plain.pth"
    path = folder / "sharded" / "model_final"
    assert gather_checkpoint.main(["--folder", str(path), "--output", str(output), *option]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {output}: {len(seen['sharded']['weights'])} tensors, ")
    content = read_checkpoint(output)
    expected = seen["sharded"]["average" if kept == "ema" else "weights"]
    torch.testing.assert_close(content["model"], expected, rtol=0, atol=0)
    assert content.keys() == ({"model", "ema", "trainer", "iteration"} if kept == "all" else {"model", "iteration"})
    assert not any(tensor.is_meta for tensor in content["model"].values())


def test_an_evaluation_of_unlike_numbers_of_images_ends_and_counts_each_once(two):
    model = build()
    load_weights(model, two[1]["sharded"]["weights"], "sharded")
    for num, sums in two[1]["sums"].items():
        assert sums == pytest.approx(sums_of(model, num), rel=1e-6) and len(sums) == num
    assert two[1]["sums by tiles"] == pytest.approx(sums_of(model, 3), rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_that_of_whole_copies(two, precision):
    ddp, sharded = two[1][precision]
    assert sharded["losses"] == pytest.approx(ddp["losses"], rel=1e-6)
    torch.testing.assert_close(sharded["weights"], ddp["weights"], rtol=0, atol=1e-6)


def test_a_disk_that_fails_one_process_stops_both_and_damages_nothing(two, tmp_path):
    folder, seen = two
    assert len(seen["errors"]) == 2 and len(set(seen["errors"])) == 1
    assert re.fullmatch("cannot write .*/full/model_0000019: .*No space left on device", seen["errors"][0])
    full = folder / "full"
    assert (full / "last_checkpoint").read_text() == "model_final"
    for name in (HALF_WAY, "model_0000019"):
        assert sorted(path.name for path in (full / name).iterdir()) == sorted(
            path.name for path in (folder / "sharded" / name).iterdir()
        )
    remove_unfinished(full)
    assert not [*full.glob("*.unfinished")]


def test_a_damaged_folder_is_reported_and_the_one_before_it_taken(two, tmp_path, caplog):
    assert two[1]["last"].endswith("/sharded/model_final")
    shutil.copytree(two[0] / "sharded", tmp_path / "sharded")
    trainer, checkpointer = start(tmp_path / "sharded", True)
    part = tmp_path / "sharded" / "model_final" / "__1_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert Path(checkpointer.find_last()).name == "model_0000019"
    assert "model_final is damaged: the bytes of __1_0.distcp are not those that were written" in caplog.text
    (tmp_path / "sharded" / "model_0000019" / ".metadata").unlink()
    assert Path(checkpointer.find_last()).name == HALF_WAY
    (tmp_path / "sharded" / HALF_WAY / WHOLE_PART).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole: "):
        checkpointer.find_last()
    with pytest.raises(CheckpointError, match="is no checkpoint of a sharded network: there is no whole.pth in it"):
        checkpointer.load(str(tmp_path / "sharded" / HALF_WAY))


def test_a_folder_for_a_plain_training_is_one_message(two, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final")
    shutil.copytree(two[0] / "sharded" / "model_final", tmp_path / "model_final")
    checkpointer = start(tmp_path, False)[1]
    with pytest.raises(CheckpointError, match="gather_checkpoint.py makes a file, or --resume goes on from it with"):
        checkpointer.find_last()
