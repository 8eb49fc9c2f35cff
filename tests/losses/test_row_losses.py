"""Losses whose rows look at each other: what they are under accumulation, at equality, and with equal rows."""

import math

import pytest
import torch
from feature_cases import BANKS, CONSTANTS, FEATURE_CASES, FeatureCase, with_banks
from torch import Tensor

from potstill.errors import ArgumentError, ShapeError
from potstill.losses import (
    crd,
    info_nce,
    mgskd_samples,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from potstill.reduce import masked_mean


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distance_is_the_mean_over_all_pairs() -> None:
    student, teacher = drawn(5, 4), drawn(5, 3, seed=1)
    relative = []
    for vectors in (student, teacher):
        distances = torch.tensor([[math.dist(a, b) for b in vectors.tolist()] for a in vectors.tolist()]).double()
        relative.append(distances / distances[distances > 0].mean())
    expected = torch.nn.functional.smooth_l1_loss(*relative)
    torch.testing.assert_close(rkd_distance(student, teacher).mean(), expected)


def test_angle_does_not_see_lengths_and_distance_does_not_see_one_factor() -> None:
    teacher = drawn(5, 4)
    rotation = torch.linalg.qr(drawn(4, 4, seed=2)).Q
    same = 3.0 * teacher @ rotation + 2.0
    for loss in (rkd_distance, rkd_angle, mgskd_samples):
        torch.testing.assert_close(loss(same, teacher), torch.zeros(5).double(), atol=1e-12, rtol=0)
    assert similarity_preserving(same, teacher).min() > 1e-3  # the origin has moved


def test_one_head_is_the_plain_angle() -> None:
    student, teacher = drawn(5, 4), drawn(5, 6, seed=1)
    torch.testing.assert_close(mgskd_samples(student, teacher), rkd_angle(student, teacher))
    with pytest.raises(ShapeError, match=r"\(5, 4\).*\(5, 6\).*heads=4"):
        mgskd_samples(student, teacher, heads=4)


PAIRWISE = [case for case in FEATURE_CASES if case.kind == "rows" and case.name != "crd"]


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_accumulation_is_of_micro_batches(case: FeatureCase) -> None:
    # What is stated: rows see their own micro-batch. Two of them are not one of twice the size.
    student, teacher = case.draw(torch.Generator().manual_seed(0), 1, 6)
    whole = masked_mean(case.loss(student, teacher))
    halves = [case.loss(student[part], teacher[part]) for part in (slice(0, 3), slice(3, 6))]
    accumulated = sum(masked_mean(half, denominator=6) for half in halves)
    torch.testing.assert_close(accumulated, torch.cat(halves).mean())
    assert not torch.isclose(accumulated, whole, rtol=1e-3)


def test_the_memory_makes_rows_independent() -> None:
    student, teacher = drawn(4, 6), drawn(4, 6, seed=1)
    whole = with_banks(student, teacher)
    torch.testing.assert_close(with_banks(student[:2], teacher[:2]), whole[:2])


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, similarity_preserving, mgskd_samples])
def test_rows_that_are_equal_add_no_nan(loss) -> None:  # type: ignore[no-untyped-def]
    student = drawn(5, 4)
    student[1] = student[0]
    student = student.float().requires_grad_()
    values = loss(student, drawn(5, 4, seed=1).float())
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_the_mean_leaves_out_distances_of_zero(loss) -> None:  # type: ignore[no-untyped-def]
    # Twice the same three rows: among 36 distances 12 are 0, and the others are what they were.
    student, teacher = drawn(3, 4), drawn(3, 4, seed=1)
    twice = loss(student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(twice, loss(student, teacher).repeat(2))


def test_small_distances_keep_their_digits() -> None:
    # Far from the origin and near each other: through a product of the vectors nothing would be left in float32.
    student = (1000 + 0.01 * drawn(5, 8)).float()
    exact = rkd_distance(student.double(), drawn(5, 8, seed=1))
    torch.testing.assert_close(rkd_distance(student, drawn(5, 8, seed=1).float()).double(), exact, atol=1e-4, rtol=1e-3)


def test_in_batch_at_equality_and_alone() -> None:
    rows = drawn(6, 4)
    equal = info_nce(rows, rows, temperature=1.0)
    assert (equal > 0.1).all()
    assert (equal < info_nce(rows.flip(0), rows, temperature=1.0)).all()
    torch.testing.assert_close(info_nce(torch.ones(6, 4), torch.ones(6, 4)), torch.full((6,), math.log(6)))
    alone = rows[:1].clone().requires_grad_()
    info_nce(alone, rows[:1]).sum().backward()
    assert info_nce(alone, rows[:1]).item() == 0.0
    assert alone.grad is not None
    assert (alone.grad == 0).all()
    for temperature in (0.0, math.nan):
        with pytest.raises(ArgumentError, match="temperature of info_nce"):
            info_nce(rows, rows, temperature=temperature)


def test_crd_without_constants_takes_those_of_the_batch() -> None:
    student, teacher = drawn(4, 6), drawn(4, 6, seed=1)
    candidates = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    arguments = {"student_bank": BANKS[0], "teacher_bank": BANKS[1], "candidates": candidates, "temperature": 0.5}
    constants = []
    for vectors, bank in ((student, BANKS[1]), (teacher, BANKS[0])):
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        scores = torch.stack([bank[candidates[i]] @ unit[i] for i in range(4)])
        constants.append((scores / 0.5).exp().mean() * 20)
    given = crd(student, teacher, constants=torch.stack(constants), **arguments)
    torch.testing.assert_close(crd(student, teacher, **arguments), given)
    # Rows that are masked have no part in the constants.
    mask = torch.tensor([True, True, True, False])
    fewer = crd(student[:3], teacher[:3], **arguments | {"candidates": candidates[:3]})
    torch.testing.assert_close(crd(student, teacher, mask=mask, **arguments)[:3], fewer)


def test_crd_teaches_both_embeddings_and_no_bank() -> None:
    student, teacher = drawn(4, 6).requires_grad_(), drawn(4, 6, seed=1).requires_grad_()
    with_banks(student, teacher).sum().backward()
    assert student.grad is not None
    assert teacher.grad is not None
    assert student.grad.norm() > 0.1
    assert teacher.grad.norm() > 0.1
    remembered = BANKS.clone().requires_grad_()
    candidates = torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]])
    values = crd(student, teacher, student_bank=remembered[0], teacher_bank=remembered[1], candidates=candidates)
    assert torch.autograd.grad(values.sum(), remembered, allow_unused=True) == (None,)
    nearer = BANKS[1, :4].clone()  # a student that is where the teacher's memory of its rows is
    assert with_banks(nearer, teacher).sum() < with_banks(-nearer, teacher).sum()


def test_crd_names_shapes_that_do_not_fit() -> None:
    rows, candidates = drawn(4, 6), torch.zeros(4, 3, dtype=torch.long)
    banks = {"student_bank": BANKS[0], "teacher_bank": BANKS[1]}
    with pytest.raises(ShapeError, match=r"student \(4, 6\), student_bank \(19, 6\), teacher_bank \(20, 6\)"):
        crd(rows, rows, candidates=candidates, **banks | {"student_bank": BANKS[0, :19]})
    with pytest.raises(ShapeError, match=r"student_bank \(20, 5\)"):
        crd(rows, rows, candidates=candidates, student_bank=BANKS[0, :, :5], teacher_bank=BANKS[1, :, :5])
    for wrong in (candidates[:3], candidates[:, :1]):
        with pytest.raises(ShapeError, match=r"candidates \("):
            crd(rows, rows, candidates=wrong, constants=CONSTANTS, **banks)
