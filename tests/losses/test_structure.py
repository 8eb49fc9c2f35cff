"""Losses on the structure of a sequence: what each sees and what it doesn't, widths that must agree, and selections."""

import inspect

import pytest
import torch
from torch import Tensor

from potstill.errors import ArgumentError, ShapeError
from potstill.losses import (
    attention_transfer,
    flow_mse,
    gram_mse,
    hidden_cka,
    mgskd_spans,
    mgskd_tokens,
    neuron_selectivity,
    relation_mse,
    similarity_mse,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero(values: Tensor) -> bool:
    return bool((values.abs() < 1e-10).all())


def test_what_each_does_not_see() -> None:
    teacher = drawn(2, 5, 4)
    rotated = teacher @ torch.linalg.qr(drawn(4, 4, seed=1)).Q
    order = torch.tensor([3, 1, 4, 0, 2])
    assert zero(similarity_mse(rotated, teacher))
    assert zero(mgskd_tokens(rotated, teacher))
    assert zero(hidden_cka(2.0 * rotated + 3.0, teacher))
    assert zero(attention_transfer(-5.0 * teacher, teacher))
    assert zero(gram_mse(teacher[:, order], teacher))  # the order of tokens
    assert zero(neuron_selectivity(teacher[..., [2, 0, 3, 1]] * torch.tensor([1.0, 2.0, -3.0, 0.5]), teacher))
    for loss in (similarity_mse, mgskd_tokens, hidden_cka, attention_transfer, neuron_selectivity):
        assert (loss(teacher[:, order], teacher) > 1e-3).any(), loss.__name__
    assert zero(attention_transfer(rotated, teacher))
    for loss in (gram_mse, neuron_selectivity):
        assert (loss(rotated, teacher) > 1e-3).all(), loss.__name__


def test_flow_of_a_layer_with_itself_is_the_gram_matrix() -> None:
    student, teacher = drawn(2, 5, 4), drawn(2, 5, 4, seed=1)
    twice = flow_mse(student, teacher, student_next=student, teacher_next=teacher)
    torch.testing.assert_close(twice, gram_mse(student, teacher))


def test_other_widths_ask_for_a_projection() -> None:
    with pytest.raises(ShapeError, match=r"gram_mse.*\(2, 5, 4\).*\(2, 5, 8\).*projection"):
        gram_mse(drawn(2, 5, 4), drawn(2, 5, 8))
    student, wide = drawn(2, 5, 4), drawn(2, 5, 8)
    with pytest.raises(ShapeError, match=r"flow_mse.*student \(2, 5, 4\), teacher \(2, 5, 8\)"):
        flow_mse(student, student, student_next=student, teacher_next=wide)
    with pytest.raises(ShapeError, match=r"student \(2, 5, 4\), student_next \(2, 6, 4\)"):
        flow_mse(student, student, student_next=drawn(2, 6, 4), teacher_next=drawn(2, 6, 4))
    assert flow_mse(student, student, student_next=wide, teacher_next=wide).tolist() == [0.0, 0.0]


def test_tokens_without_structure_have_no_alignment() -> None:
    equal = torch.ones(1, 4, 3, dtype=torch.float64)
    assert hidden_cka(equal, drawn(1, 4, 3)).item() == pytest.approx(0.5)
    assert hidden_cka(equal, 2 * equal).item() == 0.0
    assert hidden_cka(drawn(1, 1, 3), drawn(1, 1, 3, seed=1)).item() == 0.0


def test_cka_is_one_where_nothing_is_shared() -> None:
    student, teacher = torch.zeros(1, 4, 1), torch.zeros(1, 4, 1)
    student[0, :, 0] = torch.tensor([1.0, -1.0, 0.0, 0.0])
    teacher[0, :, 0] = torch.tensor([0.0, 0.0, 1.0, -1.0])
    assert hidden_cka(student, teacher).item() == pytest.approx(1.0)


def test_spans_of_one_are_tokens_and_padding_may_stand_anywhere() -> None:
    student, teacher = drawn(1, 7, 4), drawn(1, 7, 6, seed=1)
    torch.testing.assert_close(mgskd_spans(student, teacher, span=1), mgskd_tokens(student, teacher))
    scattered = torch.tensor([[False, True, True, False, True, True, True]])
    close = mgskd_spans(student[:, scattered[0]], teacher[:, scattered[0]], span=2)
    torch.testing.assert_close(mgskd_spans(student, teacher, mask=scattered, span=2)[scattered], close[0])


def test_angles_are_those_that_the_teacher_selects() -> None:
    # Angles are looked at only at the token that receives most weight: the long one, 0, between its two nearest.
    teacher = torch.tensor([[[9.0, 0.0], [8.0, 1.0], [7.0, -3.0], [-5.0, 2.0]]], dtype=torch.float64)
    student = teacher.clone()
    student[0, 3] = torch.tensor([0.0, -7.0])
    only = {"vertices": 1, "neighbours": 2}
    torch.testing.assert_close(
        mgskd_tokens(student, teacher, **only), relation_mse(student[:, None], teacher[:, None])
    )  # the angles at token 0 between 1 and 2 are what they were
    more = mgskd_tokens(student, teacher, vertices=1, neighbours=3)
    assert (more > relation_mse(student[:, None], teacher[:, None]) + 1e-3).all()


@pytest.mark.parametrize("loss", [mgskd_tokens, mgskd_spans])
def test_numbers_that_make_no_angle(loss) -> None:  # type: ignore[no-untyped-def]
    plain, states = inspect.unwrap(loss), drawn(1, 5, 4)
    for wrong in ({"neighbours": 1}, {"vertices": 0}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            plain(states, states, **wrong)
    with pytest.raises(ShapeError, match=r"\(1, 5, 4\).*heads=3"):
        plain(states, states, heads=3)
    with pytest.raises(ArgumentError, match="span"):
        mgskd_spans(states, states, span=0)


def test_products_see_their_size_and_regroup_like_relations() -> None:
    student, teacher = drawn(2, 3, 5, 4), drawn(2, 6, 5, 2, seed=1)
    joined = student.transpose(1, 2).reshape(2, 5, 6, 2).transpose(1, 2)
    torch.testing.assert_close(relation_mse(student, teacher, heads=6), relation_mse(joined, teacher))
    with pytest.raises(ShapeError, match=r"relation_mse.*\(2, 3, 5, 4\).*\(2, 6, 5, 2\).*`heads`"):
        relation_mse(student, teacher)
