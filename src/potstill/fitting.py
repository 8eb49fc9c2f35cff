"""Whether two models' widths and heads fit a term, and what brings them together where they don't.

Decisions:
- `auto` projects where widths differ and the loss compares them; a projection that is named is there in any case.
- Nothing is projected in silence where it can't be: a kind of knowledge says which projections it knows.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from potstill import losses
from potstill.checks import problem, unknown_name
from potstill.errors import RecipeError
from potstill.kinds import ANY_WIDTH, BY_HEAD, KINDS, width_at
from potstill.knowledge.architectures import ModelShape
from potstill.mappings import Pairs
from potstill.projectors import JOINT

AUTO, NONE = "auto", "none"
NOUNS = {"hidden": "Hidden states", "features": "Feature maps", "patches": "Patch embeddings"}


def projection_of(
    kind: str,
    written: tuple[str, bool],
    loss: Callable[..., Tensor],
    pairs: Pairs,
    student: ModelShape,
    teacher: ModelShape | None,
) -> str | None:
    """The projection of a term, by its name; None where there is none.

    Args:
        kind: of knowledge.
        written: the keys ``project`` and ``share``.
        loss: what compares.
        pairs: of layers or stages.
        student, teacher: the shapes of both models.

    Raises:
        RecipeError: the kind of knowledge, the widths or the loss don't go with what is written.
    """
    project, share = written
    known = KINDS[kind].projections
    if teacher is None or not known:
        if project not in (AUTO, NONE) or share:
            raise RecipeError(
                f"Only hidden states, features and patches are projected, not {kind}. Remove 'project' or 'share'."
            )
        return None
    if project not in (AUTO, NONE, *known):
        raise RecipeError(unknown_name(f"projection of {kind}", project, (AUTO, NONE, *known)))
    widths = {(width_at(student, kind, a), width_at(teacher, kind, b)) for a, b in pairs}
    differs = loss.__name__ not in ANY_WIDTH and any(ours != theirs for ours, theirs in widths)
    if project == NONE and share:
        raise RecipeError("'share' is about projections, and project: none has none. Remove one of the keys.")
    if project == NONE and differs:
        ours, theirs = next(pair for pair in sorted(widths) if pair[0] != pair[1])
        raise RecipeError(
            problem(
                f"{NOUNS[kind]} of different widths can't be compared without a projection",
                given=f"student {ours}, teacher {theirs}, project: none",
                do=f"Set project: {known[0]}",
            )
        )
    if loss is losses.crd and (project in known or share):
        raise RecipeError("'crd' has projections of its own, to the width of its memory. Remove the key.")
    named = project if project in known else known[0] if differs and project == AUTO else None
    if named in JOINT:
        _require_joint(named, share, pairs)
    elif named and share and len(widths) > 1:
        raise RecipeError(f"One projection can't be shared by layers of different widths: {sorted(widths)}.")
    return named


def _require_joint(project: str, share: bool, pairs: Pairs) -> None:
    if share:
        raise RecipeError(f"project: {project} is one module for all stages already. Remove the key 'share'.")
    if len({student for student, _ in pairs}) < len(pairs):
        raise RecipeError(
            problem(
                f"project: {project} makes one map of each of the student's stages",
                given=f"pairs {[list(pair) for pair in pairs]}",
                do="Pair every stage of the student once",
            )
        )


def _divides(heads: Any, widths: Iterable[tuple[int, int]]) -> bool:
    """Whether a number of heads cuts every width into equal parts."""
    return type(heads) is int and heads > 0 and not any(width % heads for pair in widths for width in pair)


def require_heads(
    kind: str, pairs: Pairs, student: ModelShape, teacher: ModelShape, options: Mapping[str, Any]
) -> None:
    """Raise `RecipeError` where what is compared head by head has other heads in student and teacher."""
    heads = options.get("heads")
    widths = {(student.width_at(a), teacher.width_at(b)) for a, b in pairs} if heads is not None else set()
    if heads is not None and not _divides(heads, widths):
        listed = "; ".join(f"student {ours}, teacher {theirs}" for ours, theirs in sorted(widths))
        what = "Relation heads cut both widths into equal parts, so their number must divide both"
        raise RecipeError(problem(what, given=f"heads {heads}, widths: {listed}"))
    if kind not in BY_HEAD or heads or options.get("reduce_heads", NONE) != NONE:
        return
    if all(student.heads_at(ours) == teacher.heads_at(theirs) for ours, theirs in pairs):
        return
    way = (
        "Give 'heads' (relation heads, a divisor of both widths, such as 12), which regroups both sides"
        if KINDS[kind].families == ("relation",)
        else "Set reduce_heads: mean, or distil values, keys and queries instead, which can be regrouped"
    )
    raise RecipeError(
        problem(
            f"{kind.capitalize()} are compared head by head, and the head counts differ",
            given=f"student {student.heads}, teacher {teacher.heads}",
            do=way,
        )
    )
