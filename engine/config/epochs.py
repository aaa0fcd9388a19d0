"""The schedule in epochs and samples, and the OmegaConf resolvers that make iterations of it.

Importing this module registers the resolvers, so that `train.max_iter` of a loaded or reloaded config is a number that
follows every override of what it is computed from.
"""

import math
from collections.abc import Sequence

from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from omegaconf import DictConfig, OmegaConf

from runtime.devices import best_device
from runtime.errors import ConfigError

MAX_WARMUP_FRACTION = 0.5
"""A training run shorter than twice its warm-up spends half of itself in it, so that the full rate is reached."""

ROUNDING = 1e-6
"""Added before rounding down: 0.95 * 134700 is 127964.99999999999 in binary, and means 127965."""


def iterations_per_epoch(samples_per_epoch: int, batch_size: int, world_size: int, accumulation: int = 1) -> int:
    """Iterations that show every sample of an epoch at least once: the quotient rounded up.

    Args:
        samples_per_epoch: samples in an epoch, over all processes.
        batch_size: samples in a batch of one process.
        world_size: number of processes.
        accumulation: batches of each process in an iteration.

    Raises:
        ConfigError: one of them is no whole number of at least 1.
    """
    counts = {
        "train.samples_per_epoch": samples_per_epoch,
        "dataloader.train.batch_size": batch_size,
        "train.world_size": world_size,
        "train.accumulation": accumulation,
    }
    for name, number in counts.items():
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {number!r}")
    return math.ceil(samples_per_epoch / (batch_size * world_size * accumulation))


def epochs_to_iterations(epochs: float, per_epoch: int) -> int:
    """Iterations in a number of epochs, which may be a fraction; rounded down, at least 1.

    Raises:
        ConfigError: where the number is not above 0.
    """
    if not isinstance(epochs, int | float) or not 0 < epochs < math.inf:
        raise ConfigError(f"a number of epochs must be finite and above 0, got {epochs}")
    return max(1, math.floor(epochs * per_epoch + ROUNDING))


def milestones(max_iter: int, *fractions: float) -> list[int]:
    """Return the iterations at which the learning rate steps: strictly increasing, and inside a run of any length.

    Args:
        max_iter: length of the run in iterations.
        fractions: ascending positions of the steps in (0, 1), as parts of the run.

    Raises:
        ConfigError: there are not more iterations than steps.
    """
    if max_iter <= len(fractions):
        raise ConfigError(
            f"{max_iter} iterations are too few for {len(fractions)} steps of the learning rate: train longer"
        )
    steps: list[int] = []
    for index, fraction in enumerate(fractions):
        earliest = steps[-1] + 1 if steps else 1
        latest = max_iter - len(fractions) + index
        steps.append(min(max(earliest, math.floor(fraction * max_iter + ROUNDING)), latest))
    return steps


def warmup_fraction(
    warmup_samples: int, batch_size: int, world_size: int, max_iter: int, accumulation: int = 1
) -> float:
    """Return the part of the run that is warm-up: constant in samples, at most `MAX_WARMUP_FRACTION`.

    Raises:
        ConfigError: where the number of samples is negative or none.
    """
    if not isinstance(warmup_samples, int | float) or not warmup_samples >= 0:
        raise ConfigError(f"a number of samples of warm-up must be at least 0, got {warmup_samples!r}")
    return min(warmup_samples / (batch_size * world_size * accumulation) / max_iter, MAX_WARMUP_FRACTION)


def build_decay(
    kind: str, values: Sequence[float], milestones: Sequence[int], num_updates: int, end_value: float = 0.0
) -> ParamScheduler:
    """Build the schedule that follows the warm-up, a multiplier over the completed fraction of the run.

    Args:
        kind: "steps", from one of the values to the next at each milestone; or "cosine", half a period from the first
            value to `end_value`.
        values: multipliers, one more than milestones.
        milestones: iterations at which the multiplier steps.
        num_updates: iterations in all.
        end_value: multiplier that "cosine" ends with.

    Raises:
        ConfigError: for another kind, or an end value that is not in [0, 1].
    """
    if kind == "steps":
        return MultiStepParamScheduler(list(values), num_updates=num_updates, milestones=list(milestones))
    if kind == "cosine":
        if not 0 <= end_value <= 1:
            raise ConfigError(f"lr_multiplier.scheduler.end_value must be in [0, 1], got {end_value}")
        return CosineParamScheduler(values[0], end_value)
    raise ConfigError(f'lr_multiplier.scheduler.kind must be "steps" or "cosine", got {kind!r}')


def default_device() -> str:
    """Name the device to train on: "cuda" where torch finds one, else "cpu"."""
    return "cuda" if best_device() == "cuda" else "cpu"


for _resolver in (iterations_per_epoch, epochs_to_iterations, milestones, warmup_fraction, default_device):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)


def samples_per_iteration(cfg: DictConfig) -> int:
    """Samples that all processes together take in one iteration."""
    return cfg.dataloader.train.batch_size * cfg.train.world_size * cfg.train.accumulation


def describe_change(cfg: DictConfig, recipe_samples: int) -> str:
    """One line on what another number of samples per iteration changed in the schedule, and what it did not.

    Args:
        cfg: the config as it will be trained.
        recipe_samples: samples per iteration of the recipe, before overrides. The same number gives "".
    """
    samples = samples_per_iteration(cfg)
    if samples == recipe_samples:
        return ""
    train = cfg.train
    warmup_iterations = round(cfg.lr_multiplier.warmup_length * train.max_iter)
    warmup = f"kept at {train.warmup_samples}"
    if cfg.lr_multiplier.warmup_length == MAX_WARMUP_FRACTION:
        warmup = f"cut from {train.warmup_samples} to {warmup_iterations * samples}"
    return (
        f"{samples} samples per iteration instead of the recipe's {recipe_samples}: {train.iterations_per_epoch} "
        f"iterations per epoch, epochs kept at {train.epochs} ({train.max_iter} iterations), warm-up {warmup} "
        f"samples ({warmup_iterations} iterations), learning rate not scaled"
    )
