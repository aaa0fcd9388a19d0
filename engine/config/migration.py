"""Bring configs of earlier versions up to date: moved classes and functions, and keys that came later."""

from typing import Any

from runtime.yaml_files import Reference

MOVED = {
    "data.build": "data.loader.build",
    "data.datasets": "data.datasets.composition",
    "data.degradation": "data.augment.degradation",
    "data.mixture": "data.datasets.mixture",
    "data.real_images": "data.datasets.photographs",
    "data.tones": "data.augment.tone_jitter",
    "engine.schedule": "engine.config.epochs",
    "evaluation.samples": "evaluation.output.sample_sheet",
    "modeling.average_views": "modeling.test_time_augmentation",
    "modeling.optim": "modeling.lr_groups",
}
"""Module as configs of earlier versions name it -> module that holds its classes and functions now."""

LATER_KEYS: dict[str, dict[str, Any]] = {
    "train": {
        "accumulation": 1,
        "batch_norm": "own",
        "best_checkpoint": None,
        "clip_norm": None,
        "compile": False,
        "ema_decay": None,
        "loader_timeout_s": 600,
        "model_of_checkpoint": None,
        "pictures": None,
        "sharded_blocks": "",
        "timeout_s": 1800,
        "wandb": None,
    },
    "dataloader": {
        # The same numbers in less memory: configs of before evaluated images whole.
        "test_network": {"_target_": "inference.network.TiledEvaluation", "tile_px": 256},
        "test_views": None,
    },
}
"""Section -> keys that configs saved by earlier versions lack -> what was done before they came."""


GROUPS: dict[str, dict[str, str]] = {
    "crop": {
        name: name
        for name in (
            *("square_probability", "square_px", "rotation_deg", "rotation_min_px", "scale_range", "shear_deg"),
            *("flip_probability", "crop_factors", "max_enlargement"),
        )
    },
    "trimap": {"trimap_radius_px": "radius_px", "trimap_reference_px": "reference_px"},
    "colour": {"hue_deg": "hue_deg", "jitter_share": "jitter_share"},
}
"""Object of a training data set -> settings that configs of earlier versions have in the data set, and their names."""

CROPS = {
    "data.datasets.composition.CompositionDataset": "data.augment.random_crop.DrawView",
    "data.datasets.photographs.RealImageDataset": "data.datasets.photographs.DrawInnerView",
}
"""Training data set -> class of its `crop`."""


def migrate(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a config, nested plain values, as the present version writes them."""
    settings = _rename(settings)
    for section, values in LATER_KEYS.items():
        if isinstance(node := settings.get(section), dict):
            node |= {key: value for key, value in values.items() if key not in node}
    return settings


def _rename(node: Any) -> Any:
    """Copy nested values; names of moved classes and functions get their present module."""
    if isinstance(node, Reference):
        return Reference(_present_name(node))
    if isinstance(node, list):
        return [_rename(value) for value in node]
    if not isinstance(node, dict):
        return node
    renamed = {
        name: _present_name(value) if name == "_target_" and isinstance(value, str) else _rename(value)
        for name, value in node.items()
    }
    crop = CROPS.get(str(renamed.get("_target_")))  # a hostile file may give anything here
    return _group(renamed, crop) if crop else renamed


def _group(dataset: dict[str, Any], crop: str) -> dict[str, Any]:
    """Put settings of a training data set into the objects that have them now."""
    targets = {
        "crop": crop,
        "trimap": "data.augment.transforms.MakeTrimap",
        "colour": "data.augment.transforms.JitterColour",
    }
    for group, names in GROUPS.items():
        if moved := {new: dataset.pop(old) for old, new in names.items() if old in dataset}:
            dataset[group] = {"_target_": targets[group], **moved}
    return dataset


def _present_name(name: str) -> str:
    module, _, thing = name.rpartition(".")
    return f"{MOVED[module]}.{thing}" if module in MOVED else name
