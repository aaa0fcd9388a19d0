"""Loaders: the same batches for any number of workers, whole whatever cannot be read; test images without repeats."""

import signal
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from data.datasets.composition import CompositionDataset, MattingFolder
from data.image_io.images import DataError
from data.loader import build
from data.loader.build import build_test_loader, build_train_loader
from data.loader.sampler import InfiniteSampler
from runtime.errors import ConfigError


class Keys(Dataset):
    """Gives each key back, but for those of some indexes, which cannot be read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        if key[1] in self.broken:
            raise DataError(f"cannot read {key[1]}")
        return {"key": torch.tensor(key)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> CompositionDataset:
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for folder, channels in (("rgba", 4), ("bg", 3)):
        (root / folder).mkdir()
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 40, channels), np.uint8)).save(root / folder / f"{number}.png")
    return CompositionDataset(root / "rgba", root / "bg", samples_per_epoch=7, crop_px=16)


def batches(dataset: Dataset, number: int, num_workers: int = 0, batch_size: int = 4, start: int = 0) -> list[Any]:
    loader = build_train_loader(dataset, batch_size, num_workers, seed=3)
    assert isinstance(loader.sampler, InfiniteSampler)
    loader.sampler.start = start
    return list(islice(loader, number))


def test_workers_do_not_change_a_sample(dataset):
    alone, with_two = batches(dataset, 5), batches(dataset, 5, num_workers=2)
    assert alone[0]["image"].shape == (4, 3, 16, 16)
    assert set(alone[0]) == {"image", "trimap", "alpha"}
    for first, second in zip(alone, with_two, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_start_goes_on_in_the_middle_of_the_stream_at_another_batch_size(dataset):
    whole = torch.cat([batch["image"] for batch in batches(dataset, 6)])
    rest = torch.cat([batch["image"] for batch in batches(dataset, 4, batch_size=3, start=12)])
    assert torch.equal(whole[12:], rest)


def test_workers_follow_a_start_set_after_the_loader_was_built():
    keys = list(islice(InfiniteSampler(10, 1, seed=3), 20))
    for num_workers in (0, 2):
        assert loaded_keys(batches(Keys(), 3, num_workers, start=8)) == keys[8:20]


def loaded_keys(loaded: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [tuple(key) for batch in loaded for key in batch["key"].tolist()]


def expected_keys(number: int, broken: tuple[int, ...]) -> tuple[list[tuple[int, int]], list[str]]:
    """The keys of the stream with what is broken replaced, by walking along it, and a message for each fault."""
    stream = list(islice(InfiniteSampler(10, 1, seed=3), number + 10))
    keys, faults = [], []
    for position in range(number):
        while stream[position][1] in broken:
            faults.append(f"cannot read {stream[position][1]}")
            position += 1
        keys.append(stream[position])
    return keys, faults


@pytest.mark.parametrize("broken", [(4,), (0, 1, 2, 7, 8, 9)])
@pytest.mark.parametrize(("num_workers", "batch_size", "world_size"), [(0, 4, 1), (2, 3, 2), (1, 12, 1), (0, 1, 3)])
def test_what_cannot_be_read_is_replaced_by_the_next_of_the_stream(
    monkeypatch, broken, num_workers, batch_size, world_size
):
    ranks = []
    for rank in range(world_size):
        monkeypatch.setattr(build, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        ranks.append(batches(Keys(broken), 24 // batch_size // world_size, num_workers, batch_size))
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    keys, faults = expected_keys(24, broken)
    assert loaded_keys(together) == keys
    assert [fault for batch in together for fault in batch.get("faults", [])] == faults
    assert all(batch["faults"] for batch in together if "faults" in batch)


@pytest.mark.parametrize(("on_fault", "num_faults"), [("replace", 10), ("raise", 1)])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_where_nothing_can_be_read_a_batch_is_its_faults_alone(on_fault, num_faults, num_workers):
    loader = build_train_loader(Keys(tuple(range(10))), 4, num_workers, seed=3, on_fault=on_fault)
    batch = next(iter(loader))
    first = list(islice(InfiniteSampler(10, 1, seed=3), 10))
    assert batch == {"faults": [f"cannot read {index}" for _, index in first[:num_faults]]}


def test_a_sample_by_itself_is_never_replaced():
    loader = build_train_loader(Keys((4,)), 2, 0, seed=3)
    with pytest.raises(DataError, match="cannot read 4"):
        loader.dataset[0, 4]


def test_settings_of_the_loader_are_checked():
    with pytest.raises(ConfigError, match="on_fault must be replace or raise, got 'skip'"):
        build_train_loader(Keys(), 2, 0, seed=0, on_fault="skip")
    settings = {"batch_size": 2, "num_workers": 1, "seed": 0, "prefetch_factor": 1}
    for name, least in {"batch_size": 1, "num_workers": 0, "seed": 0, "prefetch_factor": 1}.items():
        for value in (least - 1, 1.5, None):
            message = f"dataloader.train.{name} must be a whole number of at least {least}, got {value}"
            with pytest.raises(ConfigError, match=message):
                build_train_loader(Keys(), **{**settings, name: value})
    for value in (-1, 1.5):
        with pytest.raises(ConfigError, match=f"dataloader.test.num_workers must be a whole .*, got {value}"):
            build_test_loader(Keys(), value)


@pytest.mark.parametrize(("num_workers", "ahead"), [(0, None), (2, 3)])
def test_workers_live_on_and_make_as_many_batches_ahead_as_asked_for(num_workers, ahead):
    loader = build_train_loader(Keys(), 2, num_workers, seed=0, prefetch_factor=3)
    assert loader.persistent_workers == (num_workers > 0)
    assert loader.prefetch_factor == ahead
    assert loader.pin_memory == torch.cuda.is_available()


class Interrupts(Dataset):
    """What becomes of Ctrl-C in the process that makes a sample."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"handler": torch.tensor(int(signal.getsignal(signal.SIGINT)))}


