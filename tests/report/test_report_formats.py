"""How numbers are written."""

import math

import pytest

from potstill.report import formats

NBSP = formats.NBSP


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.percent(0.8734), "87.3%"),
        (formats.percent(-0.0001), "0.0%"),
        (formats.decimal(0.87349), "0.873"),
        (formats.decimal(2.1e-6), "2.1e−6"),
        (formats.decimal(1234.5), "1,234.5"),
        (formats.whole(40467), "40,467"),
        (formats.count(22_713_216), f"22.7{NBSP}M"),
        (formats.count(553_000_000), f"553{NBSP}M"),
        (formats.count(844), "844"),
        (formats.size(90_900_000), f"90.9{NBSP}MB"),
        (formats.size(512), f"512{NBSP}bytes"),
        (formats.milliseconds(3.317), f"3.32{NBSP}ms"),
        (formats.milliseconds(116.7), f"117{NBSP}ms"),
        (formats.duration(12.34), f"12.3{NBSP}s"),
        (formats.duration(552), f"9{NBSP}min 12{NBSP}s"),
        (formats.duration(7500), f"2{NBSP}h 05{NBSP}min"),
        (formats.difference(0.0085, {"percent": True}), f"+0.85{NBSP}points"),
        (formats.difference(-0.0145, {"percent": True}), f"−1.45{NBSP}points"),
        (formats.difference(0.0003, {}), "+0.0003"),
        (formats.difference(0.0, {"percent": True}, unit=False), "0.00"),
        (formats.interval([0.861, 0.884], formats.percent), "86.1 to 88.4%"),
        (formats.interval(None, formats.percent), ""),
        (formats.label(["a", "b"]), "a, b"),
        (formats.label([]), "none"),
        (formats.label(3.5), "3.5"),
        (formats.bare(f"20.0{NBSP}MB"), f"20{NBSP}MB"),
        (formats.bare("+0.50"), "+0.5"),
        (formats.bare("100"), "100"),
        (formats.tidy("a\n b" * 3, 6), "a ba…"),
    ],
)
def test_written(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("absent", [None, math.nan, math.inf, "3", True])
def test_what_is_no_number_is_left_out(absent: object) -> None:
    for form in (formats.percent, formats.decimal, formats.whole, formats.count, formats.size, formats.duration):
        assert form(absent) == ""
    assert formats.difference(absent, {}) == formats.milliseconds(absent) == formats.per_second(absent) == ""
