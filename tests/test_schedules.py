"""Schedules: their values, that they can be compared and sent away, and every spec that is wrong."""

import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import ArgumentError
from potstill.schedules import Constant, Linear, constant, linear, schedule


def test_constant() -> None:
    assert [constant(2)(progress) for progress in (0.0, 0.3, 1.0)] == [2.0, 2.0, 2.0]


def test_linear() -> None:
    line = linear(4.0, 1.0)
    assert [line(progress) for progress in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    late = linear(0, 1, begin=0.5, finish=0.75)
    assert [late(progress) for progress in (0.0, 0.5, 0.625, 0.75, 1.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1))
def test_linear_stays_between_its_ends(start: float, end: float, progress: float) -> None:
    assert min(start, end) - 1e-9 <= linear(start, end)(progress) <= max(start, end) + 1e-9


def test_specs() -> None:
    assert schedule(2) == schedule(2.0) == schedule({"schedule": "constant", "value": 2.0}) == Constant(2.0)
    assert schedule({"schedule": "linear", "from": 4.0, "to": 1}) == Linear(4.0, 1.0)
    full = {"schedule": "linear", "from": 4.0, "to": 1.0, "begin": 0.25, "finish": 0.5}
    assert schedule(full) == linear(4.0, 1.0, begin=0.25, finish=0.5)
    assert schedule(schedule(full)) == schedule(full)


def test_a_schedule_can_be_compared_printed_and_pickled_and_not_changed() -> None:
    line = linear(4.0, 1.0)
    assert pickle.loads(pickle.dumps(line)) == line != linear(4.0, 2.0)
    assert repr(line) == "Linear(start=4.0, end=1.0, begin=0.0, finish=1.0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        line.start = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (math.nan, "'value' of a schedule is a finite number"),
        (math.inf, "finite"),
        (True, "finite"),
        ("2.0", "finite"),
        (None, "finite"),
        ({}, "needs its kind"),
        ({"from": 4.0, "to": 1.0}, "needs its kind.*constant, linear"),
        ({"schedule": "liner", "from": 4.0, "to": 1.0}, "'liner'.*Did you mean 'linear'"),
        ({"schedule": ["linear"]}, "Unknown schedule"),
        ({"schedule": "linear", "from": 4.0}, "needs the key 'to'"),
        ({"schedule": "linear"}, "'from'.*'to'"),
        ({"schedule": "linear", "from": 4.0, "to": 1.0, "finnish": 0.5}, "'finnish'.*Did you mean 'finish'"),
        ({"schedule": "constant", "value": 1.0, "from": 0.0}, "key of a constant schedule 'from'"),
        ({"schedule": "linear", "from": math.nan, "to": 1.0}, "'from' of a schedule"),
        ({"schedule": "linear", "from": 4.0, "to": 1.0, "begin": 0.5, "finish": 0.5}, "begin 0.5, finish 0.5"),
        ({"schedule": "linear", "from": 4.0, "to": 1.0, "finish": 500}, "finish 500"),
        ({"schedule": "linear", "from": 4.0, "to": 1.0, "begin": -0.1}, "begin -0.1"),
    ],
)
def test_specs_that_are_wrong(spec: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        schedule(spec)


@pytest.mark.parametrize("made", [Constant(1.0), Linear(0.0, 1.0)])
def test_a_step_is_not_a_share(made: Constant | Linear) -> None:
    for progress in (17, 1.1, -0.1, math.nan):
        with pytest.raises(ArgumentError, match="share of training"):
            made(progress)
    made(1.0 + 1e-9)
