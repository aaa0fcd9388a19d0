"""Contracts over all configs: deltas of plain assignments that load, instantiate, save, reload and refuse a typo."""

import ast
import inspect
import math
import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import LazyCall, LazyConfig
from detectron2.solver import LRMultiplier
from omegaconf import OmegaConf

import preprocess
from data.image_io.images import DataError
from engine.checkpoint.file import CheckpointError, load_weights
from engine.config.config import (
    TRAINING_SECTIONS,
    apply_overrides,
    build_section,
    check_number_or_null,
    check_whole,
    dotted_keys,
    load_config,
    save_config,
)
from engine.config.epochs import samples_per_iteration
from engine.config.targets import instantiate
from modeling.backbone import DINOV2_SIZES, DINOV3_SIZES
from runtime.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("*.py"))
assert len(EXPERIMENTS) == 16
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


every_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


def instantiate_on_meta(cfg):
    with torch.device("meta"):
        return instantiate(cfg.model)


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


@pytest.mark.parametrize("path", ["ViTMatte_S_10ep", "ViTMatte_B_original", "finetune"])
@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.epoch=3", "train.epochs"),
        ("model.backbone.embed_dmi=3", "model.backbone.embed_dim"),
        ("batchsize=3", "dataloader.train.batch_size"),
        ("xyzzy=3", None),
    ],
)
def test_a_misspelt_override_is_refused_with_what_was_meant(path, override, hint, tmp_path):
    cfg = load_config(CONFIGS / f"{path}.py")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for loaded in (cfg, load_config(tmp_path / "config.yaml")):
        before = dotted_keys(loaded)
        with pytest.raises(ConfigError) as refused:
            apply_overrides(loaded, [override])
        message = str(refused.value)
        assert "\n" not in message and repr(override.partition("=")[0]) in message
        assert (hint is None) == ("did you mean" not in message) and (hint or "") in message
        assert dotted_keys(loaded) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "expected key=value"),
        ("--resume", "go before overrides"),
        ("train.output_dir=${x", r"cannot use 'train.output_dir=\$\{x'"),
        ("train.init_checkpoint=???", "Missing mandatory value: init_checkpoint .in the config's 'train.init_check"),
        ("dataloader.train.dataset.foreground_dirs=[a,,b]", "an entry of the list is empty: write ''"),
        ("dataloader.train.dataset.foreground_dirs=a", r"must be a list, got 'a': write '.*_dirs=\[a\]'"),
        ("train.epochs=1 (a)", "cannot use 'train.epochs=1 .a.'"),
        ("train={epoch: 3}", "cannot use 'train={epoch: 3}'"),
        ("train.max_iter=2", "too few for 2 steps"),
        ("dataloader.train.batch_size=many", "dataloader.train.batch_size must be a number, got 'many'"),
        ("dataloader.train.batch_size=0", "dataloader.train.batch_size must be a whole number of at least 1, got 0"),
        ("train.epochs=true", "^train.epochs must be a number, got True"),
        ("train.epochs=0", "a number of epochs must be finite and above 0, got 0"),
        ("model.backbone.keep_prefix_tokens=flase", "^model.backbone.keep_prefix_tokens must be true or false"),
        ("train.accumulation=0", "^train.accumulation must be a whole number of at least 1, got 0 .in the config's '"),
        ("train.compile=3", "^train.compile must be true or false, got 3"),
        ("train.pictures=5", "^train.pictures must be a section with its keys, or null, got 5"),
        ("train.checkpointer=null", "^train.checkpointer is needed, got null"),
        ("train.output_dir=null", "^train.output_dir is needed, got null"),
        ("train.epochs=null", "^a number of epochs must be finite and above 0, got None"),
        ("train.warmup_samples=-1", "^a number of samples of warm-up must be at least 0, got -1 .*'lr_multiplier"),
        ("train.decoder_warmup_samples=-1", "^a number of samples of warm-up .*'optimizer.params.pretrained_start'"),
        ("dataloader.test_views.scales=1", "^dataloader.test_views.scales must be a list, got 1"),
        ("dataloader.train.dataset.tones=3", "^dataloader.train.dataset.tones must be a section"),
    ],
)
def test_an_override_that_cannot_be_used_says_why(override, words):
    with pytest.raises(ConfigError, match=words):
        apply_overrides(load_config(CONFIGS / "demo.py"), [override])


