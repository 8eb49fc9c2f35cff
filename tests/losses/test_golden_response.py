"""Losses on logits and maps give what the authors' published code gives, by the relation that stands beside each value.

`golden/make_response.py` made the values; here only the inputs are drawn anew, from their seeds.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from golden.response_inputs import Inputs, drawn
from torch import Tensor

from potstill import losses
from potstill.losses.logits import probability_shifted
from potstill.reduce import masked_mean

ENTRIES = json.loads((Path(__file__).parent / "golden" / "response.json").read_text(encoding="utf-8"))


def named(entry: dict[str, Any]) -> str:
    return "-".join([entry["loss"], entry["source"].split()[0], entry["function"], str(entry["seed"])])


def keywords(entry: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """What ours is given beside student and teacher."""
    beside = {"labels": inputs.labels, "mask": inputs.mask, "temperatures": inputs.temperatures}
    as_ours = {"temperatures": "temperature"}
    taken = {as_ours.get(key, key): beside[key] for key in entry["takes"] if key in beside}
    return {**entry["arguments"], **taken}


def as_ours(entry: dict[str, Any], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Student and teacher in the form that our loss takes."""
    student, teacher = inputs.student, inputs.teacher
    if "shifted" in entry["takes"]:
        teacher = probability_shifted(teacher, inputs.labels)
    if entry["loss"] == "dist" and student.ndim == 4:
        student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
    return student, teacher


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_as_published(entry: dict[str, Any]) -> None:
    inputs = drawn(entry)
    assert inputs.student.flatten()[0].item() == pytest.approx(entry["first"]), "other inputs than those of the value"
    student, teacher = as_ours(entry, inputs)
    given = keywords(entry, inputs)
    values = getattr(losses, entry["loss"])(student, teacher, **given)
    relation, temperature = entry["relation"], given.get("temperature", 1.0)
    found = relation["factor"] * masked_mean(values * temperature ** relation["power"], given.get("mask"))
    if relation["entropy"]:
        entropy = losses.soft_cross_entropy(teacher, teacher, mask=given.get("mask"), temperature=temperature)
        found = found + relation["entropy"] * masked_mean(entropy / temperature**2, given.get("mask"))
    assert found.item() == pytest.approx(entry["published"], rel=1e-5)


def test_every_value_says_where_it_is_from() -> None:
    for entry in ENTRIES:
        repository, _path, at, commit = entry["source"].split()
        assert repository.count("/") == 1
        assert at == "@"
        assert len(commit) == 40
    assert {entry["loss"] for entry in ENTRIES} >= {
        *("kl_divergence", "reverse_kl_divergence", "symmetric_kl_divergence", "soft_cross_entropy", "jensen_shannon"),
        *("skewed_kl_divergence", "skewed_reverse_kl_divergence", "total_variation", "standardised_kl_divergence"),
        *("decoupled_kl_divergence", "dist", "universal_logit_distance", "logit_mse"),
        *("pixel_kl_divergence", "channel_kl_divergence"),
    }
