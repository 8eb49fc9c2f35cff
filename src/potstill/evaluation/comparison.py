"""Many variants of one student beside each other: which differences can be told from noise. Only logits and labels.

Decided here:

* Every difference is paired, on the same rows and with seeds paired by number, as `significance` makes it. The 95 %
  interval that is shown is that of the one difference.
* Whoever makes k comparisons at 95 % finds one that isn't there in every 20. So the words (better, worse, can't be
  told apart) hold for all comparisons of a family together, by Holm's step-down method: the largest difference in units
  of its standard error is held at 1 - 5 % / k, the next at 1 - 5 % / (k - 1), and so on until one fails. A family is
  all variants against their plain student, all against the first variant, or all against the best.
* The best variant was picked by the same rows, which flatters it: it is never called the best without naming those
  that can't be told from it.
* Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.evaluation.significance import Comparison, bootstrap
from potstill.evaluation.verdict import said, side
from potstill.metrics import METRICS, Array, Metric, primary, score

ALPHA = 0.05
FAMILIES = ("plain", "first", "best")


@dataclass(frozen=True)
class Variant:
    """One variant: its logits [N,V] on the evaluated rows, one array a seed, and its plain student, if it isn't one."""

    key: str
    title: str
    plain: str | None
    logits: Sequence[Array]


@dataclass(frozen=True)
class Difference:
    """One variant less another, what it was held against, and whether the family as a whole lets it be told from 0."""

    a: str
    b: str
    family: str
    made: Comparison
    outcome: str  # helped, harm or no_difference, as `verdict.side` has it

    def as_dict(self) -> dict[str, Any]:
        """The difference as plain data."""
        made = self.made
        return {
            "a": self.a,
            "b": self.b,
            "family": self.family,
            "difference": made.difference,
            "std": made.std,
            "interval": list(made.interval),
            "standard_error": made.standard_error,
            "per_seed": list(made.per_seed),
            "resamples": made.resamples,
            "outcome": self.outcome,
        }


def differences(variants: Sequence[Variant], labels: Array, problem: str) -> list[Difference]:
    """The differences of the three families in the primary metric, family by family.

    Args:
        variants: plain students among them; all with equally many seeds.
        labels: [N] or [N,V].
        problem: the kind of labels.
    """
    by_key = {variant.key: variant for variant in variants}
    methods = [variant for variant in variants if variant.plain is not None]
    if not methods:
        return []
    best = by_key[best_of(variants, labels, problem)]
    pairs = {
        "plain": [(v, by_key[v.plain]) for v in methods if v.plain is not None],
        "first": [(v, methods[0]) for v in methods[1:]],
        "best": [(v, best) for v in methods if v is not best],
    }
    return [one for family in FAMILIES for one in _family(family, pairs[family], labels, problem)]


def best_of(variants: Sequence[Variant], labels: Array, problem: str) -> str:
    """The key of the variant with the best mean of the primary metric; plain students aside."""
    key = primary(problem)
    sign = 1 if METRICS[key].higher_is_better else -1

    def value(variant: Variant) -> float:
        return sign * sum(score(key, problem, logits, labels) for logits in variant.logits) / len(variant.logits)

    return max((variant for variant in variants if variant.plain is not None), key=value).key


def _family(family: str, pairs: Sequence[tuple[Variant, Variant]], labels: Array, problem: str) -> list[Difference]:
    """One family of differences, Holm's method over all of them."""
    key = primary(problem)
    made = [bootstrap(key, problem, a.logits, b.logits, labels) for a, b in pairs]
    order = sorted(range(len(made)), key=lambda number: -_distance(made[number]))
    outcomes = ["no_difference"] * len(made)
    for rank, number in enumerate(order):
        a, b = pairs[number]
        level = 1 - ALPHA / (len(made) - rank)
        strict = bootstrap(key, problem, a.logits, b.logits, labels, level=level) if len(made) > 1 else made[number]
        outcomes[number] = side(strict, METRICS[key])
        if outcomes[number] == "no_difference":
            break
    return [
        Difference(a.key, b.key, family, one, outcome)
        for (a, b), one, outcome in zip(pairs, made, outcomes, strict=True)
    ]


