"""tools/benchmark.py: a tiny run prints what it says, and both sides do the same work."""

import json
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from data.image_io.images import to_uint8
from data.trimap import unknown_mask
from evaluation.metrics import METRICS, measure
from modeling import DetailCapture, MattingCriterion, ViTMatte, detail_capture
from modeling.backbone import ViT, vit
from tests.helpers.paths import REPOSITORY
from tools import benchmark
from tools.benchmarks import fresh, metrics, ports, train_step

TINY = ["--size-px", "64", "--batch-size", "1", "--num-steps", "1"]


def tiny(side, recomputed="none"):
    """A network of one block in place of either side."""
    backbone = ViT(embed_dim=16, depth=1, num_heads=1, global_block_indexes=(0,), conv_residual_block_indexes=())
    return ViTMatte(
        backbone, DetailCapture(16, convstream_chans=(4, 4, 4), fusion_chans=(8, 8, 8, 8)), MattingCriterion()
    )


@pytest.fixture(scope="module")
def transformers_side():
    torch.manual_seed(0)
    return train_step.build("transformers")


def batch(size_px=64):
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(1, 3, size_px, size_px, generator=generator),
        "trimap": torch.randint(0, 3, (1, 1, size_px, size_px), generator=generator) / 2,
        "alpha": torch.rand(1, 1, size_px, size_px, generator=generator),
    }


@pytest.mark.slow
def test_a_tiny_run_prints_seconds_and_memory():
    """In processes of their own, as it is used: the peak of a test process says nothing."""
    command = [sys.executable, "tools/benchmark.py", "train-step", *TINY, "--rounds", "1", "--sides", "ours"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    figures = [float(figure) for figure in re.findall(r"\d+\.\d+", done.stdout)]
    assert [line.split(":")[0].split(" ours")[0] for line in lines] == ["round 1", "median seconds", "median peak_gb"]
    assert len(figures) == 4 and figures[:2] == figures[2:]
    # 25 million weights get gradients and two moments: 0.3 GB. The activations of 64 px are little beside them.
    assert 0 < figures[0] < 60 and 0.2 < figures[1] < 2


def test_a_step_trains_and_the_first_is_not_timed(monkeypatch):
    torch.manual_seed(0)
    model = tiny("ours")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    seen = []
    model.register_forward_hook(lambda module, inputs, losses: seen.append((inputs[0], losses)))
    clock = iter([0.0, 100.0, 200.0, 201.0, 300.0, 302.0, 400.0, 409.0])  # steps of 100, 1, 2 and 9 s
    monkeypatch.setattr(train_step, "build", lambda side, recomputed: model)
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: next(clock))
    result = train_step.measure_train_step("ours", 64, 2, 3, "float32", "cpu")
    assert result["seconds"] == 2 and result["first_seconds"] == 100  # the median, and what warms up
    assert next(clock, None) is None and len(seen) == 4
    inputs, losses = seen[0]
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "image": (2, 3, 64, 64), "trimap": (2, 1, 64, 64), "alpha": (2, 1, 64, 64)
    }  # fmt: skip
    assert set(inputs["trimap"].unique().tolist()) == {0, 0.5, 1}
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


def test_rounds_are_summed_up_by_medians_and_ratios(monkeypatch, capsys):
    seconds = iter([1, 4, 3, 4, 2, 2])  # ours, theirs; three rounds
    commands = []

    def run(command, **settings):
        commands.append(command)
        line = json.dumps({"seconds": next(seconds), "peak_gb": 2.0})
        return subprocess.CompletedProcess(command, 0, stdout=f"a line of a library\n{line}\n")

    monkeypatch.setattr(fresh.subprocess, "run", run)
    benchmark.main(["train-step", *TINY, "--precision", "bf16"])
    *_, time, memory = capsys.readouterr().out.splitlines()
    assert time == "median seconds: ours 2.000 s  transformers 4.000 s  ratio 0.750 (0.250 to 1.000)"
    assert memory == "median peak_gb: ours 2.000 GB  transformers 2.000 GB  ratio 1.000 (1.000 to 1.000)"
    assert [command[command.index("--only") + 1] for command in commands] == ["ours", "transformers"] * 3
    assert " ".join(commands[0]).endswith(
        f"{' '.join(TINY)} --device cpu --precision bf16 --activation-checkpointing none"
    )
    assert " ".join(commands[1]).endswith(f"{' '.join(TINY)} --device cpu --precision bf16")


def test_what_is_asked_of_ours_is_not_asked_of_the_other(monkeypatch, capsys):
    asked = {}

    def run(command, **settings):
        asked[command[command.index("--only") + 1]] = " ".join(command)
        return subprocess.CompletedProcess(command, 0, '{"seconds": 2.0, "first_seconds": 60.0, "peak_gb": 1.0}')

    monkeypatch.setattr(fresh.subprocess, "run", run)
    options = ["--activation-checkpointing", "all", "--compile"]
    benchmark.main(
        ["train-step", *options, "--rounds", "1", "--precision", "bf16", "--transformers-precision", "float32"]
    )
    assert asked["ours"].endswith("--precision bf16 --activation-checkpointing all --compile")
    assert asked["transformers"].endswith("--precision float32")
    ours, theirs, *_ = capsys.readouterr().out.splitlines()
    assert ours == "round 1 ours           2.000 s   1.000 GB  (first step 60.0 s)" and "first" not in theirs


