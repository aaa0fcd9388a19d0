"""Which settings distinguish the experiments of one family, and what the published recipes fix."""

import re

import pytest
from omegaconf import OmegaConf

from engine.config.config import (
    apply_overrides,
    load_config,
)
from engine.config.epochs import samples_per_iteration
from engine.config.targets import instantiate
from modeling.backbone import DINOV2_SIZES, DINOV3_SIZES
from tests.helpers.configs import CONFIGS, every_experiment, instantiate_on_meta


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
