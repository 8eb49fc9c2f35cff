"""`comparison.json`: every number of a comparison, out of what its cells left."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from potstill.comparing.cells import Cell
from potstill.evaluation.attention_similarity import MEASURES, layer_entry
from potstill.evaluation.comparison import Variant, best_of, comparison_verdict, differences
from potstill.metrics import Array, primary
from potstill.recipe import Recipe
from potstill.runs import RunFolder, digest
from potstill.shipping import hardware, versions

SCHEMA = 1
KEPT = ("metrics", "retained", "agreement", "kl", "calibration", "overfit", "training")


@dataclass(frozen=True)
class Finished:
    """A cell that was run: its folder, its results, and its students' logits on the evaluated rows, one a seed."""

    cell: Cell
    folder: Path
    results: Mapping[str, Any]
    digests: Mapping[str, str]
    seeds: Sequence[int]
    logits: Sequence[Array]
    labels: Array

    def model(self, key: str) -> Mapping[str, Any]:
        """The part of the results that is about teacher or student."""
        return next(model for model in self.results["models"] if model["key"] == key)

    def student(self, seed: int) -> Path:
        """The folder of the student of one seed."""
        return self.folder / "seeds" / str(seed) / "student"

    @property
    def architecture(self) -> str:
        """What decides the cost of running teacher and student."""
        recipe = self.cell.recipe.as_dict()
        student = {key: value for key, value in recipe["student"].items() if key not in ("rule", "initialise")}
        if isinstance(student["layers"], list):
            student["layers"] = len(student["layers"])
        return digest({"student": student, "teacher": recipe["teacher"]["model"], "data": recipe["data"]})


def results_of(
    folder: RunFolder,
    recipe: Recipe,
    finished: Sequence[Finished],
    costs: Mapping[str, Any],
    attention: Mapping[str, Any],
    own_settings: bool,
) -> dict[str, Any]:
    """Every number that the comparison's report shows."""
    first = finished[0].results
    kind = first["run"]["problem"]
    variants = [Variant(one.cell.key, one.cell.title, one.cell.plain, one.logits) for one in finished]
    found = differences(variants, finished[0].labels, kind)
    best = best_of(variants, finished[0].labels, kind)
    titles = {one.cell.key: one.cell.title for one in finished}
    seeds = finished[0].seeds
    return {
        "schema": SCHEMA,
        "run": {**_run(folder, recipe, finished), "own_settings": own_settings},
        "data": first["data"],
        "metrics": first["metrics"],
        "primary": primary(kind),
        "teacher": {
            **_kept(finished[0].model("teacher")),
            "title": "Teacher",
            "description": finished[0].model("teacher")["description"],
            "cost": costs.get(finished[0].architecture, {}).get("teacher"),
        },
        "cells": [_cell(one, costs, attention) for one in finished],
        "differences": [one.as_dict() for one in found],
        "verdict": comparison_verdict(found, titles, best, problem=kind, seeds=len(seeds)),
        "attention_at_start": {
            key: _attention([attention[name]]) for key in titles if (name := f"{key} at the start") in attention
        },
        "how": _how(finished, own_settings),
    }


def _kept(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in KEPT}


def _cell(one: Finished, costs: Mapping[str, Any], attention: Mapping[str, Any]) -> dict[str, Any]:
    """One variant or plain student."""
    model = one.model("student")
    training = dict(model["training"])
    per_seed = attention.get(one.cell.key)
    return {
        "key": one.cell.key,
        "title": one.cell.title,
        "choices": {key: str(value) for key, value in one.cell.choices.items()},
        "plain": one.cell.plain,
        "folder": str(one.folder.relative_to(one.folder.parents[1])),
        "seeds": list(one.seeds),
        **_kept(model),
        "training": {**training, "ms_per_step": 1000 * training["seconds"] / max(1, training["steps"])},
        "stages": [
            {
                "terms": [term.knowledge for term in stage.terms],
                "steps": stage.train.steps,
                "epochs": stage.train.epochs,
            }
            for stage in one.cell.recipe.distill
        ],
        "cost": costs.get(one.architecture, {}).get("student"),
        "attention": _attention(per_seed) if per_seed else None,
    }


