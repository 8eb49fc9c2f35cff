"""The fused loss beside the pure losses on the logits that it never forms: values, gradients, memory, masks."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill import losses
from potstill.errors import ArgumentError, ShapeError
from potstill.losses import _fused_blocks
from potstill.losses.fused import FactoredLogits, FusedPart, SparseLogits, fused_loss

B, S, D, E, V, K = 3, 5, 6, 9, 23, 7
N = B * S
LOSSES: dict[str, Mapping[str, float]] = {
    "jensen_shannon": {"beta": 0.3},
    "kl_divergence": {},
    "logit_mse": {"teacher_scale": 0.5},
    "reverse_kl_divergence": {},
    "skewed_kl_divergence": {"alpha": 0.2},
    "skewed_reverse_kl_divergence": {"alpha": 0.2},
    "soft_cross_entropy": {},
    "symmetric_kl_divergence": {},
    "total_variation": {},
}
SPARSE = [name for name in LOSSES if name != "logit_mse"]
DIVERGENCES = [name for name in SPARSE if name != "soft_cross_entropy"]
every = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a chunk, the last of them shorter."""
    monkeypatch.setattr(_fused_blocks, "BLOCK", 2 * V)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(dtype: torch.dtype = torch.float64, bias: bool = True, **more: Any) -> FactoredLogits:
    parts = [drawn(B, S, D, seed=1, dtype=dtype), drawn(V, D, seed=2, dtype=dtype)]
    made = [one.requires_grad_() for one in parts]
    return FactoredLogits(*made, drawn(V, seed=3, dtype=dtype).requires_grad_() if bias else None, **more)


def teacher(dtype: torch.dtype = torch.float64, **more: Any) -> FactoredLogits:
    return FactoredLogits(drawn(B, S, E, seed=4, dtype=dtype), drawn(V, E, seed=5, dtype=dtype), **more)


def sparse(logits: Tensor, count: int, temperature: float = 1.0) -> SparseLogits:
    """What a cache keeps of logits [*, V]."""
    log_p = torch.log_softmax(logits / temperature, -1)
    values, ids = log_p.topk(count, -1)
    rest = log_p.scatter(-1, ids, -math.inf)
    return SparseLogits(values, ids, torch.logsumexp(rest, -1), temperature)


def weights() -> Tensor:
    """Some positions that don't count, none of them the same as another."""
    found = drawn(B, S, seed=6).abs() / N
    found[0, 3:], found[2, 0] = 0.0, 0.0
    return found


def labels() -> Tensor:
    found = torch.randint(V, (B, S), generator=torch.Generator().manual_seed(7))
    found[1, 2] = -100
    return found


def softening(loss: str, temperature: float) -> float:
    return 1.0 if loss == "logit_mse" else temperature


def pure(loss: str, logits: Tensor, other: Tensor, part: FusedPart) -> Tensor:
    """The weighted sum from the pure loss."""
    more = {} if loss in ("logit_mse", "cross_entropy") else {"temperature": part.temperature}
    return (getattr(losses, loss)(logits, other, **part.options, **more) * part.weights).sum()


def gradients(total: Tensor, head: FactoredLogits) -> list[Tensor]:
    inputs = [one for one in (head.states, head.weight, head.bias) if one is not None and one.requires_grad]
    return list(torch.autograd.grad(total, inputs))


def assert_same(found: Tensor, wanted: Tensor, head: FactoredLogits, by: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=by, atol=by * 1e-2)
    for ours, naive in zip(gradients(found, head), gradients(wanted, head), strict=True):
        torch.testing.assert_close(ours, naive, rtol=by, atol=by * float(naive.abs().max()))


def forms(temperature: float) -> dict[str, Any]:
    return {"dense": teacher().dense(), "factored": teacher(), "sparse": sparse(teacher().dense(), V, temperature)}


@every
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("form", ["dense", "factored", "sparse"])
def test_value_and_gradients_are_those_of_the_pure_loss(loss: str, temperature: float, form: str) -> None:
    temperature = softening(loss, temperature)
    if form == "sparse" and loss == "logit_mse":
        pytest.skip("not defined there, which another test says")
    head, part = student(scale=0.7), FusedPart(loss, weights(), temperature, LOSSES[loss])
    total, shares = fused_loss(head, [part], teacher=forms(temperature)[form], chunk=4)
    assert not shares.requires_grad
    torch.testing.assert_close(shares, total.detach().reshape(1))
    assert_same(total, pure(loss, head.dense(), teacher().dense(), part), head)


