"""Layer maps: which teacher layer teaches which student layer. Pure integers, validated.

Decisions:
- Layers are numbered from 0. The embedding output is `EMBEDDINGS`, written "embeddings" by users; no negative number is
  taken from them, since -1 could also mean the last layer.
- A map that doesn't divide (12 to 5) is rounded by a stated rule, half up, and never floored: floored, the top layer of
  the teacher would teach nobody, in silence.
- Explicit pairs may come in any order and many to many: a teacher layer may teach several student layers, and a
  student layer learn from several. The same pair twice is refused, since it would only be a weight in disguise.
- A published map goes by its publication's name as well: `pkd_skip` is `skip`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from potstill.checks import problem, unknown_name
from potstill.errors import MappingError

EMBEDDINGS = -1
"""The number of the embedding output inside a layer map."""

Pairs = tuple[tuple[int, int], ...]
"""(student layer, teacher layer), by student layer, then teacher layer."""


def uniform(student_layers: int, teacher_layers: int) -> Pairs:
    """Evenly spaced, the last layers meeting: the usual choice.

    teacher layer of i = round_half_up((i + 1) * T / S) - 1, strictly increasing; 12 to 5 gives 1, 4, 6, 9, 11

    Args:
        student_layers: S, at least 1.
        teacher_layers: T, at least S.

    Raises:
        MappingError: no layers, or a teacher with fewer than the student.

    References:
        Jiao et al.: TinyBERT, 2020, https://arxiv.org/abs/1909.10351 (for S that divides T)

    Prefer `skip` where the logits teach the last layer anyway, `last` for relations of a deep teacher.
    """
    _require_deeper_teacher("uniform", student_layers, teacher_layers)
    return tuple(
        (i, (2 * (i + 1) * teacher_layers + student_layers) // (2 * student_layers) - 1) for i in range(student_layers)
    )


def first(student_layers: int, teacher_layers: int) -> Pairs:
    """The teacher's first layers: i learns from i. Raises `MappingError` as `uniform` does.

    Prefer it where the student is made of the teacher's first layers.
    """
    _require_deeper_teacher("first", student_layers, teacher_layers)
    return tuple((i, i) for i in range(student_layers))


def last(student_layers: int, teacher_layers: int) -> Pairs:
    """The teacher's last layers: i learns from T - S + i. Raises `MappingError` as `uniform` does.

    References:
        Sun, Cheng, Gan, Liu: Patient Knowledge Distillation for BERT Model Compression, 2019,
        https://arxiv.org/abs/1908.09355 (PKD-Last)

    Prefer `uniform` unless the teacher's upper layers are known to hold what the task needs.
    """
    _require_deeper_teacher("last", student_layers, teacher_layers)
    return tuple((i, teacher_layers - student_layers + i) for i in range(student_layers))


def skip(student_layers: int, teacher_layers: int) -> Pairs:
    """`uniform` without its last pair: the last layer is taught by the logits. 12 to 6 gives 1, 3, 5, 7, 9.

    It goes by the name `pkd_skip` too: the publication counts from 1, and gives 12 to 6 as {2, 4, 6, 8, 10}. For depths
    that don't divide it has no rule; `uniform`'s holds.

    Raises `MappingError` as `uniform` does, and for a student of one layer, for which no pair is left.

    References:
        Sun, Cheng, Gan, Liu: Patient Knowledge Distillation for BERT Model Compression, 2019,
        https://arxiv.org/abs/1908.09355 (PKD-Skip)

    Prefer `uniform` where no term teaches the logits.
    """
    _require_two_student_layers("skip", student_layers, teacher_layers)
    return uniform(student_layers, teacher_layers)[:-1]


def spread(student_layers: int, teacher_layers: int) -> Pairs:
    """Evenly spaced from the first layer to the last, both kept: the default when a student is cut from a teacher.

    teacher layer of i = round_half_up(i * (T - 1) / (S - 1)); a student of one layer gets layer 0; 12 to 6 gives
    0, 2, 4, 7, 9, 11

    Raises `MappingError` as `uniform` does.

    As a layer map it is `distilbert`. That publication has 12 to 6 only; DistilBART's lists, made by hand, agree for 12
    to 3 (0, 6, 11), and for 12 to 4 have 8 where this gives 7.

    References:
        Sanh, Debut, Chaumond, Wolf: DistilBERT, 2019, https://arxiv.org/abs/1910.01108 (the layers of its scripts)

    Prefer it for what a student keeps (its first layer reads embeddings), `uniform` for what it learns from.
    """
    _require_deeper_teacher("spread", student_layers, teacher_layers)
    if student_layers == 1:
        return ((0, 0),)
    gaps = student_layers - 1
    return tuple((i, (2 * i * (teacher_layers - 1) + gaps) // (2 * gaps)) for i in range(student_layers))


def first_k(count: int, student_layers: int, teacher_layers: int) -> Pairs:
    """The student's first K layers from the teacher's first K: i learns from i. Written `first2` in a recipe.

    Args:
        count: K, at least 1, and at most the layers of either model.
        student_layers, teacher_layers: S and T, at least 1; T may be less than S.

    Raises:
        MappingError: no layers, or a K outside its range.

    References:
        Lu et al.: Knowledge Distillation of Transformer-based Language Models Revisited, 2022,
        https://arxiv.org/abs/2206.14366 (firstK)

    Prefer `first` for all of the student's layers.
    """
    _require_enough_layers("first", count, student_layers, teacher_layers)
    return tuple((i, i) for i in range(count))


def last_k(count: int, student_layers: int, teacher_layers: int) -> Pairs:
    """The student's last K layers from the teacher's last K, in order, the last meeting. Written `last1` in a recipe.

    teacher layer of S - K + i = T - K + i, for i from 0 to K - 1

    Args, errors and reference as for `first_k`. The code of Lu et al. (OFA-Compress) pairs T - K + i with
    S - 1 - i, in reverse, so that the student's last layer learns from the lowest of the K; that isn't followed here.

    Prefer `last1` for relations (MiniLM, MiniLMv2), `last` for all of the student's layers.
    """
    _require_enough_layers("last", count, student_layers, teacher_layers)
    return tuple((student_layers - count + i, teacher_layers - count + i) for i in range(count))


def pkd_last(student_layers: int, teacher_layers: int) -> Pairs:
    """PKD's map by its name: `last` without its last pair, which the logits teach.

    teacher layer of i = T - S + i, for i from 0 to S - 2; the publication gives 12 to 6 as {7, ..., 11} counted from 1,
    which are 6 to 10 here

    Raises `MappingError` as `skip` does. It holds for any depths: nothing is divided.

    References:
        Sun, Cheng, Gan, Liu: Patient Knowledge Distillation for BERT Model Compression, 2019,
        https://arxiv.org/abs/1908.09355 (PKD-Last)

    Prefer `skip`, which did better in the publication.
    """
    _require_two_student_layers("pkd_last", student_layers, teacher_layers)
    return last(student_layers, teacher_layers)[:-1]


def all_pairs(student_layers: int, teacher_layers: int) -> Pairs:
    """Every student layer with every teacher layer, S * T pairs of any S and T from 1. Written `all` in a recipe.

    References:
        Li et al.: BERT-EMD: Many-to-Many Layer Mapping for BERT Compression with Earth Mover's Distance, 2020,
        https://arxiv.org/abs/2010.06133

    Prefer it together with `transport.earth_movers_flow`, which says how much each pair counts; a plain mean over all
    pairs pulls every student layer towards the teacher's average.
    """
    _require_layers("all", student_layers, teacher_layers)
    return tuple((student, teacher) for student in range(student_layers) for teacher in range(teacher_layers))


def explicit(pairs: Mapping[Any, Any] | Sequence[Sequence[Any]], student_layers: int, teacher_layers: int) -> Pairs:
    """Pairs given by hand, validated and sorted by student layer.

    Args:
        pairs: {student: teacher, ...}, in which a list stands for several teacher layers, or [[student, teacher], ...],
            in which a student layer may stand twice; each a number from 0, or "embeddings".
        student_layers: S, at least 1.
        teacher_layers: T, at least 1; it may be less than S here.

    Raises:
        MappingError: no pairs, something that is not a pair, a layer that doesn't exist, a pair given twice. The
            message lists all that is wrong.

    Prefer a named map where one fits: it goes along when the number of layers changes.
    """
    _require_layers("explicit", student_layers, teacher_layers)
    entries, wrong = _entries(pairs)
    found: list[tuple[int, int]] = []
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            wrong.append(f"{entry!r} is not a pair of student layer and teacher layer")
            continue
        student, teacher = _number(entry[0], student_layers), _number(entry[1], teacher_layers)
        if student is None:
            wrong.append(f"{entry[0]!r} is no layer of the student, which has 0 to {student_layers - 1}")
        if teacher is None:
            wrong.append(f"{entry[1]!r} is no layer of the teacher, which has 0 to {teacher_layers - 1}")
        if student is None or teacher is None:
            continue
        if (student, teacher) in found:
            wrong.append(f"student layer {entry[0]} and teacher layer {entry[1]} are paired twice")
        found.append((student, teacher))
    if wrong:
        raise MappingError(
            problem(
                f"The layer map doesn't fit: {'; '.join(wrong)}",
                given=pairs,
                do='Write pairs as {0: 1, 1: [2, 3]} or [[0, 1], [1, 2], [1, 3]], from 0; "embeddings" is a layer too',
            )
        )
    return tuple(sorted(found))


_NAMED: dict[str, Callable[[int, int], Pairs]] = {
    "uniform": uniform,
    "first": first,
    "last": last,
    "skip": skip,
    "distilbert": spread,
    "pkd_skip": skip,
    "pkd_last": pkd_last,
    "all": all_pairs,
}
_COUNTED: dict[str, Callable[[int, int, int], Pairs]] = {"first": first_k, "last": last_k}
_KNOWN = (*_NAMED, *(f"{name}K" for name in _COUNTED))


def layer_map(
    spec: str | Mapping[Any, Any] | Sequence[Sequence[Any]],
    student_layers: int,
    teacher_layers: int,
    *,
    embeddings: bool = False,
) -> Pairs:
    """The pairs that a recipe's `layers:` means: a name, or pairs.

    Names: uniform, first, last, skip, pkd_skip, pkd_last, distilbert (`spread`), all, and first or last with a count,
    such as first2 or last1. The progressive transfer of MobileBERT goes by `first`.

    Args:
        spec: the name, {student: teacher, ...}, or [[student, teacher], ...].
        student_layers: S, at least 1.
        teacher_layers: T, at least 1.
        embeddings: pair the two embedding outputs too, unless the student's is paired already.

    Raises:
        MappingError: an unknown name (the nearest is suggested), or a map that doesn't fit.
    """
    if isinstance(spec, str):
        pairs = _named(spec, student_layers, teacher_layers)
    elif isinstance(spec, (Mapping, Sequence)):
        pairs = explicit(spec, student_layers, teacher_layers)
    else:
        names = ", ".join(_KNOWN)
        raise MappingError(problem("A layer map is a name or pairs of layers", given=repr(spec), do=f"Names: {names}"))
    if embeddings and all(student != EMBEDDINGS for student, _ in pairs):
        return ((EMBEDDINGS, EMBEDDINGS), *pairs)
    return pairs


_SELECTIONS: dict[str, Callable[[int, int], Pairs]] = {
    "spread": spread,
    "uniform": uniform,
    "first": first,
    "last": last,
}


def selection(layers: int | Sequence[int], teacher_layers: int, *, rule: str = "spread") -> tuple[int, ...]:
    """Which of the teacher's layers a student keeps.

    Args:
        layers: a count, which goes to `rule`, or the layers themselves, numbered from 0 and increasing.
        teacher_layers: T, at least 1.
        rule: spread, uniform, first or last; for a count only.

    Returns:
        Teacher layers, strictly increasing.

    Raises:
        MappingError: an unknown rule, a count below 1 or above T, a list that is empty, out of range or not increasing.
    """
    if rule not in _SELECTIONS:
        raise MappingError(unknown_name("rule for keeping layers", rule, _SELECTIONS))
    if _is_count(layers):
        return tuple(teacher for _, teacher in _SELECTIONS[rule](layers, teacher_layers))  # type: ignore[arg-type]
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise MappingError(
            problem(
                "The layers that a student keeps are a count or a list of numbers",
                given=repr(layers),
                do="Write layers: 3, or layers: [0, 2, 5], numbered from 0",
            )
        )
    _require_layers("selection", max(len(layers), 1), teacher_layers)
    wrong = [] if layers else ["the list is empty"]
    outside = [layer for layer in layers if not _is_count(layer) or not 0 <= layer < teacher_layers]
    if outside:
        wrong.append(f"{', '.join(map(repr, outside))} is no layer of the teacher, which has 0 to {teacher_layers - 1}")
    elif any(later <= earlier for earlier, later in pairwise(layers)):
        wrong.append("the numbers must increase, each once")
    if wrong:
        raise MappingError(
            problem(
                f"The layers that the student keeps don't fit: {'; '.join(wrong)}",
                given=list(layers),
                do="List layers of the teacher in their order, numbered from 0, or give a count",
            )
        )
    return tuple(layers)


def _is_count(value: object) -> bool:
    # True is an int to Python, and would be layer 1.
    return isinstance(value, int) and not isinstance(value, bool)


def _named(name: str, student_layers: int, teacher_layers: int) -> Pairs:
    """The pairs of a map's name, with a count at its end or without."""
    if name in _NAMED:
        return _NAMED[name](student_layers, teacher_layers)
    counted = re.fullmatch(r"(first|last)(\d{1,4})", name, re.ASCII)
    if counted is None:
        raise MappingError(unknown_name("layer map", name, _KNOWN))
    return _COUNTED[counted[1]](int(counted[2]), student_layers, teacher_layers)


