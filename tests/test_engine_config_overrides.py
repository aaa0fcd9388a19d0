"""Overrides of texts are taken as they are typed; all others keep Hydra's grammar."""

import json
import os
import shlex

import pytest
from omegaconf import OmegaConf

from engine.config.config import apply_overrides, load_config
from engine.config.overrides import quote_override, read_text, takes_text
from runtime.errors import ConfigError
from tests.helpers.paths import DEMO

HOME = os.path.expanduser("~")
DATASET = "dataloader.train.dataset"


@pytest.fixture(scope="module")
def demo():
    return load_config(DEMO)


def override(cfg, *changes):
    """Give what the key of the last override stands for afterwards."""
    cfg = OmegaConf.create(cfg, flags={"allow_objects": True, "struct": True})
    apply_overrides(cfg, changes)
    value = OmegaConf.select(cfg, changes[-1].partition("=")[0])
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_list(value) else value


TEXTS = {
    "/data/实验": "/data/实验",
    "runs/lr=1e-4": "runs/lr=1e-4",
    "~/x": f"{HOME}/x",
    "~": HOME,
    "~someone/x": "~someone/x",
    "a (1)": "a (1)",
    "a#1": "a#1",
    "a: b": "a: b",
    "a,b": "a,b",
    "{a}": "{a}",
    "[a]": "[a]",
    "C:\\runs": "C:\\runs",
    "it's": "it's",
    "'a": "'a",
    "'a'b'": "'a'b'",
    "12": "12",
    "1e-4": "1e-4",
    "true": "true",
    "'null'": "null",
    '"a b"': "a b",
    "'~/x'": "~/x",
    '"a \\" b"': 'a " b',
    "!!python/name:os.system": "!!python/name:os.system",
    "": "",
}


@pytest.mark.parametrize(("typed", "meant"), TEXTS.items())
def test_a_text_is_taken_as_it_is_typed(demo, typed, meant):
    for key in ("train.output_dir", "train.init_checkpoint", "dataloader.evaluator.output_dir"):
        assert override(demo, f"{key}={typed}") == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("[/data/实验,runs/lr=1e-4]", ["/data/实验", "runs/lr=1e-4"]),
        ("[a (1), a#1 ,~/x]", ["a (1)", "a#1", f"{HOME}/x"]),
        ("['a, b',\"c, d\"]", ["a, b", "c, d"]),
        ("[it's,b]", ["it's", "b"]),
        ("['a'b,c]", ["'a'b", "c"]),
        ("[a [1],b]", ["a [1]", "b"]),
        ("[]", []),
        ("['']", [""]),
        ("[12,true]", ["12", "true"]),
        ("[${train.seed}/a,${oc.env:NO_SUCH,b}/c]", ["0/a", "b/c"]),
    ],
)
def test_a_list_of_texts_is_split_at_its_commas(demo, typed, meant):
    for key in ("foreground_dirs", "background_dirs", "alpha_dirs"):  # the last is null here
        assert override(demo, f"{DATASET}.{key}={typed}") == meant
    assert override(demo, f"{DATASET}.{key}=[]", f"{DATASET}.{key}={typed}") == meant


def test_null_and_interpolations_keep_their_meaning(demo):
    assert override(demo, f"{DATASET}.foreground_dirs=null") is None
    assert override(demo, f"{DATASET}.alpha_dirs=[null,a]") == [None, "a"]
    assert override(demo, f"{DATASET}.alpha_dirs=[null]", f"{DATASET}.alpha_dirs=[a (1)]") == ["a (1)"]
    assert (
        override(demo, "train.output_dir=runs", "train.init_checkpoint=${train.output_dir}/a (1).pth")
        == "runs/a (1).pth"
    )


def test_other_kinds_keep_the_grammar_of_hydra(demo):
    assert override(demo, "train.epochs=1e-1") == 0.1
    assert override(demo, "train.compile=true") is True
    assert override(demo, "train.log_period=${train.seed}") == 0
    assert override(demo, "optimizer.betas=[0.8, 0.9]") == [0.8, 0.9]
    assert override(demo, "train.checkpointer={max_to_keep: 2}").max_to_keep == 2
    assert override(demo, "train.clip_norm=2") == 2  # null, and no path
    assert override(demo, "train.wandb='my project'") == "my project"


def test_a_null_is_a_text_where_its_name_is_that_of_a_path():
    for key in ("a.output_dir", "alpha_dirs", "dataloader.folder", "train.init_checkpoint", "x_file", "x_paths"):
        assert takes_text(key, None) and takes_text(key, []) and takes_text(key, [None])
    for key in ("train.clip_norm", "train.best_checkpoint", "rope_shift", "reference_px"):
        assert not takes_text(key, None)
    assert not takes_text("x_dir", 3) and not takes_text("x", ["a", 3]) and takes_text("x", ["a", None])


@pytest.mark.parametrize("typed", ["[a,]", "[,]", "[a,,b]"])
def test_an_empty_entry_is_refused(typed):
    with pytest.raises(ConfigError, match="an entry of the list is empty"):
        read_text("x_dirs", typed, ["a"])


@pytest.mark.parametrize("folder", ["/data/实验", "a (1)", "it's", 'say "x"', "~", "null", "[a]", "C:\\runs", "a\\"])
def test_a_printed_override_is_read_as_it_was_meant(demo, folder):
    (word,) = shlex.split(quote_override("train.output_dir", folder))
    assert override(demo, word) == folder
    (word,) = shlex.split(quote_override(f"{DATASET}.foreground_dirs", [folder, "b"]))
    assert override(demo, word) == [folder, "b"], json.dumps(folder)
