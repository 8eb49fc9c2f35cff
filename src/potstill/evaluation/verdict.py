"""Whether distillation was worth it, in plain words.

Decisions held here:

* The question is the student against the baseline: the same student, from the same initial weights, on the same
  batches, without a teacher. An interval that lies wholly on one side of 0 is an answer; any other is "no difference
  that can be told", with what could have been told and what to do.
* One seed gives an interval of test-sample noise alone. The outcome keeps its word, but headline and sentences say so.
* A cut of the pretrained model that does better without a teacher is said in the headline: it is the cheaper way.
* Differences keep the metric's own sign; where lower is better, that is said. Percent metrics speak of points.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from potstill.evaluation.significance import Comparison, Estimate
from potstill.metrics import Metric

Verdict = dict[str, str | list[str]]

BASELINE = "the same student trained without a teacher"
PRETRAINED = "the same cut of the pretrained model, trained without a teacher,"
_NAMES = ("Pearson", "Spearman", "Matthews")
# The usual 80 %: a true difference of this size would have been found in four of five such experiments.
_POWER = 0.8


def verdict(
    comparison: Comparison | None,
    *,
    metric: Metric,
    seeds: int,
    retained: Estimate | None = None,
    teacher_comparison: Comparison | None = None,
    other: Comparison | None = None,
) -> Verdict:
    """The outcome, one sentence for it, and the sentences that explain it.

    Args:
        comparison: student less baseline, in the primary metric; None if no baseline was run.
        metric: that metric.
        seeds: the number of training runs of the student.
        retained: the share of the teacher's metric that the student keeps.
        teacher_comparison: student less teacher.
        other: student less the pretrained baseline; None if there is none.

    Returns:
        `{"outcome": "helped" | "no_difference" | "harm" | "not_compared", "headline": str, "sentences": [str]}`.
    """
    if comparison is None:
        outcome, headline = "not_compared", "Whether distillation helped is not known: no baseline was run."
        sentences = [
            "The student was not compared with the same student trained without a teacher, so nothing here shows that "
            "the teacher was of use. Run with evaluate.baseline=true to find out."
        ]
    else:
        outcome = side(comparison, metric)
        headline = _headline(comparison, metric, seeds, outcome)
        sentences = _reading(comparison, metric, seeds, outcome)
    if other is not None:
        headline += _cheaper_way(other, metric, outcome)
        sentences.append(_pretrained(other, metric, seeds))
    sentences += _teacher(retained, teacher_comparison, metric)
    return {"outcome": outcome, "headline": headline, "sentences": sentences}


def side(comparison: Comparison, metric: Metric) -> str:
    """One of three: "helped" if the whole interval is better than 0, "harm" if it is worse, else "no_difference"."""
    low, high = comparison.interval
    better, worse = (low > 0, high < 0) if metric.higher_is_better else (high < 0, low > 0)
    return "helped" if better else "harm" if worse else "no_difference"


def smallest_visible(comparison: Comparison) -> float:
    """The smallest true difference that such an experiment would find in four of five cases.

    Half the interval's width plus 0.84 standard errors: power 80 % at the interval's own level.
    """
    low, high = comparison.interval
    return (high - low) / 2 + NormalDist().inv_cdf(_POWER) * comparison.standard_error


def said(comparison: Comparison, metric: Metric, seeds: int) -> str:
    """A difference with its interval: "+1.3 points of accuracy (95 % interval +0.4 to +2.2)"."""
    return f"{_difference(comparison, metric)} {_interval(comparison, metric, seeds)}"


def _headline(baseline: Comparison, metric: Metric, seeds: int, outcome: str) -> str:
    found = {"helped": "helped", "harm": "did harm", "no_difference": "made no difference that can be told"}[outcome]
    # "Over" the baseline only where the number is one to be glad of.
    than = "over" if outcome == "helped" and metric.higher_is_better else "against"
    where = " on this seed" if seeds == 1 and outcome != "no_difference" else ""
    size, span = _difference(baseline, metric), _interval(baseline, metric, seeds)
    return f"Distillation {found}{where}: {size} {than} {BASELINE} {span}."


def _reading(baseline: Comparison, metric: Metric, seeds: int, outcome: str) -> list[str]:
    """What the comparison with the baseline means, and what to do about it."""
    sentences = []
    one_seed = (
        "One seed was run, so the interval holds the noise of the test sample only; how much the result changes from "
        "one training run to the next is unknown. Run with evaluate.seeds=3 to know."
    )
    if outcome == "no_difference" and baseline.standard_error == 0:
        sentences.append("Student and baseline have the same result in every resample of the test rows.")
    elif outcome == "no_difference":
        error, visible = baseline.standard_error, smallest_visible(baseline)
        (said_error, said_visible), unit = _amounts([error, visible], metric), _unit(metric)
        sentences.append(
            f"The standard error of the difference is {said_error}{unit}, so a true difference smaller than about "
            f"{said_visible}{unit} would often go unseen here."
        )
        sentences.append(_advice(baseline, seeds))
    elif outcome == "harm":
        sentences.append(
            "The student would be better trained on the labels alone. Before giving the teacher up, try another layer "
            "map, a lower temperature or less weight on the teacher's terms."
        )
    if seeds == 1:
        sentences.append(one_seed)
    elif seeds == 2:
        sentences.append("Two seeds say little about the noise from run to run: run with evaluate.seeds=3 or more.")
    elif outcome != "no_difference":
        means = _amounts(baseline.per_seed, metric, signed=True)
        sentences.append(f"The difference in each of the {seeds} runs: {', '.join(means)}{_unit(metric)}.")
    return sentences


def _advice(baseline: Comparison, seeds: int) -> str:
    if seeds == 1 or baseline.run_error is None:
        return "To see smaller differences, take more test rows and more seeds."
    if baseline.run_error > baseline.test_error:
        return f"Most of it comes from run to run: to see smaller differences, take more than {seeds} seeds."
    return (
        "Most of it comes from the test sample: to see smaller differences, take more test rows (four times as many "
        "halve it)" + (", and more seeds." if seeds < 5 else ".")
    )


def _cheaper_way(other: Comparison, metric: Metric, outcome: str) -> str:
    """What the headline adds where the pretrained cut does better; else nothing."""
    if side(other, metric) != "harm":
        return ""
    joined = "But" if outcome in ("helped", "not_compared") else "And"
    gap = _difference(replace(other, mean=-other.mean), metric)
    return f" {joined} {PRETRAINED} does better than the student: {gap}."


def _pretrained(other: Comparison, metric: Metric, seeds: int) -> str:
    ending = {
        "helped": "it does better than that one as well",
        "harm": "that cheaper way gave the better model",
        "no_difference": "the two can't be told apart",
    }[side(other, metric)]
    size, span = _difference(other, metric), _interval(other, metric, seeds)
    return f"Against {PRETRAINED} the student stands at {size} {span}: {ending}."


def _teacher(retained: Estimate | None, teacher: Comparison | None, metric: Metric) -> list[str]:
    """What the student keeps of its teacher's result."""
    sentences = []
    if retained is not None:
        low, high = retained.interval
        share = f"{100 * retained.mean:.1f} % of the teacher's {_name(metric)}"
        span = f"({_level(retained)} interval {100 * low:.1f} to {100 * high:.1f} %)"
        if retained.mean > 1:
            doubt = "" if low > 1 else ", though the two can't be told apart"
            sentences.append(f"The student scores above its teacher: {share} {span}{doubt}.")
        else:
            sentences.append(f"The student keeps {share} {span}.")
    if teacher is not None:
        span = _interval(teacher, metric, len(teacher.per_seed))
        apart = ", which can't be told from none" if side(teacher, metric) == "no_difference" else ""
        sentences.append(f"The difference to the teacher is {_difference(teacher, metric)} {span}{apart}.")
    return sentences


