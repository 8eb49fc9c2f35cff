"""Losses on attention scores: pairs that a model rules out, and heads that don't pair."""

import inspect
import math

import pytest
import torch

from potstill.errors import ArgumentError, ShapeError
from potstill.losses import score_mse
from potstill.losses.scores import RULED_OUT


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min, -1e9, torch.finfo(torch.float16).min])
@pytest.mark.parametrize("reduce_heads", ["none", "sum", "mean"])
def test_causal_pairs_are_left_out_of_sum_and_count(lowest: float, reduce_heads: str) -> None:
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    student, teacher = drawn(1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1)
    masked = student.masked_fill(later, lowest).requires_grad_()
    values = score_mse(masked, teacher.masked_fill(later, lowest), reduce_heads=reduce_heads)
    # The query at position q sees q + 1 keys: the same as a sequence that ends there.
    for q in range(4):
        short = score_mse(student[..., : q + 1, : q + 1], teacher[..., : q + 1, : q + 1], reduce_heads=reduce_heads)
        torch.testing.assert_close(values[:, q], short[:, q])
    values.sum().backward()
    assert masked.grad is not None
    assert (masked.grad[..., later] == 0).all()
    assert masked.grad.isfinite().all()


def test_a_pair_that_one_model_rules_out_has_no_score_to_compare() -> None:
    student, teacher = drawn(1, 1, 3, 3), drawn(1, 1, 3, 3, seed=1)
    window = student.clone()
    window[..., 0, 2] = torch.finfo(torch.float32).min
    expected = (student - teacher).square()[0, 0, 0, :2].mean()
    torch.testing.assert_close(score_mse(window, teacher)[0, 0], expected)
    torch.testing.assert_close(score_mse(teacher, window)[0, 0], expected)


def test_large_negative_scores_are_scores() -> None:
    student, teacher = torch.full((1, 1, 2, 2), -200.0), torch.full((1, 1, 2, 2), -199.0)
    assert score_mse(student, teacher).tolist() == [[1.0, 1.0]]
    assert RULED_OUT == -32752


def test_a_query_that_sees_no_key_is_zero() -> None:
    nothing = torch.full((1, 1, 2, 2), -math.inf, requires_grad=True)
    values = score_mse(nothing, torch.full((1, 1, 2, 2), -math.inf))
    values.sum().backward()
    assert values.tolist() == [[0.0, 0.0]]
    assert nothing.grad is not None
    assert (nothing.grad == 0).all()


def test_heads_reduced() -> None:
    student, teacher = drawn(2, 2, 3, 3), drawn(2, 4, 3, 3, seed=1)
    with pytest.raises(ShapeError, match=r"\(2, 2, 3, 3\).*\(2, 4, 3, 3\).*reduce_heads"):
        score_mse(student, teacher)
    for name in ("sum", "mean"):
        difference = getattr(student, name)(1) - getattr(teacher, name)(1)
        torch.testing.assert_close(score_mse(student, teacher, reduce_heads=name), difference.square().mean(-1))
    with pytest.raises(ArgumentError, match="Did you mean 'mean'"):
        inspect.unwrap(score_mse)(student, teacher, reduce_heads="meen")
