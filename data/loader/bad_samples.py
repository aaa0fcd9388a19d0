"""Replace the samples whose images cannot be read, and report them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, default_collate

from data.image_io.images import DataError
from data.loader.sampler import Key, key_after, key_at
from runtime.errors import ConfigError

FAULTS = (DataError, OSError)
"""What reading an image raises that is broken, does not fit, or is not there."""

ON_FAULT = ("replace", "raise")

MAX_IN_A_ROW = 10  # with 1 % bad samples, the most that is allowed, this happens once in 10^20


class Drawn(NamedTuple):
    """A sample, None where none could be made, and what could not be read before it, one message each."""

    sample: dict[str, Any] | None
    faults: list[str]


class SkipBadSamples(Dataset):
    """A data set whose batches hold the next sample of the stream where one cannot be read.

    What takes a sample's place depends on its key and on the seed alone, so it is the same for any number of workers
    and ranks. One sample by itself, `dataset[key]`, is not replaced: it raises.

    Args:
        dataset: items keyed by (epoch, index), dicts of tensors, with a length.
        seed: of the stream's order.
        on_fault: "replace", where a batch is given up after 10 faults in a row, or "raise", where it is after one.

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
        """Keys of samples that show whether the data fit: one of each set of a mixture, or else the stream's first."""
        return getattr(self.dataset, "first_keys", None) or [key_at(0, len(self), self.seed)]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset itself promises no length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.dataset[key]

    def __getitems__(self, keys: Sequence[Key]) -> list[Drawn]:
        """Draw a batch, as a loader asks for it; what it is given up at is its last."""
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
    """Stack the samples of a batch; each tensor is copied once, by a worker into memory that it shares with its parent.

    Returns: name -> contiguous tensor (B, ...), and where something could not be read, "faults", a list of messages;
        that alone where a sample could not be made at all.
    """
    faults = [fault for drawn in batch for fault in drawn.faults]
    samples = [drawn.sample for drawn in batch]
    return {**({} if None in samples else default_collate(samples)), **({"faults": faults} if faults else {})}
