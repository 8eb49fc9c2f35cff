"""A term of an objective: as a recipe writes it (`Term`), and resolved for two models (`BoundTerm`).

Decisions:
- What a term compares is its knowledge; which losses fit a knowledge is said by the files of `potstill.losses`, one
  family each. Whatever is no field of a term is an argument of its loss, checked against the loss's signature.
- A term learns from every teacher there is, unless it names one. It is bound once a teacher, since teachers may differ
  in depth and width; the students that learn beside this one (mutual learning) are teachers called "peers".
- Any number of a term may be a schedule: weight, temperature, and each argument of the loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from potstill import losses
from potstill.checks import problem, unknown_name
from potstill.errors import RecipeError
from potstill.fitting import AUTO, NOUNS, projection_of, require_heads
from potstill.kinds import KINDS, LAYERLESS, OF_MAPS, OF_ROWS, family, layer_count, takes
from potstill.knowledge.architectures import ModelShape, no_such_classifier
from potstill.knowledge.types import STAGED
from potstill.mappings import EMBEDDINGS, Pairs, layer_map
from potstill.projectors import JOINT
from potstill.schedules import Constant, Plain, Schedule, plain_schedule, schedule

POOLS = ("first", "mean", "last")
EARTH_MOVER = "earth_mover"
TEACHER, PEERS = "teacher", "peers"
#: Maps that name layers one by one or end at the logits: the embeddings' outputs are no pair of theirs.
WITHOUT_EMBEDDINGS = ("pkd_skip", "pkd_last", "all", EARTH_MOVER)
WHO_HAS = {"features": "models of images have them", "patches": "vision transformers have them"}
#: What the objective gives to a loss; the other parameters are the recipe's.
OURS = ("student", "teacher", "mask", "temperature", "labels", "student_next", "teacher_next")
MEMORY = ("negatives", "width", "momentum")  # of `ContrastiveMemory`, written beside the arguments of `crd`


@dataclass(frozen=True)
class Term:
    """One term of an objective, as a recipe writes it.

    Args:
        knowledge: labels, logits, hidden, attention, scores, queries, keys, values, features or patches.
        loss: a name in `potstill.losses` of a family that fits, or a function of the same form; None takes the usual.
        layers: a name of `potstill.mappings` (uniform, first, last, skip, last1, pkd_skip, …), explicit pairs
            ``{student: teacher}``, or ``earth_mover``: every pair, weighted by the optimal flow between the layers.
        weight: a number, or a schedule such as ``{schedule: linear, from: 1, to: 0}``.
        temperature: a number or a schedule, for losses that take one.
        project: ``auto`` (a linear map, or a 1x1 convolution of features, where the widths differ), a kind of
            `potstill.projectors`, or ``none``; for hidden states, features and patches.
        share: one projection for all layer pairs (TinyBERT), not one each.
        embeddings: whether the embeddings' outputs are a pair of hidden states too; None: with a map that goes over
            the layers evenly, but not with PKD's, first2 or last1, and not for pooled states.
        pool: first ([CLS]), mean or last: one vector a row out of its hidden states, for losses of rows; only the mean
            of features and patches.
        stage_weights: one number a pair of stages: the term is the sum of its pairs' values times these, not their
            mean.
        teacher: the name of the teacher to learn from, or ``peers``; None: every teacher.
        shift: exchange the teacher's highest logit with that of the true class where it is wrong.
        classifier: which of the student's learns, where it has several: ``class`` or ``distillation`` of a DeiT
            with its token; None: their mean, which is what the model answers.
        options: further arguments of the loss, such as ``heads`` of `relation_kl`; each may be a schedule.
    """

    knowledge: str
    loss: str | Callable[..., Tensor] | None = None
    layers: Any = None
    weight: Any = 1.0
    temperature: Any = None
    project: str = AUTO
    share: bool = False
    embeddings: bool | None = None
    pool: str | None = None
    stage_weights: Sequence[float] | None = None
    teacher: str | None = None
    shift: bool = False
    classifier: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What the task says of its outputs: the losses of labels and logits when a term names none, and those refused."""

    labels: str = "cross_entropy"
    logits: str = "kl_divergence"
    refused: Mapping[str, str] = field(default_factory=dict)  # loss (or 'shift') -> why it can't be used in this task
    maps: bool = False  # whether logits are maps, one answer a pixel