@pytest.mark.parametrize(("recomputed", "expected"), [("none", 0), ("backbone", 12), ("all", 20)])
def test_what_is_recomputed_is_what_was_asked_for(recomputed, expected, monkeypatch):
    """Of 12 blocks, 3 convolutions of the stream, 4 fusions and the head."""
    calls = []

    def maybe_checkpoint(is_recomputed, block, *inputs):
        calls.append(is_recomputed)
        return block(*inputs)

    monkeypatch.setattr(vit, "maybe_checkpoint", maybe_checkpoint)
    monkeypatch.setattr(detail_capture, "maybe_checkpoint", maybe_checkpoint)
    train_step.build("ours", recomputed).train()(batch())
    assert len(calls) == 20 and sum(calls) == expected


@pytest.mark.slow
def test_both_sides_have_the_same_losses(transformers_side):
    losses = transformers_side.train()(batch())
    ours = tiny("ours").train()(batch())
    assert losses.keys() == ours.keys() and len(losses) == 4
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, parameter in transformers_side.named_parameters() if parameter.grad is None]


def test_the_other_side_is_vitmatte_s(transformers_side):
    """Relative positions of 2 x 14 - 1 in windows and 2 x 32 - 1 in global blocks 2, 5, 8, 11, necks there alone."""
    layers = transformers_side.network.backbone.encoder.layer
    global_blocks = [2, 5, 8, 11]
    assert len(layers) == 12
    for index, layer in enumerate(layers):
        reach = 63 if index in global_blocks else 27
        assert layer.attention.rel_pos_h.shape == layer.attention.rel_pos_w.shape == (reach, 64)
        assert layer.window_size == (0 if index in global_blocks else 14)
        assert hasattr(layer, "residual") == (index in global_blocks)
    decoder = transformers_side.network.decoder
    ours = train_step.build("ours").decoder
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in ours.parameters())


def test_the_other_side_sees_the_trimap_as_its_fourth_channel(transformers_side):
    seen = []
    hook = transformers_side.network.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["pixel_values"]), with_kwargs=True
    )
    transformers_side(batch())
    hook.remove()
    torch.testing.assert_close(seen[0][:, :3], 2 * batch()["image"] - 1)
    assert torch.equal(seen[0][:, 3:], batch()["trimap"])


def test_wrong_usage_is_status_2(capsys):
    for arguments in ([], ["train-steps"], ["train-step", "--sides", "theirs"], ["train-step", "--size", "x"]):
        with pytest.raises(SystemExit) as stop:
            benchmark.main(arguments)
        assert stop.value.code == 2


@pytest.mark.slow
def test_metrics_prints_ratios_and_the_largest_difference():
    """As it is used, on small pictures; the command's own worker processes are measured too."""
    command = [sys.executable, "tools/benchmark.py", "metrics", "--width", "96", "--height", "64"]
    done = subprocess.run(
        [*command, "--num-images", "10", "--rounds", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    patterns = [
        pattern
        for kind in ("matte", "fragments")
        for pattern in (
            rf"{kind}, round 1: ours \d\.\d{{3}} s  plainly \d\.\d{{3}} s  ratio [\d.]+",
            rf"{kind}, median ratio ([\d.]+) \(\1 to \1\), values differ by (?:0e\+00|\de-1\d) at most; "
            r"\d+% of 96 x 64 px unknown",
        )
    ]
    patterns += [
        r"round 1: one worker [\d.]+ s  two [\d.]+ s  ratio [\d.]+",
        r"median ratio ([\d.]+) \(\1 to \1\), no process above (\d+) MiB",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert int(lines[-1].split()[-2]) < 400, "a process that only measures loaded torch"


@pytest.mark.parametrize("draw", [metrics.draw_matte, metrics.draw_fragments])
def test_both_ways_to_the_metrics_agree_on_what_the_benchmark_draws(draw):
    pred_alpha, alpha, trimap = draw(150, 100, seed=3)
    case = to_uint8(pred_alpha), to_uint8(alpha), unknown_mask(trimap)
    plainly = metrics.measure_plainly(*case)
    assert plainly == pytest.approx({name: measure(*case)[name] for name in METRICS}, rel=1e-12)
    assert min(plainly.values()) > 0 and case[2].mean() > 0.1


def test_each_variant_without_its_change_is_the_definition():
    for _, (pred_alpha, alpha, region) in ports.drawn_cases():
        defined = measure(pred_alpha, alpha, region)
        conn = ports._conn(pred_alpha, alpha, region, has_background=False, is_exact=True)
        scaled = [(values - values.min()) / np.ptp(values) for values in (pred_alpha, alpha)]
        assert conn == pytest.approx(defined["Conn"], rel=1e-9)
        assert ports._grad(scaled, region, half_size_px=4) == pytest.approx(defined["Grad"], rel=1e-6)


def test_ports_prints_the_table_of_the_page(capsys):
    page = (REPOSITORY / "docs" / "evaluate.md").read_text()
    benchmark.main(["ports"])
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:]]
    for metric, variant in dict.fromkeys((row[1], row[2]) for row in rows):
        changes = [row[5] for row in rows if row[1:3] == [metric, variant]]
        assert f"| {metric} | {variant} | {' | '.join(changes)} |" in page


def test_ports_measures_files(tmp_path, capsys):
    (_, (pred_alpha, alpha, region)), *_ = ports.drawn_cases()
    trimap = np.where(region, 128, np.where(alpha > 127, 255, 0)).astype(np.uint8)
    for folder, values in {"pred": pred_alpha, "label": alpha, "trimap": trimap}.items():
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "subject.png"), values)
    options = [part for name in ("pred", "label", "trimap") for part in (f"--{name}-dir", str(tmp_path / name))]
    main = benchmark.main
    main(["ports"])
    drawn = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("subject")]
    main(["ports", *options])
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]] == drawn
    with pytest.raises(SystemExit, match="belong together"):
        main(["ports", *options[:2]])
    (tmp_path / "pred" / "subject.png").rename(tmp_path / "pred" / "other.png")
    with pytest.raises(SystemExit, match="subject.png has no partner"):
        main(["ports", *options])
