"""Losses on hidden states: what each of the two sees and what it does not."""

import pytest
import torch

from potstill.errors import ShapeError
from potstill.losses import hidden_cosine, hidden_mse, hidden_normalised_mse


def test_cosine_sees_directions_only() -> None:
    teacher = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    student = torch.tensor([[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0]])
    torch.testing.assert_close(hidden_cosine(student, teacher), torch.tensor([0.0, 2.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(hidden_mse(student, teacher), torch.tensor([12.5, 50.0, 25.0]))
    torch.testing.assert_close(
        hidden_normalised_mse(student, teacher), 2 * hidden_cosine(student, teacher), atol=1e-6, rtol=0
    )


def test_a_state_of_zeros_has_no_direction() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    value = hidden_cosine(student, torch.ones(1, 3))
    value.sum().backward()
    assert value.item() == 1.0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_normalised_zeros_cost_one_and_keep_a_small_gradient() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    values = hidden_normalised_mse(student, torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    values.sum().backward()
    assert values.tolist() == pytest.approx([1.0, 0.0])
    assert student.grad is not None
    assert student.grad.norm(dim=-1).tolist() == pytest.approx([2.0, 0.0])  # with an epsilon it would be 2e12


def test_normalised_takes_rows_as_well_as_tokens() -> None:
    student, teacher = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        hidden_normalised_mse(student, teacher)[:, 0], hidden_normalised_mse(student[:, 0], teacher[:, 0])
    )


def test_other_widths_ask_for_a_projection() -> None:
    for loss in (hidden_mse, hidden_cosine, hidden_normalised_mse):
        with pytest.raises(ShapeError, match=r"\(2, 5, 4\).*\(2, 5, 8\).*projection"):
            loss(torch.zeros(2, 5, 4), torch.zeros(2, 5, 8))
