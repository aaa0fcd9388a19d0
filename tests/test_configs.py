"""Contracts over all configs: deltas of plain assignments that load, instantiate, save, reload and refuse a typo."""

import ast
import math

import pytest
import timm
import torch
from detectron2.config import LazyConfig
from detectron2.solver import LRMultiplier
from omegaconf import OmegaConf

import preprocess
from engine.checkpoint.file import CheckpointError, load_weights
from engine.config.config import (
    apply_overrides,
    dotted_keys,
    load_config,
    save_config,
)
from engine.config.epochs import samples_per_iteration
from engine.config.targets import instantiate
from tests.helpers.configs import CONFIGS, EXPERIMENTS, every_experiment, instantiate_on_meta

COMMON = {
    "dataloader": "dataloader",
    "model": "model",
    "optimizer": "optimizer",
    "schedule": "lr_multiplier",
    "train": "train",
}
COMPOSITION_1K = [path for path in EXPERIMENTS if path.stem.startswith("ViTMatte_") and path.stem != "ViTMatte_S_open"]


def common_files(path):
    """The files of configs/common that an experiment imports -> the name in each."""
    replaced = {"finetune": {"dataloader": "dataloader_photographs"}}.get(path.stem, {})
    if path.stem.endswith("_original"):
        replaced = {"model": "model_vitdet"}
    if path.stem.endswith(("_dinov2", "_open")):
        replaced = {"model": "model_dinov2"}
    if path.stem.endswith("_open"):
        replaced |= {"dataloader": "dataloader_open"}
    return {replaced.get(file, file): name for file, name in COMMON.items()}


@every_experiment
def test_an_experiment_is_a_short_delta_of_plain_assignments(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    head, *body = ast.parse(source).body
    imports, assignments = body[: len(COMMON)], body[len(COMMON) :]
    assert [ast.unparse(node) for node in imports] == [
        f"from .common.{file} import {name}" for file, name in sorted(common_files(path).items())
    ]
    for node in assignments:
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute), ast.unparse(node)
        ast.literal_eval(node.value)
    text = ast.get_docstring(ast.Module([head, *body], []))
    command = "make demo" if path.stem == "demo" else f"--config-file configs/{path.name}"
    for word in ("Purpose:", "Command:", command, "Cost:", "Result:"):
        assert word in text, word


@every_experiment
def test_an_experiment_has_the_keys_of_its_common_files(path):
    common = OmegaConf.create(
        {
            name: LazyConfig.load(str(CONFIGS / "common" / f"{file}.py"), name)
            for file, name in common_files(path).items()
        },
        flags={"allow_objects": True},
    )
    assert sorted(dotted_keys(load_config(path))) == sorted(dotted_keys(common))


@every_experiment
def test_it_instantiates_saves_and_reloads_to_the_same(path, tmp_path):
    cfg = load_config(path)
    saved = tmp_path / "config.yaml"
    save_config(cfg, saved)
    assert not saved.with_suffix(".yaml.pkl").exists()
    reloaded = load_config(saved)
    save_config(reloaded, tmp_path / "again.yaml")
    assert saved.read_text() == (tmp_path / "again.yaml").read_text()

    assert reloaded.train.max_iter == cfg.train.max_iter
    shapes = {name: tensor.shape for name, tensor in instantiate_on_meta(cfg).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in instantiate_on_meta(reloaded).state_dict().items()}
    for loaded in (cfg, reloaded):
        loaded.optimizer.params.model = instantiate_on_meta(loaded)
        assert instantiate(loaded.optimizer).param_groups
        assert 0 < instantiate(loaded.lr_multiplier)(0.5) <= 1
        apply_overrides(loaded, ["dataloader.train.batch_size=1"])
        assert samples_per_iteration(loaded) == loaded.train.world_size


