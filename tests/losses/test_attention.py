"""Losses on attention maps: zeros in the maps, and heads that don't pair."""

import math

import pytest
import torch

from potstill.errors import ArgumentError, ShapeError
from potstill.losses import attention_kl, attention_mse
from potstill.losses.attention import FLOOR


def test_zeros_in_the_maps() -> None:
    one, other = torch.eye(2)[None, None], torch.eye(2).flip(0)[None, None]
    half = torch.full((1, 1, 2, 2), 0.5)
    assert attention_kl(one, one).tolist() == [[0.0, 0.0]]
    assert attention_kl(half, one).tolist() == [pytest.approx([math.log(2)] * 2)]  # 0 * log 0 = 0
    assert attention_kl(one, other).tolist() == [pytest.approx([-math.log(FLOOR)] * 2)]


def test_below_the_floor_equal_maps_are_equal() -> None:
    tiny = torch.tensor([1.0, 1e-20]).expand(1, 1, 2, 2)
    assert attention_kl(tiny, tiny).tolist() == [[0.0, 0.0]]


def test_mse_averages_over_valid_keys() -> None:
    student = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[None, None]
    teacher = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])[None, None]
    values = attention_mse(student, teacher, mask=torch.tensor([[1, 1, 0]]))
    assert values.tolist() == [pytest.approx([0.25, 0.0, 0.0])]
    assert attention_mse(student, teacher).tolist() == [pytest.approx([0.5 / 3, 0.0, 2 / 3])]


@pytest.mark.parametrize("loss", [attention_kl, attention_mse])
def test_other_heads_are_sent_to_relations(loss) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ShapeError, match=r"\(1, 2, 3, 3\).*\(1, 4, 3, 3\).*relation_kl"):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))


def test_heads_reduced() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, h, 3, 3, generator=generator).softmax(-1) for h in (2, 4))
    for name in ("sum", "mean"):
        difference = getattr(student, name)(1) - getattr(teacher, name)(1)
        torch.testing.assert_close(attention_mse(student, teacher, reduce_heads=name), difference.square().mean(-1))
    one = attention_kl(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True))
    torch.testing.assert_close(attention_kl(student, teacher, reduce_heads="mean"), one)
    # What is masked stays out of the mean of the heads.
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    kept = [
        maps * mask[:, None, None, :] / (maps * mask[:, None, None, :]).sum(-1, True) for maps in (student, teacher)
    ]
    poisoned = kept[0].clone()
    poisoned[0, :, 2], poisoned[0, :, :, 2] = torch.nan, torch.nan
    poisoned.requires_grad_()
    values = attention_kl(poisoned, kept[1], mask=mask, reduce_heads="mean")
    one = attention_kl(kept[0].mean(1, True), kept[1].mean(1, True), mask=mask)
    torch.testing.assert_close(values, one)
    values.sum().backward()
    assert poisoned.grad is not None
    assert poisoned.grad.isfinite().all()
    with pytest.raises(ArgumentError, match=r"distributions.*reduce_heads: mean"):
        attention_kl(student, teacher, reduce_heads="sum")
    with pytest.raises(ArgumentError, match="Unknown reduce_heads of attention_mse 'max'"):
        attention_mse(student, teacher, reduce_heads="max")