def test_a_whole_number_is_no_truth_value():
    cfg = load_config(CONFIGS / "demo.py")
    for seed in (True, -1, 1.5, None):
        cfg.train.seed = seed
        with pytest.raises(ConfigError, match=f"^train.seed must be a whole number of at least 0, got {seed}$"):
            check_whole(cfg, "train.seed", 0)
    cfg.train.seed = 0
    check_whole(cfg, "train.seed", 0)


@pytest.mark.parametrize("value", ["abc", "[1]", "true", "inf", "nan"])
def test_what_is_neither_a_number_nor_null(value):
    cfg = load_config(CONFIGS / "demo.py")
    apply_overrides(cfg, [f"train.clip_norm={value}"])
    with pytest.raises(ConfigError, match="^train.clip_norm must be a finite number or null, got "):
        check_number_or_null(cfg, "train.clip_norm")
    for fit in ("null", "0.5", "2"):
        apply_overrides(cfg, [f"train.ema_decay={fit}"])
        check_number_or_null(cfg, "train.ema_decay")


def test_a_section_that_cannot_be_built_is_named():
    cfg = load_config(CONFIGS / "demo.py")
    with pytest.raises(ConfigError, match="^dataloader.train is null, and is needed"):
        build_section(None, "dataloader.train")
    with pytest.raises(
        ConfigError, match="^model.backbone cannot be built of its settings: width .* not divisible by 5 heads"
    ):
        cfg.model.backbone.num_heads = 5
        build_section(cfg.model, "model")


def test_an_error_of_files_that_a_section_names_comes_through():
    def find_pairs():
        raise DataError("a.png has no alpha")

    with pytest.raises(DataError, match="^a.png has no alpha$"):
        build_section(LazyCall(find_pairs)(), "dataloader.test")


@pytest.mark.parametrize("path", ["absent.py", "README.md", ""])
def test_a_config_file_that_is_none_is_refused(path):
    with pytest.raises(ConfigError, match="existing .py or .yaml file"):
        load_config(path)