@every
def test_float32_is_as_near_as_that_can_be(loss: str) -> None:
    head, other = student(torch.float32), teacher(torch.float32)
    part = FusedPart(loss, weights().float(), softening(loss, 2.0), LOSSES[loss])
    total, _ = fused_loss(head, [part], teacher=other)
    assert_same(total, pure(loss, head.dense(), other.dense(), part), head, by=2e-6)


@pytest.mark.parametrize("loss", SPARSE)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sparse_teacher_is_of_k_and_any_other(loss: str, temperature: float) -> None:
    head, part = student(), FusedPart(loss, weights(), temperature, LOSSES[loss])
    known = sparse(teacher().dense(), K, temperature)
    total, _ = fused_loss(head, [part], teacher=known, chunk=4)
    log_q = torch.log_softmax(head.dense() / temperature, -1)
    rest = torch.logsumexp(log_q.scatter(-1, known.ids, -math.inf), -1, keepdim=True)
    outcomes = torch.cat([log_q.gather(-1, known.ids), rest], -1)
    of_teacher = torch.cat([known.values, known.tail.unsqueeze(-1)], -1)
    # Log-probabilities of outcomes are their own logits, so the pure loss at T = 1, and T^2 (T) outside.
    power = 1 if loss == "total_variation" else 2
    wanted = temperature**power * pure(loss, outcomes, of_teacher, replace(part, temperature=1.0))
    assert_same(total, wanted, head)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_the_outcomes_are_a_lower_bound(loss: str) -> None:
    head, part = student(), FusedPart(loss, weights(), 2.0, LOSSES[loss])
    totals = [fused_loss(head, [part], teacher=sparse(teacher().dense(), k, 2.0))[0] for k in (1, K, V)]
    assert 0 < totals[0] < totals[1] < totals[2]


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("form", ["dense", "factored", "sparse"])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_zero_at_equality(loss: str, form: str, offset: float) -> None:
    head = student(torch.float32)
    head = replace(head, weight=(3 * head.weight).detach().requires_grad_(), bias=head.bias + offset)
    same = replace(head, states=head.states.detach())
    known = {"dense": head.dense().detach(), "factored": same, "sparse": sparse(head.dense().detach(), K)}[form]
    part = FusedPart(loss, torch.ones(B, S) / N, 1.0, LOSSES[loss])
    total, _ = fused_loss(head, [part], teacher=known)
    # What float32 leaves of logits near 300 is all that a sparse teacher may differ by.
    assert abs(total.item()) < (1e-6 if form != "sparse" or offset == 0 else 1e-4)
    if loss != "total_variation":
        assert all(one.abs().max() < 1e-4 for one in gradients(total, head)[:1])


@pytest.mark.parametrize("form", ["dense", "factored", "sparse"])
def test_parts_share_a_step(form: str) -> None:
    head, other = student(), teacher().dense()
    parts = [
        FusedPart("reverse_kl_divergence", weights().flip(0), 2.0),
        FusedPart("cross_entropy", weights().flip(1)),
        FusedPart("kl_divergence", weights(), 2.0),
        FusedPart("jensen_shannon", weights(), 2.0, {"beta": 0.1}),
    ]
    if form != "sparse":
        parts += [FusedPart("logit_mse", weights()), FusedPart("total_variation", weights(), 1.0)]
        parts += [FusedPart("kl_divergence", weights(), 3.0)]
    total, shares = fused_loss(head, parts, teacher=forms(2.0)[form], labels=labels(), chunk=6)
    naive = [pure(part.loss, head.dense(), labels() if "entropy" in part.loss else other, part) for part in parts]
    torch.testing.assert_close(shares, torch.stack(naive).detach())
    assert_same(total, torch.stack(naive).sum(), head)


@pytest.mark.parametrize("form", ["none", "dense", "factored", "sparse"])
def test_labels_alongside_at_one_temperature(form: str) -> None:
    head, every_one = student(), torch.ones(B, S).double()
    parts = [FusedPart("cross_entropy", weights()), FusedPart("cross_entropy", every_one)]
    naive = sum(pure("cross_entropy", head.dense(), labels(), part) for part in parts)
    if form != "none":
        parts.append(FusedPart("kl_divergence", weights()))
        naive = naive + pure("kl_divergence", head.dense(), teacher().dense(), parts[-1])
    total, _ = fused_loss(head, parts, teacher=forms(1.0).get(form), labels=labels())
    assert_same(total, naive, head)


