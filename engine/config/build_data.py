"""Build loaders and evaluator, and test one sample of each before the run starts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from engine.config.config import build_section
from engine.config.targets import instantiate
from runtime.errors import UserError


class DataSource(NamedTuple):
    """Two loaders, an evaluator and how it runs the network, as a config names them; None for what it has not."""

    train_loader: Any
    test_loader: Any
    evaluator: Any
    test_network: Any


def missing_files(node: Any, key: str) -> list[str]:
    """List what the objects of a section miss, inner objects first: a mixture stops at its first bad set."""
    if not OmegaConf.is_dict(node):
        return []
    missing = [line for name in node for line in missing_files(node[name], f"{key}.{name}")]
    if not missing and "_target_" in node:
        try:
            instantiate(node, key)
        except FileNotFoundError as error:
            missing = [str(error)]
        except UserError:  # a setting that is wrong as well is reported once the files are there
            pass
    return missing


SECTIONS = ("train", "test", "evaluator", "test_network")
"""Of a config's section `dataloader`, in the order of `DataSource`."""


def build_data(dataloader: DictConfig, sections: Sequence[str] = SECTIONS) -> DataSource:
    """Build what the section `dataloader` of a config says, and make one sample of each set.

    So wrong images and settings are reported before anything starts, by this process and not by a worker.

    Args:
        dataloader: the section.
        sections: what of it to build, of `SECTIONS`; for the others the result has None.

    Raises:
        FileNotFoundError: folders or files are missing; those of training and test set are all named.
        OSError, UserError: what the sets, the loaders and the evaluator raise where they cannot be used.
    """
    built, missing = [], []
    for name in SECTIONS:
        node = dataloader.get(name) if name in sections else None
        try:
            built.append(None if node is None else build_section(node, f"dataloader.{name}"))
        except FileNotFoundError as error:
            missing += missing_files(node, f"dataloader.{name}") or [str(error)]
    if missing:
        raise FileNotFoundError("\n".join(dict.fromkeys(missing)))
    source = DataSource(*built)
    if source.train_loader is not None:
        for key in source.train_loader.dataset.trial_keys:
            source.train_loader.dataset[key]
    if source.test_loader is not None:
        sample = source.test_loader.dataset[0]
        if hasattr(source.evaluator, "check"):  # detectron2's evaluators have neither this nor metric_names
            source.evaluator.check(sample)
    return source
