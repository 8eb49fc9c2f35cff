"""What a comparison varies: ``distill=pkd_skip,tinybert`` or ``student.layers=3,2``, one axis a key of the recipe.

Decided here: values are YAML, separated by commas that stand in no bracket and in no quotes, so that lists and mappings
survive; several axes make the product, the last one turning fastest. A value is named in titles and folders by what was
written, a recipe's path by its file.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill.checks import problem
from potstill.errors import RecipeError

DISTILL = "distill"
OWN = "own"
Choices = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One key of the recipe, and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]


def axes(vary: Sequence[str] | Mapping[str, Sequence[Any]]) -> list[Axis]:
    """The axes, from ``key=a,b`` strings or from a mapping of keys to lists of values.

    Raises:
        RecipeError: with every axis that can't be read, names a key twice, or has a value twice.
    """
    found: list[Axis] = []
    problems: list[str] = []
    given = list(vary.items()) if isinstance(vary, Mapping) else [_written(text) for text in vary]
    for key, values in given:
        if isinstance(values, str):
            problems.append(values)
            continue
        kept = tuple(values)
        if not key or not kept:
            problems.append(problem(f"The axis '{key}' has no values", do="Write --vary key=first,second"))
        if any(axis.key == key for axis in found):
            problems.append(problem(f"The key '{key}' is varied twice", do="Write all of its values in one --vary"))
        if len({repr(value) for value in kept}) < len(kept):
            problems.append(problem(f"The axis '{key}' has a value twice", given=", ".join(map(str, kept))))
        found.append(Axis(key, kept))
    if not found:
        problems.append(problem("Nothing is varied", do="Give --vary, such as --vary distill=pkd_skip,tinybert"))
    if problems:
        raise RecipeError("\n".join(problems))
    return found


def _written(text: str) -> tuple[str, list[Any] | str]:
    """Key and values of ``key=a,b``; a message in the values' place where they can't be read."""
    key, equals, rest = text.partition("=")
    if not equals:
        return key, problem("An axis is written key=first,second", given=f"'{text}'")
    values = []
    for part in split_values(rest):
        try:
            values.append(yaml.safe_load(part))
        except yaml.YAMLError:
            return key, problem(f"A value of '{key}' is no readable YAML", given=f"'{part}'")
    return key.strip(), values


def split_values(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket and in no quotes; empty parts are dropped."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def choices(found: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every combination of values, the last axis turning fastest: key -> value."""
    product = itertools.product(*(axis.values for axis in found))
    return [dict(zip((axis.key for axis in found), values, strict=True)) for values in product]


def override(key: str, value: Any) -> str:
    """``key=value`` as a recipe takes it on the command line."""
    return f"{key}={yaml.safe_dump(value, default_flow_style=True, width=2**30).removesuffix('...' + chr(10)).strip()}"


def title(chosen: Choices) -> str:
    """``tinybert, layers 2``: method names alone, other values behind the last part of their key."""
    keys = [key for key in chosen if key != DISTILL]
    short = {key: key.rpartition(".")[2] for key in keys}
    parts = []
    for key, value in chosen.items():
        if key == DISTILL:
            parts.append(method_name(value))
        else:
            unique = sum(other == short[key] for other in short.values()) == 1 and not short[key].isdigit()
            parts.append(f"{short[key] if unique else key} {_plain(value)}")
    return ", ".join(parts)


def slug(text: str) -> str:
    """A title as a folder's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("_", "-")).strip("-.").lower() or "variant"


def method_name(value: Any) -> str:
    """The name of a recipe: what was written, or the file's stem."""
    text = str(value)
    return Path(text).stem if "/" in text or text.endswith((".yaml", ".yml")) else text


def _plain(value: Any) -> str:
    return override("", value)[1:]
