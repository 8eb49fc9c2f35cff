"""Models made ready: loaded, built and compared, every objective bound to them.

Everything that can be wrong with them is found here, before anything is trained. `plan` stops after it, `pipeline` goes
on. Teachers read the rows with their reader; the student, its baselines, assistants and peers all read them with the
student's.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, set_seed

from potstill import export, ranks
from potstill.checks import problem
from potstill.errors import DataError, ModelError, RecipeError, RunFolderError
from potstill.knowledge import Needs
from potstill.knowledge.architectures import ModelShape, describe
from potstill.labelled import TRAIN, generic, head_names, same_classes
from potstill.mappings import selection
from potstill.objective import BoundObjective
from potstill.recipe import Recipe
from potstill.sections import FurtherTeacherSection, StageSection, StudentSection, architecture_named
from potstill.students import (
    build_student,
    configuration,
    cut_vocabulary,
    cut_width,
    reinitialised,
    sizes_of,
    stands_alone,
    with_tokens_of,
)
from potstill.terms import TEACHER
from potstill.training.alignment import require_aligned, token_terms
from potstill.training.distiller import ROW, Distiller
from potstill.training.embeddings import SPARSE, require_embeddings, require_unsharded
from potstill.training.freezing import parts as freezable
from potstill.training.int8 import require_int8
from potstill.training.sharding import require_shardable
from potstill.training.stages import sharding
from potstill.workbench import Workbench, model_path

CALIBRATION_BATCH = 32
TRIED_ROWS = 4


def load_teacher(
    bench: Workbench, trained: Path | None = None, other: FurtherTeacherSection | None = None
) -> PreTrainedModel:
    """The teacher, or another one, as it was trained here, or as it was given; a new head is refused unless the recipe
    trains it."""
    section = other or bench.recipe.teacher
    start = bench.untrained_teacher
    if other is not None:
        start = path = model_path(other.model)
        if trained is None:
            _same_reader(bench.for_teacher, path, f"The teacher '{other.name}'")
            _same_classes(bench, path, f"The teacher '{other.name}'")
    loaded = bench.for_teacher.load(trained or start)
    if loaded.new_parameters and section.train is None and trained is None:
        raise ModelError(
            problem(
                f"The teacher '{start}' has a newly initialised head",
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

    Its layers are cut first, then its width, then its vocabulary.

    `section` describes another student than the recipe's: an assistant, or one that learns along.
    """
    section = section or bench.recipe.student
    if section.origin == "checkpoint":
        assert section.model is not None
        path = model_path(section.model)
        _same_reader(bench, path)
        _same_classes(bench, path)
        set_seed(seed)  # for a head that the checkpoint doesn't hold
        model = bench.load(path).model
    elif section.origin == "config" and stands_alone(section.config):
        model = _of_config(bench, source, seed, section.config)
    else:
        _reads_alike(bench, bench.for_teacher.reader, f"A student from: {section.origin}")
        assert not isinstance(section.config, str)
        if section.initialise == "pretrained":
            set_seed(seed)  # for the new head
            source = bench.for_teacher.load(bench.teacher_path).model
        model = build_student(source, layers=section.layers, rule=section.rule, config=section.config, seed=seed)
        if section.width is not None:
            model = _narrower(bench, model, section)
        if section.initialise == "random":
            model = reinitialised(model, seed)
    return model if bench.vocabulary is None else cut_vocabulary(model, bench.vocabulary)


def _of_config(bench: Workbench, source: PreTrainedModel, seed: int, given: Mapping[str, Any] | str) -> PreTrainedModel:
    """A model of a config of its own, with random weights; where it reads texts, with the teacher's tokens."""
    theirs = getattr(source.config.get_text_config(), "vocab_size", None)
    if isinstance(given, Mapping) and given.get("vocab_size", theirs) != theirs:
        raise ModelError(
            problem(
                "A student of a config has its teacher's tokenizer, and so its vocabulary",
                given=f"vocab_size {given['vocab_size']}, teacher {theirs}",
                do="Leave vocab_size out; student.vocabulary makes it smaller",
            )
        )
    where = given if isinstance(given, Mapping) else model_path(given)
    config = configuration(where, trust_remote_code=bench.recipe.teacher.trust_remote_code)
    set_seed(seed)
    return bench.load(with_tokens_of(config, source.config)).model


def _narrower(bench: Workbench, model: PreTrainedModel, section: StudentSection) -> PreTrainedModel:
    """The width cut, by importance on a fixed draw of training rows as the teacher reads them."""
    asked, reads = section.width, bench.for_teacher
    assert asked is not None
    batches = None
    if asked.calibration and section.initialise != "random":
        rows, collate = reads.rows[TRAIN], reads.collate
        drawn = np.random.default_rng(0).permutation(len(rows))[: asked.calibration]
        starts = range(0, len(drawn), CALIBRATION_BATCH)
        batches = [collate(rows.select(drawn[i : i + CALIBRATION_BATCH].tolist()).to_list()) for i in starts]
    return cut_width(model, hidden=asked.hidden, intermediate=asked.intermediate, heads=asked.heads, batches=batches)


