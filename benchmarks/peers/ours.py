"""potstill: the same work by `DistillationTrainer`, and its defaults.

Our defaults are `TrainSettings()` (batches of 32 rows of like length, a learning rate of 2e-4 at this width) with the
terms of the packaged recipe `reviews`; with ``recipe``, that recipe as it is shipped, whose batches of 64 and rate of
4e-4 were found on this data. Where there is a cache, it is written first, and the time that this takes counts.
"""

import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contract import Curve, LeftOut, Rows, Settings, Work, at_each_step, load, serve, without_dropout
from datasets import load_from_disk
from transformers import AutoTokenizer

import potstill.tasks
from potstill.objective import Objective
from potstill.recipe import load_recipe
from potstill.tasks import TextClassification
from potstill.training import DistillationTrainer, TrainSettings
from potstill.training.stages import Lesson, training_arguments

HAS_CACHE = importlib.util.find_spec("potstill.cache") is not None
TOKENS = 128  # to which the driver cuts rows


class Recorded(DistillationTrainer):
    """A trainer that keeps the losses of its steps."""

    work: Work

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As it is, and recorded."""
        loss = super().compute_loss(*args, **kwargs)
        self.work.record(loss)
        return loss


def task_of(settings: Settings) -> Any:
    """The task of the rows."""
    if settings.task == "classification":
        return TextClassification()
    if not hasattr(potstill.tasks, "CausalLM"):
        raise LeftOut("this version of potstill has no task for language models")
    return potstill.tasks.CausalLM("blocks")


def cached(teacher: Any, task: Any, tokenizer: Any, rows: Any, objective: Objective, folder: Path) -> Any:
    """The teacher's knowledge of the rows, written to a folder, in the teacher's place."""
    from potstill.cache import CachedTeacher, Identity, teacher_digest, tokenizer_digest, write_cache
    from potstill.training.distiller import bind

    needs = bind(objective, load(teacher.name_or_path, "classification"), task, teacher).needs("teacher")
    identity = Identity(teacher_digest(teacher), tokenizer_digest(tokenizer), needs, max_length=TOKENS)
    return CachedTeacher(write_cache(folder, identity, teacher.eval(), rows, task.collator(tokenizer)).cache)


def trainer_of(
    work: Work, kind: Any, objective: Objective, settings: TrainSettings, folder: Path, kept: Path | None = None
) -> Any:
    """The trainer, with a live teacher, a cached one or none, and when it began: before the cache was written.

    The cache is looked for in `kept`, if that is given; else it is written anew.
    """
    given, task = work.settings, task_of(work.settings)
    rows, tokenizer = load_from_disk(given.sample), AutoTokenizer.from_pretrained(given.teacher)
    student = load(given.student, given.task)
    if not work.command.get("dropout", True):
        without_dropout(student)
    wanted = work.command["teacher"]
    teacher = None if wanted == "none" else load(given.teacher, given.task)
    lesson = Lesson(task, tokenizer, rows, objective, teacher)
    started = time.perf_counter()
    if wanted == "cached":
        if not HAS_CACHE:
            raise LeftOut("this version of potstill has no cache")
        teacher = cached(teacher, task, tokenizer, rows, objective, kept or folder / "cache")
    trainer = kind(
        student,
        objective,
        task,
        tokenizer,
        rows,
        teacher=teacher,
        args=training_arguments(settings, student, lesson, folder, bfloat16=work.bfloat16, seed=work.command["seed"]),
        teacher_dtype=torch.bfloat16 if work.bfloat16 else None,
    )
    return trainer, started


def segment(work: Work) -> object:
    """The same work; without a teacher, from the labels alone."""
    given = work.settings
    settings = TrainSettings(
        steps=work.steps,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        weight_decay=given.weight_decay,
        warmup=given.warmup,
        max_grad_norm=given.max_grad_norm,
    )
    alone = {"knowledge": "labels"} if work.command["teacher"] == "none" else None
    objective = Objective([alone or {"knowledge": "logits", "temperature": given.temperature}])
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(given.student).parent / "cache"  # written by the first segment, before its clock starts
        trainer, _ = trainer_of(work, Recorded, objective, settings, Path(folder), kept)
        trainer.work = work
        trainer._save_checkpoint = lambda *_: None  # nobody saves in a segment
        trainer.train()
    return trainer.distiller.student


def curve(work: Work) -> dict[str, Any]:
    """Our defaults, with accuracy taken along the way."""
    command, recipe = work.command, load_recipe("reviews")
    stage = recipe.distill[0]
    own = stage.train if command.get("recipe") else TrainSettings()
    settings = replace(own, epochs=command["epochs"], steps=command.get("steps"))
    rows = len(work.rows)
    per_epoch = -(-rows // settings.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer, started = trainer_of(work, DistillationTrainer, stage.objective(), settings, Path(folder))
        student = trainer.distiller.student
        points = Curve(
            student, Rows.load(work.settings.validation), work.settings.pad, max(1, per_epoch // command["points"])
        )
        points.started = started
        with at_each_step(points):
            trainer.train()
            return points.finish() | {"cache": command["teacher"] == "cached"}


if __name__ == "__main__":
    serve(segment, curve)
