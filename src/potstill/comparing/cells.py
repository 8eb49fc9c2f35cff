"""The recipes of a comparison: one a variant, and for each the plain student that it is held against.

Decided here, so that a difference between two variants is one between methods:

* A method is the `distill` section of a recipe, and what of it says what is learnt: its terms and, where it has them,
  its chain of assistants or generations. How it is trained (learning rate, batch size, schedule, precision, when to
  stop) comes from the first stage of the recipe that is compared, and the optimiser steps of that recipe's stages are
  shared among the method's stages in proportion to the method's own. So every variant takes the same number of steps
  on batches of the same size. With `own_settings` the training stays as the method's recipe has it, and steps differ.
* The plain student starts as the variant does and takes the recipe's own stages with the labels alone. Variants that
  differ in nothing but the method share it; those of another size, or with other settings, have their own.
* Nothing is exported and no baseline is trained within a variant: the comparison does each once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.checks import problem
from potstill.comparing.axes import DISTILL, OWN, Choices, override, slug, title
from potstill.errors import PotstillError, RecipeError
from potstill.recipe import Recipe, load_recipe
from potstill.runs import digest
from potstill.training.stages import total_steps

PLAIN = "plain"
WHOLE_METHODS = ("assistants", "generations")  # beside `distill`, these belong to a method
Rows = Callable[[Recipe], int]  # how many rows a recipe's student learns from


@dataclass(frozen=True)
class Cell:
    """One variant, or a plain student: an ordinary run of its own recipe.

    Args:
        key: names it in files and folders.
        choices: what was chosen on each axis; empty for a plain student.
        plain: the key of the plain student that it is held against; None for one that is itself plain.
        steps: optimiser steps of one seed, as planned.
    """

    key: str
    title: str
    recipe: Recipe
    choices: Choices
    plain: str | None
    steps: int


def cells(recipe: Recipe, combinations: Sequence[Choices], rows: Rows, *, own_settings: bool = False) -> list[Cell]:
    """The plain students first, then the variants in their order.

    Args:
        recipe: that which is compared; its `evaluate.seeds` is that of every cell.
        combinations: what is chosen on each axis, one entry a variant.
        rows: gives the number of rows that a recipe's student learns from; called with equal data, it should be quick.
        own_settings: keep each method's own training settings.

    Raises:
        RecipeError: with every problem of every variant, each behind the variant's title.
    """
    plain: dict[str, Cell] = {}
    found: list[Cell] = []
    problems: list[str] = []
    titles = [_title(recipe, chosen) for chosen in combinations]
    for chosen, name in zip(combinations, titles, strict=True):
        try:
            base = load_recipe(recipe, [override(k, v) for k, v in chosen.items() if not _of_the_method(k)])
            count = rows(base)
            baseline = _plain_recipe(base)
            held_against = plain.setdefault(
                digest(_identity(baseline)), Cell("", "", baseline, {}, None, planned_steps(baseline, count))
            )
            varied = _variant(base, chosen, count, own_settings)
            steps = planned_steps(varied, count)
            if not own_settings and DISTILL in chosen and steps != held_against.steps:
                raise RecipeError(_other_steps(steps, held_against.steps))
            found.append(Cell(slug(name), name, varied, chosen, digest(_identity(held_against.recipe)), steps))
        except PotstillError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
    named = _named(plain, found) if found else {}
    keys = [cell.key for cell in (*named.values(), *found)]
    if same := ", ".join(sorted({key for key in keys if keys.count(key) > 1})):
        problems.append(problem("Two variants would have the same name", given=same, do="Rename one of the recipes"))
    if problems:
        raise RecipeError("\n".join(_said_once(problems, titles)))
    return [*named.values(), *(_held_against(cell, named) for cell in found)]


def planned_steps(recipe: Recipe, rows: int) -> int:
    """The optimiser steps of all distilling stages over `rows` rows, unless one stops early."""
    return sum(total_steps(stage.train, rows)[0] for stage in recipe.distill)


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole parts in proportion to the weights, each at least 1, by largest remainder.

    Raises:
        RecipeError: for fewer steps than stages.
    """
    if total < len(weights):
        raise RecipeError(problem(f"{len(weights)} stages can't share {total} optimiser steps", do="Train for longer"))
    exact = [total * weight / sum(weights) for weight in weights]
    found = [max(1, int(part)) for part in exact]
    order = sorted(range(len(exact)), key=lambda number: found[number] - exact[number])
    for number in order[: max(0, total - sum(found))]:
        found[number] += 1
    while sum(found) > total:  # stages that were lifted to one step
        found[found.index(max(found))] -= 1
    return found


def _title(recipe: Recipe, chosen: Choices) -> str:
    """A variant's title, in which the recipe's own method goes by the recipe's name."""
    return title({**chosen, DISTILL: recipe.name} if chosen.get(DISTILL) == OWN else chosen)


