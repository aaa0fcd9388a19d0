"""Load the initial weights of a run from a checkpoint or model folder, and build the network that they belong to."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from engine.checkpoint.file import CheckpointError, load_weights, read_checkpoint
from engine.config.config import load_config
from engine.config.targets import TARGETS, Find, TargetError, known_finder
from engine.distributed.fsdp import is_sharded
from runtime.errors import ConfigError
from runtime.network_files import CONFIG_FILE, WEIGHTS_FILE, read_description, read_safetensors
from runtime.yaml_files import Reference

RUN_CONFIG = "config.yaml"
"""The config that a run saves beside its checkpoints."""


def load_initial(model: nn.Module, path: str, may_lack: Iterable[str] = ()) -> None:
    """Load the weights of `train.init_checkpoint` into a model.

    Arguments and errors are those of `load_weights`.
    """
    weights = read_initial(path, is_mapped=is_sharded(model))
    try:
        load_weights(model, weights, path, may_lack)
    except CheckpointError as error:
        description = _description_of(Path(path))
        if not description.is_file():
            raise
        raise CheckpointError(
            f"{error}. --config-file configs/finetune.py builds the network that {description} describes"
        ) from error


def read_initial(path: str | Path, is_mapped: bool = False) -> dict[str, Tensor]:
    """Read weights from a model folder, a `.safetensors` file or a checkpoint, without running code from them.

    Args:
        path: of the folder or file.
        is_mapped: see `read_checkpoint`.

    Returns: name -> tensor.

    Raises:
        FileNotFoundError: it is not there, or is half a model folder.
        UserError: it is damaged, or something else.
    """
    path = Path(path)
    if path.is_dir():
        missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (path / name).is_file()]
        if len(missing) == 1:
            raise FileNotFoundError(f"{path} is no model folder: it lacks {missing[0]}; export it again")
        if missing:
            return read_checkpoint(path, is_mapped)["model"]  # raises, with advice on folders
        path /= WEIGHTS_FILE
    if path.suffix != ".safetensors" or not path.is_file():
        return read_checkpoint(path, is_mapped)["model"]
    return read_safetensors(path)


def adopt_model(cfg: DictConfig, trusted: Sequence[str] = ()) -> None:
    """Replace the config's model by that of `train.init_checkpoint` if `train.model_of_checkpoint` asks for it.

    Settings that the checkpoint does not describe, such as the criterion, stay as in the config. Afterwards the config
    describes its network itself, so a saved config needs no checkpoint.

    Args:
        cfg: config of a run; changed.
        trusted: see `describe_model`.

    Raises:
        ConfigError: no checkpoint is named.
        FileNotFoundError: the checkpoint, or what describes its network, is not there.
        UserError: the description cannot be used; nothing is run from it.
    """
    if not (is_asked := cfg.train.model_of_checkpoint):
        return
    if is_asked is not True:
        raise ConfigError(f"train.model_of_checkpoint must be true or null, got {is_asked!r}")
    if not cfg.train.init_checkpoint:
        raise ConfigError(
            "this config takes its network from a checkpoint: name a model folder, or a run's checkpoint, by "
            "train.init_checkpoint=PATH"
        )
    described = describe_model(Path(cfg.train.init_checkpoint), trusted)
    model = OmegaConf.create(described, flags={"allow_objects": True})
    for name, value in cfg.model.items():
        if name not in model:
            model[name] = value
    cfg.model = model
    cfg.train.model_of_checkpoint = None


def describe_model(checkpoint: Path, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """Read the description of a checkpoint's network: config.json of a model folder, or config.yaml of a run.

    Args:
        checkpoint: model folder, `.safetensors` file in one, or checkpoint of a run.
        trusted: modules whose classes a config.yaml may name beside this project's networks. Nothing else is imported.

    Returns: a node of a config, nested, with classes and plain values.

    Raises:
        FileNotFoundError, UserError: as `adopt_model`.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"there is no checkpoint {str(checkpoint)!r} (seen from {Path.cwd()})")
    path = _description_of(checkpoint)
    if checkpoint.is_dir() and not any((checkpoint / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        read_checkpoint(checkpoint)  # raises, with advice on folders
    if not path.is_file():
        raise FileNotFoundError(
            f"{checkpoint}: {path} is not there, which would say what network this is. A model folder of "
            f"tools/export.py has {CONFIG_FILE}, a run's folder {RUN_CONFIG}; without, "
            "train.model_of_checkpoint=null trains the config's own network from it"
        )
    described = read_description(path) if path.name == CONFIG_FILE else read_trained(path, trusted)
    try:
        return _as_node(described, known_finder(trusted), path)
    except TargetError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _description_of(checkpoint: Path) -> Path:
    """Return the path of the file that describes a checkpoint's network; it may be missing."""
    if checkpoint.is_dir():
        return checkpoint / CONFIG_FILE
    return checkpoint.with_name(CONFIG_FILE if checkpoint.suffix == ".safetensors" else RUN_CONFIG)


def read_trained(path: Path, trusted: Sequence[str]) -> Any:
    """Read the model of a run's config; errors as `describe_model`."""
    try:
        return OmegaConf.to_container(load_config(path, ("model",), trusted).model, resolve=True)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except OmegaConfBaseException as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error


def _as_node(described: Any, find: Find, path: Path) -> Any:
    """Look up each name in {"type" or "_target_": class or name, argument: value ...} and make a config node of it."""
    if isinstance(described, list):
        return [_as_node(value, find, path) for value in described]
    if isinstance(described, Reference):
        return find(described, "model")
    if not isinstance(described, dict):
        if isinstance(described, str) and "${" in described:
            raise CheckpointError(f"{path}: expected plain values, got {described!r}")
        return described
    kinds = [described[key] for key in ("type", "_target_") if key in described]
    for key in described:
        if str(key).startswith("_") and key != "_target_":
            raise CheckpointError(f"{path}: {key!r} is no name of an argument")
    arguments = {str(key): value for key, value in described.items() if key not in ("type", "_target_")}
    node = {key: _as_node(value, find, path) for key, value in arguments.items()}
    return {"_target_": _find_network(kinds[0], find, path), **node} if kinds else node


def _find_network(kind: Any, find: Find, path: Path) -> Any:
    """Find a part of a network by its full name, or by the class name if it is one of this project."""
    if isinstance(kind, str):
        ours = [name for name in TARGETS if name.rpartition(".")[2] == kind]
        kind = find(ours[0] if ours else kind, "a part of the model")
    is_network = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not callable(kind) or (f"{kind.__module__}.{kind.__qualname__}" in TARGETS and not is_network):
        raise CheckpointError(f"{path}: {kind!r} is no part of a network")
    return kind
