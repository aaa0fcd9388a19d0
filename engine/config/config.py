"""Reading a config and its command-line overrides, with misspellings refused."""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from detectron2.config import LazyConfig
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

import engine.config.epochs  # noqa: F401  registers the resolvers that configs use
from engine.config.migration import migrate
from engine.config.overrides import read_text, takes_text
from engine.config.python_config import run_config
from engine.config.targets import TargetError, find_importable, instantiate, known_finder, locate_names, write_names
from engine.interrupts import write_text
from runtime.errors import ConfigError, UserError, first_line
from runtime.yaml_files import dump_yaml, load_yaml, parse_yaml

TRAINING_SECTIONS = ("train", "model", "dataloader", "optimizer", "lr_multiplier")

MAY_BE_NULL = ("train.best_checkpoint", "train.pictures")
"""Sections of plain values that may be null. Other sections are validated by the function that they configure."""


def load_config(path: str | Path, sections: Sequence[str] = (), trusted: Sequence[str] = ()) -> DictConfig:
    """Load a `.py` config, which is code and is run, or the `config.yaml` of a run, of which nothing is.

    Args:
        path: the file.
        sections: top-level keys that it must have. Of a YAML file these alone can be built; all where none are given.
        trusted: modules whose classes and functions a YAML file may name, beside `engine.config.targets.TARGETS`.

    Returns: the whole config as the present version writes it (see `migrate`), with classes and functions in the place
        of their names. Setting a key that it does not have raises an error.

    Raises:
        ConfigError: where the file does not exist, has another extension, is not Python or YAML, or lacks a section;
            where a YAML file names what it may not, or a `.py` config holds what its config.yaml could not.
    """
    path = Path(path)
    if path.suffix not in (".py", ".yaml", ".yml") or not path.is_file():
        raise ConfigError(f"--config-file must be an existing .py or .yaml file, got {str(path)!r}")
    try:
        settings = migrate(_as_settings(run_config(path))) if path.suffix == ".py" else read_settings(path)
        if not settings or not set(settings).issuperset(sections):
            found = ", ".join(map(str, settings)) or "none"
            raise ConfigError(f"{path}: expected the sections {', '.join(sections)}, got {found}")
        if path.suffix == ".py":
            settings = locate_names(settings, find_importable)
            write_names(settings)
        else:
            built = {name: settings[name] for name in sections or settings}
            settings |= locate_names(built, known_finder(trusted))
        cfg = OmegaConf.create(settings, flags={"allow_objects": True})
    except TargetError as error:
        raise ConfigError(f"{path}: {error}") from error
    except UserError as error:
        raise ConfigError(str(error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    OmegaConf.set_struct(cfg, True)
    return cfg


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML config as plain nested values; names of classes and functions stay names, and nothing is imported.

    Returns: its sections; none where it holds something else.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        settings = load_yaml(path)
    except UserError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return migrate(settings) if isinstance(settings, dict) else {}


def _as_settings(cfg: DictConfig) -> dict[str, Any]:
    """Copy a config to nested dicts and lists, its interpolations as they are written."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, structured_config_mode=SCMode.INSTANTIATE))


def save_config(cfg: DictConfig, path: Path) -> None:
    """Write a config that `load_config` reads again, by an atomic write.

    Raises:
        OutputError: where the folder cannot be written.
    """
    write_text(path, _as_yaml(cfg))


def describe_differences(path: Path, cfg: DictConfig) -> list[str]:
    """List the settings in which a config differs from a saved one, as "key: before -> now".

    Values are compared as written, so values that are interpolated from a changed one are not listed. Nothing of the
    saved config is built or imported.

    Raises:
        ConfigError: the saved file is no config.
    """
    saved, written = read_settings(path), migrate(parse_yaml(_as_yaml(cfg)))
    before, now = _by_dotted_key(saved), _by_dotted_key(written)
    keys = dict.fromkeys([*now, *before])
    shown = {key: tuple(repr(side[key]) if key in side else "absent" for side in (before, now)) for key in keys}
    return [f"{key}: {earlier} -> {later}" for key, (earlier, later) in shown.items() if earlier != later]


def _as_yaml(cfg: DictConfig) -> str:
    """Write a config as YAML, its interpolations kept and classes and functions by their names."""
    return dump_yaml(write_names(_as_settings(cfg)))


def _by_dotted_key(settings: dict[str, Any]) -> dict[str, Any]:
    """Map each dotted key to its value as it is written; lists are values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _by_dotted_key(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": part for key, part in inner.items()} or {name: value}
    return flat


def apply_overrides(
    cfg: DictConfig, overrides: Sequence[str], adopt_model: Callable[[DictConfig], None] = lambda cfg: None
) -> None:
    """Set `key=value` pairs, in place, and resolve the whole config once to see that it is consistent.

    Args:
        cfg: what `load_config` gave.
        overrides: "dotted.key=value". If the key holds text, a list of texts or a path, the value is read by
            `engine.config.overrides.read_text`, else in Hydra's grammar (numbers, [lists], {dicts}, null, true).
        adopt_model: may replace `cfg.model`; called after all overrides except those of `model`.

    Raises:
        ConfigError: for a key that the config does not have (naming close ones), a value that cannot be parsed or is
            of another kind than the one before, and an interpolation that cannot be computed afterwards.
    """
    before: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("model."):
            _set(cfg, override, before)
    with _interpolation_errors():
        adopt_model(cfg)
    for override in overrides:
        if override.startswith("model."):
            _set(cfg, override, before)
    for key, value in before.items():
        _check_kind(key, value, _value(cfg, key))
    with _interpolation_errors():
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@contextmanager
def _interpolation_errors() -> Iterator[None]:
    """Turn an interpolation that cannot be computed into a ConfigError that names its key; a resolver's bug stays."""
    try:
        yield
    except OmegaConfBaseException as error:
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        if not isinstance(cause, OmegaConfBaseException | UserError | KeyError):  # KeyError: an environment variable
            raise  # a bug in a resolver
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line(error))
        advice = "; give it a value of its own in the config" if isinstance(error, InterpolationKeyError) else ""
        raise ConfigError(f"{reason} (in the config's {error.full_key!r}{advice})") from error


def _set(cfg: DictConfig, override: str, before: dict[str, Any]) -> None:
    """Set one `key=value` pair, and add the key with its first value to `before`; errors as `apply_overrides`."""
    key, equals, text = override.partition("=")
    if not equals or override.startswith("-"):
        raise ConfigError(f"expected key=value, got {override!r} (options that begin with -- go before overrides)")
    known = dotted_keys(cfg)
    if key not in known:
        raise ConfigError(f"the config has no key {key!r}{_hint(key, known)}")
    present = _value(cfg, key)
    before.setdefault(key, present)
    present = OmegaConf.to_container(present) if OmegaConf.is_list(present) else present
    try:
        if takes_text(key, present):
            OmegaConf.update(cfg, key, read_text(key, text, present))
        else:
            LazyConfig.apply_overrides(cfg, [override])
    except (OverrideParseException, OmegaConfBaseException, ConfigError) as error:
        raise ConfigError(f"cannot use {override!r}: {' '.join(str(error).split())}") from error


def check_whole(cfg: DictConfig, key: str, least: int) -> None:
    """Raise a ConfigError unless the value of a key is a whole number of at least `least`."""
    number = _value(cfg, key)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ConfigError(f"{key} must be a whole number of at least {least}, got {number!r}")


def check_number_or_null(cfg: DictConfig, key: str) -> None:
    """Raise a ConfigError unless the value of a key is a finite number or null."""
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
        ConfigError: it is null, or the code that it names cannot use its values.
        Exception: see `engine.config.targets.instantiate`.
    """
    if node is None:
        raise ConfigError(f"{key} is null, and is needed")
    return instantiate(node, key)


def dotted_keys(cfg: Any, prefix: str = "") -> list[str]:
    """List every key of a config, groups included, as "a.b.c"; nothing is resolved."""
    node: Any = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    inner = node.items() if isinstance(node, dict) else ()
    return [key for name, value in inner for key in (f"{prefix}{name}", *dotted_keys(value, f"{prefix}{name}."))]


def _value(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key; None if its interpolation cannot be computed."""
    return OmegaConf.select(cfg, key, throw_on_resolution_failure=False)


def _check_kind(key: str, before: Any, after: Any) -> None:
    """Refuse a value of another kind than the one before. None stands for each kind, if it is allowed."""
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
                advice = f": write '{key}=[{after}]'" if OmegaConf.is_list(before) else ""
                raise ConfigError(f"{key} must be {what}, got {after!r}{advice}")
            return


def _hint(key: str, known: list[str]) -> str:
    """Suggest keys with a similar spelling or ending; "" if there are none."""
    leaf = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, cutoff=0.8) or [
        name for name in known if difflib.get_close_matches(leaf, [name.rpartition(".")[2]], cutoff=0.8)
    ]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""
