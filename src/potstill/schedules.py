"""Numbers that change over training, a temperature or a weight: pure functions of progress, from 0 to 1.

Decisions:
- Progress is a share of the training steps, not a count: the same recipe means the same on more data.
- A schedule is a small frozen record that can be called: it can be compared, printed and sent to another process,
  which a closure can't.
- It is asked, never told: no state, so that resuming needs nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.checks import problem, unknown_name
from potstill.errors import ArgumentError

# Progress is a quotient of step counts; a last step may lie a rounding error outside.
_SLACK = 1e-6


@dataclass(frozen=True)
class Constant:
    """The same value at any time."""

    value: float

    def __call__(self, progress: float) -> float:
        """The value at a progress from 0 to 1."""
        _require_progress(progress)
        return self.value


@dataclass(frozen=True)
class Linear:
    """`start` until `begin`, then a straight line to `end` at `finish`, and `end` from there on."""

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __call__(self, progress: float) -> float:
        """The value at a progress from 0 to 1."""
        _require_progress(progress)
        if progress <= self.begin:
            return self.start
        if progress >= self.finish:
            return self.end
        share = (progress - self.begin) / (self.finish - self.begin)
        return self.start + share * (self.end - self.start)


Schedule = Constant | Linear


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

    value = start + (end - start) * clip((progress - begin) / (finish - begin), 0, 1)

    Args:
        start: the value up to `begin`.
        end: the value from `finish` on.
        begin: share of training at which the line begins, from 0 to 1.
        finish: share of training at which it ends, above `begin`, up to 1.

    Raises:
        ArgumentError: a number that is not finite, or 0 <= begin < finish <= 1 doesn't hold.

    Prefer `constant` unless a curve was tried: one number less to explain.
    """
    made = Linear(_finite("from", start), _finite("to", end), _finite("begin", begin), _finite("finish", finish))
    if not 0.0 <= made.begin < made.finish <= 1.0:
        raise ArgumentError(
            problem(
                "A linear schedule begins before it finishes, both as shares of training from 0 to 1",
                given=f"begin {begin}, finish {finish}",
                do="Write for instance begin: 0.0, finish: 0.5",
            )
        )
    return made


# For each kind: the keys that a recipe must give, and those that it may.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("value",), ()),
    "linear": (("from", "to"), ("begin", "finish")),
}


def schedule(spec: float | int | Mapping[str, Any] | Schedule) -> Schedule:
    """The schedule that a recipe means.

    Args:
        spec: a number, which is constant; or {schedule: constant, value: 2.0}; or {schedule: linear, from: 4.0, to:
            1.0, begin: 0.0, finish: 1.0}, the last two optional; or a schedule, which is given back.

    Raises:
        ArgumentError: an unknown kind or key (the nearest is suggested), a missing key, a number outside its range. The
            message lists every wrong key.
    """
    if isinstance(spec, (Constant, Linear)):
        return spec
    if not isinstance(spec, Mapping):
        return constant(spec)
    kind = spec.get("schedule")
    if kind is None:
        raise ArgumentError(
            problem(
                "A schedule needs its kind, under the key 'schedule'",
                given=dict(spec),
                do=f"Kinds: {', '.join(sorted(_KEYS))}",
            )
        )
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ArgumentError(unknown_name("schedule", str(kind), _KEYS))
    needed, optional = _KEYS[kind]
    wrong = [
        unknown_name(f"key of a {kind} schedule", str(key), ("schedule", *needed, *optional))
        for key in spec
        if key not in ("schedule", *needed, *optional)
    ]
    wrong += [f"A {kind} schedule needs the key '{key}'." for key in needed if key not in spec]
    if wrong:
        raise ArgumentError(" ".join(wrong))
    if kind == "constant":
        return constant(spec["value"])
    return linear(spec["from"], spec["to"], **{key: spec[key] for key in optional if key in spec})


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ArgumentError(problem(f"The '{name}' of a schedule is a finite number", given=repr(value)))
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
