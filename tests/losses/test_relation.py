"""Relations: regrouped heads, widths that don't fit, and what the graph keeps."""

import pytest
import torch

from potstill.errors import ShapeError
from potstill.losses import attention_kl, relation_kl


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_relations_are_attention_of_a_thing_with_itself() -> None:
    student, teacher = drawn(2, 3, 5, 4), drawn(2, 3, 5, 8, seed=1)
    maps = [(x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5).softmax(-1) for x in (student, teacher)]
    torch.testing.assert_close(relation_kl(student, teacher), attention_kl(maps[0], maps[1]))


def test_own_number_of_heads_is_no_regrouping() -> None:
    student, teacher = drawn(2, 3, 5, 4), drawn(2, 3, 5, 8, seed=1)
    torch.testing.assert_close(relation_kl(student, teacher, heads=3), relation_kl(student, teacher))


def test_heads_are_regrouped_by_position() -> None:
    joined = drawn(2, 5, 12)  # [B, S, H*d]: what the projection gives before it is cut into heads
    cut = [joined.reshape(2, 5, heads, 12 // heads).transpose(1, 2) for heads in (2, 3, 6)]
    target = drawn(2, 6, 5, 2, seed=1)
    expected = relation_kl(cut[2], target)
    for own in cut:
        torch.testing.assert_close(relation_kl(own, target, heads=6), expected)


def test_heads_that_do_not_fit() -> None:
    student, teacher = drawn(1, 2, 5, 6), drawn(1, 4, 5, 8)
    with pytest.raises(ShapeError, match=r"\(1, 2, 5, 6\).*\(1, 4, 5, 8\).*`heads`"):
        relation_kl(student, teacher)
    for heads in (8, 0, -2):  # 8 divides the teacher's 32, not the student's 12
        with pytest.raises(ShapeError, match=rf"student.*2 x 6 = 12.*heads={heads}"):
            relation_kl(student, teacher, heads=heads)
    with pytest.raises(ShapeError, match=r"teacher.*4 x 8 = 32.*heads=3"):
        relation_kl(student, teacher, heads=3)


def test_the_teacher_without_gradient_leaves_nothing_in_the_graph() -> None:
    student, teacher = drawn(2, 3, 8, 4).requires_grad_(), drawn(2, 3, 8, 4, seed=1)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        relation_kl(student, teacher)
    # The student's log softmax and the teacher's probabilities: two of [B, H, S, S], as lean as it gets unfused.
    assert sum(shape == (2, 3, 8, 8) for shape in kept) == 2