def _entries(pairs: Mapping[Any, Any] | Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Pairs one by one, a mapping's lists of teacher layers taken apart, and what is wrong with them so far."""
    if not isinstance(pairs, Mapping):
        return list(pairs), [] if pairs else ["no pairs are given"]
    entries, wrong = [], [] if pairs else ["no pairs are given"]
    for student, teachers in pairs.items():
        if not isinstance(teachers, (list, tuple)):
            entries.append((student, teachers))
        elif teachers:
            entries += [(student, teacher) for teacher in teachers]
        else:
            wrong.append(f"student layer {student} has an empty list of teacher layers")
    return entries, wrong


def _number(value: object, layers: int) -> int | None:
    """A layer's number from what a user wrote, or None where there is no such layer."""
    if value == "embeddings":
        return EMBEDDINGS
    return value if isinstance(value, int) and _is_count(value) and 0 <= value < layers else None


def _require_layers(name: str, student_layers: int, teacher_layers: int) -> None:
    for whose, count in (("student", student_layers), ("teacher", teacher_layers)):
        if not _is_count(count) or count < 1:
            raise MappingError(
                problem(f"The layer map '{name}' needs a {whose} of at least one layer", given=f"{count!r} layers")
            )


def _require_deeper_teacher(name: str, student_layers: int, teacher_layers: int) -> None:
    _require_layers(name, student_layers, teacher_layers)
    if teacher_layers < student_layers:
        raise MappingError(
            problem(
                f"The layer map '{name}' needs a teacher with at least as many layers as the student",
                given=f"student of {student_layers} layers, teacher of {teacher_layers}",
                do="Take a student of fewer layers, or write pairs by hand, in which a teacher layer may stand twice",
            )
        )


def _require_two_student_layers(name: str, student_layers: int, teacher_layers: int) -> None:
    if student_layers == 1:
        raise MappingError(
            problem(
                f"The layer map '{name}' leaves out the student's last layer, and this student has only one",
                given=f"student of 1 layer, teacher of {teacher_layers}",
                follows="No pair would be left, and the term would teach nothing",
                do="Take 'last' or 'uniform', or a student of more layers",
            )
        )


def _require_enough_layers(name: str, count: int, student_layers: int, teacher_layers: int) -> None:
    _require_layers(f"{name}{count}", student_layers, teacher_layers)
    if not _is_count(count) or not 1 <= count <= min(student_layers, teacher_layers):
        raise MappingError(
            problem(
                f"The layer map '{name}{count}' needs a count from 1 to the layers of either model",
                given=f"student of {student_layers} layers, teacher of {teacher_layers}",
                do=f"Take a count up to {min(student_layers, teacher_layers)}, or '{name}' for the whole student",
            )
        )
