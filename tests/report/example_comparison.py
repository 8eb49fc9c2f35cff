"""A made-up comparison.json with everything in it: simulated logits, and the numbers that are made of them."""

from typing import Any

import numpy as np

from potstill.evaluation.attention_similarity import layer_entry
from potstill.evaluation.comparison import Variant, best_of, comparison_verdict, differences
from potstill.evaluation.results import Contender, Truth, metric_table, model_entry

# key, title, plain, accuracy aimed at, milliseconds of a step, attention divergence
CELLS = (
    ("plain", "plain", None, 0.85, 61, 0.21),
    ("kd", "kd", "plain", 0.86, 88, 0.17),
    ("pkd-skip", "pkd_skip", "plain", 0.862, 92, 0.15),
    ("tinybert", "tinybert", "plain", 0.879, 131, 0.06),
    ("minilmv2", "minilmv2", "plain", 0.853, 97, 0.11),
    ("two-step", "two_step", "plain", 0.82, 120, 0.05),
)
SEEDS = (0, 1, 2)


def comparison(rows: int = 1200, seeds: int = 3) -> dict[str, Any]:
    """Six runs, one of them plain, of some seeds on some rows."""
    chance = np.random.default_rng(7)
    labels = {split: chance.integers(0, 2, rows) for split in ("train", "validation", "test")}
    hardness = {split: chance.normal(size=rows) for split in labels}  # shared, so that models err on the same rows

    def logits(accuracy: float, fitted: float) -> dict[str, Any]:
        found = {}
        for split, truth in labels.items():
            ease = 1.7 * (accuracy - 0.5) * 2 + (fitted if split == "train" else 0.0) - 0.45
            margin = ease + 0.9 * hardness[split] + 0.45 * chance.normal(size=rows)
            found[split] = np.stack([np.zeros(rows), np.where(truth == 1, margin, -margin)], axis=1)
        return found

    teacher = Contender("teacher", "Teacher", "minilm-l6, trained here for 2 epochs", [0], [logits(0.9, 0.4)])
    truth = Truth("single_label", ("bad", "good"), labels, "test")
    cells, variants = [], []
    for key, title, plain, accuracy, step, divergence in CELLS:
        runs = [logits(accuracy + 0.006 * chance.normal(), 0.3) for _ in range(seeds)]
        took = [{"seconds": 0.314 * step, "steps": 314, "rows_seen": 20092}] * seeds
        made = model_entry(Contender(key, title, "", SEEDS[:seeds], runs, training=took), teacher, truth)
        variants.append(Variant(key, title, plain, [run["test"] for run in runs]))
        cells.append(_cell(made, key, title, plain, step, _attention(chance, divergence)))
    found = differences(variants, labels["test"], "single_label")
    best = best_of(variants, labels["test"], "single_label")
    titles = {cell["key"]: cell["title"] for cell in cells}
    return {
        "schema": 1,
        "run": _run(seeds),
        "data": {"evaluated_on": "test", "splits": {"train": 10046, "validation": 1500, "test": rows}},
        "metrics": metric_table("single_label"),
        "primary": "accuracy",
        "teacher": {**model_entry(teacher, teacher, truth), "cost": _cost(22.7e6, 9.1)},
        "cells": cells,
        "differences": [one.as_dict() for one in found],
        "verdict": comparison_verdict(found, titles, best, problem="single_label", seeds=seeds),
        "attention_at_start": {"plain": _attention(chance, 0.04)},
        "how": [{"number": "Intervals", "made": "95 %, by 2,000 bootstrap resamples of the rows."}],
    }


def _cell(
    made: dict[str, Any], key: str, title: str, plain: str | None, step: float, attention: dict[str, Any]
) -> dict[str, Any]:
    return {
        **made,
        "plain": plain,
        "choices": {"distill": title},
        "folder": f"cells/{key}",
        "training": {**made["training"], "ms_per_step": step},
        "stages": [{"terms": ["labels", "logits"], "steps": 314, "epochs": 2.0}],
        "cost": _cost(17.4e6, 5.2),
        "attention": attention,
    }


def _attention(chance: Any, mean: float) -> dict[str, Any]:
    layers = []
    for layer in range(3):
        values = (mean * (0.4 + 0.6 * layer) * chance.uniform(0.3, 1.7, 12)).clip(0, 0.69).tolist()
        other = {"mse": [value / 50 for value in values], "cosine": [1 - value for value in values]}
        layers.append(layer_entry((layer, 2 * layer + 1), {"jensen_shannon": values, **other}))
    means = {name: float(np.mean([one[name] for one in layers])) for name in ("mse", "cosine", "jensen_shannon")}
    return {"rows": 256, "split": "test", "mean": means, "layers": layers}


def _cost(parameters: float, latency: float) -> dict[str, Any]:
    return {"parameters": int(parameters), "bytes": int(4 * parameters), "latency": {"1": {"p50_ms": latency}}}


def _run(seeds: int) -> dict[str, Any]:
    return {
        "name": "kd",
        "title": "5 ways to teach a student of minilm-l6, on reviews",
        "problem": "single_label",
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 3210.0,
        "versions": {"python": "3.12.3", "potstill": "0.1.0", "torch": "2.13.0"},
        "hardware": {"processor": "AMD EPYC", "cores": 2, "accelerator": None, "memory_bytes": 8 * 10**9},
        "precision": {"training": "bfloat16", "why": "this processor has avx512_bf16"},
        "command": "potstill compare kd --vary distill=own,pkd_skip,tinybert,minilmv2,two_step --seeds 3",
        "recipe": "name: kd\ntask: text_classification\n",
        "convention": "Every KL is a true KL.",
        "seeds": list(SEEDS[:seeds]),
        "varied": ["distill"],
        "own_settings": False,
    }
