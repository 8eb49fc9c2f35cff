"""Earth mover's flow between layers: against brute force, its optimality proven by duality, and the layer weights."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from potstill.errors import ArgumentError, ShapeError
from potstill.transport import cost_attention, earth_movers_flow

depths = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31 - 1))


def drawn(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(shape, generator=generator, dtype=torch.float64)
    student, teacher = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.05 for n in shape)
    return costs, student / student.sum(), teacher / teacher.sum()


def corners(student: Tensor, teacher: Tensor) -> list[Tensor]:
    """Every corner of the transportation polytope: each basis of S + T - 1 cells, kept where nothing is negative.

    A linear function is least at a corner, so the least over these is the least.
    """
    rows, columns = len(student), len(teacher)
    cells = list(itertools.product(range(rows), range(columns)))
    found = []
    for basis in itertools.combinations(cells, rows + columns - 1):
        equations = torch.zeros(rows + columns, len(basis), dtype=torch.float64)
        for index, (row, column) in enumerate(basis):
            equations[row, index] = equations[rows + column, index] = 1.0
        if torch.linalg.matrix_rank(equations) < len(basis):
            continue
        amounts = torch.linalg.lstsq(equations, torch.cat([student, teacher])).solution
        if amounts.min() < -1e-9:
            continue
        flow = torch.zeros(rows, columns, dtype=torch.float64)
        for (row, column), amount in zip(basis, amounts, strict=True):
            flow[row, column] = amount
        found.append(flow)
    return found


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_no_corner_is_cheaper(shape: tuple[int, int], seed: int) -> None:
    costs, student, teacher = drawn(shape, seed)
    for weights in (
        (student, teacher),
        (torch.full_like(student, 1 / shape[0]), torch.full_like(teacher, 1 / shape[1])),
    ):
        least = min((flow * costs).sum() for flow in corners(*weights))
        torch.testing.assert_close((earth_movers_flow(costs, *weights) * costs).sum(), least)


def test_two_by_two_by_hand() -> None:
    # Uniform weights leave one freedom: a on the diagonal, 1/2 - a beside it.
    costs = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    torch.testing.assert_close(earth_movers_flow(costs), torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    costs = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(earth_movers_flow(costs), torch.tensor([[0.0, 0.5], [0.5, 0.0]]))
    weights = torch.tensor([3.0, 1.0])  # shares, not necessarily of 1
    wanted = torch.tensor([[0.25, 0.5], [0.25, 0.0]])  # a + 5 (3/4 - a) + 2 (1/2 - a) + 9 (a - 1/4) grows with a
    torch.testing.assert_close(earth_movers_flow(torch.tensor([[1.0, 5.0], [2.0, 9.0]]), weights), wanted)


@settings(deadline=None, max_examples=40)
@given(depths)
def test_flow_is_a_flow_and_duality_proves_it_optimal(drawing: tuple[int, int, int]) -> None:
    *shape, seed = drawing
    costs, student, teacher = drawn((shape[0], shape[1]), seed)
    flow = earth_movers_flow(costs, student, teacher)
    assert flow.min() >= 0
    torch.testing.assert_close(flow.sum(1), student)
    torch.testing.assert_close(flow.sum(0), teacher)
    # The dual: the most that prices u, v can earn with u_i + v_j <= cost_ij. It is never above the cost of any flow.
    fits = torch.zeros(costs.numel(), sum(shape))
    for cell, (row, column) in enumerate(itertools.product(*map(range, shape))):
        fits[cell, row] = fits[cell, shape[0] + column] = 1.0
    prices = -torch.cat([student, teacher]).numpy()
    earned = -linprog(prices, A_ub=fits.numpy(), b_ub=costs.flatten().numpy(), bounds=(None, None)).fun
    assert float((flow * costs).sum()) == pytest.approx(earned, abs=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_the_nearest_layers_are_paired_one_to_one(layers: int) -> None:
    costs = 1.0 - torch.eye(layers)
    torch.testing.assert_close(earth_movers_flow(costs), torch.eye(layers) / layers)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_costs_changes_nothing(scale: float) -> None:
    costs, student, teacher = drawn((4, 6), 3)
    torch.testing.assert_close(
        earth_movers_flow(costs * scale, student, teacher), earth_movers_flow(costs, student, teacher)
    )
    assert earth_movers_flow(torch.zeros(2, 3)).sum() == pytest.approx(1.0)


def test_gradient_goes_through_the_costs_alone() -> None:
    costs = drawn((3, 4), 0)[0].requires_grad_()
    flow = earth_movers_flow(costs)
    assert not flow.requires_grad
    assert flow.dtype == torch.float64
    (flow * costs).sum().backward()
    torch.testing.assert_close(costs.grad, flow)
    assert earth_movers_flow(costs.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3),), ShapeError, r"student layers x teacher layers. Got: \(3,\)"),
        ((torch.ones(0, 3),), ShapeError, r"\(0, 3\)"),
        ((torch.tensor([[1.0, float("nan")]]),), ArgumentError, "costs of layer pairs are finite"),
        ((torch.ones(2, 3), torch.ones(3)), ShapeError, r"student_weights.*\(3,\). Give 2 numbers"),
        ((torch.ones(2, 3), None, torch.ones(2)), ShapeError, r"teacher_weights.*\(2,\). Give 3 numbers"),
        ((torch.ones(2, 3), torch.tensor([1.0, -1.0])), ArgumentError, "0 or more"),
        ((torch.ones(2, 3), torch.zeros(2)), ArgumentError, "not all 0"),
        ((torch.ones(2, 3), torch.tensor([1.0, float("inf")])), ArgumentError, "student_weights"),
    ],
)
def test_flows_that_cannot_be(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        earth_movers_flow(*arguments)


def test_layer_weights_by_hand() -> None:
    costs = torch.tensor([[1.0, 9.0], [9.0, 3.0]])
    flow = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    # u = (1, 3), a = (4, 4/3) for both sides.
    student, teacher = cost_attention(costs, flow, temperature=None)
    torch.testing.assert_close(student, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(teacher, student)
    softened = torch.softmax(torch.tensor([4.0, 4 / 3]) / 2.0, 0)
    torch.testing.assert_close(cost_attention(costs, flow, temperature=2.0)[0], softened)


def test_layer_weights_against_a_loop() -> None:
    costs, student, teacher = drawn((3, 5), 7)
    flow = earth_movers_flow(costs, student, teacher)
    unit = [sum(float(flow[i, j] * costs[i, j]) for i in range(3)) / float(teacher[j]) for j in range(5)]
    shares = torch.tensor([1 / u for u in unit], dtype=torch.float64)
    torch.testing.assert_close(cost_attention(costs, flow, None)[1], shares / shares.sum())
    torch.testing.assert_close(cost_attention(costs, flow, 3.0)[1], torch.softmax(shares * sum(unit) / 3.0, 0))


@settings(deadline=None, max_examples=25)
@given(depths, st.sampled_from([None, 0.5, 1.0, 10.0]))
def test_the_cheaper_layer_weighs_more_and_the_next_flow_takes_the_weights(
    drawing: tuple[int, int, int], temperature: float | None
) -> None:
    *shape, seed = drawing
    costs, student, teacher = drawn((shape[0], shape[1]), seed)
    flow = earth_movers_flow(costs, student, teacher)
    weights = cost_attention(costs, flow, temperature)
    for mine, moved, price in ((weights[0], flow, costs), (weights[1], flow.T, costs.T)):
        assert float(mine.sum()) == pytest.approx(1.0)
        unit = (moved * price).sum(1) / moved.sum(1)
        assert torch.equal(mine[unit.argsort()], mine.sort(descending=True).values)
    again = earth_movers_flow(costs, *weights)
    torch.testing.assert_close(again.sum(1), weights[0])


def test_layers_that_cost_nothing_or_weigh_nothing() -> None:
    both = cost_attention(torch.zeros(2, 3), torch.full((2, 3), 1 / 6))
    torch.testing.assert_close(both, (torch.full((2,), 1 / 2), torch.full((3,), 1 / 3)))
    costs, flow = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for temperature in (None, 1e-3, 1.0):
        student, teacher = cost_attention(costs, flow, temperature)
        assert student.isfinite().all()
        assert student[0] > student[1]
        assert float(teacher.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 3), torch.ones(3, 2)), ShapeError, r"costs \(2, 3\), flow \(3, 2\)"),
        ((-torch.ones(2, 3), torch.ones(2, 3)), ArgumentError, "costs of cost_attention are 0 or more. Got: least -1"),
        ((torch.ones(2, 3), -torch.ones(2, 3)), ArgumentError, "flow of cost_attention"),
        ((torch.ones(2, 3), torch.ones(2, 3), 0.0), ArgumentError, "temperature.*above 0"),
        ((torch.ones(2, 3), torch.ones(2, 3), float("nan")), ArgumentError, "temperature"),
    ],
)
def test_attentions_that_cannot_be(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cost_attention(*arguments)
