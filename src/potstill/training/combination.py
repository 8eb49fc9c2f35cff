"""How several teachers are combined: each has an influence on every term that learns from all of them.

A weighted mean of the divergences from several teachers has the same gradient as the divergence from the weighted mean
of their distributions, sum_k w_k KL(p_k || q) = KL(sum_k w_k p_k || q) + what does not depend on q, so one rule serves
logits, and hidden states and relations too, which can't be averaged before they are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.knowledge import Knowledge, Logits
from potstill.losses._inputs import at_least_float32

CONFIDENT = "confident"
ROUTE = "teacher"
"""The column of a batch that says by number which teacher a row learns from."""


@dataclass(frozen=True)
class Combination:
    """The influence of each of several teachers.

    Args:
        weights: by name, in the teachers' order; they are made to sum to 1.
        route: None, so that every teacher teaches every row by its weight; ``confident``: each row learns from the
            teacher whose distribution over the classes has the lowest entropy; or ``column``: from the teacher whose
            number stands in the batch.
    """

    weights: Mapping[str, float]
    route: str | None = None

    @property
    def confident(self) -> bool:
        """Whether rows go to the teacher that is surest of them."""
        return self.route == CONFIDENT

    def influence(self, taught: Mapping[str, Knowledge], batch: Mapping[str, Tensor]) -> Mapping[str, Tensor | float]:
        """By name: one number, or one a row [B]. The influences on a row sum to 1."""
        if self.route is None:
            total = sum(self.weights.values())
            return {name: weight / total for name, weight in self.weights.items()}
        names = list(self.weights)
        if self.confident and not set(names) <= set(taught):
            return {}  # no term of this stage learns from all of them
        if self.confident:
            chosen = torch.stack([_entropy(taught[name].logits) for name in names]).argmin(0)
        else:
            chosen = batch[ROUTE]
        return {name: (chosen == number).float() for number, name in enumerate(names)}


def _entropy(logits: Logits | None) -> Tensor:
    """The entropy of each row's distribution over the classes, [B] from [B,V]; the mean over its tokens of [B,S,V], or
    its pixels of [B,V,H,W]."""
    assert isinstance(logits, Tensor), "a row is routed by the teachers' logits, and they were not observed"
    logits = logits.movedim(1, -1) if logits.ndim == 4 else logits  # of pixels, [B,V,H,W]
    log_probabilities = torch.log_softmax(at_least_float32(logits), dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1).reshape(len(logits), -1).mean(-1)
