"""A method is a flat list of terms. `Term` is one of them as written; `Objective` computes their weighted sum.

An objective is written before any model is known, and bound to two models by `Objective.bind`: names become functions,
layer maps become pairs, differing widths get projections. Everything that can be wrong is found there, before training.

Each term is a mean over its own positions: rows with a label (labels), rows (logits), tokens (the rest), and over its
layer pairs. The counts come from outside, over the whole accumulation window and all ranks, so that neither padding nor
accumulation changes the loss or its gradient.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from potstill import losses
from potstill.checks import problem, unknown_name
from potstill.errors import MappingError, RecipeError
from potstill.knowledge.architectures import ModelShape
from potstill.knowledge.types import Knowledge, Needs
from potstill.mappings import EMBEDDINGS, layer_map
from potstill.projectors import LINEAR, PROJECTIONS
from potstill.reduce import masked_mean
from potstill.schedules import schedule

#: Each kind of knowledge: the family (file) of the losses that fit it, its usual loss, and the positions it is a mean
#: over. The usual loss of labels and logits depends on the task, which says so in `Defaults`.
KINDS: dict[str, tuple[str, str | None, str]] = {
    "labels": ("labels", None, "labels"),
    "logits": ("logits", None, "outputs"),
    "hidden": ("hidden", "hidden_mse", "tokens"),
    "attention": ("attention", "attention_kl", "tokens"),
    "queries": ("relation", "relation_kl", "tokens"),
    "keys": ("relation", "relation_kl", "tokens"),
    "values": ("relation", "relation_kl", "tokens"),
}
LAYERLESS = ("labels", "logits")
AUTO = "auto"
OURS = ("student", "teacher", "mask", "temperature", "labels")


@dataclass(frozen=True)
class Term:
    """One term of an objective, as a recipe writes it.

    Args:
        knowledge: labels, logits, hidden, attention, queries, keys or values.
        loss: a name in `potstill.losses` of the family that fits, or a function of the same form; None takes the usual.
        layers: uniform, first, last, skip, or explicit pairs ``{student: teacher}``; for hidden states also
            ``embeddings``.
        weight: a number, or a schedule such as ``{schedule: linear, from: 1, to: 0}``.
        temperature: a number or a schedule, for losses that take one.
        project: ``auto`` (linear where the widths differ), ``linear``, or ``none``; for hidden states.
        options: further arguments of the loss, such as ``heads`` of `relation_kl`.
    """

    knowledge: str
    loss: str | Callable[..., Tensor] | None = None
    layers: Any = None
    weight: Any = 1.0
    temperature: Any = None
    project: str = AUTO
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What the task says of its outputs: the losses of labels and logits when a term names none, and those refused."""

    labels: str = "cross_entropy"
    logits: str = "kl_divergence"
    refused: Mapping[str, str] = field(default_factory=dict)  # loss name -> why it can't be used in this task


@dataclass(frozen=True)
class BoundTerm:
    """A term whose names are resolved: the function, the (student, teacher) pairs of layers, the schedules."""

    name: str
    kind: str
    loss: Callable[..., Tensor]
    pairs: tuple[tuple[int, int], ...]
    weight: Callable[[float], float]
    temperature: Callable[[float], float] | None
    project: str | None
    options: Mapping[str, Any]

    @property
    def positions(self) -> str:
        """What the term is a mean over: labels, outputs or tokens."""
        return KINDS[self.kind][2]

    def projector_name(self, pair: tuple[int, int]) -> str:
        """The name under which the projection of a layer pair is trained and checkpointed."""
        student, teacher = ("embeddings" if layer == EMBEDDINGS else str(layer) for layer in pair)
        return f"{self.name.replace(' ', '_')}_{student}_to_{teacher}"


@dataclass(frozen=True)
class Parts:
    """The loss of a micro-batch: the weighted total, and each term's weighted share of it."""

    total: Tensor
    terms: Mapping[str, Tensor]


class Objective:
    """The weighted sum of terms. Write it, `bind` it to the shapes of two models, and call it with their knowledge.

    A term may be written as in a recipe too, as a mapping in which the options of its loss stand beside the other keys.
    """

    def __init__(self, terms: Sequence[Term | Mapping[str, Any]]) -> None:
        self.terms = tuple(term if isinstance(term, Term) else _written(term) for term in terms)

    def bind(
        self, student: ModelShape, teacher: ModelShape | None = None, defaults: Defaults | None = None
    ) -> "BoundObjective":
        """Resolve every name for these models. Raises `RecipeError` that lists every problem found."""
        bound: list[BoundTerm] = []
        problems: list[str] = []
        if not self.terms:
            problems.append("An objective needs at least one term, such as {knowledge: labels}.")
        for index, term in enumerate(self.terms):
            try:
                bound.append(_bind(term, _name(self.terms, index), student, teacher, defaults or Defaults()))
            except (RecipeError, MappingError, ValueError) as error:
                problems.append(f"terms.{index} ({term.knowledge}): {error}")
        if problems:
            raise RecipeError("\n".join(problems))
        return BoundObjective(tuple(bound), student, teacher)


