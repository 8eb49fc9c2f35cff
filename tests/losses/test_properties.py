"""What holds for every loss. A new one needs a line in a table of cases; a test counts them.

Each case draws inputs of one batch B and length S, and says over which axes of each the sequence runs; all the rest
(padding, micro-batches, poison) follows from that. The naive loops are plain Python over lists, one query at a time.
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from feature_cases import FEATURE_CASES
from response_cases import RESPONSE_CASES, Case, kl, mean, naive_mse, normal, pair, softmax
from torch import Tensor

from potstill import losses
from potstill.errors import ShapeError
from potstill.reduce import masked_mean

D, H = 6, 2


def maps(generator: torch.Generator, b: int, s: int) -> Tensor:
    """Attention probabilities [B, H, S, S], over all S keys."""
    return torch.randn(b, H, s, s, generator=generator, dtype=torch.float64).softmax(-1)


def vectors(heads: int, width: int) -> Callable[[torch.Generator, int, int], Tensor]:
    """Queries [B, heads, S, width]."""
    return lambda generator, b, s: torch.randn(b, heads, s, width, generator=generator, dtype=torch.float64)


def naive_cosine(student: list[float], teacher: list[float]) -> float:
    dot = sum(s * t for s, t in zip(student, teacher, strict=True))
    return 1 - dot / math.hypot(*student) / math.hypot(*teacher)


def naive_attention_mse(student: list, teacher: list, query: int, keys: list[int]) -> float:
    return mean([(s[query][k] - t[query][k]) ** 2 for s, t in zip(student, teacher, strict=True) for k in keys])


def naive_attention_kl(student: list, teacher: list, query: int, keys: list[int]) -> float:
    return mean(
        [kl([t[query][k] for k in keys], [s[query][k] for k in keys]) for s, t in zip(student, teacher, strict=True)]
    )


def naive_relation(student: list, teacher: list, query: int, keys: list[int], heads: int | None = None) -> float:
    def relations(own: list) -> list[list[float]]:
        length = len(own[0])
        joined = [[x for head in own for x in head[position]] for position in range(length)]
        parts = heads or len(own)
        width = len(joined[0]) // parts
        cut = [[row[part * width : (part + 1) * width] for row in joined] for part in range(parts)]
        dots = [[sum(a * b for a, b in zip(head[query], head[k], strict=True)) for k in keys] for head in cut]
        return [softmax([dot / math.sqrt(width) for dot in row]) for row in dots]

    return mean([kl(t, s) for s, t in zip(relations(student), relations(teacher), strict=True)])


MAPS = ((2, 3), (2, 3))
VECTORS = ((2,), (2,))

CASES = [
    *RESPONSE_CASES,
    Case("hidden_mse", pair(normal(D)), naive_mse),
    Case("hidden_cosine", pair(normal(D)), naive_cosine),
    Case("attention_mse", pair(maps), naive_attention_mse, axes=MAPS),
    Case("attention_kl", pair(maps), naive_attention_kl, axes=MAPS),
    Case("relation_kl", lambda g, b, s: (vectors(H, 3)(g, b, s), vectors(H, 4)(g, b, s)), naive_relation,
         axes=VECTORS),
    Case("relation_kl", lambda g, b, s: (vectors(3, 2)(g, b, s), vectors(4, 3)(g, b, s)), naive_relation,
         axes=VECTORS, arguments={"heads": 6}),
]  # fmt: skip

every = pytest.mark.parametrize("case", CASES, ids=str)
B, S = 3, 4
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)


def drawn(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    return case.draw(torch.Generator().manual_seed(seed), B, S)


def masked(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Drawn, and as a model would give it under `MASK`: attention maps with nothing on masked keys."""
    student, teacher = drawn(case, seed)
    if case.axes == MAPS:
        student, teacher = (_on_valid_keys(x, MASK) for x in (student, teacher))
    return student, teacher


def _on_valid_keys(probabilities: Tensor, mask: Tensor) -> Tensor:
    kept = probabilities * mask[:, None, None, :]
    return kept / kept.sum(-1, keepdim=True)


def padded(tensor: Tensor, axes: tuple[int, ...], by: int, value: float) -> Tensor:
    for axis in axes:
        shape = list(tensor.shape)
        shape[axis] = by
        tensor = torch.cat([tensor, torch.full(shape, value).to(tensor.dtype)], dim=axis)
    return tensor


