"""`plan`: a dry run. Everything is loaded, checked, bound and tried on a few batches; nothing is trained.

The seconds come from timing those batches here (forward and backward, without an optimiser step); the bytes of
activations from counting what autograd keeps for the backward pass. Both are of this machine, and estimates.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.caching import Caching, kept_teachers
from potstill.kinds import width_at
from potstill.knowledge.architectures import ModelShape, describe
from potstill.knowledge.types import LAYERED, STAGED, Needs
from potstill.labelled import TRAIN
from potstill.mappings import EMBEDDINGS
from potstill.objective import BoundObjective, BoundTerm
from potstill.pipeline import RUNS
from potstill.preflight import Preflight, needed_bytes, preflight, student_notes
from potstill.progress import Progress, Silent
from potstill.recipe import Recipe, load_recipe
from potstill.terms import TEACHER
from potstill.training import Distiller, TrainSettings, detect_precision
from potstill.training.distiller import ROW
from potstill.training.dropout import cheap_dropout
from potstill.training.precision import TrialSizes
from potstill.training.stages import rate_of, total_steps
from potstill.workbench import LABELS_ONLY, Workbench, prepare_workbench

TRIED = 4  # batches that are timed, from short to long; before them the longest, whose memory is counted
ADAM = 4 * 4  # bytes a parameter: weight, gradient, two moments


@dataclass(frozen=True)
class PlannedTerm:
    """A term as it will be computed."""

    name: str
    loss: str
    weight: str
    pairs: tuple[tuple[str, str], ...]
    shape: str
    projection: str | None


@dataclass(frozen=True)
class PlannedStage:
    """One piece of training: its terms, steps, learning rate and estimated seconds."""

    title: str
    terms: tuple[PlannedTerm, ...]
    steps: int
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run would do, and about what it would take."""

    recipe: Recipe
    teacher: ModelShape
    student: ModelShape
    parameters: Mapping[str, int]
    rows: Mapping[str, int]
    classes: Sequence[str]
    precision: str
    taps: Mapping[str, str]
    stages: Sequence[PlannedStage]
    memory: Mapping[str, int]
    disk: int
    notes: Sequence[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all training; evaluation and export come on top."""
        return sum(stage.seconds for stage in self.stages)


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Plan:
    """Plan a run without training anything. Raises what `run` would raise before training."""
    loaded = load_recipe(recipe, overrides)
    notes: list[str] = []
    bench = prepare_workbench(loaded, notes.append)
    if bench.attention:
        notes.append("attention maps are asked for, so both models run eager attention, which is slower")
    found = preflight(bench)
    notes += student_notes(bench, found)
    precision = detect_precision(loaded.distill[0].train.precision, TrialSizes.of(found.student))
    trials = {}
    with (progress or Silent()).stage("trying a few batches") as step:
        pairs = {"teacher": (found.teacher, None), "student": (found.student, None)}
        for number, (name, (model, _)) in enumerate(pairs.items()):
            step(number, 2 + len(found.stages), None)
            trials[name] = _try(
                Distiller(model, LABELS_ONLY, bench.task),
                bench.reads(name),
                _batch_size(loaded, name),
                precision.bfloat16,
            )
        own_columns = bench.teachers is not None and found.teachers[TEACHER] is found.teacher
        for number, (stage, peers) in enumerate(zip(loaded.distill, found.peers, strict=True)):
            step(2 + number, 2 + len(found.stages), None)
            distiller = Distiller(
                found.student,
                stage.objective(),
                bench.task,
                found.teachers,
                teacher_dtype=torch.bfloat16 if precision.bfloat16 else None,
                peers=peers,
                combination=loaded.combination,
                rows=len(bench.transfer),
                own_columns=own_columns,
            )
            trials[f"distill {number}"] = _try(distiller, bench, stage.train.batch_size, precision.bfloat16)
    notes += _kept(bench, found, precision.name)
    sizes = {"teacher": _parameters(found.teacher), "student": _parameters(found.student)}
    activations = max(trial.activations for trial in trials.values())
    trained = max(sizes["student"], sizes["teacher"] if loaded.teacher.train else 0)
    beside = sum(_parameters(model) for model in found.teachers.values())
    return Plan(
        recipe=loaded,
        teacher=describe(found.teacher),
        student=describe(found.student),
        parameters=sizes,
        rows={split: len(rows) for split, rows in bench.rows.items()},
        classes=bench.task.names if bench.task.problem != "regression" else (),
        precision=f"{precision.name}: {precision.why}",
        taps=_taps(found.stages),
        stages=_stages(loaded, bench, found, trials),
        memory={
            "weights, gradients and Adam's moments": ADAM * trained,
            "the teachers beside them": (2 if precision.bfloat16 else 4) * beside,
            "activations kept for the backward pass": activations,
        },
        disk=needed_bytes(found, loaded),
        notes=notes,
    )


def _kept(bench: Workbench, found: Preflight, runs_in: str) -> list[str]:
    """For each teacher, whether its answers would be kept on disk, how large they are, and why."""
    recipe = bench.recipe
    if recipe.cache.use == "never":
        return []
    caching = Caching(bench, found.asked, RUNS / recipe.name, Silent())
    passes = caching.passes([stage.train for stage in recipe.taught_first])
    models = kept_teachers(found)
    return [f"{name}: {caching.decide(name, model, passes, runs_in).why}" for name, model in models.items()]


@dataclass(frozen=True)
class _Trial:
    seconds: float  # of one micro-batch, forward and backward
    activations: int  # bytes kept for the backward pass


def _batch_size(recipe: Recipe, name: str) -> int:
    settings = recipe.teacher.train if name == "teacher" and recipe.teacher.train else recipe.distill[0].train
    return int(settings.batch_size)


def _try(distiller: Distiller, bench: Workbench, size: int, bfloat16: bool) -> _Trial:
    """Forward and backward on a few batches of typical length, with the gradients thrown away."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distiller.to(device).train()
    rows, collate = bench.rows[TRAIN], bench.collate
    if distiller.objective.needs_rows:
        rows = rows.add_column(ROW, np.arange(len(rows)))
    order = np.argsort(np.asarray(rows["length"]), kind="stable")
    last = max(0, len(order) - size)
    starts = [last, *(int(last * (number + 0.5) / TRIED) for number in range(TRIED))]  # the longest must fit in memory
    batches = [collate(rows.select(order[s : s + size].tolist()).to_list()) for s in starts]
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in distiller.parameters()}
    best = [float("inf")] * len(batches)
    for number, batch in [*enumerate(batches), *enumerate(batches)]:  # twice: what else the machine does only adds
        started = time.perf_counter()
        on_device = {name: value.to(device) for name, value in batch.items()}
        saved = torch.autograd.graph.saved_tensors_hooks(count if number == 0 else _same, _same)
        with cheap_dropout(distiller.student):
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), saved:
                total = distiller(on_device).total
            total.backward()
        best[number] = min(best[number], time.perf_counter() - started)
        distiller.zero_grad(set_to_none=True)
    distiller.eval()
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    return _Trial(float(np.mean(best[1:])), activations)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _parameters(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def _layer(number: int) -> str:
    return "embeddings" if number == EMBEDDINGS else str(number)


def _terms(objective: BoundObjective) -> tuple[PlannedTerm, ...]:
    found = []
    sizes, joint = objective.projections(), objective.joint_projections()
    for term in objective.terms:
        kinds = {sizes[term.module_name(pair)] for pair in term.pairs} if term.project and not term.joint else set()
        projection = ", ".join(f"{kind} {a} to {b}" for kind, a, b in sorted(kinds)) or None
        if term.joint:
            projection = str(joint[term.joint_name])
        found.append(
            PlannedTerm(
                name=term.name,
                loss=getattr(term.loss, "__name__", "a function"),
                weight=_weight(term.weight),
                pairs=tuple((_layer(a), _layer(b)) for a, b in term.pairs),
                shape=_shape(term, objective),
                projection=projection,
            )
        )
    return tuple(found)


def _weight(weight: Any) -> str:
    start, end = weight(0.0), weight(1.0)
    return f"{start:g}" if start == end else f"{start:g} to {end:g}"


def _shape(term: BoundTerm, objective: BoundObjective) -> str:
    """What is compared, student's first: [B,S,384] with [B,S,768]; of the last pair, where pairs differ."""

    def of(model: ModelShape, layer: int) -> str:
        if term.kind == "logits":
            return "[B,V]"
        if term.kind in STAGED:
            width = width_at(model, term.kind, layer)
            return f"[B,{width}]" if term.pool else f"[B,{width},H,W]" if term.kind == "features" else f"[B,N,{width}]"
        width, heads = model.width_at(layer), model.heads_at(max(layer, 0))
        if term.kind == "hidden":
            return f"[B,{width}]" if term.pool else f"[B,S,{width}]"
        return f"[B,{heads},S,S]" if term.kind in ("attention", "scores") else f"[B,{heads},S,{width // heads}]"

    if term.kind == "labels":
        return "[B,V] with labels"
    ours, theirs = term.pairs[-1] if term.pairs else (0, 0)
    return f"{of(objective.student, ours)} with {of(objective.teachers[term.source], theirs)}"


def _taps(stages: Sequence[BoundObjective]) -> dict[str, str]:
    """What is tapped in each model, over all stages."""
    found = {}
    for side in ("student", "teacher"):
        parts = []
        needs = Needs()
        for stage in stages:
            for source in stage.teachers if side == "teacher" else (TEACHER,):
                needs |= stage.needs(side, source)
        for kind in LAYERED:
            layers = sorted(getattr(needs, kind))
            if layers:
                parts.append(f"{kind} of {', '.join(map(_layer, layers))}")
        found[side] = "; ".join(parts) or ("logits only" if needs.logits else "nothing")
    return found


def _stages(recipe: Recipe, bench: Workbench, checked: Preflight, trials: Mapping[str, _Trial]) -> list[PlannedStage]:
    objectives, student = checked.stages, describe(checked.student)
    seeds, transfer = recipe.evaluate.seeds, len(bench.transfer)
    twins = len(recipe.roles) - 1
    labels = _terms(LABELS_ONLY.bind(objectives[0].student, None, bench.task.defaults()))
    found = []

    def add(
        title: str,
        terms: tuple[PlannedTerm, ...],
        settings: TrainSettings,
        rows: int,
        trial: str,
        times: int,
        shape: ModelShape | None = None,
    ) -> None:
        steps = total_steps(settings, rows)[0]
        seconds = steps * settings.accumulation * trials[trial].seconds * times
        rate = rate_of(settings, shape or student)
        found.append(PlannedStage(title if times == 1 else f"{title}, {times} times", terms, steps, rate, seconds))

    for name, train in recipe.teachers_trainings.items():
        if train is not None:
            add(name, labels, train, len(bench.rows[TRAIN]), "teacher", 1, describe(checked.own_teachers[name]))
    for number, assistant in enumerate(recipe.chain, 1):  # its own terms are those of a stage of the student's
        for stage in assistant.distill or recipe.distill:
            title = f"assistant {number}, timed as the student"
            add(title, (), stage.train, transfer, "distill 0", seeds, checked.chain[number - 1])
    for number, (stage, objective) in enumerate(zip(recipe.distill, objectives, strict=True)):
        name = "distill" if len(recipe.distill) == 1 else f"distill {number + 1}"
        add(f"student: {name}", _terms(objective), stage.train, transfer, f"distill {number}", seeds)
        if twins:
            add(f"baselines: {name}", labels, stage.train, transfer, "student", seeds * twins)
    if recipe.refine is not None:
        add("refine", labels, recipe.refine.train, len(bench.rows[TRAIN]), "student", seeds * (1 + twins))
    return found