@dataclass(frozen=True)
class BoundObjective:
    """An objective whose names are resolved for two models."""

    terms: tuple[BoundTerm, ...]
    student: ModelShape
    teacher: ModelShape | None

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return any(term.kind != "labels" for term in self.terms)

    def needs(self, side: str) -> Needs:
        """What this objective asks of the ``student`` or of the ``teacher``."""
        found = Needs(logits=side == "student")
        for term in self.terms:
            if term.kind == "logits":
                found |= Needs(logits=True)
            elif term.kind not in LAYERLESS:
                layers = frozenset(pair[0 if side == "student" else 1] for pair in term.pairs)
                found |= Needs(**{term.kind: layers})  # type: ignore[arg-type]
        return found

    def projections(self) -> dict[str, tuple[str, int, int]]:
        """Name -> (kind, student width, teacher width) of every projection that must be trained beside the student."""
        if self.teacher is None:
            return {}
        sizes = (self.student.width, self.teacher.width)
        return {t.projector_name(p): (t.project, *sizes) for t in self.terms if t.project for p in t.pairs}

    def __call__(
        self,
        student: Knowledge,
        teacher: Knowledge | None,
        labels: Tensor | None,
        masks: Mapping[str, Tensor],
        *,
        counts: Mapping[str, Tensor | float] | None = None,
        progress: float = 0.0,
        projectors: Mapping[str, nn.Module] | None = None,
    ) -> Parts:
        """The loss of one micro-batch.

        Args:
            student, teacher: what was observed in each; the teacher may be None where no term compares with it.
            labels: the task's labels of the rows.
            masks: ``labels`` [B] rows with a label, ``outputs`` [B] rows that count, ``tokens`` [B,S] not padding.
            counts: the denominators, over the whole accumulation window; None takes those of this micro-batch.
            progress: the share of training done, 0 to 1, for the schedules.
            projectors: the projections by name, as `projections` lists them.
        """
        shares: dict[str, Tensor] = {}
        for term in self.terms:
            mask = masks[term.positions]
            count = None if counts is None else counts[term.positions]
            found = _values(term, student, teacher, labels, progress, projectors)
            values = [masked_mean(value, mask, count) for value in found]
            weight = term.weight(progress) / len(values)
            shares[term.name] = weight * sum(values[1:], values[0])
        parts = list(shares.values())
        return Parts(sum(parts[1:], parts[0]), shares)


def check_term(term: Term) -> None:
    """Raise `RecipeError` or `ValueError` for what is wrong in a term for any models: names, options, schedules."""
    if term.knowledge not in KINDS:
        raise RecipeError(unknown_name("knowledge", term.knowledge, KINDS))
    _options(term, _loss(term, Defaults()))
    for value in (term.weight, 1.0 if term.temperature is None else term.temperature):
        schedule(value)


def _values(
    term: BoundTerm,
    student: Knowledge,
    teacher: Knowledge | None,
    labels: Tensor | None,
    progress: float,
    projectors: Mapping[str, nn.Module] | None,
) -> list[Tensor]:
    """The unreduced loss of a term, one tensor a layer pair."""
    options = dict(term.options)
    if term.temperature is not None:
        options["temperature"] = term.temperature(progress)
    if term.kind == "labels":
        return [term.loss(student.logits, labels, **options)]
    assert teacher is not None, "a term that compares with the teacher was called without one"
    if term.kind == "logits":
        return [term.loss(student.logits, teacher.logits, **options)]
    if "mask" in inspect.signature(term.loss).parameters:
        options["mask"] = student.mask
    values = []
    for pair in term.pairs:
        ours, theirs = getattr(student, term.kind)[pair[0]], getattr(teacher, term.kind)[pair[1]]
        if term.project:
            assert projectors is not None, "this objective projects, and no projections were given"
            ours = projectors[term.projector_name(pair)](ours)
        values.append(term.loss(ours, theirs, **options))
    return values


def _written(term: Mapping[str, Any]) -> Term:
    """A term from a mapping; what is no field of `Term` is an option of its loss, and checked as one by `bind`."""
    if "knowledge" not in term:
        raise RecipeError(
            problem("A term needs the key 'knowledge'", given=dict(term), do=f"Known: {', '.join(KINDS)}")
        )
    known = {f.name for f in fields(Term)}
    options = {key: value for key, value in term.items() if key not in known} | dict(term.get("options", {}))
    return Term(**{key: value for key, value in term.items() if key in known} | {"options": options})


