"""The labelled rows of a recipe, and the task that they make: found, named, checked and put in order, whatever they
show.

One function for each `task` of a recipe stands in `LABELLED`, at the end. Rows come back under the names that tasks
know, as the data has them; `encoding` reads them for the models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from transformers import AutoConfig

from potstill.checks import problem
from potstill.data import load, prepare
from potstill.data.columns import Columns
from potstill.data.images import guess_image_columns
from potstill.data.label_maps import class_weights, read_label_maps
from potstill.data.rows import in_order, routed, standard_columns, unlabelled_images, unlabelled_rows, with_labels
from potstill.errors import DataError, ModelError, RecipeError
from potstill.recipe import Recipe
from potstill.sections import SourceSection
from potstill.tasks import ImageClassification, SemanticSegmentation, Task, TextClassification
from potstill.tasks.base import bars_on_a_terminal, quiet_transformers
from potstill.terms import TEACHER
from potstill.training.combination import CONFIDENT

TRAIN, VALIDATION, TEST, UNLABELLED = "train", "validation", "test", "unlabelled"
HEADS = ("ForSequenceClassification", "ForImageClassification", "ForSemanticSegmentation")
Say = Callable[[str], None]
Classified: TypeAlias = TextClassification | ImageClassification
Guess = Callable[..., tuple[Columns, list[str]]]
Labelled = Callable[[Recipe, str, Say], tuple[dict[str, Any], Task]]


def source_of(section: SourceSection) -> load.Source:
    """A section's source, as the loader takes it."""
    return load.Source(
        name=section.name,
        config=section.config,
        files=section.files,
        options=section.options,
        revision=section.revision,
    )


def _splits(recipe: Recipe, guess: Guess, say: Say) -> tuple[Any, Any]:
    """The rows by split, those of train no more than the recipe's limit, and which columns hold what."""
    data = recipe.data
    found, notes = load.load_with_notes(source_of(data))
    left_out = len(found) > 1 and found.pop(UNLABELLED, None) is not None  # before its images are decoded
    columns, guessed = guess(found, data.columns.model_dump(exclude_unset=True))
    found, seen = columns.looked_at(found)
    found, cut = load.missing_splits(found, validation=data.validation, test=data.test, columns=columns)
    for note in [*notes, *guessed, *seen, *cut]:
        say(note)
    if left_out:
        say("the split unlabelled is left out; to learn from such rows too, name their source under data.unlabelled")
    if data.limit is not None:
        found[TRAIN] = found[TRAIN].shuffle(seed=0).select(range(min(data.limit, len(found[TRAIN]))))
    return found, columns


def classified(kind: type[Classified], recipe: Recipe, teacher: str, say: Say) -> tuple[dict[str, Any], Classified]:
    """The rows of a classification, and the task.

    Args:
        kind: the task, without its classes.
        teacher: where the teacher lies; its order of classes is taken where it isn't trained here.
        say: told what was guessed.
    """
    data = recipe.data
    found, columns = _splits(recipe, GUESSES[kind], say)
    if columns.label is None:
        raise DataError(problem("No column holds the labels", do="Name it with data.columns.label"))
    label = columns.label if isinstance(columns.label, str) else list(columns.label)
    labels = prepare.infer_labels(found[TRAIN], label, data.problem, data.names)
    changed = {} if data.augment is None else {"augmentation": data.augment}  # of images alone: the recipe sees to it
    task = kind(labels.problem, labels.names, **changed)
    if recipe.teacher.train is None:
        task = _in_teachers_order(task, teacher, data.names is not None, recipe.teacher.trust_remote_code, say)
    prepare.check(found, columns, labels)
    for warning in load.overlap_warnings(found, columns):
        say(warning)
    route = recipe.teacher.route
    if route == CONFIDENT and task.problem != "single_label":
        raise RecipeError(
            problem(
                "teacher.route: confident goes by the entropy over the classes, one of which each row has",
                given=f"problem {task.problem}",
                do="Leave out route, so that all teachers teach every row, or name a column of the data",
            )
        )
    if route is not None and route != CONFIDENT:
        found = routed(found, route, [TEACHER, *(other.name for other in recipe.teacher.others)])
    with bars_on_a_terminal():
        rows = standard_columns(prepare.encode_labels(found, columns, labels), columns)
        rows = {split: in_order(part, labels.names, task.names) for split, part in rows.items()}
    for split in (VALIDATION, TEST):
        if split in rows:
            whole = rows[split]
            rows[split] = with_labels(whole)
            if left_out := len(whole) - len(rows[split]):
                say(f"{left_out} of the {len(whole)} rows of {split} are left out: they have no label")
    return rows, task


def segmented(recipe: Recipe, teacher: str, say: Say) -> tuple[dict[str, Any], SemanticSegmentation]:
    """The rows of a segmentation, and the task. Every label map is read here once.

    Args:
        teacher: where the teacher lies; its classes have to be the data's, in their order, where it isn't trained here.
        say: told what was guessed.
    """
    data = recipe.data
    found, columns = _splits(recipe, GUESSES[SemanticSegmentation], say)
    folder = data.name if data.name is not None and Path(data.name).expanduser().is_dir() else None
    maps = read_label_maps(found, columns, names=data.names, palette=data.palette, void=data.void, folder=folder)
    for note in [*maps.notes, *load.overlap_warnings(found, columns)]:
        say(note)
    weights = class_weights(maps.pixels[TRAIN], data.class_weights)
    if weights is not None:
        lightest, heaviest = min(weights), max(weights)
        say(f"labels are weighted by class, from {lightest:.3g} to {heaviest:.3g}")
    task = SemanticSegmentation(maps.classes, data.protocol, weights, data.augment)
    if recipe.teacher.train is None:
        _require_the_teachers_order(task, teacher, recipe.teacher.trust_remote_code)
    return {split: columns.standard(rows, ()) for split, rows in found.items()}, task