@dataclass(frozen=True)
class BoundTerm:
    """A term whose names are resolved: the function, the (student, teacher) pairs of layers, the schedules."""

    name: str
    kind: str
    loss: Callable[..., Tensor]
    pairs: Pairs
    weight: Plain
    temperature: Schedule | None
    project: str | None
    options: Mapping[str, Any]
    scheduled: Mapping[str, Plain] = field(default_factory=dict)
    source: str = TEACHER  # which teacher it learns from
    sources: int = 1  # over how many teachers the written term was spread
    pool: str | None = None
    stage_weights: tuple[float, ...] | None = None
    share: bool = False
    shift: bool = False
    classifier: str | None = None
    transport: bool = False  # pairs are weighted by the earth mover's flow

    @property
    def positions(self) -> str:
        """What the term is a mean over: labels, outputs (rows) or tokens."""
        if "labels" in takes(self.loss):
            return "labels"
        return "outputs" if self.pool else KINDS[self.kind].positions

    @property
    def memory(self) -> dict[str, Any] | None:
        """The settings of the memory that this term keeps beside the student; None where it keeps none."""
        if self.loss is not losses.crd:
            return None
        temperature = {"temperature": self.temperature(0.0)} if isinstance(self.temperature, Constant) else {}
        return {**self.options, **temperature}

    @property
    def joint(self) -> bool:
        """Whether one projection sees all pairs at once."""
        return self.project in JOINT

    @property
    def joint_name(self) -> str:
        """The name under which a joint projection is trained and checkpointed."""
        return f"{self.name}_{self.project}".replace(" ", "_")

    def module_name(self, pair: tuple[int, int]) -> str:
        """The name under which the projection (or memory) of a layer pair is trained and checkpointed."""
        student, teacher = ("embeddings" if layer == EMBEDDINGS else str(layer) for layer in pair)
        base = self.name.replace(" ", "_")
        if self.share:
            return f"{base}_shared"
        return f"{base}_{student}_to_all" if self.transport else f"{base}_{student}_to_{teacher}"


def written(term: Mapping[str, Any]) -> Term:
    """A term from a mapping; what is no field of `Term` is an option of its loss, and checked as one by `bind_term`."""
    if "knowledge" not in term:
        raise RecipeError(
            problem("A term needs the key 'knowledge'", given=dict(term), do=f"Known: {', '.join(KINDS)}")
        )
    known = {f.name for f in fields(Term)}
    options = {key: value for key, value in term.items() if key not in known} | dict(term.get("options", {}))
    return Term(**{key: value for key, value in term.items() if key in known} | {"options": options})


def check_term(term: Term) -> None:
    """Raise `RecipeError` or `ValueError` for what is wrong in a term for any models: names, options, schedules."""
    _require_kind(term)
    loss = _loss(term, Defaults())
    _options(term, loss)
    _check_fields(term, loss)
    plain_schedule(term.weight)
    _temperature(term, loss)


def bind_term(
    term: Term, name: str, student: ModelShape, teachers: Mapping[str, ModelShape], defaults: Defaults
) -> list[BoundTerm]:
    """A written term, once for each teacher that it learns from. Raises `RecipeError`, or what a part of it raises."""
    _require_kind(term)
    loss = _loss(term, defaults)
    options, scheduled = _options(term, loss)
    _check_fields(term, loss)
    if term.shift and "shift" in defaults.refused:
        raise RecipeError(f"'shift' can't be used here: {defaults.refused['shift']}")
    if term.knowledge == "logits" and family(loss) in OF_MAPS and not defaults.maps:
        raise RecipeError(f"'{loss.__name__}' compares maps of logits, and this task has no answer a pixel.")
    if defaults.maps and term.knowledge not in (*LAYERLESS, *STAGED):
        raise RecipeError(
            problem(
                f"Void pixels can't be left out of {term.knowledge}",
                follows="They would be in a loss, where their content counts",
                do="Use features or patches, which know where each place lies",
            )
        )
    if term.classifier not in (None, *student.classifiers):
        raise RecipeError(no_such_classifier(student, str(term.classifier)))
    sources = _sources(term, teachers)
    found = []
    for source in sources:
        shape = teachers.get(source)
        pairs = _pairs(term, loss, student, shape)
        if pairs:
            assert shape is not None
            require_heads(term.knowledge, pairs, student, shape, options)
        found.append(
            BoundTerm(
                name=name if len(sources) == 1 else f"{name} from {source}",
                kind=term.knowledge,
                loss=loss,
                pairs=pairs,
                weight=plain_schedule(term.weight),
                temperature=_temperature(term, loss),
                project=projection_of(term.knowledge, (term.project, term.share), loss, pairs, student, shape),
                options=options,
                scheduled=scheduled,
                source=source,
                sources=len(sources),
                pool=_pool(term, loss),
                stage_weights=_stage_weights(term, loss, pairs),
                share=term.share,
                shift=term.shift,
                classifier=term.classifier,
                transport=term.layers == EARTH_MOVER,
            )
        )
    return found