def _difference(comparison: Comparison, metric: Metric) -> str:
    """For instance "+1.3 points of accuracy", or "-0.012 in mean squared error (lower is better)"."""
    (said,) = _amounts([comparison.difference], metric, signed=True)
    if metric.percent:
        return f"{said} points of {_name(metric)}"
    return f"{said} in {_name(metric)}{'' if metric.higher_is_better else ' (lower is better)'}"


def _interval(comparison: Comparison, metric: Metric, seeds: int) -> str:
    low, high = _amounts(comparison.interval, metric, signed=True)
    noise = ", test-sample noise only" if seeds == 1 else ""
    return f"({_level(comparison)} interval {low} to {high}{noise})"


def _level(estimate: Estimate) -> str:
    return f"{100 * estimate.level:g} %"


def _name(metric: Metric) -> str:
    return metric.name if metric.name.startswith(_NAMES) else metric.name[0].lower() + metric.name[1:]


def _unit(metric: Metric) -> str:
    return " points" if metric.percent else ""


def _amounts(values: Sequence[float], metric: Metric, *, signed: bool = False) -> list[str]:
    """Points to one decimal, plain numbers to three; more, up to three places, where a value would else read as 0."""
    scaled = [100 * value if metric.percent else value for value in values]
    places = 1 if metric.percent else 3
    most = places + 3
    while places < most and any(value != 0 and round(value, places) == 0 for value in scaled):
        places += 1
    return [f"{0.0 if round(value, places) == 0 else value:{'+' if signed else ''}.{places}f}" for value in scaled]
