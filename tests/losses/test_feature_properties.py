"""What holds for every loss on features, whether it gives one value a token, a sequence or a row."""

import inspect
import math

import pytest
import torch
from feature_cases import FEATURE_CASES, FeatureCase
from torch import Tensor

from potstill import losses
from potstill.errors import ShapeError
from potstill.reduce import masked_mean

# Padding on the left, on the right and nowhere: sequences of 4, 5 and 6 tokens. As rows: five of six.
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
B, S = MASK.shape

every = pytest.mark.parametrize("case", FEATURE_CASES, ids=str)
independent = pytest.mark.parametrize("case", [c for c in FEATURE_CASES if c.kind != "rows"], ids=str)


def drawn(case: FeatureCase, seed: int = 0) -> tuple[Tensor, Tensor]:
    return case.draw(torch.Generator().manual_seed(seed), B, S)


def mask_of(case: FeatureCase) -> Tensor:
    return MASK[1] if case.kind == "rows" else MASK


def counted(case: FeatureCase, mask: Tensor) -> Tensor:
    """The mask of the values."""
    return mask.any(-1) if case.kind == "sequences" else mask


def padded(tensor: Tensor, axes: tuple[int, ...], by: int, value: float) -> Tensor:
    for axis in axes:
        shape = list(tensor.shape)
        shape[axis] = by
        tensor = torch.cat([tensor, torch.full(shape, value).to(tensor.dtype)], dim=axis)
    return tensor


def poisoned(case: FeatureCase, tensor: Tensor, value: float) -> Tensor:
    """With `value` at every masked position, along each axis of positions."""
    for axis in case.axes:
        shape = [1] * tensor.ndim
        shape[axis] = S
        if case.kind != "rows":
            shape[0] = B
        tensor = tensor.masked_fill(~mask_of(case).reshape(shape), value)
    return tensor


def test_the_families() -> None:
    modules = {getattr(losses, case.name).__module__.rpartition(".")[2] for case in FEATURE_CASES}
    assert modules == {
        "hidden",
        "scores",
        "attention",
        "relation",
        "structure",
        "granularity",
        "samples",
        "contrastive",
    }


@pytest.mark.parametrize("case", [c for c in FEATURE_CASES if c.zero_at_equality], ids=str)
def test_zero_at_equality(case: FeatureCase) -> None:  # of the others, test_row_losses says what they are
    _, teacher = drawn(case)
    for same in (teacher, teacher.float()):
        values = case.loss(same, same, mask_of(case))
        torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6, rtol=0)


@every
def test_not_negative_and_above_zero_where_they_differ(case: FeatureCase) -> None:
    for seed in range(5):
        values = case.loss(*drawn(case, seed), mask_of(case))
        assert (values >= 0).all()
        assert (values[counted(case, mask_of(case))] > 1e-4).all()