def test_the_report_to_the_number():
    cfg = load_config(CONFIGS / "ViTMatte_S_10ep.py")
    assert (cfg.train.max_iter, cfg.train.checkpointer.period, cfg.train.eval_period) == (13470, 2694, 2694)
    assert cfg.lr_multiplier.scheduler["values"] == [1.0, 0.5, 0.2]
    assert cfg.lr_multiplier.scheduler.milestones == [10776, 12796]  # 8 and 9.5 epochs of 1347
    assert cfg.optimizer.lr == cfg.optimizer.params.base_lr == 5e-4
    assert cfg.optimizer.betas == [0.9, 0.999]
    assert cfg.optimizer.weight_decay == cfg.optimizer.params.weight_decay == 0.1
    assert (cfg.optimizer.params.lr_decay_rate, cfg.optimizer.params.num_layers) == (0.65, 12)
    assert cfg.optimizer.params.decoder_lr_factor == 5
    loader = cfg.dataloader.train
    assert (loader.batch_size, loader.num_workers, loader.dataset.crop_px) == (16, 2, 512)
    assert (cfg.train.samples_per_epoch, cfg.train.world_size) == (43_100, 2)
    backbone = cfg.model.backbone
    assert (backbone.keep_prefix_tokens, backbone.drop_path_rate, backbone.window_size) == (False, 0.0, 14)
    assert backbone.global_block_indexes == backbone.conv_residual_block_indexes == [2, 5, 8, 11]
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads) == (384, 12, 6)
    assert backbone.rope_shift is backbone.rope_jitter is backbone.rope_rescale is None