def _same_classes(bench: Workbench, path: str, whose: str = "The student's checkpoint") -> None:
    """Refuse a model whose head was trained for other classes, or for these in another order."""
    names = head_names(path, bench.recipe.teacher.trust_remote_code)
    wanted = list(bench.task.names)
    if bench.task.problem == "regression" or names is None or generic(names):
        return
    if same_classes(names, wanted, ordered=True):
        return
    raise ModelError(
        problem(
            f"{whose} has a head for other classes, or for these in another order",
            given=f"its classes {names}, data {wanted}",
            follows="It would answer one class for another",
            do="Give data.names in its order, or a model without a head",
        )
    )


def _same_reader(bench: Workbench, path: str, whose: str = "The student") -> None:
    trust, size = bench.recipe.teacher.trust_remote_code, bench.recipe.data.image_size
    _reads_alike(bench, bench.task.load_reader(path, trust_remote_code=trust, size=size), whose)


def _reads_alike(bench: Workbench, reader: Any, whose: str) -> None:
    """Refuse a model of another reader than the one that rows are read with (before its vocabulary was cut)."""
    read_with = bench.reader if bench.vocabulary is None else bench.vocabulary.before
    bench.task.require_same(reader, read_with, whose, "teacher" if bench.teachers is None else "student")


@dataclass(frozen=True)
class Preflight:
    """What will be trained, found without training: for the plan, and so that errors come first."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    teachers: Mapping[str, PreTrainedModel]  # who teaches the student: the teachers, or the last of a chain
    peers: tuple[tuple[PreTrainedModel, ...], ...]  # stage by stage, who learns along
    stages: tuple[BoundObjective, ...]
    asked: Mapping[str, Needs]  # by teacher, what those ask who learn from it
    chain: tuple[ModelShape, ...] = ()  # who stands between teacher and student

    @property
    def own_teachers(self) -> Mapping[str, PreTrainedModel]:
        """The recipe's teachers by name, and no assistant; where a chain follows, there is one."""
        return {TEACHER: self.teacher} if self.chain else self.teachers


def preflight(bench: Workbench, trained: Path | None = None) -> Preflight:
    """Load the teachers, build the students and bind every objective, so that whatever doesn't fit is said now."""
    recipe = bench.recipe
    if recipe.export.formats:
        export.require_packages()
    teacher = load_teacher(bench, trained)
    taught_by = {TEACHER: teacher}
    taught_by |= {other.name: load_teacher(bench, other=other) for other in recipe.teacher.others}
    for name, model in taught_by.items():
        bench.for_teacher.check_rows(name, model)
        require_embeddings(model, recipe.teachers_trainings[name])
        if recipe.teacher.precision == "int8":
            require_int8(model)
    refine = None if recipe.refine is None else recipe.refine.train
    asked: list[Mapping[str, Needs]] = []  # of each in the chain
    chain: list[ModelShape] = []
    for assistant in recipe.chain:
        made = start_student(bench, teacher, recipe.seed, assistant.student)
        bench.check_rows("assistant", made)
        chain.append(describe(made))
        require_embeddings(made, refine)
        asked.append(_bind_stages(bench, assistant.distill or recipe.distill, made, taught_by, teacher)[2])
        taught_by = {TEACHER: made}
    student = start_student(bench, teacher, recipe.seed)
    bench.check_rows("student", student)
    peers, stages, own = _bind_stages(bench, recipe.distill, student, taught_by, teacher)
    require_embeddings(student, refine)
    return Preflight(teacher, student, taught_by, peers, stages, [*asked, own][0], tuple(chain))


def _bind_stages(
    bench: Workbench,
    stages: Sequence[StageSection],
    student: PreTrainedModel,
    teachers: Mapping[str, PreTrainedModel],
    source: PreTrainedModel,
) -> tuple[tuple[tuple[PreTrainedModel, ...], ...], tuple[BoundObjective, ...], dict[str, Needs]]:
    """Stage by stage, the peers that learn along, and the objective bound to a student and all its teachers; and what
    all stages together ask of each teacher."""
    together, found = [], []
    asked: dict[str, Needs] = {}
    own = bench.teacher_reader if teachers[TEACHER] is source else None  # an assistant reads as its student does
    for stage in stages:
        if stage.freeze:
            freezable(student, stage.freeze)
        require_embeddings(student, stage.train)
        peers = tuple(start_student(bench, source, bench.recipe.seed, section) for section in stage.mutual)
        for peer in peers:
            bench.check_rows("student that learns along", peer)
            if stage.train.embeddings == SPARSE:  # frozen is what the student's are alone
                require_embeddings(peer, stage.train)
        distiller = Distiller(
            student,
            stage.objective(),
            bench.task,
            teachers,
            peers=peers,
            combination=bench.recipe.combination if len(teachers) > 1 else None,
            rows=len(bench.transfer),
            own_columns=own is not None,
        )
        if sharding():
            require_shardable(distiller.objective, int(os.environ.get("FSDP_VERSION", "1")))
        together.append(peers)
        if own is not None:
            require_aligned(distiller.objective, bench.task, bench.transfer, bench.reader, own)
        _try(distiller, bench)
        found.append(distiller.objective)
        asked |= {name: needs | asked.get(name, needs) for name, needs in distiller.asked.items()}
    return tuple(together), tuple(found), asked