def _attention(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, layer by layer and head by head."""
    layers = [
        layer_entry(
            (same[0]["student"], same[0]["teacher"]),
            {name: np.mean([one[name] for one in same], axis=0).tolist() for name in MEASURES},
        )
        for same in zip(*(one["layers"] for one in seeds), strict=True)
    ]
    mean = {name: float(np.mean([one["mean"][name] for one in seeds])) for name in MEASURES}
    return {"rows": seeds[0]["rows"], "split": seeds[0]["split"], "mean": mean, "layers": layers}


def _run(folder: RunFolder, recipe: Recipe, finished: Sequence[Finished]) -> dict[str, Any]:
    variants = [one for one in finished if one.cell.plain is not None]
    first = finished[0].results["run"]
    return {
        "name": recipe.name,
        "title": f"{len(variants)} ways to teach a student of {recipe.teacher.called}, on {recipe.data.called}",
        "problem": first["problem"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": _seconds(folder, finished),
        "versions": versions(),
        "hardware": hardware(),
        "precision": first["precision"],
        "command": shlex.join(["potstill", *sys.argv[1:]])
        if sys.argv[0].endswith("potstill")
        else "potstill.compare(...)",
        "recipe": recipe.as_yaml(),
        "convention": first["convention"],
        "seeds": list(finished[0].seeds),
        "varied": sorted({key for one in variants for key in one.cell.choices}),
    }


def _seconds(folder: RunFolder, finished: Sequence[Finished]) -> float:
    """Of all work, each piece counted once however many cells share it."""
    pieces = {
        (stage["name"], one.digests.get(stage["name"])): stage["seconds"]
        for one in finished
        for stage in one.results["run"]["stages"]
    }
    return float(sum(pieces.values()) + sum(stage.seconds for stage in folder.stages))


def _how(finished: Sequence[Finished], own_settings: bool) -> list[dict[str, str]]:
    """How every number was made, in words."""
    first = finished[0].results
    seeds, rows = len(finished[0].seeds), first["data"]["splits"][first["data"]["evaluated_on"]]
    steps = {one.model("student")["training"]["steps"] for one in finished}
    same = (
        f"Every variant takes the same {next(iter(steps)):,.0f} optimiser steps on batches of the same size."
        if len(steps) == 1
        else "The numbers of optimiser steps differ, and the table has them: part of a difference may be that one "
        "was trained for longer."
    )
    settings = (
        "Each method keeps the training settings of its own recipe."
        if own_settings
        else "A method gives what is learnt; learning rate, batch size, schedule and precision are those of the recipe "
        "compared, and its steps are shared among the method's stages in proportion to the method's own."
    )
    return [
        {
            "number": "What is the same",
            "made": f"The teacher, the rows, and for one seed the initial weights and the order of batches. {settings} "
            f"{same}",
        },
        {
            "number": "Plain student",
            "made": "Starts as the variants do and takes the recipe's own stages with the labels alone.",
        },
        {
            "number": "Quality",
            "made": f"On the {rows:,} rows of the {first['data']['evaluated_on']} split, in float32, by the models as "
            f"they were saved. The mean over {seeds} seed{'s' * (seeds > 1)}; ± is the standard deviation over seeds.",
        },
        {
            "number": "Intervals",
            "made": "95 %, by 2,000 bootstrap resamples of the rows. Differences are paired: both on the same rows"
            + (
                ", seeds paired by number, and the spread of the seeds added."
                if seeds > 1
                else ". With one seed, run-to-run noise is not in them."
            ),
        },
        {
            "number": "Told from noise",
            "made": "Better, worse or not to be told apart: by Holm's method over all variants together, so that with "
            "no true difference at all one comparison of methods in 20 would name any.",
        },
        {
            "number": "Train and validation",
            "made": "The primary metric on the same training rows, drawn at random, and on the validation rows.",
        },
        {
            "number": "Training time",
            "made": "Seconds of one seed, and milliseconds a step, on the machine below while it may have done other "
            "work too. A teacher's forward pass is part of a step.",
        },
        {
            "number": "Attention",
            "made": "Student and teacher maps on a fixed draw of the evaluated rows, heads paired by number, over "
            "unpadded tokens: Jensen-Shannon divergence (0 equal, 0.693 apart), cosine and mean squared error. A layer "
            "is held against the one that the method's own attention term names, else against that of the uniform map.",
        },
    ]
