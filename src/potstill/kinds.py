"""Kinds of knowledge: which losses fit each, what it is a mean over, and what brings student and teacher together.

Decisions:
- A kind names the families (files) of losses that fit it, so that a new loss is offered where its family is.
- Where stages are compared, a loss sees one value an image: a mean over the places that count. So images count alike,
  however many of their pixels are void, and stages of any size need no counts of their own.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from potstill.knowledge.architectures import ModelShape
from potstill.knowledge.types import STAGED
from potstill.projectors import CONVOLUTIONS, FUSIONS, PATCH_PROJECTIONS, PROJECTIONS


@dataclass(frozen=True)
class Kind:
    """One kind of knowledge.

    Args:
        families: the files of losses that fit it.
        usual: its usual loss; None: the task says, in `Defaults`.
        positions: what a term of it is a mean over.
        projections: what may bring the student's width to the teacher's, the usual one first; empty: nothing may.
    """

    families: tuple[str, ...]
    usual: str | None
    positions: str
    projections: tuple[str, ...] = ()


OF_ROWS = ("samples", "contrastive")  # families that compare one vector a row
OF_MAPS = ("dense", "hierarchical")  # families that compare maps [B,C,H,W]
_OF_STATES = ("hidden", "structure", *OF_ROWS)
KINDS: dict[str, Kind] = {
    "labels": Kind(("labels",), None, "labels"),
    "logits": Kind(("divergence", "bounded", "logits", "samples", "dense"), None, "outputs"),
    "hidden": Kind((*_OF_STATES, "granularity"), "hidden_mse", "tokens", PROJECTIONS),
    "attention": Kind(("attention",), "attention_kl", "tokens"),
    "scores": Kind(("scores",), "score_mse", "tokens"),
    "queries": Kind(("relation",), "relation_kl", "tokens"),
    "keys": Kind(("relation",), "relation_kl", "tokens"),
    "values": Kind(("relation",), "relation_kl", "tokens"),
    "features": Kind((*OF_MAPS, *_OF_STATES), "hidden_mse", "outputs", (*CONVOLUTIONS, *FUSIONS)),
    "patches": Kind(_OF_STATES, "hidden_mse", "outputs", (*PROJECTIONS, *PATCH_PROJECTIONS)),
}
LAYERLESS = ("labels", "logits")
BY_HEAD = ("attention", "scores", "queries", "keys", "values")
#: Losses of vectors that compare what has no width: angles, similarities, norms. A test holds the list.
ANY_WIDTH = frozenset(
    {
        *("attention_transfer", "crd", "hidden_cka", "mgskd_samples", "mgskd_spans", "mgskd_tokens"),
        *("neuron_selectivity", "pairwise_affinity_mse", "rkd_angle", "rkd_distance"),
        *("similarity_mse", "similarity_preserving"),
    }
)


@cache
def takes(loss: Callable[..., Tensor]) -> frozenset[str]:
    """The names of a loss's arguments; looked up once, since the objective asks in every step."""
    return frozenset(inspect.signature(loss).parameters)


def family(loss: Callable[..., Tensor]) -> str:
    """The file that a loss stands in."""
    return loss.__module__.rpartition(".")[2]


def layer_count(shape: ModelShape, kind: str) -> int:
    """How many layers a kind of knowledge has in a model: stages, of features and patches."""
    return len(_stages(shape, kind)) if kind in STAGED else shape.layers


def width_at(shape: ModelShape, kind: str, layer: int) -> int:
    """The width of a kind of knowledge at a layer: channels, of features."""
    return _stages(shape, kind)[layer] if kind in STAGED else shape.width_at(layer)


def _stages(shape: ModelShape, kind: str) -> tuple[int, ...]:
    return shape.channels if kind == "features" else shape.patches
