"""The work of `fused`: chunks of positions for the matrix products, and within each, blocks for everything else.

Decisions:
- Two sizes, since two things are scarce. A chunk has its logits as a matrix: large enough for the products to be as
  fast as they get, small enough for the memory. A block is a few of its rows, small enough for the processor's cache.
- The gradient takes the place of the logits from which it was made, in the same memory.
- A single temperature is part of the product's scale; only several of them cost a division of the logits.
- Products are made in the inputs' dtype, and the gradients of all chunks are summed in float32 at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.losses._distributions import FLOOR
from potstill.losses._factored import FactoredLogits, SparseLogits
from potstill.losses._fused_terms import FORMS, WRITING, Block, Distribution, Found, Gradient, distribution

CHUNK = 2**23  # logits: 32 MB of float32
BLOCK = 2**21  # logits: 8 MB of float32; smaller ones spend their time in starting and joining threads


@dataclass(frozen=True)
class Term:
    """One part of the loss at the n positions that count."""

    index: int
    loss: str
    scale: float  # what the values are multiplied by: a power of the temperature
    slopes: Tensor  # [n], what the gradient with respect to z / T is multiplied by
    options: Mapping[str, float]


@dataclass(frozen=True)
class Work:
    """What the student's head is compared with: all that `fused_loss` was given, at the n positions that count."""

    terms: Mapping[float, Sequence[Term]]  # by temperature
    teacher: FactoredLogits | SparseLogits | Tensor | None  # dense: all N positions; else n
    labels: Tensor | None  # [n, 1], class numbers
    rows: Tensor | None  # [n], which of the N positions count; None: all
    unheard: Tensor | None  # [n], where no term asks for the teacher; None: nowhere
    chunk: int
    dtype: torch.dtype  # of the products
    unit: Tensor | None = None  # what the slopes were divided by, so that float16 holds them

    @property
    def soft(self) -> torch.dtype:
        """The dtype of all that isn't a product."""
        return torch.promote_types(self.dtype, torch.float32)

    def folded(self, softcap: float | None) -> float:
        """The temperature that a head's product is divided by as it is made; 1 where that must come later."""
        return next(iter(self.terms)) if len(self.terms) == 1 and softcap is None else 1.0


class Room:
    """Buffers [rows, V] by name, made when first asked for, and used again in every block."""

    def __init__(self, rows: int, weight: Tensor, dtype: torch.dtype) -> None:
        self._shape, self._weight, self._dtype = (rows, len(weight)), weight, dtype
        self._made: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int) -> Tensor:
        if name not in self._made:
            self._made[name] = self._weight.new_empty(self._shape, dtype=self._dtype)
        return self._made[name][:rows]


class Product:
    """One head, a chunk of positions at a time."""

    def __init__(self, head: FactoredLogits, work: Work) -> None:
        self.head, self.temperature = head, work.folded(head.softcap)
        self.weight = head.weight.to(work.dtype)
        self._logits = self.weight.new_empty(work.chunk, len(self.weight))
        floor = max(FLOOR, torch.finfo(work.dtype).min)
        self._bias = None
        if head.bias is not None:  # minus infinity for a class that is ruled out: 0 * (inf - inf) would be NaN
            self._bias = (head.bias.to(work.soft) / self.temperature).clamp(min=floor).to(work.dtype)

    def logits(self, states: Tensor) -> Tensor:
        """[c, V] for states [c, D], before a cap, over the temperature if that is folded in; used again."""
        logits, alpha = self._logits[: len(states)], self.head.scale / self.temperature
        if self._bias is None:
            return logits.addmm_(states, self.weight.t(), beta=0, alpha=alpha)
        return torch.addmm(self._bias, states, self.weight.t(), alpha=alpha, out=logits)


