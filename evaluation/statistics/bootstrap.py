"""How far a mean over a test set may be off: bootstrap intervals in which foregrounds are drawn, not images.

Composites of one foreground are hard or easy together: drawing them one by one would make intervals too narrow.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError
from evaluation.metrics import METRICS

NUM_RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95
COMPOSITE_NAME = re.compile(r"(.+)_(0|[1-9][0-9]*)")
DRAWS_AT_ONCE = 2**20  # three tables of 8 MB each

Rows = Mapping[str, Mapping[str, float]]


def group_by_foreground(names: Iterable[str], pattern: str | None = None) -> dict[str, list[str]]:
    """Find which images of a test set are composites of one foreground.

    Args:
        names: of all images, whether or not they were measured.
        pattern: regular expression, searched for in each name; its first group, or all that it finds if it has none, is
            the foreground. None goes by the Composition-1k convention: where NAME_0, NAME_1, ... NAME_(k-1) are all
            there, k at least 2, they are the composites of NAME; frames NAME_0001 and numbers with gaps are none.

    Returns: foreground -> its images, both in order of names. An image without one is a foreground of its own; where it
        is called like the foreground of others, theirs is called "NAME_*".

    Raises:
        DataError: the pattern finds something in no name, as one that is misspelt.
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
    """Say in one line how `group_by_foreground` groups."""
    if pattern is None:
        return "NAME_0 ... NAME_(k-1) without a gap are composites of NAME"
    return f"names in which '{pattern}' finds the same are composites of one foreground, others their own"


def _numbered(names: Iterable[str]) -> dict[str, str]:
    """Give each composite its foreground, by the Composition-1k convention."""
    numbered: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := COMPOSITE_NAME.fullmatch(name):
            numbered[match[1]][int(match[2])] = name
    complete = {stem: c for stem, c in numbered.items() if len(c) > 1 and max(c) == len(c) - 1}
    return {name: stem for stem, composites in complete.items() for name in composites.values()}


def _searched(names: Iterable[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Give each image in whose name the pattern finds something its foreground."""
    matches = {name: match for name in names if (match := pattern.search(name))}
    return {name: match[min(pattern.groups, 1)] for name, match in matches.items() if match[min(pattern.groups, 1)]}


def bootstrap_intervals(
    rows: Rows, foregrounds: Mapping[str, Sequence[str]], num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> dict[str, tuple[float, float]] | None:
    """Bound the mean of each metric over images by the percentile bootstrap (Efron 1979) at `CONFIDENCE`.

    A resample draws as many foregrounds as there are, with repetition, and averages over all images of those drawn.
    The draws depend on the seed and the number of foregrounds alone: of rows that hold differences between two methods,
    the result is their paired interval.

    Args:
        rows: name -> metric -> value, for each image that was measured.
        foregrounds: as `group_by_foreground` gives them; images without a row do not count.
        num_resamples: how many means are taken.
        seed: of the draws.

    Returns: metric -> (low, high) in natural units; None for a single foreground, which says nothing of others.
    """
    sums = [
        [*(math.fsum(rows[name][metric] for name in measured) for metric in METRICS), len(measured)]
        for names in foregrounds.values()
        if (measured := [name for name in names if name in rows])
    ]
    if len(sums) < 2:
        return None
    means = _resampled_means(np.array(sums), num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0).tolist()
    return dict(zip(METRICS, zip(low, high, strict=True), strict=True))


def _resampled_means(sums: NDArray[np.float64], num_resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw rows of a table with repetition and divide the sum of their other columns by that of the last.

    Args:
        sums: (U, M + 1), a row per unit: sums of M metrics over its images, and the number of these.
        num_resamples: R.
        rng: draws R times U integers below U, in this order.

    Returns: (R, M) means.
    """
    num_units = len(sums)
    num_at_once = max(DRAWS_AT_ONCE // num_units, 1)
    means = []
    for start in range(0, num_resamples, num_at_once):
        num = min(num_at_once, num_resamples - start)
        draws = rng.integers(num_units, size=(num, num_units))
        cells = draws + num_units * np.arange(num)[:, None]
        times_drawn = np.bincount(cells.ravel(), minlength=num * num_units).reshape(num, num_units)
        drawn = times_drawn.astype(np.float64) @ sums
        means.append(drawn[:, :-1] / drawn[:, -1:])
    return np.concatenate(means)
