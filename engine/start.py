"""What a training draws from and measures with, made and tried before anything starts."""

from typing import Any, NamedTuple

from omegaconf import DictConfig

from engine.config import build_section


class DataSource(NamedTuple):
    """Two loaders and an evaluator as a config names them; None for what it has not."""

    train_loader: Any
    test_loader: Any
    evaluator: Any


def build_data(dataloader: DictConfig) -> DataSource:
    """Build what the section `dataloader` of a config says, and make one sample of each set.

    So pictures and settings that do not fit are told of before anything starts, in this process and not by a worker.

    Raises:
        OSError, ValueError: what the sets, the loaders and the evaluator raise where they cannot be used.
    """
    nodes = {f"dataloader.{name}": dataloader.get(name) for name in ("train", "test", "evaluator")}
    source = DataSource(*(node if node is None else build_section(node, key) for key, node in nodes.items()))
    if source.train_loader is not None:
        for key in source.train_loader.dataset.trial_keys:
            source.train_loader.dataset[key]
    if source.test_loader is not None:
        sample = source.test_loader.dataset[0]
        if hasattr(source.evaluator, "check"):  # detectron2's evaluators have neither this nor metric_names
            source.evaluator.check(sample)
    return source
