"""Mixtures: exact shares, members that give their samples in order, and the page's examples from config to training."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

import main
from data.datasets.composition import CompositionDataset
from data.datasets.mixture import MixtureDataset
from data.image_io.images import DataError
from data.loader.bad_samples import SkipBadSamples
from data.loader.build import build_train_loader
from data.loader.sampler import InfiniteSampler
from data.sources.layouts import TRAINING_LAYOUTS, TrainingLayout
from engine.config.build_data import build_data
from engine.config.config import apply_overrides, load_config
from runtime.errors import ConfigError
from tests.helpers.paths import REPOSITORY
from tests.helpers.training import metrics, overrides

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


YOUR_DATA = (REPOSITORY / "docs/data.md").read_text()


class Numbered:
    """A training set whose samples are filled with what they are: the set's mark and its own running number."""

    def __init__(self, mark: int, size: int = 7, crop_px: int = 2, channels: int = 3) -> None:
        self.mark, self.size, self.crop_px, self.channels = mark, size, crop_px, channels

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        assert 0 <= index < self.size
        side = (self.crop_px, self.crop_px)
        number, mark = float(epoch * self.size + index), float(self.mark)
        image = torch.full((self.channels, *side), number)
        return {"image": image, "trimap": torch.full((1, *side), mark), "alpha": torch.zeros((1, *side))}


def drawn(sample: dict[str, torch.Tensor]) -> tuple[int, int]:
    """The mark and the number that a sample is filled with."""
    return int(sample["trimap"].flatten()[0]), int(sample["image"].flatten()[0])


@settings(max_examples=25)
@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=5), st.integers(50, 90))
def test_shares_are_exact_and_every_member_gives_its_samples_in_order(weights, samples_per_epoch):
    members = {f"set{mark}": Numbered(mark, size=5 + mark) for mark in range(len(weights))}
    mixture = MixtureDataset(dict(zip(members, weights, strict=True)), samples_per_epoch, **members)
    assert len(mixture) == samples_per_epoch
    numbers: dict[int, list[int]] = {mark: [] for mark in range(len(weights))}
    for epoch in range(3):
        for index in range(samples_per_epoch):
            mark, number = drawn(mixture[epoch, index])
            numbers[mark].append(number)
    for mark, weight in enumerate(weights):
        assert numbers[mark] == list(range(3 * mixture.counts[f"set{mark}"]))
        assert abs(len(numbers[mark]) / 3 - samples_per_epoch * weight / sum(weights)) <= 1


def test_the_loader_mixes_the_members_through_the_epoch():
    mixture = MixtureDataset({"few": 30, "many": 70}, 100, many=Numbered(1), few=Numbered(0))
    loader = iter(build_train_loader(mixture, batch_size=20, num_workers=0, seed=0))
    shares = [float(next(loader)["trimap"][:, 0, 0, 0].mean()) for _ in range(5)]
    assert sum(shares) / 5 == pytest.approx(0.7)
    assert all(0.4 < share < 0.98 for share in shares)


def test_a_mixture_may_be_in_a_mixture():
    inner = MixtureDataset({"a": 1, "b": 1}, 4, a=Numbered(0), b=Numbered(1))
    outer = MixtureDataset({"inner": 0.5, "c": 0.5}, 12, inner=inner, c=Numbered(2))
    marks = [drawn(outer[epoch, index])[0] for epoch in range(2) for index in range(12)]
    assert [marks.count(mark) for mark in range(3)] == [6, 6, 12]