@pytest.mark.parametrize(("world_size", "handler"), [(1, signal.SIG_IGN), (2, signal.SIG_DFL)])
def test_workers_leave_ctrl_c_to_the_one_training_process_or_end_as_several_do(monkeypatch, world_size, handler):
    monkeypatch.setattr(build, "rank_and_world_size", lambda: (0, world_size))
    batch = next(iter(build_train_loader(Interrupts(), 1, 1, seed=0)))
    assert batch["handler"].item() == handler


class Strided(Dataset):
    """Tensors as an image's array gives them, channels last in memory."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"image": torch.arange(4 * 5 * 3.0).reshape(4, 5, 3).permute(2, 0, 1) + key[1]}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_contiguous_copies_of_strided_samples(num_workers):
    loader = build_train_loader(Strided(), 3, num_workers, seed=1)
    batch = next(iter(loader))["image"]
    expected = [loader.dataset[key]["image"] for key in islice(loader.sampler, 3)]
    assert not expected[0].is_contiguous()
    assert batch.is_contiguous() and torch.equal(batch, torch.stack(expected))
    if torch.cuda.is_available():
        assert batch.is_pinned()
    else:
        assert batch.is_shared() == (num_workers > 0)  # no second copy brought it here


def test_loading_leaves_the_global_generators_alone(dataset):
    state, numpy_state = torch.get_rng_state(), str(np.random.get_state())
    batches(dataset, 2)
    list(build_test_loader(torch.utils.data.TensorDataset(torch.zeros(3)), 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_test_images_are_shared_out_without_repeats(tmp_path, monkeypatch, world_size):
    for folder in ("image", "trimap"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            Image.new("L", (4 + number, 3)).save(tmp_path / folder / f"{number}.png")
    folder_set = MattingFolder(tmp_path / "image", tmp_path / "trimap")
    names = []
    for rank in range(world_size):
        monkeypatch.setattr(build, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        loader = build_test_loader(folder_set, num_workers=0)
        share = list(loader)
        assert len(share) == len(loader)
        assert all(batch["image"].shape == (1, 3, 3, 4 + int(batch["name"][0])) for batch in share)
        names += [name for batch in share for name in batch["name"]]
    assert sorted(names) == ["0", "1", "2", "3", "4"]
