"""Replace the samples whose images cannot be read, and report them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, default_collate

from data.image_io.images import DataError
from data.loader.sampler import Key, key_after, key_at
from runtime.errors import ConfigError

FAULTS = (DataError, OSError)
"""Raised for an image that is damaged, does not match its partner, or is missing."""

ON_FAULT = ("replace", "raise")

MAX_IN_A_ROW = 10  # with 1 % bad samples, the most that is allowed, this happens once in 10^20


class Drawn(NamedTuple):
    """A sample, or None if none could be made, and a message for each bad sample before it."""

    sample: dict[str, Any] | None
    faults: list[str]


class SkipBadSamples(Dataset):
    """A data set whose batches replace a bad sample by the next one in the sample order.

    The replacement depends only on the key and the seed, so it is the same for any number of workers and ranks. A
    single sample, `dataset[key]`, is not replaced: it raises.

    Args:
        dataset: items keyed by (epoch, index), dicts of tensors, with a length.
        seed: of the sample order.
        on_fault: "replace" gives a batch up after 10 bad samples in a row, "raise" after one.

    Raises:
        ConfigError: another `on_fault`.
    """

    def __init__(self, dataset: Dataset, seed: int, on_fault: str = "replace") -> None:
        if on_fault not in ON_FAULT:
            raise ConfigError(f"dataloader.train.on_fault must be {' or '.join(ON_FAULT)}, got {on_fault!r}")
        self.dataset = dataset
        self.seed = seed
        self.max_faults = MAX_IN_A_ROW if on_fault == "replace" else 1

    @property
    def trial_keys(self) -> list[Key]:
        """Keys of samples to test at the start: one of each set of a mixture, or else the first in the order."""
        return getattr(self.dataset, "first_keys", None) or [key_at(0, len(self), self.seed)]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset itself promises no length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.dataset[key]

    def __getitems__(self, keys: Sequence[Key]) -> list[Drawn]:
        """Draw a batch for a loader. If it is given up, the last item has no sample."""
        batch: list[Drawn] = []
        for key in keys:
            batch.append(self._draw(key))
            if batch[-1].sample is None:
                break
        return batch

    def _draw(self, key: Key) -> Drawn:
        """Draw a sample, or the first one after it that can be read."""
        faults: list[str] = []
        while len(faults) < self.max_faults:
            try:
                return Drawn(self.dataset[key], faults)
            except FAULTS as error:
                faults.append(str(error))
            key = key_after(key, len(self), self.seed)
        return Drawn(None, faults)


def collate(batch: Sequence[Drawn]) -> dict[str, Any]:
    """Stack the samples of a batch. A worker copies each tensor once, into memory shared with its parent.

    Returns: name -> contiguous tensor (B, ...), and "faults", a list of messages, if there were bad samples. If a
        sample could not be made at all, only "faults".
    """
    faults = [fault for drawn in batch for fault in drawn.faults]
    samples = [drawn.sample for drawn in batch]
    return {**({} if None in samples else default_collate(samples)), **({"faults": faults} if faults else {})}