@pytest.mark.parametrize("num_inner", [1, 2, 3, 6, 11])
def test_the_first_keys_are_of_every_set(num_inner):
    """Also where the first of an inner one comes in a later epoch of the outer one."""
    inner = MixtureDataset({"a": 3, "b": 1}, 8, a=Numbered(0), b=Numbered(1))
    outer = MixtureDataset({"c": 12 - num_inner, "inner": num_inner}, 12, inner=inner, c=Numbered(2))
    batches = SkipBadSamples(outer, seed=0)
    assert sorted(drawn(batches[key]) for key in batches.trial_keys) == [(0, 0), (1, 0), (2, 0)]
    assert SkipBadSamples(Numbered(0), seed=0).trial_keys == [next(iter(InfiniteSampler(7, 1, seed=0)))]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, "weights must be a number above 0 for each of a, b, got {'a': 1}"),
        ({"a": 1, "c": 1}, "for each of a, b, got {'a': 1, 'c': 1}"),
        ({"a": 1, "b": 0}, "for each of a, b, got {'a': 1, 'b': 0}"),
        ({"a": 1, "b": float("nan")}, "for each of a, b"),
        ({"a": 1, "b": float("inf")}, "for each of a, b, got {'a': 1, 'b': inf}"),
        ({"a": 1, "b": None}, "for each of a, b, got {'a': 1, 'b': None}"),
        (None, "for each of a, b, got None"),
        ({"a": 1, "b": 0.01}, "of 10 samples an epoch give {'a': 10, 'b': 0}: expected at least one"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(weights, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        MixtureDataset(weights, 10, a=Numbered(0), b=Numbered(1))
    with pytest.raises(ConfigError, match="each of no set"):
        MixtureDataset({}, 10)


def test_what_is_no_set_or_no_length_is_refused():
    with pytest.raises(ConfigError, match="the set b of a mixture must be a training set, got None"):
        MixtureDataset({"a": 1, "b": 1}, 10, a=Numbered(0), b=None)
    with pytest.raises(ConfigError, match="samples_per_epoch must be a whole number of at least 1, got 9.5"):
        MixtureDataset({"a": 1}, 9.5, a=Numbered(0))


def test_what_no_batch_holds_is_refused():
    with pytest.raises(DataError, match=re.escape("{'a': 2, 'b': 3}, which no batch holds: give them one crop_px")):
        MixtureDataset({"a": 1, "b": 1}, 10, a=Numbered(0), b=Numbered(1, crop_px=3))
    odd = MixtureDataset({"a": 1, "b": 1}, 10, a=Numbered(0), b=Numbered(1, channels=4))
    assert drawn(odd[0, 4]) == (0, 4)
    with pytest.raises(
        ConfigError, match=r"set b of a mixture gives \{'image': \(4, 2, 2\).*expected \{'image': \(3, 2, 2\)"
    ):
        odd[0, 5]
    with pytest.raises(ConfigError, match="set b of a mixture"):  # no fault of an image's, which another would replace
        SkipBadSamples(odd, seed=0).__getitems__([(0, 5)])


def picture(path: Path, mode: str) -> None:
    """An image of noise, a soft disc in its transparency or as its grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:80, :96]
    disc = 255 * np.clip(30 - np.hypot(x - 48, y - 40), 0, 8) / 8
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (80, 96, 3))
    pixels = {"L": disc, "RGB": noise, "RGBA": np.dstack([noise, disc])}[mode]
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture()
def sets(tmp_path, monkeypatch):
    """Small data where the page's examples look for it, and the configs with the page's mixture beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    adobe = "datasets/adobe_composition-1k/Training_set"
    images = [
        "datasets/fg/a.jpg",
        "datasets/mine/b.jpg",
        "datasets/photos/c.jpg",
        "datasets/more_photos/x/d.jpg",
        "datasets/real/image/e.jpg",
    ]
    images += ["datasets/train2017/f.jpg", f"{adobe}/Adobe-licensed images/fg/g.jpg", f"{adobe}/Other/fg/h.png"]
    alphas = ["datasets/alpha/a.png", "datasets/mine/b_alpha.png", "datasets/real/alpha/e.png"]
    alphas += [f"{adobe}/Adobe-licensed images/alpha/g.jpg", f"{adobe}/Other/alpha/h.png"]
    for mode, names in {"RGB": images, "L": alphas, "RGBA": ["datasets/cutouts/i.png"]}.items():
        for name in names:
            picture(tmp_path / name, mode)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (example,) = re.findall(r"```python\n(.*?)```", YOUR_DATA, flags=re.DOTALL)
    (tmp_path / "configs/mixture.py").write_text(example)
    return tmp_path


COMMANDS = [
    shlex.split(found.replace("\\\n", ""))
    for found in re.findall(r"^    (python main\.py(?:.*\\\n)*.*)$", YOUR_DATA, flags=re.MULTILINE)
]


def test_the_page_has_a_command_for_each_way():
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_the_pages_commands_find_their_data(sets, command):
    python, script, option, config, *changes = command
    assert (python, script, option) == ("python", "main.py", "--config-file")
    cfg = load_config(config)
    apply_overrides(cfg, [*changes, "train.samples_per_epoch=20"])
    dataset = instantiate(cfg.dataloader.train.dataset)
    for index in (0, 19):
        assert dataset[0, index]["image"].shape == (3, 512, 512)


def test_the_pages_layouts_are_layouts():
    lines = re.findall(r"^    (TRAINING_LAYOUTS\[.*)$", YOUR_DATA, flags=re.MULTILINE)
    entries: dict[str, TrainingLayout] = {}
    exec("\n".join(lines), {"TRAINING_LAYOUTS": entries, "TrainingLayout": TrainingLayout})
    assert {name: entry.kind for name, entry in entries.items()} == {
        "AM-2k": "images",
        "P3M-10k": "images",
        "Distinctions-646": "foregrounds",
        "BG-20k": "backgrounds",
    }


def test_the_pages_table_is_that_of_the_layouts():
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| `(.*?)`", YOUR_DATA, flags=re.MULTILINE)
    roots = [(name, entry.kind, Path(entry.root, entry.image_dirs[0])) for name, entry in TRAINING_LAYOUTS.items()]
    assert [(name, kind, Path(folder)) for name, kind, folder in rows] == roots


@pytest.mark.slow
def test_a_mixture_trains_and_its_saved_config_is_the_same_mixture(sets):
    reach = "dataloader.train.dataset"
    changes = [line for line in overrides(sets, sets / "out") if f"{reach}." not in line and ".test." not in line]
    changes += [f"{reach}.composites.crop_px=64", f"{reach}.weights.composites=1", f"{reach}.weights.photographs=2"]
    changes += [f"{reach}.composites.foreground_dirs=[datasets/cutouts]", f"{reach}.composites.alpha_dirs=null"]
    changes += [f"{reach}.composites.background_dirs=[datasets/photos]", "dataloader.test=null", "train.device=cpu"]
    changes += ["train.epochs=1", "train.samples_per_epoch=6", f"{reach}.composites.degradation.noise_probability=0.5"]
    main.main(["--config-file", "configs/mixture.py", *changes])
    assert [row for row in metrics(sets / "out") if row < 3] == [0, 1, 2]
    asked = load_config("configs/mixture.py")
    apply_overrides(asked, [*changes, "train.world_size=1"])
    first, second = (instantiate(cfg.dataloader.train.dataset) for cfg in (asked, LazyConfig.load("out/config.yaml")))
    assert first.counts == second.counts == {"composites": 2, "photographs": 4}
    for mixture in (first, second):
        assert mixture.members["photographs"].degradation.probabilities == (0, 0.5, 0)
    for index in range(6):
        assert all(torch.equal(first[0, index][name], second[0, index][name]) for name in ("image", "trimap", "alpha"))


@pytest.mark.parametrize("broken", ["datasets/real/image/e.jpg", "datasets/fg/a.jpg"])
def test_what_breaks_one_set_is_told_of_before_anything_starts(sets, broken, capsys):
    (sets / broken).write_bytes((sets / broken).read_bytes()[:300])
    reach = "dataloader.train.dataset.composites"
    changes = [f"{reach}.foreground_dirs=[datasets/fg]", f"{reach}.alpha_dirs=[datasets/alpha]", f"{reach}.crop_px=64"]
    changes += [f"{reach}.background_dirs=[datasets/photos]", "dataloader.test=null", "train.device=cpu"]
    changes += ["dataloader.train.num_workers=0", f"train.output_dir={sets}/out", "train.samples_per_epoch=20"]
    with pytest.raises(SystemExit, match="1"):
        main.main(["--config-file", "configs/mixture.py", *changes])
    assert f": cannot read {broken}" in capsys.readouterr().err


def test_missing_folders_of_all_sets_of_a_mixture_are_named_at_once(tmp_path):
    def member(name):
        return LazyCall(CompositionDataset)(
            foreground_dirs=[str(tmp_path / f"{name}_rgba")],
            background_dirs=[str(tmp_path / name)],
            samples_per_epoch=4,
        )

    mixture = LazyCall(MixtureDataset)(weights={"a": 1, "b": 1}, samples_per_epoch=8, a=member("a"), b=member("b"))
    train = LazyCall(build_train_loader)(dataset=mixture, batch_size=1, num_workers=0, seed=0)
    with pytest.raises(FileNotFoundError) as refused:
        build_data(OmegaConf.create({"train": train, "test": None}, flags={"allow_objects": True}))
    for folder in ("a_rgba", "a", "b_rgba", "b"):
        assert str(refused.value).count(f"  {tmp_path / folder}\n") == 1
