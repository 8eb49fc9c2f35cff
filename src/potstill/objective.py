"""A method is a flat list of terms, and `Objective` computes their weighted sum.

An objective is written before any model is known, and bound to two models by `Objective.bind`: names become functions,
layer maps become pairs, differing widths get projections (`potstill.terms`). Everything that can be wrong is found
there, before training.

Each term is a mean over its own positions: rows with a label (labels, and losses that need them), rows (logits, pooled
states), tokens (the rest), and over its layer pairs. The counts come from outside, over the whole accumulation window
and all ranks, so that neither padding nor accumulation changes the loss or its gradient.

Where the student's logits are factored, the terms on labels and logits are computed together (`potstill.fusing`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from potstill.errors import MappingError, RecipeError
from potstill.fusing import fusable, fused_shares, outcomes
from potstill.kinds import KINDS, LAYERLESS, OF_MAPS, family, takes, width_at
from potstill.knowledge.architectures import ModelShape
from potstill.knowledge.types import STAGED, Knowledge, Logits, Needs
from potstill.losses.fused import FactoredLogits, SparseLogits
from potstill.losses.logits import probability_shifted
from potstill.projectors import ASSISTANT, IMAGE_CHANNELS, JointProjection
from potstill.reduce import masked_mean, position_weights
from potstill.schedules import Adaptive
from potstill.staged import Surroundings, stage_values
from potstill.terms import TEACHER, BoundTerm, Defaults, Term, bind_term, check_term, written
from potstill.transport import earth_movers_flow

__all__ = ["KINDS", "BoundObjective", "BoundTerm", "Defaults", "Objective", "Parts", "Scene", "Term", "check_term"]

One = TypeVar("One")
WEIGHTS = "weights"


@dataclass(frozen=True)
class Parts:
    """The loss of a micro-batch: the weighted total, and each term's weighted share of it."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """What the terms of one micro-batch may be told besides what was observed in the models.

    Args:
        labels: the task's labels of the rows.
        masks: ``labels`` [B] rows with a label, ``outputs`` [B] rows that count, ``tokens`` [B,S] not padding (images
            have none); where outputs are of tokens or pixels, ``labels`` and ``outputs`` are [B,S] or [B,H,W], and
            ``rows`` [B] are the rows that count. ``weights``, where there are any: how much the label of each position
            counts, [B,H,W] floats, 0 where there is none; terms on labels are then a weighted mean.
        counts: the denominators, over the whole accumulation window; None takes those of this micro-batch.
        progress: the share of training done, 0 to 1, for the schedules.
        modules: projections and memories by name, as `BoundObjective.projections`, `joint_projections` and `memories`
            list them.
        rows: the number of each row in the data set, [B], for a memory.
        pixels: the images as the student sees them, [B,3,H,W]; None where there are none.
        influence: each teacher's, one number or one a row [B]; without it, all teachers count alike.
    """

    labels: Tensor | None
    masks: Mapping[str, Tensor]
    counts: Mapping[str, Tensor | float] | None = None
    progress: float = 0.0
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    rows: Tensor | None = None
    pixels: Tensor | None = None
    influence: Mapping[str, Tensor | float] | None = None


class Objective:
    """The weighted sum of terms. Write it, `bind` it to the shapes of two models, and call it with their knowledge.

    A term may be written as in a recipe too, as a mapping in which the options of its loss stand beside the other keys.
    """

    def __init__(self, terms: Sequence[Term | Mapping[str, Any]]) -> None:
        self.terms = tuple(term if isinstance(term, Term) else written(term) for term in terms)

    def bind(
        self,
        student: ModelShape,
        teacher: ModelShape | Mapping[str, ModelShape] | None = None,
        defaults: Defaults | None = None,
    ) -> "BoundObjective":
        """Resolve every name for these models; several teachers come by name. Raises `RecipeError`, all problems."""
        teachers = by_name(teacher)
        bound: list[BoundTerm] = []
        problems: list[str] = []
        if not self.terms:
            problems.append("An objective needs at least one term, such as {knowledge: labels}.")
        for index, term in enumerate(self.terms):
            try:
                bound += bind_term(term, _name(self.terms, index), student, teachers, defaults or Defaults())
            except (RecipeError, MappingError, ValueError) as error:
                problems.append(f"terms.{index} ({term.knowledge}): {error}")
        if problems:
            raise RecipeError("\n".join(problems))
        return BoundObjective(tuple(bound), student, teachers)


@dataclass(frozen=True)
class BoundObjective:
    """An objective whose names are resolved for two models, or for a student and several teachers."""

    terms: tuple[BoundTerm, ...]
    student: ModelShape
    teachers: Mapping[str, ModelShape]

    @property
    def teacher(self) -> ModelShape | None:
        """The shape of the one teacher, or of the first of several."""
        return next(iter(self.teachers.values()), None)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(term.kind != "labels" for term in self.terms)

    @property
    def needs_rows(self) -> bool:
        """Whether any term must know which rows of the data set it sees."""
        return any(term.memory is not None for term in self.terms)

    def asked(self, source: str) -> bool:
        """Whether any term learns from this teacher."""
        return any(term.kind != "labels" and term.source == source for term in self.terms)

    def needs(self, side: str, source: str = TEACHER) -> Needs:
        """What this objective asks of the ``student``, or of the ``teacher`` that `source` names."""
        found = Needs(logits=side == "student")
        if side == "student":
            found |= Needs(classifiers=frozenset(term.classifier for term in self.terms if term.classifier is not None))
        for term in self.terms:
            if side == "teacher" and term.source != source:
                continue
            if term.kind == "logits":
                found |= Needs(logits=True)
            elif term.kind not in LAYERLESS:
                layers = frozenset(pair[0 if side == "student" else 1] for pair in term.pairs)
                found |= Needs(**{term.kind: layers})  # type: ignore[arg-type]
                if side == "student" and term.project == ASSISTANT:
                    found |= Needs(features=frozenset(stage - 1 for stage, _ in term.pairs if stage > 0))
        return found

    def projections(self) -> dict[str, tuple[str, int, int]]:
        """Name -> (kind, student width, teacher width) of every projection that must be trained beside the student."""
        return {
            term.module_name(pair): (term.project, *self._widths(term, pair))
            for term in self.terms
            if term.project and not term.joint
            for pair in term.pairs
        }

    def joint_projections(self) -> dict[str, JointProjection]:
        """Name -> what makes it, of every projection that sees all pairs of a term at once."""
        found = {}
        for term in self.terms:
            if term.joint:
                assert term.project is not None
                stages = tuple(stage for stage, _ in term.pairs)
                ours, theirs = zip(*(self._widths(term, pair) for pair in term.pairs), strict=True)
                before = tuple(IMAGE_CHANNELS if stage == 0 else self.student.channels[stage - 1] for stage in stages)
                found[term.joint_name] = JointProjection(term.project, stages, ours, theirs, before)
        return found

    def _widths(self, term: BoundTerm, pair: tuple[int, int]) -> tuple[int, int]:
        teacher = self.teachers[term.source]
        return width_at(self.student, term.kind, pair[0]), width_at(teacher, term.kind, pair[1])

    def memories(self) -> dict[str, tuple[BoundTerm, tuple[int, int]]]:
        """Name -> (term, widths of student and teacher) of every memory that must be kept beside the student."""
        return {
            term.module_name(pair): (term, self._widths(term, pair))
            for term in self.terms
            if term.memory is not None
            for pair in term.pairs
        }

    def __call__(self, student: Knowledge, teacher: Knowledge | Mapping[str, Knowledge] | None, scene: Scene) -> Parts:
        """The loss of one micro-batch, from what was observed in the student and in its teacher or teachers."""
        teachers = by_name(teacher)
        total: Tensor | float = 0.0
        shares: dict[str, Tensor] = {}
        rest = self.terms
        if isinstance(student.logits, FactoredLogits):
            together = [term for term in self.terms if fusable(term)]
            rest = tuple(term for term in self.terms if term not in together)
            if together:
                weights = {term.name: _weights(term, scene) for term in together}
                total, shares = fused_shares(together, weights, student.logits, teachers, scene.labels, scene.progress)
        if any(term.kind in LAYERLESS for term in rest):
            student = student.with_dense_logits()
            teachers = {name: known.with_dense_logits() for name, known in teachers.items()}
        for term in rest:
            shares[term.name] = term.weight(scene.progress) * _mean(term, student, teachers.get(term.source), scene)
            total = total + shares[term.name]
        assert isinstance(total, Tensor)
        return Parts(total, {term.name: shares[term.name] for term in self.terms})


def by_name(teacher: One | Mapping[str, One] | None) -> dict[str, One]:
    """Teachers (their shapes, their knowledge, or the models themselves) by name, from one, several or none."""
    if teacher is None:
        return {}
    return dict(teacher) if isinstance(teacher, Mapping) else {TEACHER: teacher}


def _name(terms: Sequence[Term], index: int) -> str:
    """``hidden``, or ``hidden 2`` for the second term of a kind."""
    kind = terms[index].knowledge
    number = sum(term.knowledge == kind for term in terms[: index + 1])
    return kind if number == 1 else f"{kind} {number}"


def _weights(term: BoundTerm, scene: Scene) -> Tensor:
    """What a term's value at each position is multiplied by, float32: mask, count, weight and influence."""
    mask = scene.masks[term.positions]
    weights = position_weights(mask, None if scene.counts is None else scene.counts[term.positions])
    influence = _influence(term, scene)
    if isinstance(influence, Tensor):
        influence = influence.reshape(-1, *[1] * (mask.ndim - 1)).to(weights)
    return weights * (term.weight(scene.progress) * influence)


