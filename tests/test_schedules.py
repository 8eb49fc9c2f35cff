"""Schedules: their values, that they can be compared and sent away, and every spec that is wrong."""

import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import ArgumentError, ShapeError
from potstill.schedules import (
    LOWEST_TEMPERATURE,
    Annealing,
    ConfidenceWeighted,
    Constant,
    Cosine,
    FlowWeighted,
    Linear,
    annealing,
    confidence_weighted,
    constant,
    cosine,
    flow_weighted,
    linear,
    plain_schedule,
    schedule,
)


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


def test_cosine() -> None:
    curve = cosine(4.0, 1.0)
    assert [curve(progress) for progress in (0.0, 1.0)] == [4.0, 1.0]
    assert curve(0.5) == pytest.approx(2.5)
    assert curve(0.25) == pytest.approx(4.0 - 3.0 * (1 - math.sqrt(0.5)) / 2)
    late = cosine(0, 1, begin=0.5, finish=0.75)
    assert [late(progress) for progress in (0.0, 0.5, 0.75, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert late(0.625) == pytest.approx(0.5)


def test_annealing_climbs_in_equal_parts() -> None:
    stairs = annealing(4)
    assert [stairs(progress) for progress in (0.0, 0.24, 0.25, 0.49, 0.5, 0.75, 1.0)] == [
        0.25, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0,
    ]  # fmt: skip
    # The publication's Phi(T) = 1 - (T - 1) / T_max, T falling from T_max to 1 epoch by epoch.
    assert [annealing(10)((10 - t) / 10) for t in range(10, 0, -1)] == pytest.approx(
        [1 - (t - 1) / 10 for t in range(10, 0, -1)]
    )
    assert annealing(1)(0.0) == 1.0


def test_annealing_stands_on_the_right_stair_at_every_step() -> None:
    # Whole numbers on the right, a rounded quotient on the left: 29 / 100 * 100 is less than 29.
    for steps in range(1, 130):
        assert [annealing(steps)(step / steps) for step in range(steps)] == [(k + 1) / steps for k in range(steps)]


# The same numbers for everybody: sine instead of a generator, whose stream may change.
STUDENT = 3 * torch.sin(torch.arange(20, dtype=torch.float64) * 1.7).view(4, 5)
TEACHER = 3 * torch.sin(torch.arange(20, dtype=torch.float64) * 2.3 + 1).view(4, 5)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (
            flow_weighted(1.0, 2.0, base=8.0),
            [6.8487003673212765, 8.654971672693843, 7.844095518575928, 8.652232441408952],
        ),
        (
            flow_weighted(0.7, 1.0, base=3.0, eps=1e-2),
            [2.658935138579627, 3.2131237918658666, 2.916057299184236, 3.211883770370271],
        ),
        (
            confidence_weighted(1.0, base=8.0),
            [8.305874774468515, 7.506776564104909, 8.534737217723388, 7.65261144370319],
        ),
        (
            confidence_weighted(2.5, base=4.0),
            [4.764686936171287, 2.7669414102622714, 5.336843044308467, 3.131528609257974],
        ),
    ],
)
def test_adaptive_temperatures_agree_with_published_code(made: Any, wanted: list[float]) -> None:
    # airaria/TextBrewer, src/textbrewer/schedulers.py @ 2c105fa664bbc10669cd2888bd846d2c9b8afca8, run on these inputs;
    # OFA-Sys/OFA-Compress, textbrewer/schedulers.py @ a1ff4c38e922b10e509e3fe7b93a25d8a79a6126 is the same file.
    found = made(0.5, STUDENT, TEACHER)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=0)
    split = made(0.5, STUDENT.view(2, 2, 5), TEACHER.view(2, 2, 5))
    torch.testing.assert_close(split, found.view(2, 2))


ADAPTIVE = [flow_weighted(), flow_weighted(2.0, 0.5), confidence_weighted(3.0, base=4.0)]


@pytest.mark.parametrize("made", ADAPTIVE)
def test_adaptive_temperatures_hold_no_gradient_and_mind_no_scale(made: FlowWeighted | ConfidenceWeighted) -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert not made(0.0, student, teacher).requires_grad
    assert made(0.0, STUDENT.float(), TEACHER.float()).dtype == torch.float32
    extreme = made(0.0, 3e4 * STUDENT.bfloat16(), -3e4 * TEACHER.bfloat16())
    assert extreme.dtype == torch.float32
    assert extreme.isfinite().all()


@pytest.mark.parametrize("made", ADAPTIVE)
@pytest.mark.parametrize("number", [torch.bool, torch.int64])
def test_masked_positions_count_for_nothing(made: FlowWeighted | ConfidenceWeighted, number: torch.dtype) -> None:
    student, teacher = (torch.cat([one, torch.full((2, 5), math.nan, dtype=one.dtype)]) for one in (STUDENT, TEACHER))
    mask = torch.tensor([1, 1, 1, 1, 0, 0]).to(number)
    found = made(0.0, student, teacher, mask=mask)
    torch.testing.assert_close(found[:4], made(0.0, STUDENT, TEACHER))
    assert found[4:].tolist() == [made.base] * 2
    assert made(0.0, student, teacher, mask=torch.zeros_like(mask)).tolist() == [made.base] * 6


