"""`results.json`: what `evaluation.results` computes, with the facts of the run around it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.checks import problem
from potstill.data import prepare
from potstill.errors import RunFolderError
from potstill.evaluation import fidelity
from potstill.evaluation.results import (
    CONVENTION,
    Contender,
    Truth,
    class_score,
    highlights,
    judgement,
    metric_table,
    model_entry,
    per_class_change,
)
from potstill.metrics import SEGMENTATION_QUARTER, of_pixels, primary
from potstill.recipe import Recipe
from potstill.runs import RunFolder
from potstill.sections import FurtherTeacherSection, TeacherSection, architecture_named
from potstill.shipping import hardware, versions
from potstill.terms import TEACHER
from potstill.training import Precision
from potstill.workbench import Workbench, label_array

SCHEMA = 1


def assemble(
    folder: RunFolder,
    bench: Workbench,
    precision: Precision,
    contenders: Sequence[Contender],
    exports: Sequence[Mapping[str, Any]],
    shipped: int,
) -> dict[str, Any]:
    """Every number that the report shows. `shipped` is the seed whose student ships."""
    by_key = {contender.key: contender for contender in contenders}
    splits = dict.fromkeys(["train", "validation", bench.evaluated_on])
    labels = {split: bench.labels(split) for split in splits}
    labels["train"] = label_array(bench.sample_of_train, bench.task.problem)
    index = list(by_key["student"].seeds).index(shipped)
    truth = Truth(bench.task.problem, bench.task.names, labels, bench.evaluated_on, index)
    entries = {c.key: model_entry(c, by_key["teacher"], truth) for c in contenders}
    return {
        "schema": SCHEMA,
        "run": _run(folder, bench, precision, by_key["student"], shipped),
        "data": _data(bench),
        "metrics": metric_table(truth.problem),
        "primary": primary(truth.problem),
        "models": list(entries.values()),
        **judgement(by_key["student"], by_key, truth),
        # an accelerator's time beside a processor's would be no comparison
        "highlights": highlights(entries, [] if torch.cuda.is_available() else exports, bench.task.words.row),
        "class_score": class_score(truth.problem),
        "per_class_change": per_class_change(entries, class_score(truth.problem)["key"]),
        "exports": list(exports),
        "examples": _examples(bench, by_key, truth),
        "how": _how(bench, contenders),
    }


def finished_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run. Raises `RunFolderError` where there are none."""
    from potstill.report import load_results

    if not (folder / "results.json").exists():
        raise RunFolderError(
            problem(f"{folder} holds no finished run", given="no results.json", do="Run its recipe to the end first")
        )
    return dict(load_results(folder / "results.json"))


def _run(folder: RunFolder, bench: Workbench, precision: Precision, student: Contender, shipped: int) -> dict[str, Any]:
    recipe = folder.recipe
    return {
        "name": recipe.name,
        "title": f"{recipe.teacher.called} to {_size(recipe)}, on {recipe.data.called}",
        "task": recipe.task,
        "problem": bench.task.problem,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": sum(stage.seconds for stage in folder.stages),
        "stages": [{"name": s.name, "seconds": s.seconds, "reused": s.reused} for s in folder.stages],
        "versions": versions(),
        "hardware": hardware(),
        "precision": {"training": precision.name, "why": precision.why, **_teachers_precision(folder)},
        "command": shlex.join(["potstill", *sys.argv[1:]]) if sys.argv[0].endswith("potstill") else "potstill.run(...)",
        "recipe": recipe.as_yaml(),
        "convention": CONVENTION,
        "seeds": list(student.seeds),
        "shipped_seed": shipped,
    }


def _teachers_precision(folder: RunFolder) -> dict[str, Any]:
    """What was found of teachers in a lower precision than float32, where any was tried."""
    found = {s.name.rpartition("/")[2]: s.value for s in folder.stages if s.name.startswith("precision/")}
    return {"teachers": found} if found else {}


def _size(recipe: Any) -> str:
    layers = recipe.student.layers
    if layers is not None:
        count = layers if isinstance(layers, int) else len(layers)
        return f"{count} of its layers"
    return recipe.student.model or architecture_named(recipe.student.config)


def _data(bench: Workbench) -> dict[str, Any]:
    data = bench.recipe.data
    return {
        "name": data.name or ", ".join(str(path) for path in (data.files or {}).values()),
        "description": "",
        "licence": bench.licence,
        "splits": {split: len(rows) for split, rows in bench.rows.items()},
        "evaluated_on": bench.evaluated_on,
        "classes": list(bench.task.names) if bench.task.problem != "regression" else [],
        "rows": bench.task.words.rows,
        **_sizes(bench),
    }


def _sizes(bench: Workbench) -> dict[str, Any]:
    """How large the rows are as models read them: their tokens, or the height and width of images."""
    asked = bench.recipe.data.max_length
    if bench.task.limit(bench.reader, asked) is None:
        return {"image_size": list(bench.reader.size)}
    lengths = np.concatenate([np.asarray(bench.rows[split]["length"]) for split in ("train", bench.evaluated_on)])
    return {"max_length": asked, "tokens": {**prepare.token_statistics(lengths), "max": int(lengths.max())}}


