"""What holds for every loss. A new one needs a line in `CASES`; a test counts them.

Each case draws inputs of one batch B and length S, and says over which axes of each the sequence runs; all the rest
(padding, micro-batches, poison) follows from that. The naive loops are plain Python over lists, one query at a time.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import losses
from potstill.errors import ShapeError
from potstill.reduce import masked_mean

V, D, H = 5, 6, 2


@dataclass(frozen=True)
class Case:
    """One loss with arguments, and how to feed it."""

    name: str
    draw: Callable[[torch.Generator, int, int], tuple[Tensor, Tensor]]  # (student, teacher), float64, for [B, S]
    naive: Callable[..., float]  # (student, teacher, keys, arguments) of one position, from lists
    axes: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (1,))  # sequence axes of student and teacher
    equal: Callable[[Tensor], Tensor] = field(default=lambda teacher: teacher)  # the student that is right
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])

    def loss(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        values: Tensor = getattr(losses, self.name)(student, teacher, mask=mask, **self.arguments)
        return values


def normal(*shape: int) -> Callable[[torch.Generator, int, int], Tensor]:
    """Draws [B, S, *shape]."""
    return lambda generator, b, s: torch.randn(b, s, *shape, generator=generator, dtype=torch.float64)


def pair(one: Callable[[torch.Generator, int, int], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda generator, b, s: (one(generator, b, s), one(generator, b, s))


def maps(generator: torch.Generator, b: int, s: int) -> Tensor:
    """Attention probabilities [B, H, S, S], over all S keys."""
    return torch.randn(b, H, s, s, generator=generator, dtype=torch.float64).softmax(-1)


def vectors(heads: int, width: int) -> Callable[[torch.Generator, int, int], Tensor]:
    """Queries [B, heads, S, width]."""
    return lambda generator, b, s: torch.randn(b, heads, s, width, generator=generator, dtype=torch.float64)


def softmax(scores: list[float]) -> list[float]:
    exps = [math.exp(score - max(scores)) for score in scores]
    return [e / sum(exps) for e in exps]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def naive_kl(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    soft = [softmax([z / temperature for z in logits]) for logits in (student, teacher)]
    return temperature**2 * kl(soft[1], soft[0])


def naive_binary_kl(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    p = [(sigmoid(s / temperature), sigmoid(t / temperature)) for s, t in zip(student, teacher, strict=True)]
    return temperature**2 * sum(kl([t, 1 - t], [s, 1 - s]) for s, t in p)


def naive_mse(student: list[float], teacher: list[float]) -> float:
    return mean([(s - t) ** 2 for s, t in zip(student, teacher, strict=True)])


def naive_cosine(student: list[float], teacher: list[float]) -> float:
    dot = sum(s * t for s, t in zip(student, teacher, strict=True))
    return 1 - dot / math.hypot(*student) / math.hypot(*teacher)


def naive_bce(student: list[float], labels: list[float]) -> float:
    terms = [-math.log(sigmoid(z) if y else 1 - sigmoid(z)) for z, y in zip(student, labels, strict=True)]
    return mean(terms)


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


def classes(generator: torch.Generator, b: int, s: int) -> tuple[Tensor, Tensor]:
    return normal(V)(generator, b, s), torch.randint(0, V, (b, s), generator=generator)


def yes_or_no(generator: torch.Generator, b: int, s: int) -> tuple[Tensor, Tensor]:
    return normal(V)(generator, b, s), torch.randint(0, 2, (b, s, V), generator=generator).double()


MAPS = ((2, 3), (2, 3))
VECTORS = ((2,), (2,))

CASES = [
    Case("kl_divergence", pair(normal(V)), naive_kl),
    Case("kl_divergence", pair(normal(V)), naive_kl, arguments={"temperature": 4.0}),
    Case("binary_kl_divergence", pair(normal(V)), naive_binary_kl),
    Case("binary_kl_divergence", pair(normal(V)), naive_binary_kl, arguments={"temperature": 3}),
    Case("logit_mse", pair(normal(V)), naive_mse),
    Case("hidden_mse", pair(normal(D)), naive_mse),
    Case("hidden_cosine", pair(normal(D)), naive_cosine),
    Case("attention_mse", pair(maps), naive_attention_mse, axes=MAPS),
    Case("attention_kl", pair(maps), naive_attention_kl, axes=MAPS),
    Case("relation_kl", lambda g, b, s: (vectors(H, 3)(g, b, s), vectors(H, 4)(g, b, s)), naive_relation,
         axes=VECTORS),
    Case("relation_kl", lambda g, b, s: (vectors(3, 2)(g, b, s), vectors(4, 3)(g, b, s)), naive_relation,
         axes=VECTORS, arguments={"heads": 6}),
    Case("cross_entropy", classes, lambda z, y: -math.log(softmax(z)[y]),
         equal=lambda y: 100.0 * torch.nn.functional.one_hot(y, V).double()),
    Case("binary_cross_entropy", yes_or_no, naive_bce, equal=lambda y: 200.0 * y - 100.0),
    Case("squared_error", pair(normal()), lambda z, y: (z - y) ** 2),
    Case("squared_error", lambda g, b, s: (normal(1)(g, b, s), normal()(g, b, s)), lambda z, y: (z[0] - y) ** 2,
         equal=lambda y: y.unsqueeze(-1)),
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


def test_every_loss_has_a_case() -> None:
    assert {case.name for case in CASES} == set(losses.__all__)


def test_the_namespace_is_sorted_and_by_family() -> None:
    assert losses.__all__ == sorted(losses.__all__)
    families = {getattr(losses, name).__module__ for name in losses.__all__}
    assert families == {
        f"potstill.losses.{family}" for family in ("labels", "logits", "hidden", "attention", "relation")
    }


@every
def test_zero_at_equality(case: Case) -> None:
    _, teacher = masked(case)
    values = case.loss(case.equal(teacher), teacher, MASK)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6, rtol=0)
    single = case.equal(teacher).float()
    values = case.loss(single, teacher.float() if teacher.is_floating_point() else teacher, MASK)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6, rtol=0)


@every
def test_not_negative_and_above_zero_where_they_differ(case: Case) -> None:
    for seed in range(5):
        student, teacher = masked(case, seed)
        values = case.loss(student, teacher, MASK)
        assert (values[MASK] > 1e-4).all()
        assert (values >= 0).all()


@every
def test_one_value_a_position_and_zero_where_masked(case: Case) -> None:
    student, teacher = masked(case)
    assert case.loss(student, teacher).shape == (B, S)
    values = case.loss(student, teacher, MASK)
    assert values.shape == (B, S)
    assert (values[~MASK] == 0).all()
    # In exact zeros, also where student and teacher are rounded differently.
    assert (case.loss(student.float(), teacher, MASK)[~MASK] == 0).all()


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
                if case.axes == ((1,), (1,)):
                    expected = case.naive(student[b, s].tolist(), teacher[b, s].tolist(), **case.arguments)
                else:
                    expected = case.naive(student[b].tolist(), teacher[b].tolist(), s, keys, **case.arguments)
                assert values[b, s].item() == pytest.approx(expected, abs=1e-10)


@every
def test_a_mask_of_ones_is_no_mask(case: Case) -> None:
    student, teacher = drawn(case)
    torch.testing.assert_close(
        case.loss(student, teacher), case.loss(student, teacher, torch.ones(B, S, dtype=torch.long))
    )


@every
def test_more_padding_changes_nothing(case: Case) -> None:
    student, teacher = masked(case)
    short = masked_mean(case.loss(student, teacher, MASK), MASK)
    longer = padded(MASK, (1,), 3, 0)
    # Whatever stands on the padding: here something large, on the teacher something else.
    more = case.loss(padded(student, case.axes[0], 3, 7.0), padded(teacher, case.axes[1], 3, 3.0), longer)
    torch.testing.assert_close(masked_mean(more, longer), short)


@every
def test_accumulation_changes_nothing(case: Case) -> None:
    student, teacher = masked(case)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = masked_mean(case.loss(whole, teacher, MASK), MASK)
    loss.backward()
    total = 0.0
    # Unequal micro-batches: 4 positions, then 5.
    for rows in (slice(0, 1), slice(1, 3)):
        part = masked_mean(case.loss(parts[rows], teacher[rows], MASK[rows]), MASK[rows], MASK.sum())
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
    clean = masked_mean(case.loss(student, teacher, MASK), MASK)
    student = poisoned(student, case.axes[0], poison).requires_grad_()
    # Class numbers have no NaN; there a number that is no class stands in for it.
    teacher = poisoned(teacher, case.axes[1], poison if teacher.is_floating_point() else -100)
    values = case.loss(student, teacher, MASK)
    loss = masked_mean(values, MASK)
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert (values[~MASK] == 0).all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[poisoned(torch.zeros_like(student), case.axes[0], 1.0) == 1.0] == 0).all()


@every
def test_rows_without_any_position_are_zero(case: Case) -> None:
    student, teacher = drawn(case)
    student.requires_grad_()
    nothing = torch.zeros(B, S, dtype=torch.bool)
    values = case.loss(student, teacher, nothing)
    loss = masked_mean(values, nothing)
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
        student = student.sign() * 1e4
        teacher = teacher.sign() * 1e4 if case.name not in ("cross_entropy", "binary_cross_entropy") else teacher
    student = student.bfloat16().requires_grad_()
    teacher = teacher.bfloat16() if teacher.is_floating_point() else teacher
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = case.loss(student, teacher, MASK)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    masked_mean(values, MASK).backward()
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
            loss(student, wrong)
        assert str(tuple(student.shape)) in str(caught.value)
        assert str(tuple(wrong.shape)) in str(caught.value)


@every
def test_a_mask_of_another_shape_raises(case: Case) -> None:
    with pytest.raises(ShapeError, match=rf"mask \(1, {S}\), positions \({B}, {S}\)"):
        case.loss(*drawn(case), mask=MASK[:1])


@every
def test_inputs_stay_as_they_are(case: Case) -> None:
    student, teacher = drawn(case)
    before = student.clone(), teacher.clone()
    case.loss(student, teacher, MASK)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@every
def test_documented_in_the_house_form(case: Case) -> None:
    text = getattr(losses, case.name).__doc__
    for part in ("Args:", "Returns:", "Raises:", "References:", "Prefer ", f"{case.name} = "):
        assert part in text, part
