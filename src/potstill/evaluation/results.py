"""Every number of the report, out of logits and labels. Nothing here knows models or files, and the report adds
nothing.

A model is a `Contender`: its logits on each split, one set a seed. The teacher has one; a student's seeds are paired
with its baselines' by index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.evaluation import fidelity
from potstill.evaluation.significance import Comparison, Estimate, bootstrap, interval, retained_interval
from potstill.evaluation.verdict import verdict
from potstill.metrics import METRICS, classification, keys, of_pixels, primary, score, segmentation

Array = npt.NDArray[Any]
TRAIN, VALIDATION = "train", "validation"
CONVENTION = (
    "Every KL is a true KL, KL(teacher || student), 0 when both are equal; T^2 is inside the loss; softmax and "
    "divergence are in float32. A term is a mean over its own positions (rows with a label, rows, or unpadded tokens) "
    "of the whole optimiser step, and over its layer pairs, times its weight."
)


@dataclass(frozen=True)
class Contender:
    """One model in the comparison.

    Args:
        key: teacher, pretrained_baseline, baseline or student.
        seeds: of its runs.
        logits: one mapping a seed: split -> [N,V]; of a segmentation, counts of pixels [N,V,V+3].
        training: one mapping a seed: seconds, steps, rows_seen; empty where it wasn't trained here.
        curves: learning curves, as `results.json` has them.
        fidelity: one mapping a seed, ``agreement`` and ``kl``, where they can't be made from what is kept in `logits`.
    """

    key: str
    title: str
    description: str
    seeds: Sequence[int]
    logits: Sequence[Mapping[str, Array]]
    cost: Mapping[str, Any] | None = None
    training: Sequence[Mapping[str, float]] = ()
    curves: Sequence[Mapping[str, Any]] = field(default_factory=list)
    fidelity: Sequence[Mapping[str, float]] = ()

    def on(self, split: str) -> list[Array]:
        """The logits of a split, one a seed."""
        return [found[split] for found in self.logits]


@dataclass(frozen=True)
class Truth:
    """The labels that the contenders are held against, and what they mean."""

    problem: str
    names: Sequence[str]
    labels: Mapping[str, Array]
    split: str
    shipped: int = 0  # which of the student's seeds ships


def model_entry(model: Contender, teacher: Contender, truth: Truth) -> dict[str, Any]:
    """One model's part of `results.json`."""
    labels, problem = truth.labels[truth.split], truth.problem
    found = model.on(truth.split)
    reference = teacher.on(truth.split)[0]
    own = model is teacher
    if of_pixels(problem):
        shared = {key: _per_seed(one[key] for one in model.fidelity) if model.fidelity else None for key in FIDELITY}
    else:
        shared = {
            name: None if own else _per_seed(fn(z, reference, problem) for z in found) for name, fn in FIDELITY.items()
        }
    retained = None if own else retained_interval(primary(problem), problem, found, reference, labels)
    return {
        "key": model.key,
        "title": model.title,
        "description": model.description,
        "seeds": list(model.seeds),
        "metrics": {key: _estimate(interval(key, problem, found, labels)) for key in keys(problem)},
        "retained": None if retained is None else {"mean": retained.mean, "interval": list(retained.interval)},
        **shared,
        "calibration": _calibration(found, labels, problem),
        "per_class": _per_class(found, labels, truth),
        "confusion": _confusion(found, labels, truth),
        "overfit": _overfit(model, truth),
        "cost": model.cost,
        "training": _training(model.training),
        "curves": list(model.curves),
    }


FIDELITY = {"agreement": fidelity.agreement, "kl": fidelity.kl_to_teacher}


def comparisons(
    student: Contender, others: Sequence[Contender], truth: Truth
) -> tuple[list[dict[str, Any]], dict[str, Comparison]]:
    """The student less each other model, in every metric, as data; and those in the primary metric by model."""
    labels, found = truth.labels[truth.split], student.on(truth.split)
    entries, by_model = [], {}
    for other in others:
        for key in keys(truth.problem):
            made = bootstrap(key, truth.problem, found, other.on(truth.split), labels)
            entry = {"a": student.key, "b": other.key, "metric": key, **_estimate(made), "difference": made.difference}
            entries.append(
                {
                    **entry,
                    "standard_error": made.standard_error,
                    "resamples": made.resamples,
                    "interval": list(made.interval),
                }
            )
            if key == primary(truth.problem):
                by_model[other.key] = made
    return entries, by_model


def judgement(student: Contender, contenders: Mapping[str, Contender], truth: Truth) -> dict[str, Any]:
    """Comparisons and the verdict in plain words."""
    others = [contenders[key] for key in ("baseline", "pretrained_baseline", "teacher") if key in contenders]
    entries, by_model = comparisons(student, others, truth)
    key = primary(truth.problem)
    teacher = contenders["teacher"]
    found = verdict(
        by_model.get("baseline"),
        metric=METRICS[key],
        seeds=len(student.seeds),
        retained=retained_interval(
            key, truth.problem, student.on(truth.split), teacher.on(truth.split)[0], truth.labels[truth.split]
        ),
        teacher_comparison=by_model["teacher"],
        other=by_model.get("pretrained_baseline"),
    )
    return {"comparisons": entries, "verdict": found}


