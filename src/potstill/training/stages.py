"""One stage of training from start to end, or from where it was stopped."""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from potstill import ranks
from potstill.data.ahead import loader_workers
from potstill.knowledge import ModelShape, describe
from potstill.objective import Objective
from potstill.tasks.base import Rows, Task
from potstill.training.checkpoints import (
    is_last,
    latest,
    load_members,
    load_weights,
    prune,
    save_weights,
    take_projections,
)
from potstill.training.combination import Combination
from potstill.training.distiller import Teacher
from potstill.training.embeddings import FROZEN, SPARSE
from potstill.training.freezing import EMBEDDINGS, frozen
from potstill.training.precision import DTYPES, Precision
from potstill.training.settings import TrainSettings
from potstill.training.trainer import DistillationTrainer, Evaluator

LOGS = 100  # points of a learning curve
Progress = Callable[[int, int, float | None], None]  # step, of how many, loss


@dataclass(frozen=True)
class TrainRecord:
    """What a stage leaves: how long it took, and its curves."""

    steps: int
    seconds: float
    rows_seen: int
    points: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Lesson:
    """Who learns what from whom: the same for teacher, baseline and student."""

    task: Task
    reader: Any  # of the rows
    rows: Rows
    objective: Objective
    teacher: Teacher | Mapping[str, Teacher] | None = None
    evaluator: Evaluator | None = None
    metric: str = "accuracy"
    higher_is_better: bool = True
    peers: Sequence[PreTrainedModel] = ()
    combination: Combination | None = None
    freeze: Sequence[int | str] = ()
    teacher_reader: Any = None  # where the teachers have another than the student
    teacher_precision: str | None = None  # float32, bfloat16 or int8; None: bfloat16 where the student trains in it

    def teacher_dtype(self, precision: Precision) -> torch.dtype | None:
        """What the teachers run in while the student trains in `precision`; None leaves them as they are."""
        if self.teacher_precision is not None:
            return DTYPES[self.teacher_precision]
        return torch.bfloat16 if precision.bfloat16 else None


def total_steps(settings: TrainSettings, rows: int) -> tuple[int, int]:
    """(optimiser steps of the stage, optimiser steps of one epoch)."""
    batches = math.ceil(rows / settings.batch_size)
    per_epoch = max(1, math.ceil(batches / settings.accumulation))
    return settings.steps or max(1, math.ceil(settings.epochs * per_epoch)), per_epoch


def train(
    student: PreTrainedModel,
    lesson: Lesson,
    settings: TrainSettings,
    folder: Path,
    *,
    precision: Precision,
    seed: int = 0,
    progress: Progress | None = None,
    earlier: Path | None = None,
) -> TrainRecord:
    """Train `student` in place, going on from the last whole checkpoint in `folder`, or from the end if it was reached.

    Projections of the stage in the folder `earlier` go on where they stood, where names and shapes are the same.

    The caller keeps `folder` for one student, lesson, settings and seed, and removes it when the student is safe.

    Raises:
        RecipeError, ModelError: the lesson doesn't fit the student.
        TrainingError: a loss that is not a finite number; the last good checkpoint stays in `folder`.
    """
    steps, _ = total_steps(settings, len(lesson.rows))
    plain = (student, *lesson.peers)
    members = copy.deepcopy(plain) if sharding() else plain  # a sharded model is none that can be used by itself
    trainer = DistillationTrainer(
        members[0],
        lesson.objective,
        lesson.task,
        lesson.reader,
        lesson.rows,
        teacher=lesson.teacher,
        peers=members[1:],
        combination=lesson.combination,
        teacher_reader=lesson.teacher_reader,
        args=training_arguments(settings, student, lesson, folder, bfloat16=precision.bfloat16, seed=seed),
        teacher_dtype=lesson.teacher_dtype(precision),
        evaluator=lesson.evaluator,
        patience=settings.early_stopping if settings.keep == "best" else None,
        group_by_length=settings.group_by_length,
        sparse_embeddings=settings.embeddings == SPARSE,
        callbacks=[_Clock(progress, steps)],
    )
    if earlier is not None:
        take_projections(trainer.distiller, earlier / "final")
    final = folder / "final"
    record, checkpoint, ended = ranks.on_main(partial(_left_in, folder))
    if record is not None:
        load_members(final, student, lesson.peers) if sharding() else load_weights(trainer.distiller, final)
        student.eval()  # type: ignore[no-untyped-call]
        return record
    if checkpoint is not None and ended:
        trainer.restore(checkpoint)  # `Trainer` would take one step more
    else:
        held = [EMBEDDINGS] if settings.embeddings == FROZEN and EMBEDDINGS not in lesson.freeze else []
        with frozen(members[0], [*lesson.freeze, *held]):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    best = ranks.on_main(lambda: trainer.best_checkpoint) if settings.keep == "best" else None
    if best is not None:
        load_weights(trainer.distiller, best)
    made = _record(trainer, settings)
    save_weights(trainer.distiller, final)
    if sharding():
        load_members(final, student, lesson.peers)
    ranks.on_main(lambda: _finish(folder, made))
    student.eval()  # type: ignore[no-untyped-call]
    return made


