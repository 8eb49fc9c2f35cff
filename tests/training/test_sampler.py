"""Every row once an epoch, in batches of like length, in an order that seed and epoch alone decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.training.sampler import LengthGroupedSampler


def order(lengths, batch, seed=0, epoch=0):
    sampler = LengthGroupedSampler(lengths, batch, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    return list(sampler)


def padding(lengths, rows, batch):
    """Padded places as a share of all places."""
    groups = [np.array([lengths[row] for row in rows[i : i + batch]]) for i in range(0, len(rows), batch)]
    places = sum(group.max() * len(group) for group in groups)
    return 1 - sum(lengths) / places


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(rows, batch, seed, epoch):
    lengths = [(7 * row) % 23 + 1 for row in range(rows)]
    assert sorted(order(lengths, batch, seed, epoch)) == list(range(rows))


def test_the_order_is_decided_by_seed_and_epoch_alone():
    lengths = list(np.random.default_rng(0).integers(4, 60, 700))
    sampler = LengthGroupedSampler(lengths, 8, seed=3)
    np.random.seed(0)
    first = list(sampler)
    np.random.seed(1)
    assert list(sampler) == first == order(lengths, 8, seed=3)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert second == order(lengths, 8, seed=3, epoch=1)
    assert order(lengths, 8, seed=4) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_hold_rows_of_like_length():
    lengths = [int(n) for n in np.random.default_rng(0).gamma(2.0, 12.0, 2000) + 3]
    plain = list(LengthGroupedSampler(None, 32, 0, rows=2000))
    assert sorted(plain) == list(range(2000))
    assert padding(lengths, plain, 32) > 0.4
    assert padding(lengths, order(lengths, 32), 32) < 0.1


def test_batches_come_in_no_order_of_length():
    lengths = list(range(1, 1601))
    means = np.array([np.mean([lengths[row] for row in order(lengths, 16)[i : i + 16]]) for i in range(0, 1600, 16)])
    assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.4


@pytest.mark.parametrize("rows", [17, 401, 805])
def test_a_last_smaller_batch_comes_last(rows):
    """Anywhere else it would shift all batches after it, and mix their lengths."""
    lengths = [1 if row % 2 else 50 for row in range(rows)]
    found = order(lengths, 8)
    whole = [found[i : i + 8] for i in range(0, rows - rows % 8, 8)]
    mixed = sum(len({lengths[row] for row in batch}) > 1 for batch in whole)
    assert mixed <= 1 + rows // 400  # at most one in a pool of 50 batches


def test_fewer_rows_than_a_batch():
    assert sorted(order([5, 3, 9], 8)) == [0, 1, 2]


def test_numbers_say_the_epoch_where_that_is_asked() -> None:
    plain = LengthGroupedSampler([3, 1, 2, 5, 4], 2, 7)
    numbered = LengthGroupedSampler([3, 1, 2, 5, 4], 2, 7, number_epochs=True)
    for epoch in (0, 1, 4):
        plain.set_epoch(epoch)
        numbered.set_epoch(epoch)
        assert [divmod(number, 5) for number in numbered] == [(epoch, row) for row in plain]
