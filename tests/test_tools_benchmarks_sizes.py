"""tools/benchmark.py sizes, and the figures of docs/model_zoo.md and docs/sharding.md."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.config.config import apply_overrides, load_config
from tests.helpers.benchmark import figures
from tests.helpers.paths import REPOSITORY
from tools import benchmark
from tools.benchmarks import sizes
from tools.benchmarks.sizes import STEPS, LiveBytes, build_on_meta, count_flops, count_parameters, predict_peak

CONFIGS = REPOSITORY / "configs"
S_100EP = CONFIGS / "ViTMatte_S_100ep.py"
PUBLISHED = sorted(CONFIGS.glob("ViTMatte_*.py"))
TINY = ["model.backbone.depth=2", "model.backbone.conv_residual_block_indexes=[1]",
        "model.backbone.embed_dim=32", "model.backbone.num_heads=2",
        "model.backbone.global_block_indexes=[1]", "model.decoder.convstream_chans=[4,8,12]",
        "model.decoder.fusion_chans=[8,6,4,2]", "model.backbone.window_size=4",
        "dataloader.train.dataset.crop_px=96"]  # fmt: skip


def tiny(*overrides: str) -> DictConfig:
    cfg = load_config(S_100EP)
    apply_overrides(cfg, [*TINY, *overrides])
    return cfg


def documented(number: int) -> dict[str, list[str]]:
    """Read the first or second table of the page: name of the config -> cells."""
    text = (REPOSITORY / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\| `ViTMatte_.*\|\n)+", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_page_has_every_recipe_and_the_smallest_first():
    names = [path.name for path in sizes.list_recipes()]
    assert [*documented(0)] == [*documented(1)] == names and sorted(names) == [path.name for path in PUBLISHED]
    for path in PUBLISHED:
        counts = count_parameters(build_on_meta(load_config(path)))
        assert documented(0)[path.name][2:6] == [f"{number / 1e6:.2f}" for number in counts.values()], path.name


def test_operations_are_those_of_the_formula():
    """ViT-S of DINOv3 at 256 px: a grid of 16 x 16 patches, which windows of 14 cut into 14 + 2."""
    cfg = load_config(S_100EP)
    b, D, prefix = cfg.model.backbone, 384, 5
    tokens, num_windowed = 256 + prefix, b.depth - len(b.global_block_indexes)
    total = 256 * 4 * 256 * D + b.depth * tokens * (4 + 8) * D * D  # patch embed; projections and MLP
    total += len(b.global_block_indexes) * (2 * tokens**2 * D + 256 * (D * D + 9 * (D // 2) ** 2))  # with necks
    windows = [h * w for h in (14, 2) for w in (14, 2)]
    total += num_windowed * 2 * (sum(n * (n + prefix) for n in windows) + prefix * tokens) * D
    stream = [(4, 48, 128), (48, 96, 64), (96, 192, 32)]  # channels in and out, side of the result
    fusion = [(384 + 192, 256, 32), (256 + 96, 128, 64), (128 + 48, 64, 128), (64 + 4, 32, 256), (32, 16, 256)]
    total += sum(9 * a * c * side**2 for a, c, side in stream + fusion) + 16 * 256**2
    assert count_flops(build_on_meta(cfg), 256) == 2 * total


def test_frozen_parameters_are_not_trainable_ones():
    counts = count_parameters(build_on_meta(tiny("model.num_frozen_blocks=2", "model.freeze_patch_embed=true")))
    assert counts["trainable"] == counts["decoder"] + 2 * 32  # and the final norm


def test_live_bytes_are_counted_once_and_forgotten():
    with LiveBytes() as memory:
        a = torch.zeros(1000)  # 4000 bytes
        b = a[10:].view(-1, 10)
        a.add_(1)
        assert memory.live == memory.peak == 4000
        c = b.double().sum()  # 7920 bytes for a moment, then 8
        assert (memory.live, memory.peak) == (4008, 4000 + 7920 + 8)
        del a
        assert memory.live == 4008
        del b, c
        assert memory.live == 0


def test_activation_checkpointing_and_bf16_take_less_memory():
    names = ("float32", "float32, backbone recomputed", "float32, decoder too", "bf16, decoder too")
    peaks = [predict_peak(tiny(), STEPS[name], 4, 96) for name in names]
    assert sorted(peaks, reverse=True) == peaks and len(set(peaks)) == len(peaks)


def test_the_command_prints_both_tables(capsys, monkeypatch):
    monkeypatch.setattr(sizes, "load_config", lambda path: tiny())
    monkeypatch.setattr(sizes, "SIZES_PX", (96, 128))
    monkeypatch.setattr(sizes, "STEPS", {"float32": STEPS["float32"]})
    benchmark.main(["sizes", "--configs", str(S_100EP), "--batch-size", "2"])
    lines = figures(capsys)
    assert [line.count("|") for line in lines] == [11, 11, 11, 5, 5, 5]
    assert lines[2].startswith("| `ViTMatte_S_100ep.py` | 96 |") and lines[2].endswith("| to be measured |")
    assert lines[5].startswith("| `ViTMatte_S_100ep.py` | 2 | 96 |")


@pytest.mark.parametrize(
    ("option", "words"),
    [(["--batch-size", "0"], "at least 1, got 0"), (["--configs", str(S_100EP), "nope.py"], "no file nope.py")],
)
def test_wrong_usage_is_reported_before_anything_is_printed(capsys, option, words):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["sizes", "--tables", "memory", *option])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == "" and words in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S_original", "B_dinov2", "7B_100ep"])
def test_the_page_has_what_the_tool_prints(name, monkeypatch):
    """Each kind of backbone, and the largest. Memory only in float32: counting that of bf16 takes a minute."""
    path = CONFIGS / f"ViTMatte_{name}.py"
    monkeypatch.setattr(sizes, "STEPS", {"float32": STEPS["float32"]})
    assert sizes.size_row(path)[1:] == documented(0)[path.name]
    assert sizes.memory_row(path, None, False)[1:] == documented(1)[path.name][:3]


def test_crops_of_a_mixture_are_those_of_its_members():
    cfg = load_config(CONFIGS / "ViTMatte_S_open.py")
    apply_overrides(cfg, ["dataloader.train.dataset.hairy.crop_px=96"])
    assert sizes.crop_px(cfg) == 96 and sizes.crop_px(load_config(S_100EP)) == 512


@pytest.mark.slow
def test_the_page_has_the_memory_of_the_steps():
    """Of one in bf16 alone: each takes as long as all in float32."""
    cfg = load_config(S_100EP)
    assert sizes.size_row(S_100EP)[1:] == documented(0)[S_100EP.name]
    shown = dict(zip(STEPS, documented(1)["ViTMatte_S_100ep.py"][2:], strict=True))
    for name in [name for name in STEPS if "bf16" not in name] + ["bf16"]:
        assert shown[name] == f"{predict_peak(cfg, STEPS[name], 16, 512) / 1e9:.1f}", name


SHARDED = {"H+ on 4": "ViTMatte_Hplus_100ep.py", "7B on 8": "ViTMatte_7B_100ep.py"}
"""Head of a column of the table in docs/sharding.md -> its recipe."""


def launch_table() -> dict[str, dict[str, str]]:
    """Read the bytes per GPU in docs/sharding.md: head of a column -> row -> cell."""
    text = (REPOSITORY / "docs" / "sharding.md").read_text(encoding="utf-8")
    table = re.search(r"^\| what \| bytes \|(?:.*\n)+?\n", text, re.MULTILINE)
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines() if line]
    return {column: {row[0].partition(" ")[0]: row[head.index(column)] for row in rows} for column in SHARDED}


@pytest.mark.parametrize("column", SHARDED)
def test_bytes_per_gpu_are_those_of_the_formula(column):
    cfg = load_config(CONFIGS / SHARDED[column])
    num_gpus = int(column.rpartition(" ")[2])
    assert cfg.train.world_size == num_gpus
    shown = launch_table()[column]
    model = build_on_meta(cfg)
    total = count_parameters(model)["trainable"]
    largest = max(sum(p.numel() for p in block.parameters()) for block in model.backbone.blocks)
    assert shown["P;"] == f"{total / 1e9:.3f} 10⁹; {largest / 1e6:.1f} 10⁶"
    state, average, gathered = 16 * total / num_gpus, 4 * total / num_gpus, 16 * largest
    for what, expected in {
        "parameters,": state,
        "moving": average,
        "gathered:": gathered,
        "together,": state + average + gathered,
        "without": 20 * total,
    }.items():
        assert shown[what] == f"{expected / 1e9:.1f} GB", what


def activations(cfg: DictConfig, depth: int, global_blocks: list[int]) -> int:
    """Count bytes of one crop on fake tensors. A gradient is freed as soon as it exists, as in a sharded network."""
    apply_overrides(cfg, [f"model.backbone.depth={depth}", f"model.backbone.global_block_indexes={global_blocks}"])
    model = build_on_meta(cfg).train()
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        before, memory.peak = memory.live, memory.live
        # As the trainer does for a sharded network: no copies of all weights in bf16.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            losses = model(sizes.make_batch(1, 512))
        sum(losses.values()).backward()
    return memory.peak - before


@pytest.mark.slow
def test_activations_per_gpu_are_counted():
    """From networks of one and two blocks, since each block adds the same: counting all 32 takes a minute."""
    cfg = load_config(CONFIGS / SHARDED["H+ on 4"])
    num_global = len(cfg.model.backbone.global_block_indexes)
    num_windowed = cfg.model.backbone.depth - num_global
    one = activations(cfg, 1, [0])
    per_windowed, per_global = activations(cfg, 2, [1]) - one, activations(cfg, 2, [0, 1]) - one
    crop = one + num_windowed * per_windowed + (num_global - 1) * per_global
    total = cfg.dataloader.train.batch_size * crop
    assert launch_table()["H+ on 4"]["activations"] == f"{total / 1e9:.1f} GB"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
def test_a_real_step_takes_little_more_than_predicted(capsys, monkeypatch):
    monkeypatch.setattr(sizes, "STEPS", {name: STEPS[name] for name in ("float32", "float32, decoder too")})
    benchmark.main(["sizes", "--configs", str(S_100EP), "--tables", "memory", "--batch-size", "1", "--measure"])
    cells = [cell.split() for cell in figures(capsys)[2].split("|")[4:-1]]
    assert len(cells) == 2
    for predicted, measured in cells:
        assert 0 < float(measured.strip("()")) - float(predicted) < 0.5, (predicted, measured)
