"""The likeliest classes of a large vocabulary, and the mass of all others: how near, how small, and read back whole."""

import math
from types import SimpleNamespace

import pytest
import torch

from potstill.cache.columns import Codec, Column, packed, packed_size, unpacked
from potstill.cache.identity import Storage


def codec(classes, top_k, temperature=1.0):
    return Codec(Column("logits", ("tokens", classes)), Storage("float16", top_k, temperature))


def round_trip(one, row):
    lengths = {"tokens": len(row)}
    return {part: flat.view(one.part_shape(part, lengths)) for part, flat in one.encode(row).items()}


@pytest.mark.parametrize(("classes", "bits"), [(1000, 0), (65_536, 0), (65_537, 2), (151_936, 2), (300_000, 4)])
def test_ids_come_back_whatever_the_vocabulary(classes, bits):
    one = codec(classes, 7)
    row = torch.randn(5, classes, generator=torch.Generator().manual_seed(0))
    row[:, -1] += 20  # the last id too
    parts = round_trip(one, row)
    assert one.high_bits == bits
    assert ("high" in parts) == bool(bits)
    assert torch.equal(one.ids(parts).sort(-1).values, row.topk(7).indices.sort(-1).values)
    assert (one.ids(parts)[:, 0] == classes - 1).all()


def test_values_and_tail_are_the_distribution_at_the_temperature():
    one = codec(500, 20, temperature=2.0)
    row = 5 * torch.randn(9, 500, generator=torch.Generator().manual_seed(1))
    parts = round_trip(one, row)
    log_p = torch.log_softmax(row / 2, -1)
    torch.testing.assert_close(parts["values"].float(), log_p.topk(20).values, rtol=1e-3, atol=1e-3)
    rest = 1 - log_p.topk(20).values.exp().sum(-1)
    torch.testing.assert_close(parts["tail"].exp(), rest, rtol=1e-4, atol=1e-6)
    whole = parts["values"].float().exp().sum(-1) + parts["tail"].exp()
    torch.testing.assert_close(whole, torch.ones(9), rtol=0, atol=2e-3)


def test_a_token_of_a_large_vocabulary_takes_less_than_300_bytes():
    one = codec(151_936, 64)
    lengths = {"tokens": torch.tensor([1000])}
    assert one.bytes(lengths).item() / 1000 == 64 * (2 + 2) + 16 + 4  # values, ids, two more bits of each, the tail
    encoded = one.encode(torch.randn(10, 151_936))
    assert sum(part.numel() * part.element_size() for part in encoded.values()) / 10 == 276
    assert codec(32_000, 64).bytes(lengths).item() / 1000 == 260


def test_as_many_as_there_are_is_all_and_stays_dense():
    one = codec(12, 64)
    assert not one.sparse
    assert one.encode(torch.randn(3, 12)).keys() == {""}


def test_nothing_left_is_a_tail_of_minus_infinity():
    row = torch.full((1, 10), -math.inf)
    row[0, 3], row[0, 4] = 1.0, 2.0
    parts = round_trip(codec(10, 2), row)
    assert parts["tail"].item() == -math.inf
    assert parts["values"].isfinite().all()


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("count", [1, 3, 8, 13])
def test_numbers_are_packed_and_come_back(bits, count):
    numbers = torch.randint(1 << bits, (4, count), generator=torch.Generator().manual_seed(bits + count))
    held = packed(numbers, bits)
    assert held.dtype == torch.uint8
    assert held.shape == (4, packed_size(count, bits))
    assert torch.equal(unpacked(held, bits, count), numbers)


def test_a_column_says_how_long_its_rows_are():
    column = Column("attention", (12, "tokens", "tokens"), ("encoder", 3))
    assert column.name == "attention.encoder.3"
    assert column.row_shape({"tokens": 5}) == (12, 5, 5)
    assert column.numbers({"tokens": torch.tensor([5, 2])}).tolist() == [300, 48]
    assert Column.from_dict(column.as_dict()) == column
    known = SimpleNamespace(attention={("encoder", 3): "found"})
    assert column.of(known) == "found"