@every
def test_one_value_a_position_and_zero_where_masked(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    mask = mask_of(case)
    if case.kind == "sequences":
        mask = mask & torch.tensor([[True], [False], [True]])
    for values in (case.loss(student, teacher, mask), case.loss(student.float(), teacher.float(), mask)):
        assert values.shape == counted(case, mask).shape
        assert (values[~counted(case, mask)] == 0).all()


@every
def test_agrees_with_a_naive_loop(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    for mask in (mask_of(case), torch.ones_like(mask_of(case))):
        values = case.loss(student, teacher, mask)
        sequences = [(student, teacher, mask, values)] if case.kind == "rows" else zip(
            student, teacher, mask, values, strict=True
        )  # fmt: skip
        for ours, theirs, valid, found in sequences:
            expected = case.naive(ours.tolist(), theirs.tolist(), valid.nonzero().flatten().tolist(), **case.arguments)
            found = found if case.kind == "sequences" else found[valid]
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)


@every
def test_a_mask_of_ones_is_no_mask(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    ones = torch.ones_like(mask_of(case), dtype=torch.long)
    torch.testing.assert_close(case.loss(student, teacher), case.loss(student, teacher, ones))


@every
def test_more_padding_changes_nothing(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    mask = mask_of(case)
    short = case.loss(student, teacher, mask)
    longer = padded(mask, (mask.ndim - 1,), 3, 0)
    # Whatever stands on the padding: here something large, on the teacher something else.
    more = case.loss(padded(student, case.axes, 3, 7.0), padded(teacher, case.axes, 3, 3.0), longer)
    torch.testing.assert_close(more if case.kind == "sequences" else more[..., :S], short)
    torch.testing.assert_close(masked_mean(more, counted(case, longer)), masked_mean(short, counted(case, mask)))


@independent
def test_accumulation_changes_nothing(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = masked_mean(case.loss(whole, teacher, MASK), counted(case, MASK))
    loss.backward()
    total, denominator = 0.0, counted(case, MASK).sum()
    for part in (slice(0, 1), slice(1, 3)):  # unequal micro-batches
        values = case.loss(parts[part], teacher[part], MASK[part])
        share = masked_mean(values, counted(case, MASK[part]), denominator)
        share.backward()
        total += share.item()
    assert total == pytest.approx(loss.item())
    assert whole.grad is not None
    assert whole.grad.abs().max() > 0
    torch.testing.assert_close(parts.grad, whole.grad)


@every
def test_gradient_in_double(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    student.requires_grad_()
    assert case.loss(student, teacher, mask_of(case)).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: case.loss(x, teacher, mask_of(case)), (student,), atol=1e-6)


@every
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_masked_does_not_leak(case: FeatureCase, poison: float) -> None:
    student, teacher = drawn(case)
    mask = mask_of(case)
    clean = case.loss(student, teacher, mask)
    bad = poisoned(case, student, poison).requires_grad_()
    values = case.loss(bad, poisoned(case, teacher, poison), mask)
    torch.testing.assert_close(values, clean)
    masked_mean(values, counted(case, mask)).backward()
    assert bad.grad is not None
    assert bad.grad.isfinite().all()
    assert (bad.grad[poisoned(case, torch.zeros_like(student), 1.0) == 1.0] == 0).all()


@every
def test_where_nothing_counts_it_is_zero(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    student.requires_grad_()
    values = case.loss(student, teacher, torch.zeros_like(mask_of(case)))
    values.sum().backward()
    assert (values == 0).all()
    assert student.grad is not None
    assert (student.grad == 0).all()


@every
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_in_bfloat16_on_extreme_inputs(case: FeatureCase, autocast: bool) -> None:
    student, teacher = ((x.sign() * 1e4).bfloat16() for x in drawn(case))
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = case.loss(student, teacher, mask_of(case))
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    values.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@every
def test_finite_where_all_positions_are_equal(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    for value in (0.0, 1.0):
        same = torch.full_like(student, value).float().requires_grad_()
        values = case.loss(same, teacher.float(), mask_of(case))
        values.sum().backward()
        assert values.isfinite().all()
        assert same.grad is not None
        assert same.grad.isfinite().all()
        assert same.grad.abs().max() < 1e4  # an epsilon in a norm would give 1e8 and more
        equal = case.loss(same, same, mask_of(case))
        assert not case.zero_at_equality or (equal == 0).all()


@every
def test_autocast_changes_nothing(case: FeatureCase) -> None:
    student, teacher = (x.float() for x in drawn(case))
    with torch.autocast("cpu", torch.bfloat16):
        inside = case.loss(student, teacher, mask_of(case))
    torch.testing.assert_close(inside, case.loss(student, teacher, mask_of(case)), atol=0, rtol=1e-6)


@every
def test_shapes_that_differ_raise_with_both(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    shorter = teacher.narrow(case.axes[0], 0, 1)
    # Without the tests' own type-checker, as a user has it: it would count the axes first.
    loss = case.call or inspect.unwrap(getattr(losses, case.name))
    # The first two would broadcast. Where the call is the tests' own, the third meets their type-checker.
    for wrong in (teacher[:1], shorter) if case.call else (teacher[:1], shorter, teacher[0]):
        with pytest.raises(ShapeError) as caught:
            loss(student, wrong, mask=None, **case.arguments)
        assert str(tuple(student.shape)) in str(caught.value)
        assert str(tuple(wrong.shape)) in str(caught.value)


@every
def test_a_mask_of_another_shape_raises(case: FeatureCase) -> None:
    mask = mask_of(case)
    with pytest.raises(ShapeError, match=r"mask \(1, .*positions|mask \(1,\), positions"):
        case.loss(*drawn(case), mask[:1])


@every
def test_inputs_stay_as_they_are(case: FeatureCase) -> None:
    student, teacher = drawn(case)
    before = student.clone(), teacher.clone()
    case.loss(student, teacher, mask_of(case))
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@every
def test_documented_in_the_house_form(case: FeatureCase) -> None:
    text = getattr(losses, case.name).__doc__
    for part in ("Args:", "Returns:", "Raises:", "References:", "Prefer ", f"{case.name} = "):
        assert part in text, part
