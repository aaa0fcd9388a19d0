"""Configs that a run of an earlier version saved load as the present version writes them."""

from pathlib import Path

import pytest

from engine.config.config import TRAINING_SECTIONS, describe_differences, load_config
from engine.config.migration import LATER_KEYS, MOVED, migrate
from engine.config.targets import TARGETS
from runtime.yaml_files import Reference
from tests.helpers.paths import REPOSITORY

OLD_CONFIGS = sorted(Path(__file__).with_name("old_configs").glob("*.yaml"))


def built_things(settings, key=""):
    """Map each key that names a class or function to what it names."""
    items = settings.items() if hasattr(settings, "items") else ()
    found = {key: settings["_target_"]} if "_target_" in settings else {}
    for name, value in items:
        if hasattr(value, "items"):
            found |= built_things(value, f"{key}.{name}")
    return found


@pytest.mark.parametrize("path", OLD_CONFIGS, ids=lambda path: path.stem)
def test_a_config_from_before_the_move_names_the_same_classes_as_the_recipe(path):
    recipe = load_config(REPOSITORY / "configs" / f"{path.stem}.py")
    old = load_config(path, TRAINING_SECTIONS)
    assert built_things(old) == built_things(recipe) != {}
    assert not [line for line in describe_differences(path, recipe) if "_target_" in line]


def test_names_move_everywhere_and_other_texts_stay():
    settings = {
        "model": {"_target_": "modeling.optim.get_optimizer_params", "layers": [Reference("data.tones.JitterTones")]},
        "train": {"note": "modeling.optim.get_optimizer_params", "seed": 3},
    }
    migrated = migrate(settings)
    assert migrated["model"] == {
        "_target_": "modeling.lr_groups.get_optimizer_params",
        "layers": [Reference("data.augment.tone_jitter.JitterTones")],
    }
    assert migrated["train"] == {**LATER_KEYS["train"], **settings["train"]}
    assert migrate(migrated) == migrated


def test_settings_of_a_training_set_move_into_its_crop_trimap_and_colour():
    old = {"_target_": "data.real_images.RealImageDataset", "crop_px": 64, "hue_deg": 10.0, "shear_deg": 5.0}
    new = migrate({"dataloader": {"train": {"dataset": {**old, "trimap_radius_px": [1, 2]}}}})
    assert new["dataloader"]["train"]["dataset"] == {
        "_target_": "data.datasets.photographs.RealImageDataset",
        "crop_px": 64,
        "crop": {"_target_": "data.datasets.photographs.DrawInnerView", "shear_deg": 5.0},
        "trimap": {"_target_": "data.augment.transforms.MakeTrimap", "radius_px": [1, 2]},
        "colour": {"_target_": "data.augment.transforms.JitterColour", "hue_deg": 10.0},
    }
    assert migrate(new) == new


def test_every_moved_module_is_one_that_a_file_may_name():
    assert {target.rpartition(".")[0] for target in TARGETS} >= set(MOVED.values())
