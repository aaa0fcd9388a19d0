"""tools/benchmark.py sizes, and docs/model_zoo.md, against the closed formulas of the networks."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.config.config import apply_overrides, load_config
from tests.helpers.paths import REPOSITORY
from tools import benchmark
from tools.benchmarks import sizes
from tools.benchmarks.sizes import (
    STEPS,
    LiveBytes,
    Step,
    build_on_meta,
    count_flops,
    count_parameters,
    make_batch,
    memory_row,
    predict_peak,
)

CONFIGS = REPOSITORY / "configs"
PUBLISHED = sorted(CONFIGS.glob("ViTMatte_*.py"))
TINY = ["model.backbone.depth=2", "model.backbone.conv_residual_block_indexes=[1]",
        "model.backbone.embed_dim=32", "model.backbone.num_heads=2",
        "model.backbone.global_block_indexes=[1]", "model.decoder.convstream_chans=[4,8,12]",
        "model.decoder.fusion_chans=[8,6,4,2]", "model.backbone.window_size=4",
        "dataloader.train.dataset.crop_px=96"]  # fmt: skip


def shape(cfg: DictConfig) -> tuple[int, int, int, int, bool]:
    """Width, depth, hidden width of the feed-forward network, number of its input matrices, whether it is ViTDet's."""
    b = cfg.model.backbone
    is_gated = b.get("ffn_layer") == "swiglu"
    hidden = -(-int(b.mlp_ratio * b.embed_dim * 2 / 3) // b.ffn_align) * b.ffn_align if is_gated else 4 * b.embed_dim
    return b.embed_dim, b.depth, hidden, 2 if is_gated else 1, "image_size" in b


def num_prefix(cfg: DictConfig) -> int:
    """Count cls and, of DINOv3, its four storage tokens."""
    b = cfg.model.backbone
    return 1 + b.num_register_tokens if "num_register_tokens" in b else 5 if b.get("keep_prefix_tokens") else 0


def convolutions(cfg: DictConfig) -> list[tuple[int, int, int]]:
    """The decoder's 3x3 convolutions under a BatchNorm: channels in and out, and the stride of what they give."""
    stream = [4, *cfg.model.decoder.convstream_chans]
    fused = [cfg.model.backbone.embed_dim, *cfg.model.decoder.fusion_chans]
    found = [(a, b, 2 ** (i + 1)) for i, (a, b) in enumerate(zip(stream[:-1], stream[1:], strict=True))]
    for i, (a, b) in enumerate(zip(fused[:-1], fused[1:], strict=True)):
        found.append((a + stream[-1 - i], b, 2 ** (len(stream) - 1 - i)))
    return [*found, (fused[-1], 16, 1)]


def parameters_by_hand(cfg: DictConfig) -> dict[str, int]:
    D, depth, hidden, gates, is_vitdet = shape(cfg)
    b = cfg.model.backbone
    per_block = 4 * D + 3 * D * D + D * D + D + (gates + 1) * D * hidden + gates * hidden + D
    backbone = 4 * 256 * D + D + depth * per_block
    if is_vitdet:
        sides = [32 if index in b.global_block_indexes else 14 for index in range(depth)]
        backbone += 197 * D + depth * 3 * D + sum(2 * (2 * side - 1) * 64 for side in sides)
    else:
        backbone += depth * (2 * D + (3 * D if b.get("qkv_bias", True) else 0)) + 2 * D + num_prefix(cfg) * D
        backbone += (1 + b.position_grid_size**2) * D if "position_grid_size" in b else 0
    necks = len(b.global_block_indexes) * (D * D + 9 * (D // 2) ** 2 + 2 * D + 2 * D)
    decoder = sum(9 * a * c + 2 * c for a, c, _ in convolutions(cfg)) + 16 + 16 + 1
    return {"backbone": backbone, "necks": necks, "decoder": decoder, "trainable": backbone + necks + decoder}


def flops_by_hand(cfg: DictConfig, size_px: int) -> int:
    """Products with their sums, doubled at the end."""
    D, depth, hidden, gates, is_vitdet = shape(cfg)
    b = cfg.model.backbone
    side = size_px // 16
    patches, window = side * side, b.window_size
    prefix = num_prefix(cfg)
    tokens = patches + prefix
    num_global = len(b.global_block_indexes)
    num_windowed = depth - num_global
    total = patches * 4 * 256 * D + depth * tokens * (gates + 1) * D * hidden
    if is_vitdet:  # windows filled up with zeros; two vectors of distances for each query
        padded = (-(-side // window) * window) ** 2
        total += (num_global * patches + num_windowed * padded) * 4 * D * D
        total += num_global * patches * D * (2 * patches + 2 * side)
        total += num_windowed * padded * D * (2 * window**2 + 2 * window)
    else:
        total += depth * tokens * 4 * D * D + num_global * 2 * tokens**2 * D
        spans = [min(window, side - start) for start in range(0, side, window)]
        seen = sum(h * w * (h * w + prefix) for h in spans for w in spans) + prefix * tokens
        total += num_windowed * 2 * seen * D
    total += num_global * patches * (D * D + 9 * (D // 2) ** 2)
    total += sum(9 * a * c * (size_px // stride) ** 2 for a, c, stride in convolutions(cfg)) + 16 * size_px**2
    return 2 * total


def documented(number: int) -> dict[str, list[str]]:
    """Rows of a table of the page, the first or the second: name of the config -> cells."""
    text = (REPOSITORY / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\| `ViTMatte_.*\|\n)+", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_page_has_the_sizes_of_every_recipe(path):
    cfg = load_config(path)
    crop, drop_path, *sizes_shown, result = documented(0)[path.name]
    millions = [f"{number / 1e6:.2f}" for number in parameters_by_hand(cfg).values()]
    assert sizes_shown == [*millions, *(f"{flops_by_hand(cfg, px) / 1e9:.1f}" for px in (512, 2048))]
    assert (int(crop), float(drop_path)) == (
        cfg.dataloader.train.dataset.crop_px,
        cfg.model.backbone.drop_path_rate,
    )
    assert f"Result:  {result}" in path.read_text(encoding="utf-8")
    crops, crop, *memory = documented(1)[path.name]
    train = cfg.dataloader.train
    assert (int(crops), int(crop)) == (train.batch_size, train.dataset.crop_px) and len(memory) == len(STEPS)


def test_the_page_has_no_other_recipes_and_the_smallest_first():
    by_size = sorted(PUBLISHED, key=lambda path: (parameters_by_hand(load_config(path))["trainable"], path.name))
    assert sizes.list_recipes() == by_size
    assert [*documented(0)] == [*documented(1)] == [path.name for path in by_size]


@pytest.mark.parametrize("name", ["S_10ep", "S_100ep", "S_original", "S_dinov2", "Splus_100ep"])
def test_counts_are_those_of_the_formula(name):
    cfg = load_config(CONFIGS / f"ViTMatte_{name}.py")
    model = build_on_meta(cfg)
    assert count_parameters(model) == parameters_by_hand(cfg)
    assert count_flops(model, 256) == flops_by_hand(cfg, 256)


def test_frozen_parameters_are_not_trainable_ones():
    cfg = load_config(CONFIGS / "ViTMatte_S_100ep.py")
    apply_overrides(cfg, [*TINY, "model.num_frozen_blocks=2", "model.freeze_patch_embed=true"])
    counts = count_parameters(build_on_meta(cfg))
    assert counts["trainable"] == counts["decoder"] + 2 * 32  # and the final norm


def test_bytes_that_live_are_counted_once_and_forgotten():
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


def test_a_peak_is_what_a_layer_needs_in_closed_form():
    """Weights, gradients and moments of a layer, and what it keeps; and nothing for AdamW of what is frozen."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Parameter(torch.empty(50), requires_grad=False)
            self.weight = torch.nn.Parameter(torch.empty(1000, 300))

        def forward(self, batch):
            return {"loss": (batch["image"].flatten(1)[:, :1000] @ self.weight).sum()}

    with torch.device("meta"):
        model = Layer()
    cfg = DictConfig({"model": {}}, flags={"allow_objects": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "build_on_meta", lambda cfg, step: model)
        peak = predict_peak(cfg, Step("float32"), 2, 32)
    batch = 2 * 32 * 32 * 5
    # At the end of the backward pass: four copies of the weight, the input's copy, the loss and its gradients.
    expected = 4 * (4 * 300_000 + 50 + batch)
    assert expected <= peak <= expected + 4 * (2000 + 2 * 600 + 10)


def tiny(*overrides: str) -> DictConfig:
    cfg = load_config(CONFIGS / "ViTMatte_S_100ep.py")
    apply_overrides(cfg, [*TINY, *overrides])
    return cfg


def test_what_is_recomputed_and_bf16_take_less():
    names = ("float32", "float32, backbone recomputed", "float32, decoder too", "bf16, decoder too")
    peaks = [predict_peak(tiny(), STEPS[name], 4, 96) for name in names]
    assert sorted(peaks, reverse=True) == peaks and len(set(peaks)) == len(peaks)


def test_the_network_of_a_prediction_is_the_one_that_is_trained():
    cfg = tiny()
    names = instantiate(cfg.model).state_dict().keys()
    assert build_on_meta(cfg, STEPS["float32, decoder too"]).state_dict().keys() == names
    model = build_on_meta(cfg, STEPS["float32, backbone recomputed"])
    assert model.backbone.use_activation_checkpointing and not model.decoder.use_activation_checkpointing


def test_the_command_prints_both_tables(capsys, tmp_path):
    path = CONFIGS / "ViTMatte_S_100ep.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "load_config", lambda path: tiny())
        patch.setattr(sizes, "SIZES_PX", (96, 128))
        patch.setattr(sizes, "STEPS", {"float32": STEPS["float32"]})
        benchmark.main(["sizes", "--configs", str(path), "--batch-size", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines] == [11, 11, 11, 5, 5, 5]
    assert lines[5].startswith("| `ViTMatte_S_100ep.py` | 2 | 96 |")
    counts = parameters_by_hand(tiny())
    shown = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert shown[3:7] == [f"{number / 1e6:.2f}" for number in counts.values()]
    assert shown[7:9] == [f"{flops_by_hand(tiny(), px) / 1e9:.1f}" for px in (96, 128)]
    assert shown[0] == "`ViTMatte_S_100ep.py`" and shown[-1] == "to be measured"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--batch-size", "0"], "argument --batch-size: must be at least 1, got 0"),
        (["--configs", str(CONFIGS / "demo.py"), "nope.py"], "argument --configs: there is no file nope.py"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_printed(capsys, option, words):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["sizes", "--tables", "memory", *option])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == "" and words in printed.err


@pytest.mark.slow
def test_the_page_has_the_memory_that_the_tool_predicts():
    cfg = load_config(CONFIGS / "ViTMatte_S_100ep.py")
    shown = documented(1)["ViTMatte_S_100ep.py"][2:]
    assert shown == [f"{predict_peak(cfg, step, 16, 512) / 1e9:.1f}" for step in STEPS.values()]


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_cell_of_each_recipe_is_what_the_tool_predicts_for_its_own_batch(path, monkeypatch):
    """In float32: in bf16 the CPU attends by many more operations, which take a minute to count."""
    monkeypatch.setattr(sizes, "STEPS", {"float32": STEPS["float32"]})
    crops, crop, shown, *_ = documented(1)[path.name]
    assert memory_row(path, None, False) == [f"`{path.name}`", crops, crop, shown]


SHARDED = {"H+ on 4": "ViTMatte_Hplus_100ep.py", "7B on 8": "ViTMatte_7B_100ep.py"}
"""Head of a column of the table in docs/sharding.md -> its recipe."""


def launch_table() -> dict[str, dict[str, str]]:
    """What docs/sharding.md says of the bytes per GPU: head of a column -> what -> cell."""
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
    total = parameters_by_hand(cfg)["trainable"]
    largest = max(sum(p.numel() for p in block.parameters()) for block in build_on_meta(cfg).backbone.blocks)
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


@pytest.mark.slow
@pytest.mark.parametrize("column", ["H+ on 4"])
def test_activations_per_gpu_are_counted(column):
    """On fake tensors, with gradients that go as soon as they are there, as those of a sharded network do."""
    cfg = load_config(CONFIGS / SHARDED[column])
    model = build_on_meta(cfg).train()
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        before, memory.peak = memory.live, memory.live
        # As the trainer does for a sharded network: no copies of all weights in bf16.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            losses = model(make_batch(cfg.dataloader.train.batch_size, 512))
        sum(losses.values()).backward()
    assert launch_table()[column]["activations"] == f"{(memory.peak - before) / 1e9:.1f} GB"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read as Linux tells it")
def test_a_real_step_takes_what_is_predicted_and_what_libraries_take(capsys, monkeypatch):
    monkeypatch.setattr(sizes, "STEPS", {name: STEPS[name] for name in ("float32", "float32, decoder too")})
    path = str(CONFIGS / "ViTMatte_S_100ep.py")
    benchmark.main(["sizes", "--configs", path, "--tables", "memory", "--batch-size", "1", "--measure"])
    cells = [cell.split() for cell in capsys.readouterr().out.splitlines()[2].split("|")[4:-1]]
    assert len(cells) == 2
    for predicted, measured in cells:
        assert 0 < float(measured.strip("()")) - float(predicted) < 0.5, (predicted, measured)