def test_adaptive_temperatures_stay_above_0() -> None:
    for made in (flow_weighted(100.0, base=1.0), confidence_weighted(100.0, base=1.0)):
        found = made(0.0, STUDENT, TEACHER)
        assert found.min() == LOWEST_TEMPERATURE > 0
        assert found.max() > 1


def test_equal_logits_are_no_nearer_than_equal() -> None:
    # Their cosine is 1 up to rounding, also above it, and a root of less than 0 would be no number.
    logits = torch.sin(torch.arange(700.0)).view(100, 7)
    assert flow_weighted(gamma=0.5, eps=1e-12)(0.0, logits, logits).isfinite().all()


def test_adaptive_temperatures_are_lower_where_the_student_is_wrong_or_unsure() -> None:
    student = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.1, 0.0]])
    teacher = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    right, wrong, unsure = flow_weighted()(0.0, student, teacher).tolist()
    assert wrong < right
    right, wrong, unsure = confidence_weighted()(0.0, student, teacher).tolist()
    assert unsure < right == wrong


@pytest.mark.parametrize("made", ADAPTIVE)
def test_adaptive_temperatures_refuse_other_shapes(made: FlowWeighted | ConfidenceWeighted) -> None:
    with pytest.raises(ShapeError, match=r"student \(4, 5\), teacher \(4, 4\)"):
        made(0.0, STUDENT, TEACHER[:, :4])
    with pytest.raises(ShapeError, match="mask"):
        made(0.0, STUDENT, TEACHER, mask=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="share of training"):
        made(17, STUDENT, TEACHER)


def test_only_temperatures_may_be_adaptive() -> None:
    assert [one.adaptive for one in (constant(1), linear(0, 1), cosine(0, 1), annealing(3))] == [False] * 4
    assert [one.adaptive for one in ADAPTIVE] == [True] * 3
    assert plain_schedule({"schedule": "annealing", "steps": 3}) == annealing(3)
    with pytest.raises(ArgumentError, match="'weight' can't follow the logits"):
        plain_schedule({"schedule": "flow_weighted"})
    with pytest.raises(ArgumentError, match="'teacher_scale' can't follow"):
        plain_schedule(confidence_weighted(), key="teacher_scale")


def test_specs() -> None:
    assert schedule(2) == schedule(2.0) == schedule({"schedule": "constant", "value": 2.0}) == Constant(2.0)
    assert schedule({"schedule": "linear", "from": 4.0, "to": 1}) == Linear(4.0, 1.0)
    full = {"schedule": "linear", "from": 4.0, "to": 1.0, "begin": 0.25, "finish": 0.5}
    assert schedule(full) == linear(4.0, 1.0, begin=0.25, finish=0.5)
    assert schedule(schedule(full)) == schedule(full)
    assert (
        schedule({**full, "schedule": "cosine"})
        == cosine(4.0, 1.0, begin=0.25, finish=0.5)
        == Cosine(4.0, 1.0, 0.25, 0.5)
    )
    assert schedule({"schedule": "annealing", "steps": 10}) == Annealing(10)
    assert schedule({"schedule": "flow_weighted"}) == FlowWeighted(1.0, 2.0, 8.0, 1e-4)
    assert schedule({"schedule": "flow_weighted", "beta": 3, "gamma": 1, "base": 4, "eps": 0.5}) == FlowWeighted(
        3, 1, 4, 0.5
    )
    assert schedule({"schedule": "confidence_weighted", "base": 2}) == ConfidenceWeighted(1.0, 2.0, 1e-3)
    for adaptive in ADAPTIVE:
        assert schedule(adaptive) == adaptive == pickle.loads(pickle.dumps(adaptive))


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
        ({"from": 4.0, "to": 1.0}, "needs its kind.*constant, cosine, flow_weighted, linear"),
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
        ({"schedule": "cosine", "from": 4.0, "to": 1.0, "finish": 500}, "A cosine schedule.*finish 500"),
        ({"schedule": "cosine", "from": 4.0}, "A cosine schedule needs the key 'to'"),
        ({"schedule": "annealing"}, "needs the key 'steps'"),
        ({"schedule": "annealing", "steps": 0}, "whole number from 1. Got: 0"),
        ({"schedule": "annealing", "steps": 2.5}, "whole number from 1. Got: 2.5"),
        ({"schedule": "annealing", "steps": True}, "whole number from 1"),
        ({"schedule": "flow_weighted", "gama": 1.0}, "'gama'.*Did you mean 'gamma'"),
        ({"schedule": "flow_weighted", "gamma": 0.0}, "'gamma' of a schedule is a finite number above 0. Got: 0.0"),
        ({"schedule": "flow_weighted", "eps": 0}, "'eps'.*above 0"),
        ({"schedule": "flow_weighted", "beta": math.nan}, "'beta'.*finite"),
        ({"schedule": "confidence_weighted", "gamma": 1.0}, "key of a confidence_weighted schedule 'gamma'"),
        ({"schedule": "confidence_weighted", "base": 0}, "'base'.*above 0"),
    ],
)
def test_specs_that_are_wrong(spec: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        schedule(spec)


@pytest.mark.parametrize("made", [Constant(1.0), Linear(0.0, 1.0), Cosine(0.0, 1.0), Annealing(4)])
def test_a_step_is_not_a_share(made: Constant | Linear | Cosine | Annealing) -> None:
    for progress in (17, 1.1, -0.1, math.nan):
        with pytest.raises(ArgumentError, match="share of training"):
            made(progress)
    made(1.0 + 1e-9)
