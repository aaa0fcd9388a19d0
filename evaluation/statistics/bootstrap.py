"""Bootstrap intervals of means over a test set; a resample draws foregrounds, not images.

Composites of one foreground are hard or easy together. Drawing them one by one would make intervals too narrow.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from data.image_io.images import DataError
from evaluation.metrics import METRICS

NUM_RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95
COMPOSITE_NAME = re.compile(r"(.+)_(0|[1-9][0-9]*)")

Rows = Mapping[str, Mapping[str, float]]


def group_by_foreground(names: Iterable[str], pattern: str | None = None) -> dict[str, list[str]]:
    """Group the images of a test set by foreground.

    Args:
        names: names of all images, measured or not.
        pattern: regular expression, searched for in each name. Its first group is the foreground, or the whole match if
            it has no group. None applies the Composition-1k convention: NAME_0, NAME_1, ... NAME_(k-1), without a gap
            and k at least 2, are composites of NAME. Frames such as NAME_0001 are not.

    Returns: foreground -> its images, both sorted by name. An image without a foreground is its own foreground. If it
        has the name of another foreground, that one is called "NAME_*".

    Raises:
        DataError: the pattern matches no name, so it is probably misspelt.
    """
    names = sorted(names)
    found = _numbered(names) if pattern is None else _searched(names, re.compile(pattern))
    if pattern is not None and not found:
        raise DataError(
            f"the pattern of foregrounds {pattern!r} finds nothing in any name, such as {names[0]!r}: correct it"
        )
    alone = set(names) - found.keys()
    foregrounds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        foreground = found.get(name, name)
        foregrounds[f"{foreground}_*" if name in found and foreground in alone else foreground].append(name)
    return dict(foregrounds)


def describe_rule(pattern: str | None) -> str:
    """Describe in one line how `group_by_foreground` groups."""
    if pattern is None:
        return "NAME_0 ... NAME_(k-1) without a gap are composites of NAME"
    return f"names in which '{pattern}' finds the same are composites of one foreground, others their own"


def _numbered(names: Iterable[str]) -> dict[str, str]:
    """Map each composite to its foreground, by the Composition-1k convention."""
    numbered: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := COMPOSITE_NAME.fullmatch(name):
            numbered[match[1]][int(match[2])] = name
    complete = {stem: c for stem, c in numbered.items() if len(c) > 1 and max(c) == len(c) - 1}
    return {name: stem for stem, composites in complete.items() for name in composites.values()}


def _searched(names: Iterable[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Map each image whose name matches the pattern to its foreground."""
    matches = {name: match for name in names if (match := pattern.search(name))}
    return {name: match[min(pattern.groups, 1)] for name, match in matches.items() if match[min(pattern.groups, 1)]}


def bootstrap_intervals(rows: Rows, foregrounds: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]] | None:
    """Bound the mean of each metric over images by the percentile bootstrap (Efron 1979) at `CONFIDENCE`.

    A resample draws as many foregrounds as there are, with repetition, and averages over all their images. The draws
    depend only on the number of foregrounds. So for rows of differences between two methods, the result is their
    paired interval.

    Args:
        rows: name -> metric -> value, for each measured image.
        foregrounds: foreground -> its images, as `group_by_foreground` returns them; images without a row are ignored.

    Returns: metric -> (low, high) in natural units; None for a single foreground.
    """
    sums = np.array(
        [
            [*(math.fsum(rows[name][metric] for name in measured) for metric in METRICS), len(measured)]
            for names in foregrounds.values()
            if (measured := [name for name in names if name in rows])
        ]
    )
    num_units = len(sums)
    if num_units < 2:
        return None
    rng = np.random.default_rng(SEED)
    times_drawn = (
        np.bincount(rng.integers(num_units, size=num_units), minlength=num_units) for _ in range(NUM_RESAMPLES)
    )
    drawn = np.array([times @ sums for times in times_drawn])  # (R, M + 1): sums of M metrics, number of images
    means = drawn[:, :-1] / drawn[:, -1:]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0).tolist()
    return dict(zip(METRICS, zip(low, high, strict=True), strict=True))
