"""Numbers that change over training, a temperature or a weight: pure functions of progress, from 0 to 1.

Decisions:
- Progress is a share of the training steps, not a count: the same recipe means the same on more data.
- A schedule is a small frozen record that can be called: it can be compared, printed and sent to another process,
  which a closure can't.
- It is asked, never told: no state, so that resuming needs nothing.
- Adaptive ones follow the logits instead, and give one temperature a position. Only a temperature may be adaptive: a
  weight that follows the loss would be part of the loss. `plain_schedule` refuses them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem, same_shape, unknown_name
from potstill.errors import ArgumentError
from potstill.reduce import Mask, masked_mean, position_mask

# Progress is a quotient of step counts; a last step may lie a rounding error outside.
_SLACK = 1e-6

LOWEST_TEMPERATURE = 0.1
"""Adaptive temperatures are clamped from below here, since nothing else keeps them above 0."""


@dataclass(frozen=True)
class Constant:
    """The same value at any time."""

    adaptive: ClassVar[bool] = False
    value: float

    def __call__(self, progress: float) -> float:
        """The value at a progress from 0 to 1."""
        _require_progress(progress)
        return self.value


@dataclass(frozen=True)
class Linear:
    """`start` until `begin`, then a straight line to `end` at `finish`, and `end` from there on."""

    adaptive: ClassVar[bool] = False
    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __call__(self, progress: float) -> float:
        """The value at a progress from 0 to 1."""
        return _between(self.start, self.end, _share(progress, self.begin, self.finish))


@dataclass(frozen=True)
class Cosine:
    """`start` until `begin`, then half a cosine to `end` at `finish`, and `end` from there on."""

    adaptive: ClassVar[bool] = False
    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __call__(self, progress: float) -> float:
        """The value at a progress from 0 to 1."""
        share = _share(progress, self.begin, self.finish)
        return _between(self.start, self.end, (1.0 - math.cos(math.pi * share)) / 2.0)


@dataclass(frozen=True)
class Annealing:
    """A staircase from 1 / `steps` to 1 in equal parts of training."""

    adaptive: ClassVar[bool] = False
    steps: int

    def __call__(self, progress: float) -> float:
        """The value at a progress from 0 to 1."""
        _require_progress(progress)
        # The slack lets a quotient that lies a rounding error below a stair's edge stand on it.
        stair = math.floor(progress * self.steps + _SLACK) + 1
        return min(max(stair, 1), self.steps) / self.steps


@dataclass(frozen=True)
class FlowWeighted:
    """A temperature a position, lower where the student's logits point away from the teacher's."""

    adaptive: ClassVar[bool] = True
    beta: float = 1.0
    gamma: float = 2.0
    base: float = 8.0
    eps: float = 1e-4

    def __call__(
        self,
        progress: float,
        student_logits: Float[Tensor, "*positions V"],
        teacher_logits: Float[Tensor, "*positions_t V_t"],
        *,
        mask: Mask | None = None,
    ) -> Float[Tensor, "*positions"]:
        """The temperatures, [*], without a gradient; `base` where the mask [*] is false. Progress doesn't matter."""
        _require_progress(progress)
        same_shape(student_logits, teacher_logits, caller="flow_weighted")
        with torch.no_grad():
            student, teacher = _directions(student_logits, self.eps), _directions(teacher_logits, self.eps)
            # Rounding may take the cosine above 1, and a power of a negative number is no number.
            weight = (1.0 - (student * teacher).sum(-1)).clamp(min=0.0).pow(self.gamma)
            return _around(self.base, self.beta, weight, mask, "flow_weighted")


@dataclass(frozen=True)
class ConfidenceWeighted:
    """A temperature a position, lower where the student is unsure."""

    adaptive: ClassVar[bool] = True
    beta: float = 1.0
    base: float = 8.0
    eps: float = 1e-3

    def __call__(
        self,
        progress: float,
        student_logits: Float[Tensor, "*positions V"],
        teacher_logits: Float[Tensor, "*positions_t V_t"],
        *,
        mask: Mask | None = None,
    ) -> Float[Tensor, "*positions"]:
        """The temperatures, [*], without a gradient; `base` where the mask [*] is false. Progress doesn't matter."""
        _require_progress(progress)
        same_shape(student_logits, teacher_logits, caller="confidence_weighted")
        with torch.no_grad():
            confidence = torch.softmax(_float32(student_logits), dim=-1).amax(-1)
            return _around(self.base, self.beta, 1.0 / (confidence + self.eps), mask, "confidence_weighted")


Plain = Constant | Linear | Cosine | Annealing
Adaptive = FlowWeighted | ConfidenceWeighted
Schedule = Plain | Adaptive


def constant(value: float) -> Constant:
    """A schedule that is the same value at any time.

    Args:
        value: finite.

    Raises:
        ArgumentError: not a finite number.
    """
    return Constant(_finite("value", value))


