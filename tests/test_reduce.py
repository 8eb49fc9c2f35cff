"""The one reduction: what it leaves out, what it divides by, and what it refuses."""

import inspect
import math

import pytest
import torch

from potstill.errors import ArgumentError, ShapeError
from potstill.reduce import masked_mean, position_mask


def test_mean_of_the_unmasked() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(3.0)
    assert masked_mean(values, mask.long()).item() == pytest.approx(3.0)
    assert masked_mean(values).item() == pytest.approx(309 / 6)


@pytest.mark.parametrize("denominator", [12, 12.0, torch.tensor(12), torch.tensor([12.0], dtype=torch.float64)])
def test_denominator_from_outside(denominator: float | torch.Tensor) -> None:
    values, mask = torch.tensor([1.0, 2.0, 100.0]), torch.tensor([1, 1, 0])
    assert masked_mean(values, mask, denominator).item() == pytest.approx(3 / 12)
    assert masked_mean(values[:2], denominator=denominator).item() == pytest.approx(3 / 12)


def test_parts_add_up_to_the_whole() -> None:
    values = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2]])
    whole = masked_mean(values, mask)
    parts = [masked_mean(values[rows], mask[rows], mask.sum()) for rows in (slice(0, 1), slice(1, 4))]
    assert sum(parts).item() == pytest.approx(whole.item())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_masked_values_do_not_leak(poison: float) -> None:
    values = torch.tensor([1.0, poison, 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("denominator", [None, 0, 0.0, 7, torch.tensor(0), torch.tensor(7)])
def test_no_position_is_zero_with_zero_gradient(denominator: float | torch.Tensor | None) -> None:
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    mean = masked_mean(values, torch.tensor([False, False]), denominator)
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0]


def test_no_values_at_all_is_zero() -> None:
    assert masked_mean(torch.zeros(0)).item() == 0.0


def test_half_precision_is_summed_in_float32() -> None:
    mean = masked_mean(torch.ones(1000, dtype=torch.bfloat16))
    assert mean.dtype == torch.float32
    assert mean.item() == 1.0
    assert masked_mean(torch.ones(3, dtype=torch.float64)).dtype == torch.float64


def test_another_shape_raises_with_both() -> None:
    # [2, 3] and [3] would broadcast.
    with pytest.raises(ShapeError, match=r"mask \(3,\), positions \(2, 3\)"):
        masked_mean(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        masked_mean(torch.zeros(2), denominator=torch.ones(2))


@pytest.mark.parametrize("denominator", [-1, math.nan, math.inf])
def test_denominators_that_count_nothing_raise(denominator: float) -> None:
    with pytest.raises(ArgumentError, match="count of positions"):
        masked_mean(torch.zeros(2), denominator=denominator)


def test_an_additive_mask_is_refused() -> None:
    # Without the tests' own type-checker, as a user has it: it would refuse the dtype first.
    with pytest.raises(ArgumentError, match=r"mask of kl_divergence.*float32.*attention_mask"):
        inspect.unwrap(position_mask)(torch.zeros(2), torch.Size((2,)), caller="kl_divergence")