def _examples(bench: Workbench, by_key: Mapping[str, Contender], truth: Truth) -> dict[str, Any] | None:
    """Where teacher and the shipped student disagree; of images, each with a small picture. None of a segmentation,
    whose images are shown with what each model sees in them."""
    if of_pixels(truth.problem):
        return None
    found = fidelity.disagreements(
        bench.task.shown(bench.raw[truth.split]),
        truth.labels[truth.split],
        by_key["student"].on(truth.split)[truth.shipped],
        by_key["teacher"].on(truth.split)[0],
        problem=truth.problem,
        names=truth.names,
        limit=bench.recipe.evaluate.examples,
    )
    for item in [] if found is None else [*found["teacher_right"], *found["student_right"]]:
        if picture := bench.task.pictured(bench.raw[truth.split][item["row"]]):
            item["image"] = picture
    return found


def _how(bench: Workbench, contenders: Sequence[Contender]) -> list[dict[str, str]]:
    """How every number was made, in words."""
    seeds = len(contenders[-1].seeds)
    rows, words = len(bench.rows[bench.evaluated_on]), bench.task.words
    attention = {
        "number": "Attention",
        "made": "Maps of the student that ships, and of its baselines, beside the teacher's, on a fixed draw of the "
        "evaluated rows: heads paired by number, unpadded tokens, layers as the objective's attention term or else the "
        "uniform map pairs them.",
    }
    return [
        *([attention] if bench.recipe.evaluate.attention_similarity else []),
        {
            "number": "Quality",
            "made": f"On the {rows:,} rows of the {bench.evaluated_on} split, in float32, by the models as they were "
            f"saved. The mean over {seeds} seed{'s' * (seeds > 1)}.",
        },
        {
            "number": "Intervals",
            "made": "95 %, by 2,000 bootstrap resamples of the rows. Differences are paired: both models on the same "
            "rows"
            + (
                ", seeds paired by number, and the spread of the seeds added."
                if seeds > 1
                else ". With one seed, run-to-run noise is not in them."
            ),
        },
        {
            "number": "Baselines",
            "made": "Start from exactly the student's initial weights (or the same cut of the pretrained model), see "
            "the same batches in the same order, refinement included, and learn from the labels alone. "
            + _same_steps(bench.recipe),
        },
        *(_of_pixels(bench) if of_pixels(bench.task.problem) else _of_rows()),
        {
            "number": "Overfitting",
            "made": f"The primary metric on {len(bench.sample_of_train):,} training rows, drawn at random, and on the "
            "validation rows.",
        },
        {
            "number": "Latency and throughput",
            "made": "All models and files in turns, round by round, on rows of the evaluated split as they come, "
            f"{words.batched}; median and 95th percentile of one call. "
            "Throughput at the larger size of batches. The baselines have the student's architecture, and so its cost.",
        },
        {
            "number": "Size",
            "made": f"The files that a server needs, {words.files}, in bytes on disk. An exported file alone.",
        },
        {
            "number": "MACs",
            "made": "Multiply-adds of the matrix products and convolutions in one forward pass "
            f"{words.sized}, attention included.",
        },
        {
            "number": "Peak memory",
            "made": "In a process of its own: the peak while loading the model and running one batch of the larger "
            f"size {words.long}, less what its imports take.",
        },
    ]


def _of_rows() -> list[dict[str, str]]:
    """How nearness and calibration were made where a row has one answer."""
    return [
        {
            "number": "Agreement and KL",
            "made": "The share of rows on which a model predicts what the teacher predicts, and the mean KL(teacher || "
            "model) at temperature 1.",
        },
        {
            "number": "Calibration",
            "made": "Expected calibration error over 15 bins of equal width: the mean gap between a model's confidence "
            "in its prediction and how often it is right.",
        },
    ]


def _of_pixels(bench: Workbench) -> list[dict[str, str]]:
    """How the numbers of pixels were made."""
    height, width = bench.reader.size
    where = f"of the label maps as they are stored, to which logits of images read at {height} x {width} are brought"
    if bench.task.problem == SEGMENTATION_QUARTER:
        where = (
            f"at a quarter of the {height} x {width} at which images are read (TransKD's protocol): labels are brought "
            "there by the nearest pixel. Such numbers can't be compared with those of full resolution"
        )
    return [
        {
            "number": "Pixels",
            "made": f"Every pixel that isn't void, {where}. A class's IoU is of all images together; classes that "
            "occur nowhere are left out of the mean. Boundary IoU is of the bands within 2 % of the diagonal along "
            "edges. Intervals resample images.",
        },
        {
            "number": "Agreement and KL",
            "made": "Over the evaluated split's pixels that aren't void, at the size that losses compare them at: the "
            "share with the teacher's answer, and the mean KL(teacher || model) at temperature 1.",
        },
    ]


def _same_steps(recipe: Recipe) -> str:
    """What is true of the steps: the same, unless a stage stops early, which each model does by its own validation."""
    early = [stage.train.early_stopping for stage in recipe.distill]
    if recipe.refine is not None:
        early.append(recipe.refine.train.early_stopping)
    if any(early):
        return "Each stops early by its own validation score: the same number of steps at most. The table has the time."
    return "They take the same number of steps."


def described(recipe: Recipe, role: str) -> str:
    """What a model of the comparison is, in a few words."""
    given: dict[str, TeacherSection | FurtherTeacherSection] = {TEACHER: recipe.teacher}
    given |= {other.name: other for other in recipe.teacher.others}
    if role in given:
        model, settings = given[role].called, given[role].train
        how = "taken as it is" if settings is None else f"trained here for {settings.epochs:g} epochs"
        return f"{model}, {how}"
    if role.startswith("assistant-"):
        return f"number {role.partition('-')[2]} in the chain between teacher and student"
    return {
        "student": "distilled from the teacher",
        "baseline": "the student's initial weights, the same batches, labels only",
        "pretrained_baseline": "the same layers of the pretrained model, the same batches, labels only",
    }[role]
