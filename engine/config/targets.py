"""Classes and functions that configs name: which of them a file may name, and how they are built.

A `.py` config is code and may name whatever can be imported. A YAML file is data: it may name what `TARGETS` holds, and
what lies in modules that the user trusts by --trust-module.
"""

import importlib
import inspect
import pydoc
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from runtime.errors import ConfigError, UserError
from runtime.yaml_files import Reference

TARGETS = frozenset(
    {
        "data.loader.build.build_test_loader",
        "data.loader.build.build_train_loader",
        "data.datasets.composition.CompositionDataset",
        "data.datasets.composition.MattingFolder",
        "data.augment.degradation.DegradeImage",
        "data.augment.random_crop.DrawView",
        "data.augment.transforms.JitterColour",
        "data.augment.transforms.MakeTrimap",
        "data.datasets.mixture.MixtureDataset",
        "data.datasets.photographs.DrawInnerView",
        "data.datasets.photographs.RealImageDataset",
        "data.augment.tone_jitter.JitterTones",
        "detectron2.solver.lr_scheduler.WarmupParamScheduler",
        "engine.optimizer.build_adamw",
        "engine.config.epochs.build_decay",
        "evaluation.evaluator.MattingEvaluator",
        "evaluation.output.sample_sheet.SampleSheet",
        "inference.network.TiledEvaluation",
        "modeling.backbone.dinov2.DINOv2",
        "modeling.test_time_augmentation.AverageViews",
        "modeling.backbone.vit.ViT",
        "modeling.backbone.vitdet.ViTDet",
        "modeling.criterion.MattingCriterion",
        "modeling.detail_capture.DetailCapture",
        "modeling.lr_groups.get_optimizer_params",
        "modeling.vitmatte.ViTMatte",
    }
)
"""What a YAML file may name, each by the module that defines it. A name is looked up first and compared then."""

MODULES = frozenset(
    ".".join(parts[:length]) for parts in (name.split(".") for name in TARGETS) for length in range(1, len(parts))
)
"""Modules that may be imported to look up a name: those of `TARGETS` and the packages around them."""

OURS = {name.partition(".")[0] for name in TARGETS} - {"detectron2"}
"""This project's packages, of which --trust-module is not advised: what files need of them is in `TARGETS`."""

Find = Callable[[str, str], Any]
"""What looks up a name; it is given the key where the name stands."""


class TargetError(ConfigError):
    """A config names something that may not be used, or that a saved config cannot hold."""


def instantiate(node: Any, key: str = "config") -> Any:
    """Build what a node of a config describes, after each name in it was looked up.

    Interpolations are resolved first, so that none can bring a name in afterwards. Lists and dicts reach constructors
    as Python's own.

    Args:
        node: of the config.
        key: dotted name of the node, for messages.

    Raises:
        ConfigError: an argument is unknown or missing, or a constructor refuses its settings.
        TargetError: the node names something that is not in `TARGETS`.
        Exception: whatever else a constructor raises, with a note that names the key.
    """
    settings = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return _build(locate_names(settings, known_finder(), key), key)


def _build(settings: Any, key: str) -> Any:
    """Call the targets in nested settings, the inner ones first; dicts without a target stay as they are."""
    if isinstance(settings, list):
        return [_build(value, f"{key}.{index}") for index, value in enumerate(settings)]
    if not isinstance(settings, dict) or "_target_" not in settings:
        return settings
    arguments = {name: _build(value, f"{key}.{name}") for name, value in settings.items()}
    target = arguments.pop("_target_")
    try:
        with suppress(ValueError):  # some built-in classes have no signature
            inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{key} cannot be built of its settings: {target.__qualname__}: {error}") from error
    try:
        return target(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{key} cannot be built of its settings: {error}") from error
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"The error was raised while {key} of the config was built.")
        raise


def locate_names(settings: Any, find: Find, key: str = "") -> Any:
    """Copy nested plain values with each name of a class or function replaced by what `find` gives for it.

    Raises:
        TargetError: a `_target_` that is no name, or what `find` raises.
    """
    if isinstance(settings, Reference):
        return find(settings, key)
    if isinstance(settings, list):
        return [locate_names(value, find, f"{key}.{index}") for index, value in enumerate(settings)]
    if not isinstance(settings, dict):
        return settings
    located = {}
    for name, value in settings.items():
        inner = f"{key}.{name}" if key else str(name)
        if name == "_target_" and isinstance(value, str):
            located[name] = find(value, inner)
        elif name == "_target_" and not (callable(value) or isinstance(value, dict)):
            raise TargetError(f"{inner} must be the name of a class or function, got {value!r:.60}")
        else:
            located[name] = locate_names(value, find, inner)
    return located


