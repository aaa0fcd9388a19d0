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
    return {
        name: _present_name(value) if name == "_target_" and isinstance(value, str) else _rename(value)
        for name, value in node.items()
    }


def _present_name(name: str) -> str:
    module, _, thing = name.rpartition(".")
    return f"{MOVED[module]}.{thing}" if module in MOVED else name