def _try(distiller: Distiller, bench: Workbench) -> None:
    """One small batch, at both ends of every schedule: a loss says by itself which of its arguments it refuses."""
    rows = bench.rows[TRAIN]
    rows = rows.select(range(min(TRIED_ROWS, len(rows))))
    batch = bench.collate(rows.add_column(ROW, np.arange(len(rows))).to_list())
    distiller.eval()  # draws no dropout, and leaves memories as they are
    with torch.no_grad():
        for progress in (0.0, 1.0):
            try:
                distiller(batch, progress=progress)
            except (TypeError, ValueError, RuntimeError) as error:
                raise RecipeError(problem("A term can't be computed as it is written", given=error)) from error


def check_ranks(bench: Workbench, *, trains: bool = True) -> None:
    """Refuse processes that read other rows from the same recipe, or that batches can't be shared among: those of the
    teachers alone, where no student `trains`."""
    recipe = bench.recipe
    trainings = recipe.trainings if trains else [one for one in recipe.teachers_trainings.values() if one is not None]
    for settings in trainings:
        settings.rows_of_one_rank(ranks.world_size())
        if settings.embeddings == SPARSE:
            require_unsharded(sharding())
    if not ranks.same(bench.digest):
        raise DataError(
            problem(
                "The processes of this run have read different rows from the same recipe",
                follows="Each would count rows and steps differently",
                do="Give files that are the same on all machines",
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
    settings = [recipe.teacher.train, *(other.train for other in recipe.teacher.others)]
    trained = teacher * sum(train is not None for train in settings)
    runs = recipe.evaluate.seeds * (1 + len(recipe.chain) + 2 * recipe.evaluate.baseline)
    together = [4 * sum(p.numel() for model in peers for p in model.parameters()) for peers in found.peers]
    largest = max(teacher if trained else 0, student + max(together))
    return 6 * largest + trained + runs * student + 2 * student


def shape_text(model: PreTrainedModel) -> str:
    """``bert, 6 layers of width 384, 12 heads``, or ``resnet, stages of 64, 128, 256, 512 channels``."""
    shape = describe(model)
    if not shape.layers:
        channels = ", ".join(map(str, shape.channels))
        return f"{shape.family}, stages of {channels} channels" if channels else shape.family
    layers = f"{shape.layers} layer{'s' * (shape.layers != 1)}"
    return f"{shape.family}, {layers} of width {shape.width}, {shape.heads} heads"


def student_notes(bench: Workbench, found: Preflight) -> list[str]:
    """How the student starts and what it reads, in a few plain lines: for the plan, and for what a run says."""
    section, lines = bench.recipe.student, []
    if section.origin == "config" and stands_alone(section.config):
        lines.append(f"student: {architecture_named(section.config)}, with random weights")
    if section.origin == "teacher":
        whose = {
            "teacher": "the teacher's weights" + (", as trained here" if bench.recipe.teacher.train else ""),
            "pretrained": f"the weights of {bench.recipe.teacher.called}, before it is trained here",
            "random": "random weights",
        }[section.initialise]
        total = describe(found.teacher).layers
        layers = selection(total if section.layers is None else section.layers, total, rule=section.rule)
        lines.append(f"student: layers {', '.join(map(str, layers))} of {total}, with {whose}")
    if section.width is not None:
        old, new = sizes_of(found.teacher), sizes_of(found.student)
        kept = [
            f"{name} {getattr(old, name):,} to {getattr(new, name):,}"
            for name in ("hidden", "intermediate", "heads")
            if getattr(old, name) != getattr(new, name)
        ]
        rows = min(section.width.calibration, len(bench.rows[TRAIN]))
        by = f"importance on {rows:,} training rows" if rows else "the size of the weights"
        lines.append(f"width: {', '.join(kept) or 'nothing cut'}, by {by}")
    if bench.vocabulary is not None:
        before, after = len(bench.vocabulary.before), len(bench.vocabulary.kept)
        table: Any = found.student.get_input_embeddings().weight
        saved = (before - after) * table.shape[1] * table.element_size()
        lines.append(f"vocabulary: {before:,} to {after:,} tokens, {saved / 1e6:.1f} MB of embeddings less")
    if bench.teachers is not None:
        terms = [name for stage in found.stages for name in token_terms(stage)]
        lines.append(bench.task.two_readers(bench.reader, bench.teachers.reader, list(dict.fromkeys(terms))))
    return lines
