"""What a search may choose: ``distill.0.terms.0.temperature=1..8:log`` or ``distill.0.terms.1.layers=uniform,last``.

Decided here: ``low..high`` is a range of numbers, ``:log`` makes equal factors equally likely and ``:int`` takes whole
numbers only; anything else is a list of YAML values. Data, teacher and what is evaluated can't be searched: scores on
other rows, or beside another teacher, would be no measure of the student.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from potstill.checks import problem
from potstill.comparing.axes import split_values
from potstill.errors import RecipeError

_RANGE = re.compile(r"^\s*([^:,\s]+?)\s*\.\.\s*([^:,\s]+?)\s*((?::\w+)*)\s*$")
FIXED = ("task", "name", "seed", "data", "teacher", "evaluate", "export")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all when the space is checked."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values, each as YAML text, so that lists and mappings can be chosen from too."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All of them."""
        return tuple(yaml.safe_load(value) for value in self.values)


Space = Mapping[str, Range | Choice]


def parse_space(given: Sequence[str] | Mapping[str, str]) -> dict[str, Range | Choice]:
    """The space, from ``key=1..8:log`` strings or from a mapping of keys to what stands behind the sign.

    Raises:
        RecipeError: with everything that can't be read.
    """
    pairs = given.items() if isinstance(given, Mapping) else [text.partition("=")[::2] for text in given]
    found: dict[str, Range | Choice] = {}
    problems: list[str] = []
    for key, text in pairs:
        if not key or not text:
            do = "For example distill.0.terms.0.temperature=1..8:log, or distill.0.terms.1.layers=uniform,last"
            problems.append(problem("A space is written key=low..high or key=first,second", given=key, do=do))
        elif key.split(".")[0] in FIXED:
            follows = "Scores on other rows or beside another teacher would be no measure of the student"
            problems.append(
                problem(f"'{key}' can't be searched", follows=follows, do="Search distill, student, refine")
            )
        elif key in found:
            problems.append(problem(f"The key '{key}' stands in the space twice", do="Write all of its values in one"))
        else:
            try:
                found[key] = _dimension(text)
            except ValueError as error:
                problems.append(problem(f"The space of '{key}' can't be read", given=f"'{text}'", follows=str(error)))
    if not found and not problems:
        problems.append(problem("Nothing is searched", do="Give --space distill.0.terms.0.temperature=1..8:log"))
    if problems:
        raise RecipeError("\n".join(problems))
    return found


def _dimension(text: str) -> Range | Choice:
    """One dimension. Raises `ValueError` with what is wrong."""
    match = _RANGE.match(text)
    if match is None:
        values = split_values(text)
        try:
            read = [yaml.safe_load(value) for value in values]
        except yaml.YAMLError:
            raise ValueError("A value is no readable YAML") from None
        if len({repr(value) for value in read}) < 2:
            raise ValueError("A list needs at least two different values")
        return Choice(tuple(values))
    try:
        low, high = float(match[1]), float(match[2])
    except ValueError:
        raise ValueError("A range goes from a number to a number") from None
    marks = [mark for mark in match[3].split(":") if mark]
    if unknown := [mark for mark in marks if mark not in ("log", "int")]:
        raise ValueError(f"'{unknown[0]}' is no mark of a range: log, int")
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ValueError("A range goes from a smaller to a larger number")
    if "log" in marks and low <= 0:
        raise ValueError("A logarithmic range begins above 0")
    if "int" in marks and (low % 1 or high % 1):
        raise ValueError("A range of whole numbers ends in whole numbers")
    return Range(low, high, log="log" in marks, whole="int" in marks)


def as_data(space: Space) -> dict[str, Any]:
    """The space as plain data, which names a study and stands in search.json."""
    return {
        key: {"values": list(one.values)} if isinstance(one, Choice) else {**vars(one)} for key, one in space.items()
    }