def test_values_may_be_replaced_by_numbers_interpolations_and_null():
    cfg = load_config(CONFIGS / "demo.py")
    apply_overrides(cfg, ["train.epochs=0.5", "train.log_period=${train.seed}", "train.checkpointer.max_to_keep=null"])
    assert (cfg.train.epochs, cfg.train.log_period, cfg.train.checkpointer.max_to_keep) == (0.5, 0, None)
    apply_overrides(cfg, ["train.pictures=null", "train.best_checkpoint=null", "dataloader.test=null"])
    assert cfg.train.pictures is cfg.train.best_checkpoint is cfg.dataloader.test is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.py", "train = dict()\nmodel = dict(\n", r"a.py has syntax error!: '\(' was never closed .*line 2"),
        ("a.py", "train = dict()\n\n  model = 3", "a.py has syntax error!: unexpected indent .*line 3"),
        ("a.py", "train = dict()\nreturn", "'return' outside function .*a.py, line 2"),
        ("a.yaml", "train:\n  seed: [1\nmodel: 2", 'a.yaml is not YAML: .*a.yaml", line 3'),
        ("a.yaml", "train: {}\nmodel: {}", "a.yaml: expected the sections train, .*, lr_multiplier, got train, model$"),
        ("a.yaml", b"\xff{\0", "a.yaml is not YAML: 'utf-8' codec can't decode byte 0xff"),
        ("a.yaml", ": {seed: '${'}\n".join([*TRAINING_SECTIONS, ""]), "a.yaml cannot be used: "),
        ("a.py", b"train = '\xff'", "a.py is not Python: "),
        ("a.yaml", "[1, 2]", "a.yaml: .*, got none"),
        ("a.py", "", "a.py: .*, got none"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_line_with_its_place(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=words) as refused:
        load_config(tmp_path / name, TRAINING_SECTIONS)
    assert "\n" not in str(refused.value)


def test_a_broken_file_that_a_config_imports_is_named(tmp_path):
    (tmp_path / "a.py").write_text("from .b import train\n")
    (tmp_path / "b.py").write_text("\ntrain = (\n")
    with pytest.raises(ConfigError, match="b.py.*line 2"):
        load_config(tmp_path / "a.py")


@pytest.mark.parametrize("key", ["model", "model.backbone", "model.decoder", "model.criterion", "optimizer",
                                 "optimizer.params", "dataloader.train", "dataloader.train.dataset",
                                 "dataloader.train.dataset.tones", "dataloader.train.dataset.degradation",
                                 "dataloader.test", "dataloader.test.dataset", "dataloader.evaluator",
                                 "dataloader.test_views", "lr_multiplier.scheduler"])  # fmt: skip
def test_every_argument_can_be_overridden(key):
    node = OmegaConf.select(load_config(CONFIGS / "ViTMatte_S_10ep.py"), key)
    assert set(node) - {"_target_"} == set(inspect.signature(node._target_).parameters)


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


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ViTMatte_S_10ep", (10, False, 384, 12, 6, "mlp", 4.0, [2, 5, 8, 11], 0.65, 512)),
        ("ViTMatte_S_100ep", (100, True, 384, 12, 6, "mlp", 4.0, [2, 5, 8, 11], 0.65, 512)),
        ("ViTMatte_S_100ep_1024", (100, True, 384, 12, 6, "mlp", 4.0, [2, 5, 8, 11], 0.65, 1024)),
        ("ViTMatte_Splus_100ep", (100, True, 384, 12, 6, "swiglu", 6.0, [2, 5, 8, 11], 0.65, 512)),
        ("ViTMatte_B_100ep", (100, True, 768, 12, 12, "mlp", 4.0, [2, 5, 8, 11], 0.7, 512)),
        ("ViTMatte_B_100ep_1024", (100, True, 768, 12, 12, "mlp", 4.0, [2, 5, 8, 11], 0.7, 1024)),
        ("ViTMatte_L_100ep", (100, True, 1024, 24, 16, "mlp", 4.0, [5, 11, 17, 23], 0.8, 512)),
        ("ViTMatte_Hplus_100ep", (100, True, 1280, 32, 20, "swiglu", 6.0, [7, 15, 23, 31], 0.8, 512)),
        ("ViTMatte_7B_100ep", (100, True, 4096, 40, 32, "swiglu", 3.0, [9, 19, 29, 39], 0.8, 512)),
    ],
)
def test_what_distinguishes_the_composition_experiments(path, expected):
    cfg = load_config(CONFIGS / f"{path}.py")
    b = cfg.model.backbone
    assert expected == (
        cfg.train.epochs,
        b.keep_prefix_tokens,
        b.embed_dim,
        b.depth,
        b.num_heads,
        b.ffn_layer,
        b.mlp_ratio,
        b.global_block_indexes,
        cfg.optimizer.params.lr_decay_rate,
        cfg.dataloader.train.dataset.crop_px,
    )
    assert b.conv_residual_block_indexes == b.global_block_indexes
    assert cfg.optimizer.params.num_layers == b.depth
    assert cfg.model.decoder.in_chans == b.embed_dim
    is_sharded = path.split("_")[1] in ("Hplus", "7B")
    assert b.use_activation_checkpointing == (path.endswith("1024") or is_sharded)
    assert cfg.train.sharded_blocks == ("backbone.blocks" if is_sharded else "")
    assert samples_per_iteration(cfg) == 32
    assert b.drop_path_rate == {"L": 0.4, "Hplus": 0.5}.get(path.split("_")[1], 0.0)
    assert cfg.lr_multiplier.scheduler.milestones == [
        int(0.8 * cfg.train.epochs) * 1347,
        1347 * cfg.train.epochs * 95 // 100,
    ]
    assert cfg.train.output_dir == f"output/{path}"
    size, suffix = re.fullmatch(r"checkpoints/dinov3_(\w+?)_4ch(_prefix)?.pth", cfg.train.init_checkpoint).groups()
    assert DINOV3_SIZES[size].items() <= dict(b).items()
    assert (suffix is not None) == b.keep_prefix_tokens


def assert_only_backbones_differ(first, second, own_backbone_keys):
    """Compare two configs. Their backbones have equal sizes where both have the same key."""
    configs = [OmegaConf.to_container(cfg, resolve=True) for cfg in (first, second)]
    for cfg in configs:
        for key in ("output_dir", "init_checkpoint", "init_checkpoint_may_lack"):
            cfg["train"].pop(key)
    backbones = [cfg["model"].pop("backbone") for cfg in configs]
    assert configs[0] == configs[1]
    both = backbones[0].keys() & backbones[1].keys() - own_backbone_keys
    assert {"embed_dim", "depth", "num_heads", "window_size", "global_block_indexes"} <= both
    assert [backbones[0][key] for key in both] == [backbones[1][key] for key in both]


