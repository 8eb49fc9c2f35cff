"""Maps from student width to teacher width. They train beside the student and never end up in it.

Decisions:
- A kind is a row of one table, so that a recipe's name is all that anything else needs to know.
- W starts as an orthogonal map, so that at the start the student's hidden state keeps its lengths and angles and the
  loss is about the state, not about a random projection; b starts at 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from potstill.checks import unknown_name
from potstill.errors import ArgumentError

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


def _linear(student_width: int, teacher_width: int) -> nn.Module:
    linear = nn.Linear(student_width, teacher_width)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _relu(student_width: int, teacher_width: int) -> nn.Module:
    return nn.Sequential(_linear(student_width, teacher_width), nn.ReLU())


def _tanh(student_width: int, teacher_width: int) -> nn.Module:
    return nn.Sequential(_linear(student_width, teacher_width), nn.Tanh())


_KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    LINEAR: _linear,
    "relu": _relu,
    "tanh": _tanh,
    "orthogonal": OrthogonalMap,
}
PROJECTIONS = tuple(_KINDS)


def projector(kind: str, student_width: int, teacher_width: int) -> nn.Module:
    """A trainable map [*, student_width] -> [*, teacher_width].

    linear: W h + b;  relu: max(W h + b, 0);  tanh: tanh(W h + b);  orthogonal: W h with W' W = 1, or W W' = 1 where the
    teacher is the narrower one

    Args:
        kind: linear, relu, tanh or orthogonal.
        student_width: the width that comes in, at least 1.
        teacher_width: the width that goes out, at least 1.

    Raises:
        ArgumentError: an unknown kind; the nearest is suggested.

    References:
        linear: Romero et al.: FitNets, 2015, https://arxiv.org/abs/1412.6550, and Jiao et al.: TinyBERT, 2020,
        https://arxiv.org/abs/1909.10351
        relu, tanh: Yang et al.: TextBrewer, 2020, https://arxiv.org/abs/2002.12620
        orthogonal: Miles, Elezi, Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections, 2024,
        https://arxiv.org/abs/2403.06213

    Prefer `linear`. `relu` reaches no negative number and `tanh` none beyond 1, so take them for a teacher's state that
    went through the same function, such as a pooler's; take `orthogonal` where a free map would learn what the student
    should: it can turn the student's state, and neither stretch nor drop any of it.
    """
    if kind not in _KINDS:
        raise ArgumentError(unknown_name("projection", kind, _KINDS))
    return _KINDS[kind](student_width, teacher_width)
