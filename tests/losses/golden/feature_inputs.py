"""The tensors that published code and our losses are both given: a pure function of seed and description.

numpy's `RandomState` is frozen, so that the numbers are the same in every version.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def drawn(inputs: dict[str, dict[str, Any]], seed: int) -> dict[str, Tensor]:
    """The tensors of an entry by name, in float64 (row numbers in int64), drawn in the order given."""
    random = np.random.RandomState(seed)
    return {name: _one(random, **description) for name, description in inputs.items()}


def _one(random: np.random.RandomState, shape: list[int], kind: str = "normal", below: int = 0) -> Tensor:
    if kind == "rows":
        return torch.from_numpy(random.randint(0, below, shape))
    values = torch.from_numpy(random.standard_normal(shape))
    if kind == "positive":
        return values.abs()
    if kind == "probabilities":
        return values.softmax(-1)
    if kind == "unit":
        return values / values.norm(dim=-1, keepdim=True)
    assert kind == "normal", kind
    return values