def poisoned(tensor: Tensor, axes: tuple[int, ...], value: float) -> Tensor:
    """With `value` at every masked position, along each sequence axis."""
    for axis in axes:
        shape = [1] * tensor.ndim
        shape[0], shape[axis] = B, S
        tensor = tensor.masked_fill(~MASK.reshape(shape), value)
    return tensor


def names_with_a_case() -> set[str]:
    """The names in every table of cases, that of the losses on features among them, which has tests of its own."""
    return {case.name for case in (*CASES, *FEATURE_CASES)}


def test_every_loss_has_a_case() -> None:
    assert names_with_a_case() == set(losses.__all__)


def test_the_namespace_is_sorted_and_by_family() -> None:
    assert losses.__all__ == sorted(losses.__all__)
    families = {getattr(losses, name).__module__.removeprefix("potstill.losses.") for name in losses.__all__}
    files = {file.stem for file in Path(losses.__file__).parent.glob("[a-z]*.py")}
    assert families == files - {"fused"}  # which is no loss of a term, but how several are computed


@every
def test_zero_at_equality(case: Case) -> None:
    _, teacher = masked(case)
    if not case.zero_at_equality:
        return least_at_equality(case, teacher)
    values = case.loss(case.equal(teacher), teacher, MASK)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6, rtol=0)
    single = case.equal(teacher).float()
    values = case.loss(single, teacher.float() if teacher.is_floating_point() else teacher, MASK)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6, rtol=0)


def least_at_equality(case: Case, teacher: Tensor) -> None:
    student = teacher.clone().requires_grad_()
    case.loss(student, teacher, MASK).sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)


@every
def test_not_negative_and_above_zero_where_they_differ(case: Case) -> None:
    for seed in range(5):
        student, teacher = masked(case, seed)
        values = case.loss(student, teacher, MASK)
        assert (values[case.counted(MASK)] > 1e-6).all()  # a row of two nodes may differ little
        assert (values >= 0).all()


@every
def test_one_value_a_position_and_zero_where_masked(case: Case) -> None:
    student, teacher = masked(case)
    counted = case.counted(MASK)
    assert case.loss(student, teacher).shape == counted.shape
    values = case.loss(student, teacher, MASK)
    assert values.shape == counted.shape
    assert (values[~counted] == 0).all()
    # In exact zeros, also where student and teacher are rounded differently.
    assert (case.loss(student.float(), teacher, MASK)[~counted] == 0).all()


@every
def test_agrees_with_a_naive_loop(case: Case) -> None:
    for mask in (MASK, torch.ones_like(MASK)):
        student, teacher = drawn(case)
        if case.axes == MAPS:
            student, teacher = _on_valid_keys(student, mask), _on_valid_keys(teacher, mask)
        values = case.loss(student, teacher, mask)
        for b in range(B):
            keys = [k for k in range(S) if mask[b, k]]
            for s in keys:
                if case.across_rows:
                    lists = student.tolist(), teacher.tolist()
                    expected = case.naive(*lists, b, s, mask.tolist(), **case.arguments)
                elif case.axes == ((1,), (1,)):
                    expected = case.naive(student[b, s].tolist(), teacher[b, s].tolist(), **case.arguments)
                else:
                    expected = case.naive(student[b].tolist(), teacher[b].tolist(), s, keys, **case.arguments)
                assert values[b if case.values == "rows" else (b, s)].item() == pytest.approx(expected, abs=1e-10)


@every
def test_a_mask_of_ones_is_no_mask(case: Case) -> None:
    student, teacher = drawn(case)
    torch.testing.assert_close(
        case.loss(student, teacher), case.loss(student, teacher, torch.ones(B, S, dtype=torch.long))
    )


@every
def test_more_padding_changes_nothing(case: Case) -> None:
    student, teacher = masked(case)
    short = masked_mean(case.loss(student, teacher, MASK), case.counted(MASK))
    longer = padded(MASK, (1,), 3, 0)
    # Whatever stands on the padding: here something large, on the teacher something else.
    more = case.loss(padded(student, case.axes[0], 3, 7.0), padded(teacher, case.axes[1], 3, 3.0), longer)
    torch.testing.assert_close(masked_mean(more, case.counted(longer)), short)


@every
def test_accumulation_changes_nothing(case: Case) -> None:
    if case.across_rows:
        assert "accumulation is then of micro-batches" in " ".join(getattr(losses, case.name).__doc__.split())
        return
    student, teacher = masked(case)
    counted = case.counted(MASK)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = masked_mean(case.loss(whole, teacher, MASK), counted)
    loss.backward()
    total = 0.0
    # Unequal micro-batches: 4 positions, then 5.
    for rows in (slice(0, 1), slice(1, 3)):
        values = case.loss(parts[rows], teacher[rows], MASK[rows])
        part = masked_mean(values, counted[rows], counted.sum())
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item())
    assert whole.grad is not None
    assert whole.grad.abs().max() > 0
    torch.testing.assert_close(parts.grad, whole.grad)


