"""main.py where memory runs out: what is told, what is saved, what goes on."""

import errno
import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch.nn.utils import get_total_norm

import main
from engine.checkpoint.file import read_checkpoint
from engine.out_of_memory import OutOfMemory, is_out_of_memory
from engine.stops import as_stop
from inference import network
from runtime.errors import UserError
from tests.helpers.main_command import same_weights, stopped
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import make_data, metrics, overrides

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


TOO_MUCH = 2**50
"""Bytes that no allocator gives, whatever the system promises."""


def allocate_by_torch():
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def allocate_by_numpy():
    np.empty(TOO_MUCH, np.uint8)


def throw(error):
    raise error


@pytest.mark.parametrize(
    "fail",
    [
        allocate_by_torch,
        allocate_by_numpy,
        lambda: throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
        lambda: throw(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        lambda: throw(RuntimeError("std::bad_alloc")),
        lambda: throw(OSError(errno.ENOMEM, "Cannot allocate memory")),
        lambda: throw(
            MemoryError("Caught MemoryError in DataLoader worker process 0.\n  File ...\nMemoryError: 3 GiB")
        ),
    ],
)
def test_what_allocators_raise_becomes_one_line_with_the_settings_to_lower(fail):
    with pytest.raises(Exception) as caught:  # noqa: PT011  of every kind
        fail()
    stop = as_stop(caught.value)
    message = str(stop)
    assert message.startswith("process 0 is out of memory (") and "\n" not in message and "File" not in message
    for setting in ("batch_size", "train.accumulation", "crop_px", "use_activation_checkpointing"):
        assert setting in message
    assert isinstance(stop, OutOfMemory) and stop.status == 7


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not fit"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        UserError("out of memory.png is no image"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyError("model"),
    ],
)
def test_other_errors_come_through(error):
    assert not is_out_of_memory(error) and as_stop(error) is None


def test_tensors_of_the_failed_step_are_freed():
    freed = []

    class Large(torch.Tensor):
        def __del__(self):
            freed.append(True)

    def step():
        large = torch.ones(4).as_subclass(Large)
        allocate_by_torch()
        return large

    try:
        step()
    except RuntimeError as error:
        assert as_stop(error) and freed


def test_a_checkpoint_that_finds_no_memory_is_not_called_damaged(tmp_path, monkeypatch):
    torch.save({"model": {}}, tmp_path / "whole.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: allocate_by_torch())
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read_checkpoint(tmp_path / "whole.pth")


def test_a_step_without_memory_saves_the_steps_done_and_a_resume_loses_nothing(
    trained,
    data,
    tmp_path,
    monkeypatch,
    capsys,
):
    compute, calls = get_total_norm, []  # after the backward pass, when BatchNorm's statistics have moved

    def fail_in_iteration_4(gradients):
        calls.append(True)
        return allocate_by_torch() if len(calls) == 5 else compute(gradients)

    with monkeypatch.context() as patch:
        patch.setattr("engine.trainer.get_total_norm", fail_in_iteration_4)
        assert stopped(*overrides(data, tmp_path)) == 7
    output = capsys.readouterr().out
    assert "Stopped: process 0 is out of memory" in output and "Traceback" not in output
    assert "dataloader.train.batch_size" in output and "--resume goes on from iteration 4" in output
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path)])
    assert same_weights(tmp_path, trained)


def test_a_step_that_moved_some_weights_is_not_saved(trained, data, tmp_path, monkeypatch, capsys):
    def move_some(optimizer):
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0] += 1
        allocate_by_torch()

    step = torch.optim.AdamW.step
    calls = []

    def step_or_fail(optimizer, *arguments):
        calls.append(True)
        return move_some(optimizer) if len(calls) == 5 else step(optimizer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step_or_fail)
        assert stopped(*overrides(data, tmp_path)) == 7
    output = capsys.readouterr().out
    assert "are not saved" in output and "--resume goes on from iteration 3" in output
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path)])
    assert same_weights(tmp_path, trained)


@pytest.mark.parametrize("number", [1, 4], ids=["the first", "the last of the average"])
def test_an_evaluation_without_memory_is_reported_and_training_goes_on(
    trained,
    data,
    tmp_path,
    monkeypatch,
    caplog,
    number,
):
    """Two evaluations, each of the network and of its average, of three images each."""
    run, calls = network.alpha_by_tiles, []

    def fail_once(*arguments, **more):
        calls.append(True)
        if len(calls) == 3 * number - 2:
            allocate_by_torch()
        return run(*arguments, **more)

    monkeypatch.setattr(network, "alpha_by_tiles", fail_once)
    changes = {"train.ema_decay": 0.5, "train.pictures": "null"}
    main.main(["--config-file", DEMO, *overrides(data, tmp_path, **changes)])
    assert same_weights(tmp_path, trained)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1 and "training goes on" in errors[0] and "dataloader.test_network.tile_px" in errors[0]
    found = [(iteration, name) for iteration, row in metrics(tmp_path).items() for name in row if "SAD" in name]
    every = [(2, "matting/SAD"), (2, "ema/matting/SAD"), (6, "matting/SAD"), (6, "ema/matting/SAD")]
    assert sorted(found) == sorted(set(every) - {every[number - 1]})
    assert (tmp_path / "model_best.pth").exists()
    num_calls = len(calls)
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path, **changes)])
    assert len(calls) == num_calls  # it is not made up for, over and over


def test_evaluating_alone_without_memory_is_one_line_and_status_7(
    trained,
    data,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setattr(network, "alpha_by_tiles", lambda *_, **__: allocate_by_torch())
    changes = {"train.init_checkpoint": trained / "model_final.pth"}
    assert stopped("--eval-only", *overrides(data, tmp_path, **changes)) == 7
    message = capsys.readouterr().err
    assert "out of memory" in message and "dataloader.test_network.tile_px" in message and "Traceback" not in message
    assert "out of memory" in (tmp_path / "log.txt").read_text()


LIMITED = """
import resource, sys
import torch
import main
torch.set_num_threads(1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]),) * 2)
main.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("is_tiled", [True, False], ids=["by tiles", "whole"])
def test_a_photograph_of_12_megapixels_is_evaluated_by_tiles_in_memory_where_the_whole_is_not(tmp_path, is_tiled):
    """Measured: a peak of 1.7 GB by tiles and of 5.1 GB whole, 0.7 GB of which are there before."""
    make_data(tmp_path)
    trimap = np.zeros((3000, 4000), np.uint8)
    trimap[1000:1200, 1000:1300], trimap[1200:2000, 1000:2000] = 128, 255
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    test_set = {"image": np.tile(image, (10, 10, 1)), "trimap": trimap, "alpha": trimap}
    for folder, values in test_set.items():
        for path in (tmp_path / folder).iterdir():
            path.unlink()
        cv2.imwrite(str(tmp_path / folder / "0.png"), values)
    changes = {
        "model.decoder.convstream_chans": "[16,32,48]",
        "model.decoder.fusion_chans": "[64,48,32,16]",
        "model.backbone.global_block_indexes": "[]",
        "train.max_iter": 3,
        "train.eval_period": 0,
        "train.pictures": "null",
        **({} if is_tiled else {"dataloader.test_network": "null"}),
    }
    arguments = ["--config-file", DEMO, *overrides(tmp_path, tmp_path / "out", **changes)]
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(2_500_000_000), *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "model_final.pth").exists()
    is_measured = any("matting/SAD" in row for row in metrics(tmp_path / "out").values())
    is_reported = "Not evaluated, and training goes on: the network: process 0 is out of memory" in result.stdout
    assert (is_measured, is_reported) == (is_tiled, not is_tiled)