def metric_table(problem: str) -> dict[str, Any]:
    """How each metric is named and read."""
    return {key: {k: v for k, v in asdict(METRICS[key]).items() if k != "key"} for key in keys(problem)}


CLASS_SCORES = {"f1": "F1", "iou": "IoU"}


def class_score(problem: str) -> dict[str, str]:
    """What a class is judged by, its key and how it is called."""
    key = "iou" if of_pixels(problem) else "f1"
    return {"key": key, "name": CLASS_SCORES[key]}


def per_class_change(entries: Mapping[str, Mapping[str, Any]], by: str = "f1") -> list[dict[str, Any]]:
    """The score of each class in teacher, baseline and student, and the student's change from the baseline."""
    if "baseline" not in entries:
        return []
    tables = {key: {row["class"]: row[by] for row in entry["per_class"]} for key, entry in entries.items()}
    return [
        {
            "class": name,
            "teacher": tables["teacher"][name],
            "baseline": tables["baseline"][name],
            "student": value,
            "change": None if None in (value, tables["baseline"][name]) else value - tables["baseline"][name],
        }
        for name, value in tables["student"].items()
    ]


def highlights(
    entries: Mapping[str, Mapping[str, Any]], exports: Sequence[Mapping[str, Any]], row: str = "text"
) -> list[dict[str, str]]:
    """The few figures that a reader wants first, as text. `row` says what a row is."""
    teacher, student = entries["teacher"], entries["student"]
    cards = []
    if student["retained"] is not None:
        low, high = (f"{100 * end:.1f}" for end in student["retained"]["interval"])
        cards.append(
            {
                "label": "of the teacher's quality kept",
                "value": f"{100 * student['retained']['mean']:.1f} %",
                "note": f"95 % interval {low} to {high}",
            }
        )
    if teacher["cost"] and student["cost"]:
        cards += _cost_cards(teacher["cost"], student["cost"], "student", row)
        for export in exports:
            if export["key"] == "onnx-int8":
                cards += _cost_cards(teacher["cost"], export, "as ONNX int8", row)
    return cards


def _cost_cards(teacher: Mapping[str, Any], other: Mapping[str, Any], name: str, row: str) -> list[dict[str, str]]:
    theirs, ours = (one["latency"]["1"]["p50_ms"] for one in (teacher, other))
    speed = theirs / ours
    size = teacher["bytes"] / other["bytes"]
    return [
        {
            "label": f"{'faster' if speed >= 1 else 'slower'}, {name}",
            "value": f"{max(speed, 1 / speed):.1f}x",
            "note": f"{theirs:.1f} to {ours:.1f} ms for one {row}",
        },
        {
            "label": f"{'smaller' if size >= 1 else 'larger'}, {name}",
            "value": f"{max(size, 1 / size):.1f}x",
            "note": f"{teacher['bytes'] / 1e6:.0f} to {other['bytes'] / 1e6:.0f} MB on disk",
        },
    ]


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "std": found.std, "per_seed": list(found.per_seed), "interval": list(found.interval)}


def _per_seed(values: Any) -> dict[str, Any] | None:
    found = list(values)
    return None if any(v is None for v in found) else {"mean": float(np.mean(found)), "per_seed": found}


def _calibration(found: Sequence[Array], labels: Array, problem: str) -> dict[str, Any] | None:
    """ECE of each seed; the curve over the decisions of all seeds."""
    each = [fidelity.calibration(z, labels, problem) for z in found]
    if any(one is None for one in each):
        return None
    pooled = fidelity.calibration(np.concatenate(found), np.concatenate([labels] * len(found)), problem)
    return {"ece": _per_seed(one["ece"] for one in each if one), "curve": pooled["curve"] if pooled else []}


def _per_class(found: Sequence[Array], labels: Array, truth: Truth) -> list[dict[str, Any]]:
    """Mean over the seeds that have a number; None where none has."""
    if of_pixels(truth.problem):
        tables = [segmentation.per_class(z, labels, truth.names or None) for z in found]
    else:
        tables = [classification.per_class(truth.problem, z, labels, truth.names or None) for z in found]
    columns = [name for name in (tables[0][0] if tables[0] else {}) if name not in ("class", "support")]
    return [
        {**rows[0], **{c: _mean_of_known([row[c] for row in rows]) for c in columns}}
        for rows in zip(*tables, strict=True)
    ]


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _confusion(found: Sequence[Array], labels: Array, truth: Truth) -> list[list[int]] | None:
    """Of the seed that ships: whole rows can be counted in one model only. None where a row has no one class."""
    own = found[truth.shipped if len(found) > 1 else 0]
    if of_pixels(truth.problem):
        return segmentation.confusion(own, labels)
    return classification.confusion(own, labels) if truth.problem == "single_label" else None


def _overfit(model: Contender, truth: Truth) -> dict[str, Any] | None:
    if not all({TRAIN, VALIDATION} <= set(found) for found in model.logits):
        return None
    key = primary(truth.problem)
    train, validation = (
        float(np.mean([score(key, truth.problem, z, truth.labels[split]) for z in model.on(split)]))
        for split in (TRAIN, VALIDATION)
    )
    return fidelity.overfit(METRICS[key], train, validation)


def _training(runs: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The mean over seeds."""
    if not runs:
        return None
    return {name: float(np.mean([run[name] for run in runs])) for name in ("seconds", "steps", "rows_seen")}