def linear(start: float, end: float, *, begin: float = 0.0, finish: float = 1.0) -> Linear:
    """A schedule on a straight line from `start` to `end`.

    value = start + (end - start) * share,  share = clip((progress - begin) / (finish - begin), 0, 1)

    Args:
        start: the value up to `begin`.
        end: the value from `finish` on.
        begin: share of training at which the line begins, from 0 to 1.
        finish: share of training at which it ends, above `begin`, up to 1.

    Raises:
        ArgumentError: a number that is not finite, or 0 <= begin < finish <= 1 doesn't hold.

    Prefer `constant` unless a curve was tried: one number less to explain.
    """
    return Linear(*_curve("linear", start, end, begin, finish))


def cosine(start: float, end: float, *, begin: float = 0.0, finish: float = 1.0) -> Cosine:
    """A schedule on half a cosine from `start` to `end`: flat at both ends, steepest between.

    value = start + (end - start) * (1 - cos(pi * share)) / 2,  share as in `linear`

    Args and errors are those of `linear`.

    Prefer `linear` unless the ends should be dwelt on.
    """
    return Cosine(*_curve("cosine", start, end, begin, finish))


def annealing(steps: int) -> Annealing:
    """Annealing-KD's Phi, by which the teacher's logits are scaled: a staircase from 1 / steps to 1.

    value = k / steps in the k-th of `steps` equal parts of training, k from 1. In the publication's terms it is
    Phi(T) = 1 - (T - 1) / T_max, for T = T_max, ..., 1 and T_max = steps.

    Args:
        steps: the number of stairs, a whole number from 1; 1 is constantly 1.

    Raises:
        ArgumentError: not a whole number from 1.

    References:
        Jafari, Rezagholizadeh, Sharma, Ghodsi: Annealing Knowledge Distillation, 2021, https://arxiv.org/abs/2104.07163

    Prefer `linear` from 0 to 1 where the stairs don't matter.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(
            problem(
                "The 'steps' of an annealing schedule are a whole number from 1", given=repr(steps), do="10 is usual"
            )
        )
    return Annealing(steps)


def flow_weighted(beta: float = 1.0, gamma: float = 2.0, *, base: float = 8.0, eps: float = 1e-4) -> FlowWeighted:
    """FLSW, an adaptive temperature: lower where the student's logits point away from the teacher's.

    T_i = max(base + beta * (mean of w - w_i), 0.1),  w_i = (1 - s_i . t_i)^gamma,  s = z_S / (|z_S| + eps), t likewise

    The mean is over the positions of one call, so over a micro-batch: accumulation is then of micro-batches. The lower
    end of 0.1 is ours; the code has none, and its temperatures may become 0 or negative. The name in the publication
    stands for focal loss style weights [recalled]; there, nothing is added to the lengths, in the code eps is.

    Args:
        beta: how far the temperatures spread; 0 is constant.
        gamma: the power; more than 0.
        base: the temperature to spread around; more than 0. TextBrewer's examples have 8.
        eps: added to the lengths of the logits; more than 0.

    Raises:
        ArgumentError: a number outside its range.

    References:
        Wen, Lai, Qian: Preparing Lessons: Improve Knowledge Distillation with Better Supervision, 2019,
        https://arxiv.org/abs/1911.07471; the equation as in TextBrewer, whose code Lu et al. use,
        https://arxiv.org/abs/2206.14366

    Prefer a number unless rows differ much in difficulty; `confidence_weighted` asks the student alone.
    """
    numbers = {"gamma": _finite("gamma", gamma, above=0), "base": _finite("base", base, above=0)}
    return FlowWeighted(beta=_finite("beta", beta), eps=_finite("eps", eps, above=0), **numbers)


def confidence_weighted(beta: float = 1.0, *, base: float = 8.0, eps: float = 1e-3) -> ConfidenceWeighted:
    """CWSM, an adaptive temperature: lower where the student is unsure.

    T_i = max(base + beta * (mean of w - w_i), 0.1),  w_i = 1 / (max over V of softmax(z_S)_i + eps)

    Mean and lower end are those of `flow_weighted`. The confidence is the student's, in TextBrewer's code as in the
    name, confidence weighted by student max [recalled]; the teacher's logits are not looked at.

    Args:
        beta: how far the temperatures spread; 0 is constant.
        base: the temperature to spread around; more than 0.
        eps: added to the confidence; more than 0; 1e-3 in TextBrewer.

    Raises:
        ArgumentError: a number outside its range.

    References and Prefer are those of `flow_weighted`.
    """
    return ConfidenceWeighted(_finite("beta", beta), _finite("base", base, above=0), _finite("eps", eps, above=0))


# For each kind: what makes it, the keys that a recipe must give, and those that it may.
_KINDS: dict[str, tuple[Callable[..., Schedule], tuple[str, ...], tuple[str, ...]]] = {
    "constant": (constant, ("value",), ()),
    "linear": (linear, ("from", "to"), ("begin", "finish")),
    "cosine": (cosine, ("from", "to"), ("begin", "finish")),
    "annealing": (annealing, ("steps",), ()),
    "flow_weighted": (flow_weighted, (), ("beta", "gamma", "base", "eps")),
    "confidence_weighted": (confidence_weighted, (), ("beta", "base", "eps")),
}
_ARGUMENTS = {"from": "start", "to": "end"}  # `from` can't be the name of an argument


def schedule(spec: float | int | Mapping[str, Any] | Schedule) -> Schedule:
    """The schedule that a recipe means.

    Args:
        spec: a number, which is constant; or {schedule: constant, value: 2.0}; {schedule: linear, from: 4.0, to: 1.0,
            begin: 0.0, finish: 1.0}, the last two optional, and `cosine` alike; {schedule: annealing, steps: 10};
            {schedule: flow_weighted, beta: 1, gamma: 2, base: 8}; {schedule: confidence_weighted, beta: 1, base: 8}; or
            a schedule, which is given back.

    Returns:
        A record to be called with the progress, and where it is `adaptive` with the student's and the teacher's logits.

    Raises:
        ArgumentError: an unknown kind or key (the nearest is suggested), a missing key, a number outside its range. The
            message lists every wrong key.
    """
    if isinstance(spec, Schedule):
        return spec
    if not isinstance(spec, Mapping):
        return constant(spec)
    kind = spec.get("schedule")
    if kind is None:
        raise ArgumentError(
            problem(
                "A schedule needs its kind, under the key 'schedule'",
                given=dict(spec),
                do=f"Kinds: {', '.join(sorted(_KINDS))}",
            )
        )
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ArgumentError(unknown_name("schedule", str(kind), _KINDS))
    make, needed, optional = _KINDS[kind]
    known = ("schedule", *needed, *optional)
    wrong = [unknown_name(f"key of a {kind} schedule", str(key), known) for key in spec if key not in known]
    wrong += [f"A {kind} schedule needs the key '{key}'." for key in needed if key not in spec]
    if wrong:
        raise ArgumentError(" ".join(wrong))
    return make(**{_ARGUMENTS.get(key, key): value for key, value in spec.items() if key != "schedule"})


def plain_schedule(spec: float | int | Mapping[str, Any] | Schedule, *, key: str = "weight") -> Plain:
    """A schedule of progress alone, for a weight or any other number that may not follow the logits.

    Args:
        spec: as `schedule` takes it.
        key: where it stands in the recipe, for the message.

    Raises:
        ArgumentError: as `schedule` does, and for an adaptive one.
    """
    made = schedule(spec)
    if isinstance(made, Adaptive):
        raise ArgumentError(
            problem(
                f"'{key}' can't follow the logits: only a temperature may be adaptive",
                given=spec,
                do="Take a number, or a constant, linear, cosine or annealing schedule",
            )
        )
    return made


def _curve(kind: str, start: float, end: float, begin: float, finish: float) -> tuple[float, float, float, float]:
    made = _finite("from", start), _finite("to", end), _finite("begin", begin), _finite("finish", finish)
    if not 0.0 <= made[2] < made[3] <= 1.0:
        raise ArgumentError(
            problem(
                f"A {kind} schedule begins before it finishes, both as shares of training from 0 to 1",
                given=f"begin {begin}, finish {finish}",
                do="Write for instance begin: 0.0, finish: 0.5",
            )
        )
    return made


def _share(progress: float, begin: float, finish: float) -> float:
    """How much of the way from `begin` to `finish` is done, from 0 to 1."""
    _require_progress(progress)
    return min(max((progress - begin) / (finish - begin), 0.0), 1.0)


def _between(start: float, end: float, share: float) -> float:
    # At the ends exactly, where start + (end - start) might miss by a rounding error.
    return end if share == 1.0 else start + share * (end - start)


def _float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _directions(logits: Tensor, eps: float) -> Tensor:
    logits = _float32(logits)
    length: Tensor = torch.linalg.vector_norm(logits, dim=-1, keepdim=True)
    return logits / (length + eps)


def _around(base: float, beta: float, weight: Tensor, mask: Mask | None, caller: str) -> Tensor:
    """base + beta * (mean weight - weight), clamped, the mean over the positions that count, without host syncs."""
    valid = position_mask(mask, weight.shape, caller=caller)
    kept = weight if valid is None else weight.masked_fill(~valid, 0.0)
    temperature = (base + beta * (masked_mean(weight, mask) - kept)).clamp(min=LOWEST_TEMPERATURE)
    return temperature if valid is None else temperature.masked_fill(~valid, base)


def _finite(name: str, value: object, *, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= above:
        least = "" if above == -math.inf else f" above {above:g}"
        raise ArgumentError(problem(f"The '{name}' of a schedule is a finite number{least}", given=repr(value)))
    return float(value)


def _require_progress(progress: float) -> None:
    if not -_SLACK <= progress <= 1.0 + _SLACK:
        raise ArgumentError(
            problem(
                "A schedule is asked for a share of training from 0 to 1",
                given=progress,
                do="Divide the step by the number of steps",
            )
        )