@every
def test_gradient_in_double(case: Case) -> None:
    student, teacher = masked(case)
    student.requires_grad_()
    values = case.loss(student, teacher, MASK)
    assert values.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: case.loss(x, teacher, MASK), (student,), atol=1e-6)


@every
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_masked_does_not_leak(case: Case, poison: float) -> None:
    student, teacher = masked(case)
    counted = case.counted(MASK)
    clean = masked_mean(case.loss(student, teacher, MASK), counted)
    student = poisoned(student, case.axes[0], poison).requires_grad_()
    # Class numbers have no NaN; there a number that is no class stands in for it.
    teacher = poisoned(teacher, case.axes[1], poison if teacher.is_floating_point() else -100)
    values = case.loss(student, teacher, MASK)
    loss = masked_mean(values, counted)
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert (values[~counted] == 0).all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[poisoned(torch.zeros_like(student), case.axes[0], 1.0) == 1.0] == 0).all()


@every
def test_rows_without_any_position_are_zero(case: Case) -> None:
    student, teacher = drawn(case)
    student.requires_grad_()
    nothing = torch.zeros(B, S, dtype=torch.bool)
    values = case.loss(student, teacher, nothing)
    loss = masked_mean(values, case.counted(nothing))
    loss.backward()
    assert (values == 0).all()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert (student.grad == 0).all()


@every
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_in_bfloat16_on_extreme_inputs(case: Case, autocast: bool) -> None:
    student, teacher = drawn(case)
    if case.axes == MAPS:  # maps that come from extreme scores: exact zeros and ones
        student, teacher = (((x - x.mean()).sign() * 1e4).softmax(-1) for x in (student, teacher))
    else:
        student = student.sign() * case.extreme
        teacher = (
            teacher.sign() * case.extreme if case.name not in ("cross_entropy", "binary_cross_entropy") else teacher
        )
    student = student.bfloat16().requires_grad_()
    teacher = teacher.bfloat16() if teacher.is_floating_point() else teacher
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = case.loss(student, teacher, MASK)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    masked_mean(values, case.counted(MASK)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@every
def test_autocast_changes_nothing(case: Case) -> None:
    student, teacher = (x.float() if x.is_floating_point() else x for x in masked(case))
    with torch.autocast("cpu", torch.bfloat16):
        inside = case.loss(student, teacher, MASK)
    torch.testing.assert_close(inside, case.loss(student, teacher, MASK), atol=0, rtol=1e-6)


@every
def test_shapes_that_differ_raise_with_both(case: Case) -> None:
    student, teacher = drawn(case)
    for wrong in (teacher[:1], teacher[:, :1], teacher[0]):  # all of which would broadcast
        # Without the tests' own type-checker, as a user has it: it would count the axes first.
        loss = inspect.unwrap(getattr(losses, case.name)) if wrong.ndim < teacher.ndim else getattr(losses, case.name)
        with pytest.raises(ShapeError) as caught:
            loss(student, wrong, **{key: make(wrong) for key, make in case.beside.items()})
        assert str(tuple(student.shape)) in str(caught.value)
        assert str(tuple(wrong.shape)) in str(caught.value)


@every
def test_a_mask_of_another_shape_raises(case: Case) -> None:
    with pytest.raises(ShapeError, match=rf"mask \(1, (1, )?{S}\), positions \({B}, (1, )?{S}\)"):
        case.loss(*drawn(case), mask=MASK[:1])


@every
def test_inputs_stay_as_they_are(case: Case) -> None:
    student, teacher = drawn(case)
    before = student.clone(), teacher.clone()
    case.loss(student, teacher, MASK)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@every
def test_no_loss_looks_at_values(case: Case) -> None:
    # A look at a value makes the host wait for the device. Tensors on "meta" have none, and raise.
    student, teacher = (x.to("meta") for x in drawn(case))
    values = case.loss(student, teacher, MASK.to("meta"))
    assert values.shape == case.counted(MASK).shape


@every
def test_documented_in_the_house_form(case: Case) -> None:
    text = getattr(losses, case.name).__doc__
    for part in ("Args:", "Returns:", "Raises:", "References:", "Prefer ", f"{case.name} = "):
        assert part in text, part