FINISHED = "finished.json"


def sharding() -> bool:
    """Whether accelerate was told to shard what trains (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and ranks.world_size() > 1


def _left_in(folder: Path) -> tuple[TrainRecord | None, Path | None, bool]:
    """What an earlier start left: the record of finished training, the newest checkpoint, and whether it's the last."""
    finished = folder / FINISHED
    if finished.exists():
        return TrainRecord(**json.loads(finished.read_text(encoding="utf-8"))), None, True
    checkpoint = latest(folder)
    return None, checkpoint, checkpoint is not None and is_last(checkpoint)


def _finish(folder: Path, record: TrainRecord) -> None:
    """Say that training is finished, and remove its checkpoints."""
    beside = (folder / FINISHED).with_suffix(".new")
    beside.write_text(json.dumps(record.as_dict()), encoding="utf-8")
    beside.replace(folder / FINISHED)
    prune(folder, set())


def rate_of(settings: TrainSettings, shape: ModelShape) -> float:
    """The learning rate that a model of these sizes is trained with."""
    return settings.rate(shape.width if shape.layers else 0)


def training_arguments(
    settings: TrainSettings, student: PreTrainedModel, lesson: Lesson, folder: Path, *, bfloat16: bool, seed: int
) -> TrainingArguments:
    """The `TrainingArguments` of a stage. Evaluations are counted in steps, so that a resumed run makes the same."""
    steps, per_epoch = total_steps(settings, len(lesson.rows))
    evaluate = lesson.evaluator is not None
    every = math.ceil(steps / settings.evaluations) if settings.evaluations else per_epoch
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.rows_of_one_rank(ranks.world_size()),
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=rate_of(settings, describe(student)),
        weight_decay=settings.weight_decay,
        warmup_steps=math.ceil(settings.warmup * steps),
        lr_scheduler_type=settings.schedule,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=bfloat16,
        use_cpu=not torch.accelerator.is_available(),
        seed=seed,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=every if evaluate else None,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        logging_steps=max(1, steps // LOGS),
        logging_nan_inf_filter=False,
        metric_for_best_model=lesson.metric if evaluate and settings.keep == "best" else None,
        greater_is_better=lesson.higher_is_better,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=loader_workers(lesson.task.columns),
    )


class _Clock(TrainerCallback):
    """Adds the seconds of training, resumed parts together, to what is logged, and reports progress."""

    def __init__(self, progress: Progress | None, steps: int) -> None:
        self.progress = progress
        self.steps = steps
        self.before = 0.0
        self.started = 0.0
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self.before = max((entry.get("elapsed", 0.0) for entry in state.log_history), default=0.0)
        self.started = time.monotonic()

    def on_log(  # type: ignore[override]
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_kwargs: Any
    ) -> None:
        state.log_history[-1]["elapsed"] = self.before + time.monotonic() - self.started
        self.loss = logs.get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if self.progress is not None:
            self.progress(state.global_step, self.steps, self.loss)


def _record(trainer: DistillationTrainer, settings: TrainSettings) -> TrainRecord:
    history = trainer.state.log_history
    points = [
        {
            "step": entry["step"],
            "loss": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "parts": {key.removeprefix("part/"): value for key, value in entry.items() if key.startswith("part/")},
        }
        for entry in history
        if "loss" in entry
    ]
    evaluations = [
        {"step": entry["step"], **{k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}}
        for entry in history
        if any(key.startswith("eval_") for key in entry)
    ]
    best = trainer.state.best_global_step if settings.keep == "best" else None
    steps = trainer.state.global_step
    rows = len(trainer.train_dataset)  # type: ignore[arg-type]
    epochs, rest = divmod(steps, total_steps(settings, rows)[1])
    return TrainRecord(
        steps=steps,
        seconds=max((entry.get("elapsed", 0.0) for entry in history), default=0.0),
        rows_seen=epochs * rows + rest * settings.batch_size * settings.accumulation,
        points=points,
        evaluations=evaluations,
        best_step=best,
    )
