"""One stream of samples for any number of ranks, workers and batch sizes; test images shared out without repeats."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from data import build
from data.build import InfiniteSampler, build_test_loader, build_train_loader
from data.datasets import CompositionDataset, MattingFolder


class Keys(Dataset):
    """Gives each key back."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(key)


def take(sampler: InfiniteSampler, number: int) -> list[tuple[int, int]]:
    return list(islice(sampler, number))


def test_every_epoch_holds_every_index_once_in_an_order_of_its_own():
    keys = take(InfiniteSampler(10, 4, seed=0), 30)
    epochs = [[index for epoch, index in keys if epoch == number] for number in range(3)]
    assert [epoch for epoch, _ in keys] == [0] * 10 + [1] * 10 + [2] * 10
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert keys == take(InfiniteSampler(10, 4, seed=0), 30)
    assert keys != take(InfiniteSampler(10, 4, seed=1), 30)


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (6, 1), (3, 2), (2, 3), (1, 6), (4, 4)])
@pytest.mark.parametrize("start", [0, 7])
def test_ranks_share_one_stream_whatever_their_number(batch_size, world_size, start):
    stream = take(InfiniteSampler(10, 1, seed=5), start + 48)[start:]
    samplers = [InfiniteSampler(10, batch_size, 5, rank, world_size, start) for rank in range(world_size)]
    iterators: list[Iterator] = [iter(sampler) for sampler in samplers]
    together: list = []
    while len(together) < 48:
        for iterator in iterators:
            together += islice(iterator, batch_size)
    assert together[:48] == stream


def test_counts_are_checked():
    for wrong in ({"size": 0}, {"batch_size": 0}, {"rank": 2, "world_size": 2}):
        with pytest.raises(ValueError, match="cannot sample with"):
            InfiniteSampler(**{"size": 10, "batch_size": 2, "seed": 0, **wrong})


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
    keys = take(InfiniteSampler(10, 1, seed=3), 20)
    for num_workers in (0, 2):
        loaded = torch.cat(batches(Keys(), 3, num_workers, start=8))
        assert [tuple(key) for key in loaded.tolist()] == keys[8:20]


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


def test_real_photographs_pass_through_workers(matting_folder: Path):
    folder = matting_folder / "alphamatting"
    dataset = MattingFolder(folder / "image", folder / "trimap1", folder / "alpha")
    names = [batch["name"] for batch in islice(build_test_loader(dataset, num_workers=2), 3)]
    assert names == [["GT01"], ["GT02"], ["GT04"]]
