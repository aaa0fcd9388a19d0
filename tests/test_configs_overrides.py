"""What a command line or a config file may say wrongly, and the line that it gets."""

import inspect

import pytest
from detectron2.config import LazyCall, LazyConfig
from omegaconf import OmegaConf

from data.image_io.images import DataError
from engine.config.config import (
    TRAINING_SECTIONS,
    apply_overrides,
    build_section,
    check_number_or_null,
    check_whole,
    dotted_keys,
    load_config,
)
from runtime.errors import ConfigError
from tests.helpers.configs import CONFIGS


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
