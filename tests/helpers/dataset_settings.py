"""Settings of a training data set in one flat dict, as tests vary them."""

from typing import Any

from data.augment.random_crop import DrawView
from data.augment.transforms import JitterColour, MakeTrimap
from engine.config.migration import GROUPS


def grouped(settings: dict[str, Any], crop: type[DrawView] = DrawView) -> dict[str, Any]:
    """Put flat settings into the data set's `crop`, `trimap` and `colour`, and leave the others."""
    others = dict(settings)
    for name, kind in (("crop", crop), ("trimap", MakeTrimap), ("colour", JitterColour)):
        own = {new: others.pop(old) for old, new in GROUPS[name].items() if old in others}
        if own:
            others[name] = kind(**own)
    return others