def _rows(scene: Scene) -> str:
    """The mask of rows: the outputs, where there is one a row."""
    return "rows" if "rows" in scene.masks else "outputs"


def _mean(term: BoundTerm, student: Knowledge, teacher: Knowledge | None, scene: Scene) -> Tensor:
    """The term's mean over positions and layer pairs, unweighted."""
    influence = _influence(term, scene)
    means = []
    for value in _values(term, student, teacher, scene):
        positions = term.positions
        if positions not in scene.masks:  # images: nothing is padding, so a row is the mean of its places, and windows
            positions = _rows(scene)
            value = value.reshape(len(scene.masks[positions]), -1).mean(1)
        elif value.shape != scene.masks[positions].shape:  # a value of a whole row, from its tokens
            positions = _rows(scene)
        if isinstance(influence, Tensor):
            value = value * influence.reshape(-1, *[1] * (value.ndim - 1)).to(value.dtype)
        elif influence != 1:
            value = value * influence
        counted = positions
        if term.kind == "labels" and WEIGHTS in scene.masks:
            value, counted = value * scene.masks[WEIGHTS], WEIGHTS
        counts = scene.masks[counted].sum() if scene.counts is None else scene.counts[counted]
        means.append(masked_mean(value, scene.masks[positions], counts))
    if term.stage_weights is not None:
        weighted = [weight * mean for weight, mean in zip(term.stage_weights, means, strict=True)]
        return sum(weighted[1:], weighted[0])
    if not term.transport:
        return sum(means[1:], means[0]) / len(means)
    costs = torch.stack(means).reshape(len({s for s, _ in term.pairs}), -1)
    return (earth_movers_flow(costs.detach()).to(costs) * costs).sum()