def _require_kind(term: Term) -> None:
    if term.knowledge not in KINDS:
        raise RecipeError(unknown_name("knowledge", term.knowledge, KINDS))


def _sources(term: Term, teachers: Mapping[str, ModelShape]) -> list[str]:
    if term.knowledge == "labels":
        return [TEACHER]
    peers = [name for name in teachers if name.startswith(PEERS)]
    others = [name for name in teachers if name not in peers]
    if term.teacher == PEERS:
        if not peers:
            raise RecipeError("This term learns from peers, and no students learn together. Give the stage 'mutual'.")
        return peers
    if term.teacher is not None:
        if term.teacher not in others:
            raise RecipeError(unknown_name("teacher", term.teacher, [*others, PEERS]))
        return [term.teacher]
    if not others:
        raise RecipeError("This term compares with a teacher, and there is none.")
    return others


def _loss(term: Term, defaults: Defaults) -> Callable[..., Tensor]:
    kind = KINDS[term.knowledge]
    loss = term.loss or kind.usual or getattr(defaults, term.knowledge)
    if callable(loss):
        return loss
    fitting = [name for name in losses.__all__ if family(getattr(losses, name)) in kind.families]
    if loss not in fitting:
        raise RecipeError(unknown_name(f"loss for {term.knowledge}", loss, fitting))
    if loss in defaults.refused:
        raise RecipeError(f"'{loss}' can't be used here: {defaults.refused[loss]}")
    return getattr(losses, loss)  # type: ignore[no-any-return]


def _options(term: Term, loss: Callable[..., Tensor]) -> tuple[dict[str, Any], dict[str, Plain]]:
    """The term's further arguments, bound to the loss's signature: those that stay, those that follow a schedule."""
    known = set(MEMORY) if loss is losses.crd else takes(loss) - set(OURS)
    own = tuple(f.name for f in fields(Term) if f.name != "options")
    what = f"key of a term with '{loss.__name__}'"
    if wrong := [unknown_name(what, key, {*known, *own}) for key in term.options if key not in known]:
        raise RecipeError(" ".join(wrong))
    written = {key: value for key, value in term.options.items() if isinstance(value, Mapping)}
    if written and loss is losses.crd:
        raise RecipeError(f"The memory is made once, so its {', '.join(written)} can follow no schedule.")
    scheduled = {key: plain_schedule(value, key=key) for key, value in written.items()}
    return {key: value for key, value in term.options.items() if key not in scheduled}, scheduled


def _check_fields(term: Term, loss: Callable[..., Tensor]) -> None:
    """Fields that don't go with the term's knowledge or loss: each would otherwise be ignored in silence."""
    name = loss.__name__
    if term.pool is not None:
        if term.pool not in POOLS:
            raise RecipeError(unknown_name("pooling", term.pool, POOLS))
        if not KINDS[term.knowledge].projections:
            raise RecipeError(f"Only hidden states are pooled, not {term.knowledge}. Remove the key 'pool'.")
        if term.knowledge in STAGED and term.pool != "mean":
            raise RecipeError(f"{NOUNS[term.knowledge]} have no {term.pool} token. Set pool: mean.")
        if family(loss) in OF_MAPS:
            raise RecipeError(f"'{name}' compares maps, so nothing can be pooled. Remove the key 'pool'.")
        if family(loss) == "granularity" or "student_next" in takes(loss):
            raise RecipeError(
                f"'{name}' compares the tokens of a row, so nothing can be pooled. Remove the key 'pool'."
            )
    if term.shift and term.knowledge != "logits":
        raise RecipeError(f"Only the teacher's logits are shifted, not {term.knowledge}. Remove the key 'shift'.")
    if term.knowledge == "labels" and term.teacher is not None:
        raise RecipeError("Labels come from no teacher. Remove the key 'teacher'.")
    if term.embeddings is not None and term.knowledge != "hidden":
        raise RecipeError(f"The embeddings have hidden states, but no {term.knowledge}. Remove the key 'embeddings'.")
    if term.classifier is not None and term.knowledge not in LAYERLESS:
        raise RecipeError(f"A classifier gives logits, and no {term.knowledge}. Remove the key 'classifier'.")
    if term.knowledge in LAYERLESS and term.layers is not None:
        raise RecipeError(f"'{term.knowledge}' has no layers. Remove the key 'layers'.")