def _name(terms: Sequence[Term], index: int) -> str:
    """``hidden``, or ``hidden 2`` for the second term of a kind."""
    kind = terms[index].knowledge
    number = sum(term.knowledge == kind for term in terms[: index + 1])
    return kind if number == 1 else f"{kind} {number}"


def _bind(term: Term, name: str, student: ModelShape, teacher: ModelShape | None, defaults: Defaults) -> BoundTerm:
    if term.knowledge not in KINDS:
        raise RecipeError(unknown_name("knowledge", term.knowledge, KINDS))
    if teacher is None and term.knowledge != "labels":
        raise RecipeError("This term compares with a teacher, and there is none.")
    loss = _loss(term, defaults)
    options = _options(term, loss)
    temperature = schedule(1.0 if term.temperature is None else term.temperature)
    takes_temperature = "temperature" in inspect.signature(loss).parameters
    if term.temperature is not None and not takes_temperature:
        raise RecipeError(f"'{loss.__name__}' takes no temperature. Remove the key.")
    pairs: tuple[tuple[int, int], ...] = ()
    if term.knowledge in LAYERLESS:
        if term.layers is not None:
            raise RecipeError(f"'{term.knowledge}' has no layers. Remove the key 'layers'.")
    else:
        assert teacher is not None
        spec = "uniform" if term.layers is None else term.layers
        pairs = layer_map(spec, student.layers, teacher.layers, embeddings=term.knowledge == "hidden")
        _check_heads(term, student, teacher, options)
    return BoundTerm(
        name=name,
        kind=term.knowledge,
        loss=loss,
        pairs=pairs,
        weight=schedule(term.weight),
        temperature=temperature if takes_temperature else None,
        project=_projection(term, student, teacher),
        options=options,
    )


def _loss(term: Term, defaults: Defaults) -> Callable[..., Tensor]:
    family, usual, _ = KINDS[term.knowledge]
    loss = term.loss or usual or getattr(defaults, term.knowledge)
    if callable(loss):
        return loss
    families = ("divergence", "bounded", "logits") if family == "logits" else (family,)
    modules = {f"{losses.__name__}.{name}" for name in families}
    fitting = [n for n in losses.__all__ if getattr(losses, n).__module__ in modules]
    if loss not in fitting:
        raise RecipeError(unknown_name(f"loss for {term.knowledge}", loss, fitting))
    if loss in defaults.refused:
        raise RecipeError(f"'{loss}' can't be used here: {defaults.refused[loss]}")
    return getattr(losses, loss)  # type: ignore[no-any-return]


def _options(term: Term, loss: Callable[..., Tensor]) -> dict[str, Any]:
    """The term's further arguments, bound to the loss's signature."""
    known = set(inspect.signature(loss).parameters) - set(OURS)
    fields = ("knowledge", "loss", "layers", "weight", "temperature", "project")
    what = f"key of a term with '{loss.__name__}'"
    if wrong := [unknown_name(what, key, {*known, *fields}) for key in term.options if key not in known]:
        raise RecipeError(" ".join(wrong))
    return dict(term.options)


def _projection(term: Term, student: ModelShape, teacher: ModelShape | None) -> str | None:
    if term.project not in (AUTO, "none", *PROJECTIONS):
        raise RecipeError(unknown_name("projection", term.project, (AUTO, "none", *PROJECTIONS)))
    if term.knowledge != "hidden" or teacher is None:
        if term.project in PROJECTIONS:
            raise RecipeError(f"Only hidden states are projected, not {term.knowledge}. Remove the key 'project'.")
        return None
    differs = student.width != teacher.width
    if term.project == "none" and differs:
        raise RecipeError(
            problem(
                "Hidden states of different widths can't be compared without a projection",
                given=f"student {student.width}, teacher {teacher.width}, project: none",
                do="Set project: linear",
            )
        )
    return LINEAR if term.project == LINEAR or (term.project == AUTO and differs) else None


def _check_heads(term: Term, student: ModelShape, teacher: ModelShape, options: Mapping[str, Any]) -> None:
    heads = options.get("heads")
    if heads and any(shape.width % heads for shape in (student, teacher)):
        raise RecipeError(
            problem(
                "Relation heads cut both widths into equal parts, so their number must divide both",
                given=f"heads {heads}, widths: student {student.width}, teacher {teacher.width}",
            )
        )
    if term.knowledge == "hidden" or student.heads == teacher.heads or heads:
        return
    way = (
        "Give 'heads' (relation heads, a divisor of both widths, such as 12), which regroups both sides"
        if KINDS[term.knowledge][0] == "relation"
        else "Distil values, keys and queries instead, which can be regrouped"
    )
    raise RecipeError(
        problem(
            f"{term.knowledge.capitalize()} are compared head by head, and the head counts differ",
            given=f"student {student.heads}, teacher {teacher.heads}",
            do=way,
        )
    )