def _require_the_teachers_order(task: SemanticSegmentation, teacher: str, trust_remote_code: bool) -> None:
    """Refuse a teacher that is taken as it is and has other classes than the maps, or these in another order."""
    names = head_names(teacher, trust_remote_code)
    if names is not None and not same_classes(names, task.names, ordered=True):
        raise other_classes(
            "The teacher doesn't know the classes of the label maps, or has them in another order",
            f"teacher {names}, data {list(task.names)}",
            "Give data.names in its order, if the maps have its ids, or train the teacher here (teacher.train)",
        )


def unlabelled(recipe: Recipe, section: SourceSection, raw: Mapping[str, Any], say: Say) -> Any:
    """Rows without labels, less those that show what is in an evaluated split. Columns are named as in the labelled."""
    found, notes = load.load_with_notes(source_of(section))
    there = next(iter(found.values())).column_names
    named = {role: name for role, name in recipe.data.columns if role != "label" and name in there}
    guess, transfer = TRANSFER[recipe.task]
    columns, guessed = guess(found, named, labelled=False)
    notes += guessed
    for note in notes:
        say(f"unlabelled rows: {note}")
    held_out = [raw[split] for split in (VALIDATION, TEST) if split in raw]
    rows, dropped = transfer(found, columns, raw[TRAIN], held_out)
    if dropped:
        say(f"{dropped} unlabelled rows are left out: they show nothing, or what is in validation or test")
    return rows


def _in_teachers_order(task: Classified, teacher: str, named: bool, trust_remote_code: bool, say: Say) -> Classified:
    """The task with its classes in the order of a teacher that is taken as it is."""
    names = head_names(teacher, trust_remote_code)
    if task.problem == "regression" or names is None:
        return task  # a head that isn't there is refused when the model is loaded
    if not same_classes(names, task.names):
        raise other_classes(
            "The teacher doesn't know the classes of the data",
            f"teacher {names}, data {list(task.names)}",
            "Rename the data's classes, train the teacher here (teacher.train), or give data.names in its order",
        )
    if generic(names):
        order = "as given by data.names" if named else "in the order found in the data"
        say(f"the teacher's classes have no names; they are taken to be {list(task.names)}, {order}")
        return task
    if not same_classes(names, task.names, ordered=True):
        say(f"classes are put in the teacher's order: {names}")
    by_told = dict(zip(_told_apart(task.names), task.names, strict=True))
    return replace(task, names=tuple(by_told[one] for one in _told_apart(names)))


def same_classes(names: Sequence[str], others: Sequence[str], *, ordered: bool = False) -> bool:
    """Whether a model's classes are those of the data, without regard to case, unless it is all that tells some of
    them apart; generic ones are, if as many."""
    if len(names) != len(others) or generic(names):
        return len(names) == len(others)
    mine, theirs = _told_apart(names), _told_apart(others)
    return mine == theirs if ordered else set(mine) == set(theirs)


def generic(names: Sequence[str]) -> bool:
    """Whether the classes of a model have no names of their own: LABEL_0, LABEL_1, ..."""
    return all(name.upper().startswith("LABEL_") for name in names)


def other_classes(what: str, given: str, do: str) -> ModelError:
    """What is raised where a model's classes aren't those that it is compared on."""
    return ModelError(
        problem(what, given=given, follows="What it predicts would be compared with other classes", do=do)
    )


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names to compare: without regard to case, unless some differ in nothing else."""
    folded = [name.casefold() for name in names]
    return folded if len(set(folded)) == len(folded) else list(names)


def head_names(path: str, trust_remote_code: bool) -> list[str] | None:
    """The class names of a classifier in the order of its logits; None for a model that is none."""
    config = config_of(path, trust_remote_code)
    if not any(head in a for a in config.architectures or () for head in HEADS):
        return None
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def config_of(path: str, trust_remote_code: bool) -> Any:
    """The config of a model. Raises `ModelError` where it can't be read."""
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        given = str(error).splitlines()[0]
        raise ModelError(problem(f"The config of '{path}' can't be read", given=given)) from error


GUESSES: dict[type[Task], Guess] = {
    TextClassification: prepare.guess_columns,
    ImageClassification: guess_image_columns,
    SemanticSegmentation: partial(guess_image_columns, maps=True),
}
"""A task -> what finds its columns."""

TRANSFER: dict[str, tuple[Guess, Callable[..., tuple[Any, int]]]] = {
    "text_classification": (prepare.guess_columns, unlabelled_rows),
    "image_classification": (guess_image_columns, unlabelled_images),
    "semantic_segmentation": (guess_image_columns, unlabelled_images),
}
"""The `task` of a recipe -> what finds the columns of rows without labels, and what makes them rows to learn from."""

LABELLED: dict[str, Labelled] = {
    "text_classification": partial(classified, TextClassification),
    "image_classification": partial(classified, ImageClassification),
    "semantic_segmentation": segmented,
}
"""The `task` of a recipe -> what gives its rows by split, with the columns that tasks know, and the task."""