def known_finder(trusted: Iterable[str] = ()) -> Find:
    """Make what looks up names of YAML files: in `TARGETS`, and in modules that the user trusts.

    Nothing else is imported, whatever the name.

    Args:
        trusted: exact names of modules; a class may be defined in a module below one if the file names it by that one.
    """
    modules = {*trusted}
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise TargetError(f"--trust-module must be the name of a module, such as mypkg.nets, got {module!r}")

    def find(name: str, key: str) -> Any:
        known = [module for module in {*MODULES, *modules} if name.startswith(f"{module}.")]
        module = max(known, key=len, default="")
        found = _attribute(_import(module), name.removeprefix(f"{module}.")) if module else None
        home, path = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        is_trusted = module in modules and name == f"{module}.{path}" and is_within(str(home), module)
        if callable(found) and (is_trusted or f"{home}.{path}" in TARGETS):
            return found
        wanted = name.rpartition(".")[0]
        if wanted in modules:
            raise TargetError(f"{key} is {name!r}, and {wanted} defines no such class or function")
        is_module = all(part.isidentifier() for part in wanted.split("."))
        is_foreign = is_module and not is_within(wanted, *OURS, *sys.stdlib_module_names, "torch")
        advice = f". If you know what {wanted} does, --trust-module {wanted} lets it run" if is_foreign else ""
        raise TargetError(
            f"{key} is {name!r:.99}, which is none of this project's classes and functions that a file may name "
            f"(engine/config/targets.py){advice}"
        )

    return find


def find_importable(name: str, key: str) -> Any:
    """Look up a name that a `.py` config gives as text, wherever it can be imported from.

    Raises:
        TargetError: nothing has that name.
    """
    found = pydoc.locate(name)
    if not callable(found):
        raise TargetError(f"{key} is {name!r}, and no class or function of that name can be imported")
    return found


def write_names(settings: Any, key: str = "") -> Any:
    """Turn the settings of a config into what YAML can hold: the reverse of `locate_names`.

    Raises:
        TargetError: a value that a saved config cannot hold: an object, or a class or function that cannot be imported
            by its name, such as a lambda or what the config file or the running script defines.
    """
    if isinstance(settings, dict):
        written = {}
        for name, value in settings.items():
            inner = f"{key}.{name}" if key else str(name)
            plain = write_names(value, inner)
            written[name] = str(plain) if name == "_target_" and isinstance(plain, Reference) else plain
        return written
    if isinstance(settings, list):
        return [write_names(value, f"{key}.{index}") for index, value in enumerate(settings)]
    if settings is None or isinstance(settings, bool | Reference):
        return settings
    for kind in (int, float, str):
        if isinstance(settings, kind):
            return kind(settings)
    if isinstance(settings, PurePath):
        return str(settings)
    if not callable(settings) or not hasattr(settings, "__qualname__"):
        raise TargetError(
            f"{key} is a {type(settings).__name__}, which the config.yaml of a run cannot hold: give plain values, or "
            "describe how it is built by LazyCall"
        )
    if (reference := name_of(settings)) is None:
        raise TargetError(
            f"{key} is {settings.__qualname__}, which cannot be imported by its name, and so not be saved: put it into "
            "a module of its own, outside the config and the script"
        )
    return Reference(reference)


def name_of(thing: Any) -> str | None:
    """Give the shortest name by which a class or function can be imported; None where there is none."""
    home, path = getattr(thing, "__module__", None), thing.__qualname__
    if not isinstance(home, str) or home in ("__main__", "__mp_main__"):
        return None
    parts = home.split(".")
    packages = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    found = (package for package in packages if _attribute(sys.modules.get(package), path) == thing)
    return next((f"{package}.{path}" for package in found), None)


def is_within(name: str, *modules: str) -> bool:
    """Tell whether a dotted name is one of the modules or lies below one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _attribute(thing: Any, path: str) -> Any:
    """Follow a dotted path of attributes; None where it ends too early."""
    for part in path.split("."):
        thing = getattr(thing, part, None)
    return thing


def _import(module: str) -> Any:
    """Import a module of `TARGETS` or one that is trusted."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not is_within(module, error.name):
            raise
        raise TargetError(f"there is no module {error.name}: is its folder in PYTHONPATH?") from error
