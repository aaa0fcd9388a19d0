"""Train on several sets, each with its share of the samples."""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from data.image_io.images import DataError
from data.loader.sampler import Key
from data.validation import check_number, is_number
from runtime.errors import ConfigError

CHANNELS = {"image": 3, "trimap": 1, "alpha": 1}


class TrainingSet(Protocol):
    """What a mixture needs of its members; items are those of `data.datasets.samples.TrainingSet`."""

    crop_px: int

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> dict[str, Tensor]: ...


class MixtureDataset(Dataset):
    """Samples of several training sets by weight, in shares that are exact in every epoch.

    Each member owns a fixed range of n indexes of the epoch, in proportion to its weight; the sampler's shuffle mixes
    them. The k-th index of the range is the member's own sample number epoch * n + k, counted through the member's
    epochs. So a member gives its samples in order, and its foregrounds take turns as without a mixture. A sample
    depends only on the members' seeds and on (epoch, index). Members with the same seed draw the same random numbers:
    give each its own seed.

    Items: `dataset[epoch, index]` with 0 <= index < `samples_per_epoch`, as its members': "image" (3, S, S), "trimap"
        and "alpha" (1, S, S).

    Args:
        weights: name of a member -> its weight, above 0, in any scale: 70 and 30 are 0.7 and 0.3.
        samples_per_epoch: length of an epoch; the members' own lengths play no part.
        members: the sets by these names, of one crop size; a mixture may be one of them. They are keywords because
            overrides of a config reach keywords, but not items of a list.

    Raises:
        DataError: members of different crop sizes.
        ConfigError: no members or none where one is named, other names in `weights`, weights that are no numbers above
            0 or leave a member without a sample in an epoch; on reading, other items than the above.
    """

    def __init__(self, weights: Mapping[str, float], samples_per_epoch: int, **members: TrainingSet) -> None:
        check_number("samples_per_epoch", samples_per_epoch, 1, is_whole=True)
        is_weighted = isinstance(weights, Mapping) and members and set(weights) == set(members)
        if not is_weighted or not all(is_number(weight, False) and weight > 0 for weight in weights.values()):
            raise ConfigError(
                f"weights must be a number above 0 for each of {', '.join(members) or 'no set'}, got {weights}"
            )
        for name, member in members.items():
            if not hasattr(member, "crop_px"):
                raise ConfigError(f"the set {name} of a mixture must be a training set, got {member!r}")
        sizes = {name: member.crop_px for name, member in members.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"the sets of a mixture have crop_px {sizes}, which no batch holds: give them one crop_px")
        self.crop_px = next(iter(sizes.values()))
        self.members = members
        self.samples_per_epoch = samples_per_epoch
        parts = list(accumulate(weights[name] for name in members))
        self.starts = [0, *(round(samples_per_epoch * part / parts[-1]) for part in parts)]
        if min(self.counts.values()) < 1:
            raise ConfigError(
                f"the weights {weights} of {samples_per_epoch} samples an epoch give {self.counts}: expected at least "
                "one for each set; raise its weight or samples_per_epoch, or leave it out"
            )

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each member in an epoch."""
        ends = zip(self.members, self.starts, self.starts[1:], strict=False)
        return {name: end - start for name, start, end in ends}

    @property
    def first_keys(self) -> list[Key]:
        """Keys of the first sample of each member, and of each of the members of those that are mixtures."""
        keys: list[Key] = []
        for (name, member), start in zip(self.members.items(), self.starts, strict=False):
            for epoch, index in getattr(member, "first_keys", [(0, 0)]):
                epoch, place = divmod(epoch * len(member) + index, self.counts[name])
                keys.append((epoch, start + place))
        return keys

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        epoch, index = key
        place = bisect_right(self.starts, index) - 1
        name, member = list(self.members.items())[place]
        number = epoch * self.counts[name] + index - self.starts[place]
        sample = member[divmod(number, len(member))]
        shapes = {key: tuple(values.shape) for key, values in sample.items()}
        expected = {key: (channels, self.crop_px, self.crop_px) for key, channels in CHANNELS.items()}
        if shapes != expected:
            raise ConfigError(f"the set {name} of a mixture gives {shapes}, expected {expected}: no batch holds both")
        return sample
