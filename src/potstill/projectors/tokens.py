"""Maps from student width to teacher width, position by position: hidden states and patch embeddings.

Decisions:
- W starts as an orthogonal map, so that at the start the student's hidden state keeps its lengths and angles and the
  loss is about the state, not about a random projection; b starts at 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

LINEAR = "linear"


class OrthogonalMap(nn.Module):
    """h -> W h with a W that is orthogonal before the first step and after every other; square or not.

    What trains is a free parameter from which W is made anew in each forward pass, in float32 even under autocast: made
    in bfloat16, W would be orthogonal to two or three digits only.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        linear = nn.Linear(student_width, teacher_width, bias=False)
        nn.init.orthogonal_(linear.weight)
        # Not torch's usual map for widths that differ: that one keeps signs in its parameter and cuts them to whole
        # numbers, so that the first bit of weight decay makes them, and all of W, 0.
        self.map = parametrizations.orthogonal(linear, orthogonal_map="cayley")

    def forward(self, hidden: Tensor) -> Tensor:
        """[*, student width] -> [*, teacher width]."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.map.weight
        return functional.linear(hidden, weight)  # type: ignore[arg-type]


def linear(student_width: int, teacher_width: int) -> nn.Module:
    """h -> W h + b."""
    linear = nn.Linear(student_width, teacher_width)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def relu(student_width: int, teacher_width: int) -> nn.Module:
    """h -> max(W h + b, 0)."""
    return nn.Sequential(linear(student_width, teacher_width), nn.ReLU())


def tanh(student_width: int, teacher_width: int) -> nn.Module:
    """h -> tanh(W h + b)."""
    return nn.Sequential(linear(student_width, teacher_width), nn.Tanh())


TOKEN_PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    LINEAR: linear,
    "relu": relu,
    "tanh": tanh,
    "orthogonal": OrthogonalMap,
}