def _temperature(term: Term, loss: Callable[..., Tensor]) -> Schedule | None:
    taken = "temperature" in takes(loss)
    if term.temperature is None:
        return schedule(1.0) if taken and term.knowledge == "logits" else None  # else the loss's own default
    if not taken:
        raise RecipeError(f"'{loss.__name__}' takes no temperature. Remove the key.")
    found = schedule(term.temperature)
    if found.adaptive and term.knowledge != "logits":
        raise RecipeError("An adaptive temperature is that of logits. Give a number.")
    if found.adaptive and loss is losses.channel_kl_divergence:
        raise RecipeError(
            "'channel_kl_divergence' compares channels, which no temperature of pixels fits. Give a number."
        )
    if loss is losses.crd and not isinstance(found, Constant):
        raise RecipeError("The memory is made once, so its temperature can follow no schedule. Give a number.")
    return found


def _pool(term: Term, loss: Callable[..., Tensor]) -> str | None:
    """The pooling asked for; losses of rows take the first token's state where none is, or the mean of a stage."""
    if KINDS[term.knowledge].projections and term.pool is None and family(loss) in OF_ROWS:
        return "mean" if term.knowledge in STAGED else "first"
    return term.pool


def _stage_weights(term: Term, loss: Callable[..., Tensor], pairs: Pairs) -> tuple[float, ...] | None:
    """One number for each value of the loss, in the order of the pairs, which are sorted."""
    if term.stage_weights is None:
        return None
    if term.knowledge not in STAGED or term.layers == EARTH_MOVER:
        what = "pairs that the flow weighs" if term.layers == EARTH_MOVER else term.knowledge
        raise RecipeError(f"'stage_weights' are for stages of features and patches, not {what}. Remove the key.")
    numbers = [x for x in term.stage_weights if isinstance(x, int | float) and not isinstance(x, bool)]
    between = "student_next" in takes(loss)
    listed = [list(pair) for pair in pairs]
    if len(numbers) != len(term.stage_weights) or len(numbers) != len(pairs) - between:
        what = "two pairs of stages that follow one another" if between else "pair of stages"
        found = f"{list(term.stage_weights)}, and {len(pairs)} pairs: {listed}"
        raise RecipeError(problem(f"'stage_weights' has one number for each {what}", given=found))
    if not isinstance(term.layers, str | None) and (given := _as_written(term.layers)) != listed:
        raise RecipeError(
            problem(
                "With 'stage_weights', pairs are written from the first stage to the last",
                given=str(given),
                follows="Which weight is whose would be a guess",
                do=f"Write layers: {listed}, and the weights in this order",
            )
        )
    return tuple(map(float, numbers))


def _as_written(layers: Any) -> list[list[Any]]:
    """The pairs that a recipe gives, in its order: of a mapping, or one by one."""
    entries = layers.items() if isinstance(layers, Mapping) else layers
    return [
        [ours, one] for ours, theirs in entries for one in (theirs if isinstance(theirs, list | tuple) else [theirs])
    ]


def _pairs(term: Term, loss: Callable[..., Tensor], student: ModelShape, teacher: ModelShape | None) -> Pairs:
    if term.knowledge in LAYERLESS:
        return ()
    assert teacher is not None
    spec = "uniform" if term.layers is None else "all" if term.layers == EARTH_MOVER else term.layers
    embeddings = term.embeddings
    if embeddings is None:
        named = isinstance(term.layers, str)
        one_by_one = named and (term.layers in WITHOUT_EMBEDDINGS or term.layers[-1:].isdigit())
        embeddings = term.knowledge == "hidden" and not one_by_one and _pool(term, loss) is None
    counts = [layer_count(shape, term.knowledge) for shape in (student, teacher)]
    if term.knowledge in STAGED and not all(counts):
        without = ", ".join(shape.family for shape, count in zip((student, teacher), counts, strict=True) if not count)
        raise RecipeError(f"There are no {term.knowledge} of {without}: {WHO_HAS[term.knowledge]}.")
    pairs = layer_map(spec, *counts, embeddings=embeddings)
    if "student_next" in takes(loss) and len(pairs) < 2:
        raise RecipeError(f"'{loss.__name__}' looks at what happens between two layers, and this map has one pair.")
    return pairs
