"""Reading a config and its command-line overrides, with misspellings refused."""

import difflib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import LazyConfig
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import engine.schedule  # noqa: F401  registers the resolvers that configs use
from engine.whole_file import write_text

TRAINING_SECTIONS = ("train", "model", "dataloader", "optimizer", "lr_multiplier")


class ConfigError(ValueError):
    """A config or an override that cannot be used; the message is one line for the person who wrote it."""


def load_config(path: str | Path, sections: Sequence[str] = ()) -> DictConfig:
    """Load a `.py` config, or the `config.yaml` that a training saved.

    Args:
        path: the file.
        sections: top-level keys that it must have.

    Returns: the whole config; setting a key that it does not have is an error from now on.

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
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    names = list(cfg) if OmegaConf.is_dict(cfg) and cfg else []
    if not names or not set(names).issuperset(sections):
        raise ConfigError(f"{path}: expected the sections {', '.join(sections)}, got {', '.join(names) or 'none'}")
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
                settings[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value

    collect(OmegaConf.to_container(cfg, resolve=False), "")
    return settings


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set `key=value` pairs, in place, and resolve the whole config once to see that it is consistent.

    Args:
        cfg: what `load_config` gave.
        overrides: "dotted.key=value", value in Hydra's grammar (numbers, strings, [lists], null, true).

    Raises:
        ConfigError: for a key that the config does not have (naming close ones), a value that cannot be parsed or is
            of another kind than the number or boolean before, and an interpolation that cannot be computed afterwards.
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
        raise ConfigError(f"config key {error.full_key!r}: {str(error).splitlines()[0]}") from error


def check_whole(cfg: DictConfig, key: str, least: int) -> None:
    """Raise a ConfigError unless a key stands for a whole number of at least so much."""
    number = _value(cfg, key)
    if not isinstance(number, int) or number < least:
        raise ConfigError(f"{key} must be a whole number of at least {least}, got {number!r}")


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
    """Refuse another kind of value where a number or a boolean was; None may stand for either."""
    for kind, what in ((bool, "true or false"), (int | float, "a number")):
        if isinstance(before, kind):
            if after is not None and (not isinstance(after, kind) or isinstance(after, bool) != (kind is bool)):
                raise ConfigError(f"{key} must be {what}, got {after!r}")
            return


def _hint(key: str, known: list[str]) -> str:
    """Keys that are spelt alike, or that end alike; "" where there are none."""
    leaf = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, cutoff=0.8) or [
        name for name in known if difflib.get_close_matches(leaf, [name.rpartition(".")[2]], cutoff=0.8)
    ]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""