class Sums:
    """The gradients of a head, over all chunks; None where none is asked for."""

    def __init__(self, head: FactoredLogits, work: Work, wanted: tuple[bool, bool, bool]) -> None:
        empty = torch.zeros_like if work.rows is not None else torch.empty_like
        self.states = empty(head.states, dtype=work.soft) if wanted[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=work.soft) if wanted[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=work.soft) if head.bias is not None and wanted[2] else None
        self._scale, self._rows, self._unit = head.scale, work.rows, work.unit
        self._dtypes = [None if one is None else one.dtype for one in (head.states, head.weight, head.bias)]

    def scaled(self, upstream: Tensor) -> list[Tensor | None]:
        """The gradients of states, weight and bias times a number, in their dtypes; to be called once."""
        factor = upstream if self._unit is None else upstream * self._unit
        sums = (self.states, self.weight, self.bias)
        pairs = zip(sums, self._dtypes, strict=True)
        return [None if one is None else one.mul_(factor).to(dtype) for one, dtype in pairs]

    def add(self, gradient: Tensor, states: Tensor, weight: Tensor, chunk: slice) -> None:
        """Take in a chunk's gradient with respect to the logits before scale and bias, [c, V]."""
        if self.states is not None:
            self._add_states(gradient, weight, self.states, chunk)
        if self.weight is not None:
            self._add_weight(gradient, states, self.weight)
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def _add_states(self, gradient: Tensor, weight: Tensor, total: Tensor, chunk: slice) -> None:
        if self._rows is None and total.dtype == gradient.dtype:
            total[chunk].addmm_(gradient, weight, beta=0, alpha=self._scale)
            return
        product = torch.mm(gradient, weight).to(total.dtype).mul_(self._scale)
        if self._rows is None:
            total[chunk] = product
        else:
            total.index_copy_(0, self._rows[chunk], product)

    def _add_weight(self, gradient: Tensor, states: Tensor, total: Tensor) -> None:
        if total.dtype == gradient.dtype:
            total.addmm_(gradient.t(), states, alpha=self._scale)
            return
        slab = max(1, CHUNK // total.shape[1])  # the product in the low precision is there a slab at a time
        for start in range(0, len(total), slab):
            product = torch.mm(gradient[:, start : start + slab].t(), states)
            total[start : start + slab].add_(product, alpha=self._scale)


def chunk_rows(positions: int, classes: int) -> int:
    """How many positions have their logits as a matrix at once."""
    return max(1, min(positions, max(64, CHUNK // classes // 32 * 32)))


def accumulate(head: FactoredLogits, work: Work, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Sums]:
    """The values of every term, [parts, n], and the gradients of the weighted sum that are asked for."""
    count = len(head.states) if work.rows is None else len(work.rows)
    values = head.weight.new_zeros(sum(map(len, work.terms.values())), count, dtype=work.soft)
    sums = Sums(head, work, wanted)
    product = Product(head, work)
    of_teacher = Product(work.teacher, work) if isinstance(work.teacher, FactoredLogits) else None
    height = max(1, BLOCK // len(head.weight))
    room = Room(min(height, work.chunk), product.weight, work.soft)
    for start in range(0, count, work.chunk):
        chunk = slice(start, min(start + work.chunk, count))
        states = _some(head.states, work.rows, chunk).to(work.dtype)
        logits = product.logits(states)
        teacher = _teacher_logits(of_teacher, work, chunk)
        for first in range(0, len(logits), height):
            block = slice(first, min(first + height, len(logits)))
            place = slice(start + block.start, start + block.stop)
            own = None if teacher is None else teacher[block]
            _Pass(head, work, room, place, any(wanted)).run(logits[block], own, values)
        if any(wanted):
            sums.add(logits, states, product.weight, chunk)
    return values, sums


def _some(tensor: Tensor, rows: Tensor | None, chunk: slice) -> Tensor:
    return tensor[chunk] if rows is None else tensor.index_select(0, rows[chunk])


def _teacher_logits(product: Product | None, work: Work, chunk: slice) -> Tensor | None:
    """The teacher's logits [c, V] before a cap; rows that no term asks for are 0, whatever stood there."""
    if product is None:
        return _some(work.teacher, work.rows, chunk) if isinstance(work.teacher, Tensor) else None
    states = _some(product.head.states, work.rows, chunk).to(work.dtype)
    if work.unheard is not None:
        states = states.masked_fill(work.unheard[chunk].unsqueeze(-1), 0.0)
    return product.logits(states)


class _Pass:
    """One block: from the student's logits to their gradient, in the same memory."""

    def __init__(self, head: FactoredLogits, work: Work, room: Room, place: slice, wanted: bool) -> None:
        self.head, self.work, self.place, self.wanted = head, work, place, wanted
        self._room = room

    def room(self, name: str) -> Tensor:
        return self._room(name, self.place.stop - self.place.start)

    def run(self, logits: Tensor, teacher: Tensor | None, values: Tensor) -> None:
        """Write the terms' values [parts, n] at the block's place, and the gradient over the logits [b, V]."""
        terms = self.work.terms
        plain = self._plain(logits, self.head.softcap, "student")
        # A term with a matrix of its own writes it at once, so that the logits must no longer be asked for.
        last = [[term.loss in WRITING for term in each] for each in terms.values()]
        own = plain is logits and len(terms) == 1 and not any(last[0][:-1])
        into = logits if own else self.room("gradient")
        other = None if teacher is None else self._plain_teacher(teacher)
        for number, temperature in enumerate(terms):
            gradient = Gradient(into, started=number > 0)
            if isinstance(self.work.teacher, SparseLogits) and any(term.loss in FORMS for term in terms[temperature]):
                self._outcomes(plain, temperature, gradient, values)
            else:
                self._classes(plain, other, temperature, gradient, values)
        if self.wanted and into is not logits:
            if self.head.softcap is not None:  # of cap * tanh(x / cap): 1 - tanh^2
                into.addcmul_(into, self.room("student_tanh").square_(), value=-1)
            logits.copy_(into)

    def _classes(
        self, plain: Tensor, other: Tensor | None, temperature: float, gradient: Gradient, values: Tensor
    ) -> None:
        """The terms at one temperature, over all V classes."""
        terms = self.work.terms[temperature]
        student = distribution(self._softened(plain, temperature, "student"), self.room("student_p"))
        teacher = None
        if any(term.loss in FORMS for term in terms) and other is not None:
            teacher = distribution(self._softened_teacher(other, temperature), self.room("teacher_p"))
        label_weights = None
        for term in terms:
            if term.loss == "cross_entropy":
                found = self._cross_entropy(student)
                label_weights = term.slopes[self.place] + (0.0 if label_weights is None else label_weights)
            elif teacher is not None and term.loss in FORMS:
                block = Block(student, teacher, self._working(term.loss), self.wanted)
                found = FORMS[term.loss](block, term.options)
            else:
                found = self._squares(plain, other, term)
            self._note(term, found, gradient, values)
        if not self.wanted:
            return
        into = gradient.finish(student.p, None if teacher is None else teacher.p)
        if label_weights is not None:
            into.scatter_add_(1, self._labels(), -label_weights.unsqueeze(-1))

    def _outcomes(self, plain: Tensor, temperature: float, gradient: Gradient, values: Tensor) -> None:
        """The terms at one temperature over K + 1 outcomes: each of the teacher's K classes, and any other."""
        cache = self.work.teacher
        assert isinstance(cache, SparseLogits)
        logits = self._softened(plain, temperature, "student")
        if logits is plain and gradient.into is not plain:  # still needed, and written to below
            logits = self.room("student_softened").copy_(plain)
        ids, labels = cache.ids[self.place], self._labels() if self.work.labels is not None else None
        picked, right = logits.gather(1, ids), None if labels is None else logits.gather(1, labels)
        others = distribution(logits.scatter_(1, ids, FLOOR), self.room("student_p"))
        outcomes = torch.cat([picked, others.normaliser.to(picked.dtype).unsqueeze(-1)], dim=1)
        known = torch.cat([cache.values[self.place], cache.tail[self.place].unsqueeze(-1)], dim=1)
        student = distribution(outcomes, torch.empty_like(outcomes))
        teacher = distribution(known.to(outcomes.dtype).clamp(min=FLOOR), torch.empty_like(outcomes))
        block = Block(student, teacher, tuple(torch.empty_like(outcomes) for _ in range(3)), self.wanted)
        narrow, label_weights = Gradient(torch.empty_like(outcomes)), None
        for term in self.work.terms[temperature]:
            if term.loss == "cross_entropy" and right is not None:
                found = Found((student.normaliser - right.squeeze(-1)).to(outcomes.dtype), on_student=1.0)
                label_weights = term.slopes[self.place] + (0.0 if label_weights is None else label_weights)
            else:
                found = FORMS[term.loss](block, term.options)
            self._note(term, found, narrow, values)
        if not self.wanted:
            return
        # An outcome's share of the gradient goes to its class; that of the others to each in proportion.
        slope = narrow.finish(student.p, teacher.p)
        gradient.write(others.p, slope[:, -1])
        gradient.into.scatter_add_(1, ids, slope[:, :-1])
        if label_weights is not None and labels is not None:
            gradient.into.scatter_add_(1, labels, -label_weights.unsqueeze(-1))

    def _cross_entropy(self, student: Distribution) -> Found:
        right = student.logits.gather(1, self._labels()).squeeze(-1)
        return Found((student.normaliser - right).to(right.dtype), on_student=1.0)

    def _squares(self, plain: Tensor, other: Tensor | None, term: Term) -> Found:
        """`logit_mse`, of the logits as they are."""
        assert other is not None
        apart = torch.sub(plain, other, alpha=term.options["teacher_scale"], out=self.room("first"))
        values = torch.mul(apart, apart, out=self.room("second")).mean(-1)
        return Found(values, other=apart, factor=2 / apart.shape[-1])

    def _note(self, term: Term, found: Found, gradient: Gradient, values: Tensor) -> None:
        values[term.index, self.place] = found.values * term.scale
        if self.wanted:
            gradient.add(found, term.slopes[self.place])

    def _working(self, loss: str) -> tuple[Tensor, ...]:
        count = 3 if loss.startswith("skewed") else 2 if loss in WRITING else 1
        return tuple(self.room(name) for name in ("first", "second", "third")[:count])

    def _labels(self) -> Tensor:
        assert self.work.labels is not None
        return self.work.labels[self.place]

    def _plain(self, logits: Tensor, softcap: float | None, name: str) -> Tensor:
        """The logits, capped, in float32 at least; the tensor itself where it is that already."""
        if softcap is not None:
            bounded = self.room(f"{name}_tanh").copy_(logits).div_(softcap).tanh_()
            return torch.mul(bounded, softcap, out=self.room(f"{name}_logits"))
        return logits if logits.dtype == self.work.soft else self.room(f"{name}_logits").copy_(logits)

    def _plain_teacher(self, logits: Tensor) -> Tensor:
        if isinstance(self.work.teacher, FactoredLogits):
            return self._plain(logits, self.work.teacher.softcap, "teacher")
        if self.work.unheard is None:
            return self._plain(logits, None, "teacher")
        copy = self.room("teacher_logits").copy_(logits)
        return copy.masked_fill_(self.work.unheard[self.place].unsqueeze(-1), 0.0)

    def _softened(self, plain: Tensor, temperature: float, name: str) -> Tensor:
        head = self.head if name == "student" else self.work.teacher
        folded = self.work.folded(head.softcap) if isinstance(head, FactoredLogits) else 1.0
        return plain if temperature == folded else torch.div(plain, temperature, out=self.room(f"{name}_softened"))

    def _softened_teacher(self, plain: Tensor, temperature: float) -> Tensor:
        softened = self._softened(plain, temperature, "teacher")
        if isinstance(self.work.teacher, FactoredLogits):
            return softened
        # Logits as they are may hold minus infinity.
        return torch.clamp(softened, min=FLOOR, out=self.room("teacher_softened"))