def _other_steps(steps: int, wanted: int) -> str:
    return problem(
        "The variant would take another number of optimiser steps than the plain student",
        given=f"{steps}, the plain student {wanted}",
        follows="A difference could come from training for longer",
        do="Vary the train settings of the recipe instead of a method's, or give --own-settings",
    )


def _of_the_method(key: str) -> bool:
    """Whether a key belongs to the method and not to how it is trained: ``distill`` and all below it but ``train``."""
    parts = key.split(".")
    return parts[0] == DISTILL and not (len(parts) > 2 and parts[2] == "train")


def _data(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _bare(recipe: Recipe, name: str) -> dict[str, Any]:
    """A recipe's data for a cell: no baselines, files or timings of its own."""
    data = _data(recipe)
    once = {"baseline": False, "pretrained_baseline": False, "cost": False, "attention_similarity": False}
    return {**data, "name": name, "evaluate": {**data.get("evaluate", {}), **once}, "export": {"formats": []}}


def _plain_recipe(base: Recipe) -> Recipe:
    """The recipe's own stages with the labels alone."""
    data = _bare(base, PLAIN)
    stages = [{"terms": [{"knowledge": "labels"}], "train": stage["train"]} for stage in base.as_dict()[DISTILL]]
    kept = {key: value for key, value in data.items() if key not in WHOLE_METHODS}
    return load_recipe({**kept, DISTILL: stages})


def _variant(base: Recipe, chosen: Choices, rows: int, own_settings: bool) -> Recipe:
    """The recipe of one variant: the method that was chosen, then the keys of it that were."""
    data = _bare(base, slug(_title(base, chosen)))
    if DISTILL in chosen:  # with its chain or none, whatever the recipe that is compared has
        data = {key: value for key, value in data.items() if key not in WHOLE_METHODS}
        data |= _method(base, chosen[DISTILL], rows, own_settings)
    return load_recipe(data, [override(k, v) for k, v in chosen.items() if _of_the_method(k) and k != DISTILL])


def _method(base: Recipe, name: Any, rows: int, own_settings: bool) -> dict[str, Any]:
    """The method of a recipe as sections of the base's: by name or path, or the base's own."""
    if not isinstance(name, str):
        raise RecipeError(problem("A method is named by a recipe", given=name, do=f"Write a name, a path or '{OWN}'"))
    taken = base if name == OWN else load_recipe(name)
    sections = _data(taken)
    if sections["teacher"].get("others") and name != OWN:
        raise RecipeError(
            problem(
                f"The recipe '{name}' has further teachers, and a comparison keeps the teachers of the recipe compared",
                do="Write teacher.others into the recipe compared, or leave this one out",
            )
        )
    kept = {key: sections[key] for key in WHOLE_METHODS if key in sections}
    if own_settings:
        return {**kept, DISTILL: sections[DISTILL]}
    weights: list[float] = [stage.train.epochs for stage in taken.distill]
    if any(stage.train.steps for stage in taken.distill):
        weights = [total_steps(stage.train, rows)[0] for stage in taken.distill]
    total, epochs = planned_steps(base, rows), sum(weights)
    settings = base.as_dict()[DISTILL][0]["train"]
    stages = []
    for stage, weight, steps in zip(sections[DISTILL], weights, shares(total, weights), strict=True):
        whole = sum(one.train.epochs for one in base.distill) * weight / epochs
        stages.append({**stage, "train": {**settings, "epochs": round(whole, 6), "steps": steps}})
    return {**kept, DISTILL: stages}


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a recipe's run another one: everything but its name."""
    return {key: value for key, value in recipe.as_dict().items() if key != "name"}


def _said_once(problems: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Problems that every variant has, without a title and once; the others as they are."""
    bare = {line: line.partition(": ")[2] for line in problems}
    common = {text for text in bare.values() if all(f"{name}: {text}" in problems for name in titles)}
    return list(dict.fromkeys(text if (text := bare[line]) in common else line for line in problems))


def _named(plain: Mapping[str, Cell], found: Sequence[Cell]) -> dict[str, Cell]:
    """The plain students with keys and titles: what tells them apart is what all of their variants chose alike."""
    named = {}
    for number, (identity, cell) in enumerate(plain.items()):
        own = [other.choices for other in found if other.plain == identity]
        common = {k: v for k, v in own[0].items() if all(one.get(k) == v for one in own) and not _of_the_method(k)}
        name = f"{PLAIN}, {title(common)}" if len(plain) > 1 and common else PLAIN
        key = slug(name) if len(plain) == 1 or common else f"{PLAIN}-{number + 1}"
        recipe = cell.recipe.model_copy(update={"name": key})
        named[identity] = Cell(key, name, recipe, {}, None, cell.steps)
    return named


def _held_against(cell: Cell, named: Mapping[str, Cell]) -> Cell:
    assert cell.plain is not None
    return Cell(cell.key, cell.title, cell.recipe, cell.choices, named[cell.plain].key, cell.steps)
