"""How alike the attention maps of a student and its teacher are on a recipe's own rows.

Decided here: the rows are a fixed draw of the evaluated ones, the same for every model. Each student layer is held
against the layer that an attention term of its objective names, and against that of the map `uniform` where none does,
so that students of different methods are measured alike as far as their methods allow. Models are loaded with eager
attention for this, whatever they were trained with: a fused kernel never forms the maps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from potstill.errors import MappingError, ModelError
from potstill.evaluation.attention_similarity import compare_attention, means
from potstill.evaluation.predict import fastest_device
from potstill.knowledge import Needs, architecture, describe, observe
from potstill.mappings import layer_map
from potstill.objective import BoundObjective
from potstill.preflight import Preflight
from potstill.progress import Step
from potstill.workbench import Workbench

ROWS = 256
BATCH = 32
MAPS = ("attention", "scores")  # the kinds of knowledge whose layer maps are taken over


def why_no_maps(bench: Workbench, found: Preflight) -> str | None:
    """Why the attention maps of a recipe's teacher and student can't be compared; None where they can."""
    if bench.teachers is not None:
        return (
            "teacher and student read the rows by different tokenizers or image processors, so their tokens have no "
            "counterparts"
        )
    for model in (found.teacher, found.student):
        try:
            architecture(model)
        except ModelError as error:
            return str(error)
        shape = describe(model)
        if not shape.heads or shape.layer_widths:
            return f"{shape.family} has no one list of layers with attention over all tokens"
    ours, theirs = (_tokens(bench, model) for model in (found.student, found.teacher))
    if ours != theirs:
        return f"the student sees {ours} tokens in an image and the teacher {theirs}, so they have no counterparts"
    return None


def _tokens(bench: Workbench, model: PreTrainedModel) -> int | None:
    """How many tokens a model of images sees in each of them; None for texts, where rows say it."""
    batch = bench.collate(bench.rows[bench.evaluated_on].select([0]).to_list())
    if "tokens" in bench.task.masks(batch):
        return None
    last = describe(model).layers - 1
    with torch.no_grad():
        return observe(model, batch, Needs(hidden=frozenset({last}))).hidden[last].shape[1]


def attention_pairs(
    student: PreTrainedModel, teacher: PreTrainedModel, stages: Sequence[BoundObjective] = ()
) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer) for every student layer, as its objective or else the map `uniform` has them.

    A term that learns from a model of another shape, such as an assistant, numbers the layers of that one: no guide.
    """
    shape = describe(teacher)
    ours, theirs = describe(student).layers, shape.layers
    try:
        found = dict(layer_map("uniform", ours, theirs))
    except MappingError:  # a student that is deeper than its teacher
        found = {i: min(theirs - 1, i * theirs // ours) for i in range(ours)}
    for stage in stages:
        for term in stage.terms:
            if term.kind in MAPS and stage.teachers[term.source] == shape:
                found |= {a: b for a, b in reversed(term.pairs) if 0 <= a < ours and 0 <= b < theirs}
    return tuple(sorted(found.items()))


def measure_attention(
    bench: Workbench,
    student: Path | PreTrainedModel,
    teacher: Path,
    pairs: Sequence[tuple[int, int]],
    step: Step | None = None,
) -> dict[str, Any]:
    """The measures of `compare_attention` by layer, their means, and the number of rows.

    `student` may be a model that is there already, such as a student before its training; it is switched to eager
    attention.
    """
    trust = bench.recipe.teacher.trust_remote_code
    if isinstance(student, PreTrainedModel):
        student.set_attn_implementation("eager")
        ours = student
    else:
        ours = bench.task.load(student, attention="eager", trust_remote_code=trust).model
    theirs = bench.task.load(teacher, attention="eager", trust_remote_code=trust).model
    for model in (ours, theirs):
        model.to(fastest_device())  # type: ignore[arg-type]
        model.eval()  # type: ignore[no-untyped-call]
    rows = bench.rows[bench.evaluated_on]
    drawn = np.random.default_rng(0).permutation(len(rows))[:ROWS]
    order = drawn[np.argsort(-np.asarray(rows["length"])[drawn], kind="stable")]

    def batches() -> Any:
        for start in range(0, len(order), BATCH):
            if step is not None:
                step(start, len(order), None)
            yield bench.collate(rows.select(order[start : start + BATCH].tolist()).to_list())

    layers = compare_attention(ours, theirs, batches(), pairs)
    return {"rows": len(order), "split": bench.evaluated_on, "mean": means(layers), "layers": layers}