@pytest.mark.parametrize("size", ["S", "B"])
def test_a_dinov2_experiment_differs_from_its_dinov3_experiment_in_the_backbone_alone(size):
    dinov2, dinov3 = (load_config(CONFIGS / f"ViTMatte_{size}_{name}.py") for name in ("dinov2", "100ep"))
    assert_only_backbones_differ(dinov2, dinov3, {"_target_", "norm_eps", "layer_scale_init"})
    assert dinov2.train.init_checkpoint_may_lack == dinov3.train.init_checkpoint_may_lack
    assert dinov2.train.init_checkpoint == f"checkpoints/dinov2_vit{size.lower()}16_4ch.pth"
    assert DINOV2_SIZES[f"vit{size.lower()}14"].items() <= dict(dinov2.model.backbone).items()


PUBLISHED_SETTINGS = {
    "train.warmup_samples": 8_000,
    "lr_multiplier.scheduler.values": [1.0, 0.1, 0.05],
    "lr_multiplier.scheduler.milestones": [30 * 1347, 90 * 1347],
    "optimizer.params.decoder_lr_factor": 1.0,
    "model.criterion.area": "batch",
}


@pytest.mark.parametrize("size", ["S", "B"])
def test_an_original_differs_from_its_dinov3_experiment_in_the_backbone_and_the_published_settings(size):
    original, dinov3 = (load_config(CONFIGS / f"ViTMatte_{size}_{name}.py") for name in ("original", "100ep"))
    for key, value in PUBLISHED_SETTINGS.items():
        assert OmegaConf.select(original, key) == value != OmegaConf.select(dinov3, key), key
        OmegaConf.update(original, key, OmegaConf.select(dinov3, key))
    assert original.model.padding == "edge"
    assert_only_backbones_differ(original, dinov3, {"_target_", "norm_eps"})


@pytest.mark.parametrize("path", ["ViTMatte_S_original", "ViTMatte_B_original"])
def test_an_original_has_the_published_learning_rates(path):
    """1, 0.1 and 0.05 from epochs 30 and 90 on, after 250 iterations of warm-up; the decoder at the base rate."""
    cfg = load_config(CONFIGS / f"{path}.py")
    multiplier = instantiate(cfg.lr_multiplier)
    for iteration, expected in (
        (0, 0.001),
        (125, 0.5005),
        (250, 1.0),
        (30 * 1347 - 1, 1.0),
        (30 * 1347, 0.1),
        (90 * 1347 - 1, 0.1),
        (90 * 1347, 0.05),
        (100 * 1347 - 1, 0.05),
    ):
        assert multiplier(iteration / cfg.train.max_iter) == pytest.approx(expected, rel=1e-6), iteration
    cfg.optimizer.params.model = model = instantiate_on_meta(cfg)
    rates = {id(p): group["lr"] for group in instantiate(cfg.optimizer).param_groups for p in group["params"]}
    assert (
        {rates[id(p)] for p in model.decoder.parameters()}
        == {rates[id(p)] for p in model.backbone.blocks[2].residual.parameters()}
        == {5e-4}
    )


@pytest.mark.parametrize("epochs", [1e-4, 1, 50])
def test_an_original_may_be_as_short_as_one_likes(epochs):
    cfg = load_config(CONFIGS / "ViTMatte_S_original.py")
    apply_overrides(cfg, [f"train.epochs={epochs}", "train.max_iter=3"] if epochs < 1 else [f"train.epochs={epochs}"])
    first, second = cfg.lr_multiplier.scheduler.milestones
    assert 0 < first < second < cfg.train.max_iter
    assert 0.05 <= instantiate(cfg.lr_multiplier)(0.999) <= 1


@every_experiment
def test_areas_of_losses_are_pooled_where_the_source_does(path):
    """The report and ViTMatte pool them over a forward pass; what has no source counts each image's own."""
    is_of_others = path.stem == "ViTMatte_S_10ep" or path.stem.endswith("_original")
    assert load_config(path).model.criterion.area == ("batch" if is_of_others else "image")


@pytest.mark.parametrize(("path", "num_million"), [("ViTMatte_S_original", 25.8), ("ViTMatte_B_original", 96.7)])
def test_an_original_has_as_many_parameters_as_the_published_one(path, num_million):
    """As ViTMatte (arXiv:2305.15272, table 1) counts them; the unread cls position is among them."""
    model = instantiate_on_meta(load_config(CONFIGS / f"{path}.py"))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(num_million, abs=0.05)


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