def _distance(made: Comparison) -> float:
    """A difference in units of its standard error; without any noise, none or as far as can be."""
    if made.standard_error:
        return abs(made.mean) / made.standard_error
    return float("inf") if made.mean else 0.0


def comparison_verdict(
    found: Sequence[Difference], titles: Mapping[str, str], best: str, *, problem: str, seeds: int
) -> dict[str, Any]:
    """What can be told from noise, in plain words: ``{"best": key, "headline": str, "sentences": [str]}``."""
    metric = METRICS[primary(problem)]
    plain = [one for one in found if one.family == "plain"]
    [own] = [one for one in plain if one.a == best]
    return {
        "best": best,
        "headline": _headline(own, plain, titles, metric, seeds),
        "sentences": [
            *_against_plain(plain, titles, metric),
            *_against_best([one for one in found if one.family == "best"], titles, best),
            *_caveats(len(plain), seeds),
        ],
    }


def _headline(
    own: Difference, plain: Sequence[Difference], titles: Mapping[str, str], metric: Metric, seeds: int
) -> str:
    size = said(own.made, metric, seeds)
    if own.outcome == "helped":
        than = "over" if metric.higher_is_better else "against"
        return f"{titles[own.a]} has the best result: {size} {than} the same student trained without a teacher."
    if any(one.outcome == "helped" for one in plain):
        return f"{titles[own.a]} has the best result, but can't be told from the student trained without a teacher."
    return f"No variant can be told to be better than the student trained without a teacher. The best stands at {size}."


def _against_plain(plain: Sequence[Difference], titles: Mapping[str, str], metric: Metric) -> list[str]:
    """Who is better than its plain student, who is worse, and of whom it can't be told."""
    groups = {
        "helped": "Better than the plain student, beyond what noise explains",
        "harm": "Worse than the plain student, beyond what noise explains",
        "no_difference": "Not to be told from the plain student",
    }
    found = []
    for outcome, words in groups.items():
        names = [titles[one.a] for one in plain if one.outcome == outcome]
        if names:
            found.append(f"{words}: {_listed(names)}.")
    alone = [titles[o.a] for o in plain if o.outcome == "no_difference" and side(o.made, metric) != "no_difference"]
    if alone:
        found.append(
            f"The interval of {_listed(alone)} lies wholly on one side of 0 when it is looked at alone; among "
            f"{len(plain)} comparisons that is not enough."
        )
    return found


def _against_best(found: Sequence[Difference], titles: Mapping[str, str], best: str) -> list[str]:
    """Whether the best is told apart from the others."""
    if not found:
        return []
    behind = [titles[one.a] for one in found if one.outcome == "harm"]
    level = [titles[one.a] for one in found if one.outcome != "harm"]
    if not behind:
        return [f"{titles[best]} has the highest mean, but none of the others can be told from it."]
    sentences = [f"Behind {titles[best]} by more than noise explains: {_listed(behind)}."]
    if level:
        sentences.append(f"Not to be told from {titles[best]}: {_listed(level)}.")
    return sentences


def _caveats(count: int, seeds: int) -> list[str]:
    found = []
    if count > 1:
        found.append(
            f"{count} variants are compared, and at 95 % one interval in 20 misses by chance. The words above hold for "
            "all of them together (Holm's method); each interval in the table stands for itself."
        )
    if seeds == 1:
        found.append(
            "One seed was run, so the intervals hold the noise of the test sample only; how much a result changes from "
            "one training run to the next is unknown, and an order among close variants means nothing. "
            "Run with --seeds 3 to know."
        )
    elif seeds == 2:
        found.append("Two seeds say little about the noise from run to run: run with --seeds 3 or more.")
    return found


def _listed(names: Sequence[str]) -> str:
    """``a, b and c``; with semicolons where a name has a comma of its own."""
    if len(names) == 1:
        return names[0]
    mark, last = ("; ", "; and ") if any("," in name for name in names) else (", ", " and ")
    return f"{mark.join(names[:-1])}{last}{names[-1]}"
