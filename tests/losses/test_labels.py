"""Hard losses: labels that are none, and labels of the wrong kind."""

import pytest
import torch

from potstill.errors import ShapeError
from potstill.losses import binary_cross_entropy, cross_entropy, squared_error
from potstill.reduce import masked_mean


def test_ignored_labels_count_for_nothing() -> None:
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, -100, 2, -100])
    values = cross_entropy(student, labels)
    assert values[labels == -100].tolist() == [0.0, 0.0]
    mean = masked_mean(values, labels != -100)
    torch.testing.assert_close(mean, torch.nn.functional.cross_entropy(student, labels))
    mean.backward()
    assert student.grad is not None
    assert (student.grad[labels == -100] == 0).all()


def test_mixed_labels_are_distributions() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    soft = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(-1, keepdim=True)
    expected = torch.nn.functional.cross_entropy(student, soft, reduction="none")
    torch.testing.assert_close(cross_entropy(student, soft), expected)
    hard = torch.tensor([0, 3, 1, 2, 2])
    one_hot = torch.nn.functional.one_hot(hard, 4).double()
    torch.testing.assert_close(cross_entropy(student, one_hot), cross_entropy(student, hard))
    mask = torch.tensor([True, False, True, True, False])
    assert cross_entropy(student, soft, mask=mask)[~mask].tolist() == [0.0, 0.0]
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, soft, mask=mask), student)


def test_small_integers_are_class_numbers_too() -> None:
    assert cross_entropy(torch.zeros(2, 4), torch.tensor([1, 3], dtype=torch.int32)).tolist() == pytest.approx(
        [1.386294] * 2
    )


def test_binary_labels_may_be_integers() -> None:
    student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 1], [0, 0, 1]])
    torch.testing.assert_close(binary_cross_entropy(student, labels), binary_cross_entropy(student, labels.float()))


def test_labels_of_the_wrong_kind_say_what_to_take() -> None:
    with pytest.raises(ShapeError, match="binary_cross_entropy"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(ShapeError, match="squared_error"):
        cross_entropy(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"\(4, 2\).*\(4,\).*num_labels=1"):
        squared_error(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(4, 2\)"):
        binary_cross_entropy(torch.zeros(4, 3), torch.zeros(4, 2))


def test_one_column_is_not_broadcast_against_a_row() -> None:
    # (4, 1) - (4,) would give (4, 4).
    assert squared_error(torch.ones(4, 1), torch.zeros(4)).tolist() == [1.0] * 4