def _influence(term: BoundTerm, scene: Scene) -> Tensor | float:
    """How much of a term that was spread over several teachers is this one's."""
    if term.sources == 1:
        return 1.0
    if scene.influence is None or term.source not in scene.influence:
        return 1.0 / term.sources
    return scene.influence[term.source]


def _values(term: BoundTerm, student: Knowledge, teacher: Knowledge | None, scene: Scene) -> Iterator[Tensor]:
    """The unreduced loss of a term, one tensor a layer pair."""
    options = _arguments(term, student, teacher, scene)
    if term.kind == "labels":
        yield term.loss(_placed(student.logits_of(term.classifier), term), scene.labels, **options)
        return
    assert teacher is not None, "a term that compares with the teacher was called without one"
    if term.kind == "logits":
        ours, target = _placed(student.logits_of(term.classifier), term), _placed(teacher.logits, term)
        if isinstance(target, SparseLogits):
            assert isinstance(ours, Tensor)
            ours, target = outcomes(ours, target, term, options.get("temperature", 1.0))
        elif term.shift and scene.labels is not None:
            assert isinstance(target, Tensor)
            target = probability_shifted(target, scene.labels)
        yield term.loss(ours, target, **options)
        return
    if term.kind in STAGED:
        around = Surroundings(scene.modules, scene.pixels, scene.masks["outputs"], scene.rows)
        yield from stage_values(term, student, teacher, around, options)
        return
    if "student_next" in takes(term.loss):
        for here, there in pairwise(term.pairs):
            ours, theirs = _pair(term, student, teacher, here, scene)
            following = dict(
                zip(("student_next", "teacher_next"), _pair(term, student, teacher, there, scene), strict=True)
            )
            yield term.loss(ours, theirs, **following, **options)
        return
    for pair in term.pairs:
        ours, theirs = _pair(term, student, teacher, pair, scene)
        if term.memory is not None:
            assert scene.rows is not None, "a memory needs to know which rows it sees"
            remembered = scene.modules[term.module_name(pair)](ours, theirs, scene.rows)
            yield term.loss(**remembered, **options)  # the memory gives all but the mask
        else:
            yield term.loss(ours, theirs, **options)


