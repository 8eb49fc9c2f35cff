"""The few validators, and the one form of message: what is wrong, what was given, what follows, what to do."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from potstill.errors import ShapeError


def problem(what: str, *, given: Any = None, follows: str = "", do: str = "") -> str:
    """One message in the house's form: ``what. Got: given. follows. do.``, the empty parts left out."""
    parts = [what.rstrip(".")]
    if given is not None:
        parts.append(f"Got: {given}".rstrip("."))
    parts += [part.rstrip(".") for part in (follows, do) if part]
    return ". ".join(parts) + "."


def first_few(names: Sequence[str], shown: int = 5) -> str:
    """``a, b, c, d, e and 7 more``: the first of many names, and how many are left out."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a known name is near, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A message for a name that isn't one of the known: the nearest name, and the whole list."""
    names = sorted(known)
    return f"Unknown {kind} '{name}'.{nearest(name, names)} Known: {', '.join(names)}."


def same_shape(student: Any, teacher: Any, *, caller: str, hint: str = "") -> None:
    """Raise `ShapeError`, naming both shapes, unless two tensors have the same shape. Nothing is ever broadcast."""
    if student.shape != teacher.shape:
        raise ShapeError(
            problem(
                f"{caller} compares tensors of one shape",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                do=hint,
            )
        )
