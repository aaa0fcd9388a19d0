"""One stream of samples for any number of ranks and batch sizes, every index once an epoch."""

from collections.abc import Iterator
from itertools import islice

import pytest

from data.loader.sampler import InfiniteSampler, key_after
from runtime.errors import ConfigError


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
    samplers = [InfiniteSampler(10, batch_size, 5, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.start = start
    iterators: list[Iterator] = [iter(sampler) for sampler in samplers]
    together: list = []
    while len(together) < 48:
        for iterator in iterators:
            together += islice(iterator, batch_size)
    assert together[:48] == stream


def test_counts_are_checked():
    for wrong in ({"size": 0}, {"batch_size": 0}, {"rank": 2, "world_size": 2}):
        with pytest.raises(ConfigError, match="cannot sample with"):
            InfiniteSampler(**{"size": 10, "batch_size": 2, "seed": 0, **wrong})


def test_what_follows_a_key_stands_after_it_across_epochs():
    keys = take(InfiniteSampler(10, 4, seed=7), 31)
    assert [key_after(key, 10, 7) for key in keys[:-1]] == keys[1:]