@every
def test_gradient_in_double(loss: str) -> None:
    temperature = softening(loss, 1.5)
    part = FusedPart(loss, weights(), temperature, LOSSES[loss])
    known = teacher() if loss == "logit_mse" else sparse(teacher().dense(), K, temperature)
    for other in (teacher(softcap=3.0), known):
        head = student(scale=0.5, softcap=2.0)

        def total(*tensors: Tensor, head: FactoredLogits = head, other: Any = other) -> Tensor:
            return fused_loss(FactoredLogits(*tensors, head.scale, head.softcap), [part], teacher=other)[0]

        assert torch.autograd.gradcheck(total, (head.states, head.weight, head.bias), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scale_and_softcap_of_both(temperature: float) -> None:
    head, other = student(scale=D**-0.5, softcap=1.5), teacher(scale=0.3, softcap=5.0)
    parts = [FusedPart("kl_divergence", weights(), temperature), FusedPart("logit_mse", weights())]
    for chosen in ([0], [1], [0, 1]):
        naive = [pure(part.loss, head.dense(), other.dense(), part) for part in parts]
        total, _ = fused_loss(head, [parts[i] for i in chosen], teacher=other)
        assert_same(total, torch.stack([naive[i] for i in chosen]).sum(), head)


def test_the_chunk_changes_nothing() -> None:
    head, part = student(), FusedPart("jensen_shannon", weights(), 2.0)
    for chunk in (1, 4, N, 100):
        total, _ = fused_loss(head, [part], teacher=teacher(), chunk=chunk)
        again, _ = fused_loss(head, [part], teacher=teacher())
        assert_same(total, again, head)


def test_masked_positions_are_never_looked_at() -> None:
    clean, part = student(), FusedPart("kl_divergence", weights(), 2.0)
    dropped = weights() == 0
    wanted = gradients(fused_loss(clean, [part], teacher=teacher())[0], clean)
    states = clean.states.detach().masked_fill(dropped.unsqueeze(-1), math.nan).requires_grad_()
    known = teacher()
    known = replace(known, states=known.states.masked_fill(dropped.unsqueeze(-1), math.nan))
    head = replace(clean, states=states)
    for ours, naive in zip(gradients(fused_loss(head, [part], teacher=known)[0], head), wanted, strict=True):
        torch.testing.assert_close(ours, naive)


@pytest.mark.parametrize("form", ["dense", "factored", "sparse"])
def test_a_teacher_that_is_nan_where_only_labels_count(form: str) -> None:
    head, masked = student(), weights() == 0
    parts = [FusedPart("kl_divergence", weights()), FusedPart("cross_entropy", torch.ones(B, S).double())]
    wanted = [pure(part.loss, head.dense(), teacher().dense() if i == 0 else labels(), part) for i, part in
              enumerate(parts)]  # fmt: skip
    known: Any = forms(1.0)[form]
    if form == "dense":
        known = known.masked_fill(masked.unsqueeze(-1), math.nan)
    elif form == "factored":
        known = replace(known, states=known.states.masked_fill(masked.unsqueeze(-1), math.nan))
    else:
        values, ids = known.values.masked_fill(masked.unsqueeze(-1), math.nan), known.ids * ~masked.unsqueeze(-1)
        known = SparseLogits(values, ids, known.tail.masked_fill(masked, math.nan))
    assert_same(fused_loss(head, parts, teacher=known, labels=labels())[0], sum(wanted), head)


def test_no_position_counts() -> None:
    head = student()
    total, shares = fused_loss(head, [FusedPart("kl_divergence", torch.zeros(B, S))], teacher=teacher())
    assert total.item() == 0.0
    assert shares.tolist() == [0.0]
    assert all((one == 0).all() for one in gradients(total, head))


def test_calls_add_up() -> None:
    head, known = student(), teacher()
    whole, _ = fused_loss(head, [FusedPart("kl_divergence", weights())], teacher=known)
    wanted = gradients(whole, head)[1]
    for row in range(B):
        part = FusedPart("kl_divergence", weights()[row])
        own = replace(known, states=known.states[row])
        fused_loss(replace(head, states=head.states[row]), [part], teacher=own)[0].mul(0.5).backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(2 * head.weight.grad, wanted)


def test_weights_tied_to_the_embeddings() -> None:
    table, ids = drawn(V, D).requires_grad_(), labels().clamp(min=0)
    known, part = teacher(), FusedPart("kl_divergence", weights())
    (ours,) = torch.autograd.grad(fused_loss(FactoredLogits(table[ids], table), [part], teacher=known)[0], table)
    (naive,) = torch.autograd.grad(pure("kl_divergence", table[ids] @ table.T, known.dense(), part), table)
    torch.testing.assert_close(ours, naive)


def test_a_second_backward_is_worked_out_anew_and_a_second_derivative_refused() -> None:
    head, part = student(), FusedPart("kl_divergence", weights())
    total, _ = fused_loss(head, [part], teacher=teacher())
    first = torch.autograd.grad(total, head.weight, retain_graph=True)[0]
    second = torch.autograd.grad(3 * total, head.weight)[0]
    torch.testing.assert_close(3 * first, second)
    upstream = torch.ones((), dtype=torch.float64, requires_grad=True)
    total, _ = fused_loss(head, [part], teacher=teacher())
    gradient = torch.autograd.grad(upstream * total, head.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Products(TorchDispatchMode):
    """The matrix products and the largest tensor of what is run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.products += any(name in str(func) for name in ("mm.", "mm_.", "bmm"))
        for one in found if isinstance(found, list | tuple) else [found]:
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel(), one.untyped_storage().nbytes() // one.itemsize)
        return found


def counted(head: FactoredLogits, **more: Any) -> Products:
    with Products() as seen:
        fused_loss(head, [FusedPart("jensen_shannon", torch.ones(B, S))], teacher=teacher(), chunk=N, **more)
    return seen


def test_only_what_is_asked_for_is_worked_on() -> None:
    head = student()
    assert counted(head).products == 4
    frozen = replace(head, weight=head.weight.detach(), bias=None)
    assert counted(frozen).products == 3
    total, _ = fused_loss(frozen, [FusedPart("kl_divergence", weights())], teacher=teacher())
    total.backward()
    assert frozen.weight.grad is None
    assert head.states.grad is not None
    assert counted(replace(head, states=head.states.detach(), bias=None)).products == 3
    with torch.no_grad():
        assert counted(head).products == 2
        assert not fused_loss(head, [FusedPart("kl_divergence", weights())], teacher=teacher())[0].requires_grad


@every
def test_neither_matrix_of_logits_is_ever_there(loss: str) -> None:
    count, classes = 64, 50
    head = FactoredLogits(drawn(count, 4).requires_grad_(), drawn(classes, 4).requires_grad_())
    known = FactoredLogits(drawn(count, 4, seed=1), drawn(classes, 4, seed=2))
    with Products() as seen:
        total, _ = fused_loss(head, [FusedPart(loss, torch.ones(count), 1.0)], teacher=known, chunk=8)
        total.backward()
    assert seen.largest == 8 * classes
    with Products() as seen:
        head.dense()
    assert seen.largest == count * classes


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_in_bfloat16_on_extreme_logits(loss: str, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    head = FactoredLogits((1e3 * drawn(N, D)).to(dtype).requires_grad_(), drawn(V, D, seed=1).to(dtype))
    known = FactoredLogits((1e3 * drawn(N, D, seed=2)).to(dtype), head.weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, _ = fused_loss(head, [FusedPart(loss, torch.ones(N) / N, 1.0, LOSSES[loss])], teacher=known)
        naive = pure(loss, head.dense(), known.dense(), FusedPart(loss, torch.ones(N) / N, 1.0, LOSSES[loss]))
    assert total.dtype == torch.float32
    total.backward()
    assert head.states.grad is not None
    assert head.states.grad.dtype == dtype
    assert head.states.grad.isfinite().all()
    torch.testing.assert_close(total, naive, rtol=2e-3, atol=1e-4)  # bfloat16 logits, summed in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_sums_in_float32(dtype: torch.dtype) -> None:
    head, known = student(dtype), teacher(dtype)
    part = FusedPart("kl_divergence", torch.full((B, S), 1e-6), 2.0)  # a slope that float16 has no number for
    total, _ = fused_loss(head, [part], teacher=known, chunk=4)
    wide = FactoredLogits(*(one.detach().float().requires_grad_() for one in (head.states, head.weight, head.bias)))
    exact = FactoredLogits(known.states.float(), known.weight.float())
    naive = gradients(pure("kl_divergence", wide.dense(), exact.dense(), part), wide)
    for ours, wanted in zip(gradients(1e4 * total, head), naive, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), 1e4 * wanted, rtol=0.05, atol=0.02 * 1e4 * float(wanted.abs().max()))


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_classes_that_are_ruled_out(form: str) -> None:
    bias = torch.zeros(V).double()
    bias[3] = -math.inf
    head, known = replace(student(), bias=bias), replace(teacher(), bias=bias)
    for loss in DIVERGENCES:
        part = FusedPart(loss, weights(), 2.0, LOSSES[loss])
        other = known.dense() if form == "dense" else known
        total, _ = fused_loss(head, [part], teacher=other)
        torch.testing.assert_close(total, pure(loss, head.dense(), known.dense(), part))
        assert all(one.isfinite().all() for one in gradients(total, head))


@pytest.mark.parametrize(
    ("parts", "more", "said"),
    [
        ([], {}, "at least one part"),
        ([FusedPart("kl_divergense", torch.ones(B, S))], {}, "Did you mean 'kl_divergence'"),
        ([FusedPart("kl_divergence", torch.ones(B, S))], {}, "needs a teacher"),
        ([FusedPart("cross_entropy", torch.ones(B, S))], {}, "needs labels"),
        ([FusedPart("cross_entropy", torch.ones(B, S), 2.0)], {"labels": labels()}, "knows no temperature"),
        ([FusedPart("cross_entropy", torch.ones(B, S))], {"labels": labels()[:1]}, r"\(1, 5\), positions \(3, 5\)"),
        ([FusedPart("kl_divergence", torch.ones(B))], {"teacher": teacher()}, r"weights \(3,\), positions \(3, 5\)"),
        ([FusedPart("kl_divergence", torch.ones(B, S), 0.0)], {"teacher": teacher()}, "finite number above 0"),
        ([FusedPart("jensen_shannon", torch.ones(B, S), 1.0, {"beta": 1.0})], {"teacher": teacher()}, "below 1"),
        ([FusedPart("jensen_shannon", torch.ones(B, S), 1.0, {"alpha": 0.5})], {"teacher": teacher()}, "Known: beta"),
        ([FusedPart("kl_divergence", torch.ones(B, S))], {"teacher": drawn(B, S, V + 1)}, r"5, 23\).*5, 24\)"),
        ([FusedPart("kl_divergence", torch.ones(B, S))], {"teacher": teacher(), "chunk": 0}, "chunk"),
        ([FusedPart("kl_divergence", torch.ones(B, S))], {"teacher": teacher(softcap=0.0)}, "softcap of the teacher"),
        ([FusedPart("kl_divergence", torch.ones(B, S))], {"teacher": sparse(teacher().dense(), K, 2.0)}, "at 2.0"),
        ([FusedPart("logit_mse", torch.ones(B, S))], {"teacher": sparse(teacher().dense(), K)}, "only the likeliest"),
        ([FusedPart("kl_divergence", torch.ones(B, S))], {"teacher": sparse(drawn(B, 1, V), K)}, r"values \(3, 1, 7\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(parts: list[FusedPart], more: dict[str, Any], said: str) -> None:
    with pytest.raises((ArgumentError, ShapeError), match=said):
        fused_loss(student(), parts, **more)


def test_a_head_that_does_not_fit_is_refused() -> None:
    part = FusedPart("kl_divergence", torch.ones(B, S))
    with pytest.raises(ShapeError, match=r"states \(3, 5, 4\), weight \(23, 6\)"):
        fused_loss(replace(student(), states=drawn(B, S, 4)), [part], teacher=teacher())
    with pytest.raises(ShapeError, match=r"bias \(22,\), weight \(23, 6\)"):
        fused_loss(replace(student(), bias=drawn(22)), [part], teacher=teacher())
    with pytest.raises(ShapeError, match="at least two classes"):
        fused_loss(FactoredLogits(drawn(B, S, D), drawn(1, D)), [part], teacher=drawn(B, S, 1))


def test_documented_in_the_house_form() -> None:
    text = fused_loss.__doc__ or ""
    for said in ("Args:", "Returns:", "Raises:", "References:", "Prefer ", "fused_loss = "):
        assert said in text, said
