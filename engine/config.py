"""Reading a config and its command-line overrides, with misspellings refused."""

import difflib
import math
import re
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import LazyConfig, instantiate
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import engine.schedule  # noqa: F401  registers the resolvers that configs use
from engine.whole_file import write_text
from runtime.errors import UserError

TRAINING_SECTIONS = ("train", "model", "dataloader", "optimizer", "lr_multiplier")

LATER_KEYS: dict[str, dict[str, Any]] = {
    "train": {
        "accumulation": 1,
        "batch_norm": "own",
        "best_checkpoint": None,
        "clip_norm": None,
        "compile": False,
        "ema_decay": None,
        "model_of_checkpoint": None,
        "pictures": None,
        "sharded_blocks": "",
        "timeout_s": 1800,
        "wandb": None,
    },
    "dataloader": {"test_views": None},
}
"""Section -> keys that configs saved by earlier versions lack -> what was done before they came."""

MAY_BE_NULL = ("train.best_checkpoint", "train.pictures")
"""Sections of plain values that may be null. Of others, what they are the arguments of knows."""


class ConfigError(UserError):
    """A config or an override that cannot be used; the message is one line for the person who wrote it."""


def load_config(path: str | Path, sections: Sequence[str] = ()) -> DictConfig:
    """Load a `.py` config, or the `config.yaml` that a training saved.

    Args:
        path: the file.
        sections: top-level keys that it must have.

    Returns: the whole config, `LATER_KEYS` included; setting a key that it does not have is an error from now on.

    Raises:
        ConfigError: where the file does not exist, has another extension, is not Python or YAML, or lacks a section.
    """
    path = Path(path)
    if path.suffix not in (".py", ".yaml", ".yml") or not path.is_file():
        raise ConfigError(f"--config-file must be an existing .py or .yaml file, got {str(path)!r}")
    try:
        cfg = LazyConfig.load(str(path))
    except SyntaxError as error:
        # detectron2's error names the file, its cause the line; one of the compiler itself names both.
        raise ConfigError(": ".join(str(part) for part in (error, error.__cause__) if part)) from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        language = "Python" if path.suffix == ".py" else "YAML"
        raise ConfigError(f"{path} is not {language}: {' '.join(str(error).split())}") from error
    names = list(cfg) if OmegaConf.is_dict(cfg) and cfg else []
    if not names or not set(names).issuperset(sections):
        raise ConfigError(f"{path}: expected the sections {', '.join(sections)}, got {', '.join(names) or 'none'}")
    for section, values in LATER_KEYS.items():
        if OmegaConf.is_dict(node := cfg.get(section)):
            node.update({key: value for key, value in values.items() if key not in list(node)})
    OmegaConf.set_struct(cfg, True)
    return cfg


def save_config(cfg: DictConfig, path: Path) -> None:
    """Write a config that `load_config` reads again: whole, or not at all.

    Raises:
        OutputError: where the folder cannot be written.
    """
    write_text(path, _as_yaml(cfg))


def describe_differences(path: Path, cfg: DictConfig) -> list[str]:
    """Say which settings of a config are others than a saved one's, as "key: before -> now".

    Values are compared as they are written: of those that follow from others, the others alone are named.

    Raises:
        ConfigError: where the saved one is no config.
    """
    before = _settings(load_config(path))
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "now.yaml")
        saved.write_text(_as_yaml(cfg))
        now = _settings(load_config(saved))
    keys = dict.fromkeys([*now, *before])
    shown = {key: tuple(repr(side[key]) if key in side else "absent" for side in (before, now)) for key in keys}
    return [f"{key}: {earlier} -> {later}" for key, (earlier, later) in shown.items() if earlier != later]