def _placed(logits: Logits | None, term: BoundTerm) -> Logits | None:
    """Logits with their classes last, as losses of positions take them; maps [B,V,H,W] stay so for losses of maps."""
    if isinstance(logits, Tensor) and logits.ndim == 4 and family(term.loss) not in OF_MAPS:
        return logits.movedim(1, -1)
    return logits


def _arguments(term: BoundTerm, student: Knowledge, teacher: Knowledge | None, scene: Scene) -> dict[str, Any]:
    """What a term's loss takes besides the two tensors: its options as they are now, temperature, labels, mask."""
    options: dict[str, Any] = {}
    if term.memory is None:
        options = {**term.options, **{key: value(scene.progress) for key, value in term.scheduled.items()}}
        if isinstance(term.temperature, Adaptive):
            assert teacher is not None
            ours, theirs = student.logits_of(term.classifier), teacher.logits
            assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
            ours, theirs = (z.movedim(1, -1) if z.ndim == 4 else z for z in (ours, theirs))
            mask = scene.masks["outputs"]
            options["temperature"] = term.temperature(scene.progress, ours, theirs, mask=mask)
        elif term.temperature is not None:
            options["temperature"] = term.temperature(scene.progress)
    parameters = takes(term.loss)
    if "labels" in parameters and term.kind != "labels":
        options["labels"] = scene.labels
    if "mask" in parameters and term.kind not in ("labels", *STAGED):
        name = _rows(scene) if term.pool else "outputs" if term.kind == "logits" else "tokens"
        options["mask"] = scene.masks.get(name)
    return options


def _pair(
    term: BoundTerm, student: Knowledge, teacher: Knowledge, pair: tuple[int, int], scene: Scene
) -> tuple[Tensor, Tensor]:
    """What a layer pair compares: pooled where the term pools, and projected to the teacher's width."""
    ours, theirs = getattr(student, term.kind)[pair[0]], getattr(teacher, term.kind)[pair[1]]
    if term.pool is not None:
        mask = scene.masks.get("tokens")
        ours = pooled(ours, mask, term.pool)
        theirs = pooled(theirs, mask if teacher.mask is None else teacher.mask, term.pool)  # by its own tokens
    if term.project:
        ours = scene.modules[term.module_name(pair)](ours)
    return ours, theirs


def pooled(states: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """One vector a row, [B, D], from the hidden states [B, S, D] of its tokens.

    Args:
        states: hidden states, [B, S, D].
        mask: true where a token is no padding, [B, S]; padding may stand on either side. None: there is none.
        how: ``first`` token, ``last`` token, or the ``mean`` over all.
    """
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if how == "mean":
        kept = states.masked_fill(~mask.unsqueeze(-1), 0.0)
        return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(states.dtype)
    flags = mask.int()
    index = flags.argmax(1) if how == "first" else mask.shape[1] - 1 - flags.flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), index]