def test_the_learning_rate_of_the_report_iteration_by_iteration():
    cfg = load_config(CONFIGS / "ViTMatte_S_10ep.py")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    steps = {10776: 0.5, 12796: 0.2}
    multiplier = 1.0
    for iteration in range(cfg.train.max_iter):
        multiplier = steps.get(iteration, multiplier)
        warmup = 0.001 + 0.999 * min(iteration / 1000, 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(multiplier * warmup, rel=1e-9), iteration
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("path", ["ViTMatte_L_100ep", "demo"])
def test_a_cosine_is_one_override(path):
    cfg = load_config(CONFIGS / f"{path}.py")
    apply_overrides(cfg, ["lr_multiplier.scheduler.kind=cosine"])
    multiplier, warmup = instantiate(cfg.lr_multiplier), cfg.lr_multiplier.warmup_length
    for done in (warmup, 0.5, 0.9, 0.999):
        assert multiplier(done) == pytest.approx((1 + math.cos(math.pi * done)) / 2, rel=1e-9)
    assert multiplier(warmup / 2) == pytest.approx((0.001 + multiplier(warmup)) / 2, rel=1e-6)


def test_a_warm_up_of_the_decoder_alone_is_one_override(tmp_path):
    cfg = load_config(CONFIGS / "ViTMatte_S_10ep.py")
    assert cfg.optimizer.params.pretrained_start == 0
    apply_overrides(cfg, ["train.decoder_warmup_samples=64000", "dataloader.train.batch_size=8"])
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for loaded in (cfg, load_config(tmp_path / "config.yaml")):
        assert loaded.optimizer.params.pretrained_start == pytest.approx(4000 / 26940, rel=1e-12)


@pytest.mark.parametrize("path", ["ViTMatte_S_10ep", "ViTMatte_S_original", "ViTMatte_S_dinov2", "ViTMatte_L_100ep"])
def test_frozen_blocks_are_one_override(path):
    cfg = load_config(CONFIGS / f"{path}.py")
    apply_overrides(cfg, ["model.num_frozen_blocks=2", "model.freeze_patch_embed=true"])
    cfg.optimizer.params.model = model = instantiate_on_meta(cfg)
    grouped = {id(parameter) for group in instantiate(cfg.optimizer).param_groups for parameter in group["params"]}
    early = ("patch_embed.", "cls_token", "storage_tokens", "pos_embed", "blocks.0.", "blocks.1.")
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith(tuple(f"backbone.{part}" for part in early))
        assert parameter.requires_grad != is_frozen and (id(parameter) in grouped) != is_frozen, name


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("world_size", [1, 8])
def test_the_schedule_follows_batch_size_and_processes(batch_size, world_size, tmp_path):
    cfg = load_config(CONFIGS / "ViTMatte_S_10ep.py")
    apply_overrides(cfg, [f"dataloader.train.batch_size={batch_size}", f"train.world_size={world_size}"])
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for loaded in (cfg, load_config(tmp_path / "config.yaml")):
        samples = batch_size * world_size
        per_epoch = -(-43_100 // samples)
        assert loaded.train.max_iter == 10 * per_epoch
        assert loaded.train.checkpointer.period == loaded.train.eval_period == 2 * per_epoch
        assert loaded.lr_multiplier.scheduler.milestones == [8 * per_epoch, 19 * per_epoch // 2]
        warmup_samples = loaded.lr_multiplier.warmup_length * loaded.train.max_iter * samples
        assert warmup_samples == pytest.approx(32_000, rel=1e-9)
        assert loaded.optimizer.lr == 5e-4


def test_a_length_in_iterations_reaches_all_who_use_it():
    cfg = load_config(CONFIGS / "ViTMatte_S_10ep.py")
    apply_overrides(cfg, ["train.max_iter=1000"])
    assert cfg.lr_multiplier.scheduler.milestones == [800, 950]
    assert cfg.lr_multiplier.scheduler.num_updates == 1000
    assert cfg.lr_multiplier.warmup_length == 0.5
    assert instantiate(cfg.lr_multiplier)(0.9) == 0.5


@every_experiment
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(path):
    cfg = load_config(path)
    model = instantiate_on_meta(cfg)
    cfg.optimizer.params.model = model
    settings = [
        (id(parameter), group["lr"], group["weight_decay"])
        for group in instantiate(cfg.optimizer).param_groups
        for parameter in group["params"]
    ]
    found = {parameter: (lr, decay) for parameter, lr, decay in settings}
    assert len(found) == len(settings) == len(list(model.parameters()))

    lr, rate, depth = cfg.optimizer.lr, cfg.optimizer.params.lr_decay_rate, cfg.model.backbone.depth
    factor, weight_decay = cfg.optimizer.params.decoder_lr_factor, cfg.optimizer.weight_decay
    for name, parameter in model.named_parameters():
        part = name.split(".")
        if part[0] == "decoder":
            expected = factor * lr
        elif part[1] == "norm" or "residual" in part:
            expected = lr
        elif part[1] == "blocks":
            expected = lr * rate ** (depth - int(part[2]))
        else:
            assert part[1] in ("patch_embed", "cls_token", "storage_tokens", "pos_embed")
            expected = lr * rate ** (depth + 1)
        does_decay = part[-1] == "weight" and parameter.dim() in (2, 4) or part[-1].startswith("rel_pos_")
        assert found[id(parameter)] == pytest.approx((expected, weight_decay if does_decay else 0), rel=1e-12), name


@pytest.mark.parametrize(
    ("path", "source", "keep_prefix"),
    [
        ("ViTMatte_S_10ep", "vit_small_patch16_dinov3_qkvb", False),
        ("ViTMatte_S_100ep", "vit_small_patch16_dinov3_qkvb", True),
        ("ViTMatte_Splus_100ep", "vit_small_plus_patch16_dinov3_qkvb", True),
    ],
)
def test_a_converted_checkpoint_fits_its_config_and_no_other(path, source, keep_prefix):
    cfg = load_config(CONFIGS / f"{path}.py")
    model = instantiate_on_meta(cfg).to_empty(device="cpu")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in timm.create_model(source, num_classes=0).state_dict().items()}
    backbone = {name: torch.rand(shape) for name, shape in shapes.items()}
    weights = preprocess.convert(backbone, keep_prefix=keep_prefix).model
    load_weights(model, weights, "converted", cfg.train.init_checkpoint_may_lack)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert {name for name in loaded if "decoder." not in name and ".residual." not in name} == set(weights)
    for other in (preprocess.convert(backbone, keep_prefix=not keep_prefix).model, {}):
        with pytest.raises(CheckpointError, match="cls_token|missing .backbone.patch_embed"):
            load_weights(model, other, "converted", cfg.train.init_checkpoint_may_lack)


@pytest.mark.parametrize("path", COMPOSITION_1K, ids=lambda path: path.stem)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_data_set_is_explained(path, part, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS") as missing:
        instantiate(load_config(path).dataloader[part])
    assert str(tmp_path / "nowhere" / "Composition-1k" / part) in str(missing.value)