def _as_yaml(cfg: DictConfig) -> str:
    """What detectron2 writes of a config."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        LazyConfig.save(cfg, str(path))
        return path.read_text()


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Map each dotted key to its value as it is written; lists are values."""
    settings: dict[str, Any] = {}

    def collect(node: Any, prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict) and value:
                collect(value, f"{prefix}{name}.")
            else:
                settings[f"{prefix}{name}"] = value

    collect(OmegaConf.to_container(cfg, resolve=False), "")
    return settings


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set `key=value` pairs, in place, and resolve the whole config once to see that it is consistent.

    Args:
        cfg: what `load_config` gave.
        overrides: "dotted.key=value", value in Hydra's grammar (numbers, strings, [lists], null, true).

    Raises:
        ConfigError: for a key that the config does not have (naming close ones), a value that cannot be parsed or is
            of another kind than the one before, and an interpolation that cannot be computed afterwards.
    """
    before: dict[str, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or override.startswith("-"):
            raise ConfigError(f"expected key=value, got {override!r} (options that begin with -- go before overrides)")
        known = dotted_keys(cfg)
        if key not in known:
            raise ConfigError(f"the config has no key {key!r}{_hint(key, known)}")
        before.setdefault(key, _value(cfg, key))
        try:
            LazyConfig.apply_overrides(cfg, [override])
        except (OverrideParseException, OmegaConfBaseException) as error:
            raise ConfigError(f"cannot use {override!r}: {' '.join(str(error).split())}") from error
    for key, value in before.items():
        _check_kind(key, value, _value(cfg, key))
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        raise ConfigError(f"{reason} (in the config's {error.full_key!r})") from error


def check_whole(cfg: DictConfig, key: str, least: int) -> None:
    """Raise a ConfigError unless a key stands for a whole number of at least so much."""
    number = _value(cfg, key)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ConfigError(f"{key} must be a whole number of at least {least}, got {number!r}")


def check_number_or_null(cfg: DictConfig, key: str) -> None:
    """Raise a ConfigError unless a key stands for a finite number or for null."""
    number = _value(cfg, key)
    if number is not None and (
        not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number)
    ):
        raise ConfigError(f"{key} must be a finite number or null, got {number!r}")


def build_section(node: Any, key: str) -> Any:
    """Instantiate a section of a config.

    Args:
        node: the section.
        key: its name in messages.

    Raises:
        ConfigError: it is null, or the code that it names cannot use its values. Errors with a class of their own,
            those of files for instance, come through.
    """
    if node is None:
        raise ConfigError(f"{key} is null, and is needed")
    try:
        return instantiate(node)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ConfigError(f"{key} cannot be built of its settings: {error}") from error
    except (TypeError, AttributeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{key} cannot be built of its settings: {' '.join(str(error).split())} ({place.filename}, line "
            f"{place.lineno})"
        ) from error


def dotted_keys(cfg: DictConfig) -> list[str]:
    """Every key of a config, groups included, as "a.b.c"; nothing is resolved."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from walk(value, f"{prefix}{key}.")

    return list(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def _value(cfg: DictConfig, key: str) -> Any:
    """What a key stands for; None where its interpolation cannot be computed."""
    return OmegaConf.select(cfg, key, throw_on_resolution_failure=False)


def _check_kind(key: str, before: Any, after: Any) -> None:
    """Refuse a value of another kind than the one before; None, where it may be, stands for each kind."""
    is_needed = OmegaConf.is_dict(before) and key not in MAY_BE_NULL and ("_target_" not in before or "." not in key)
    if after is None and (is_needed or key == "train.output_dir"):
        raise ConfigError(f"{key} is needed, got null")
    kinds = {
        "true or false": lambda value: isinstance(value, bool),
        "a number": lambda value: isinstance(value, int | float),
        "text (a number as text in quotes within quotes)": lambda value: isinstance(value, str),
        "a section with its keys, or null": OmegaConf.is_dict,
        "a list": OmegaConf.is_list,
    }
    for what, is_kind in kinds.items():
        if is_kind(before):
            if after is not None and (not is_kind(after) or isinstance(before, bool) != isinstance(after, bool)):
                raise ConfigError(f"{key} must be {what}, got {after!r}")
            return


def _hint(key: str, known: list[str]) -> str:
    """Keys that are spelt alike, or that end alike; "" where there are none."""
    leaf = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, cutoff=0.8) or [
        name for name in known if difflib.get_close_matches(leaf, [name.rpartition(".")[2]], cutoff=0.8)
    ]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""
