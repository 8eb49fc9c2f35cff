"""Intervals for a metric, a difference of two models and a ratio of two, over the test sample and over training runs.

Decisions held here:

* The rows of the test set are resampled, the same rows for both models: the paired bootstrap (Efron & Tibshirani, "An
  Introduction to the Bootstrap", 1993; for language tasks Koehn 2004, and Dror et al., "The Hitchhiker's Guide to
  Testing Statistical Significance in NLP", 2018). With one seed the interval is the percentile interval. It holds the
  noise of the test sample alone.
* With several seeds, resampling them too would give too narrow an interval: a bootstrap of n values has (n - 1) / n of
  their variance, two thirds with 3 seeds, and no t quantile. In its place stands the analysis of several readers on the
  same cases (Obuchowski & Rockette 1995, degrees of freedom by Hillis 2007): seeds are the readers, test rows the
  cases. The bootstrap gives the variance V of one seed's difference over test samples and the covariance C of two
  seeds' (common rows); the seeds give s^2, the variance of their differences. What s^2 has in excess of V - C, which
  the test rows alone explain, is run-to-run variance. For n seeds

      standard error^2 = max(0, C) + (V - C) / n + max(0, s^2 - (V - C)) / n
      degrees of freedom = (n - 1) (standard error^2 / (s^2 / n))^2
      interval = mean difference +- t * standard error

  so row noise isn't counted twice, and the interval is never narrower than the rows alone make it. Seeds are paired by
  index (a student and a baseline of one seed share initial weights and batches). Simulated coverage of the 95 %
  interval with 3 seeds: 92 to 99 %, whichever noise prevails, low where it is all from run to run. With 2 seeds it
  falls to 86 % there: prefer 3.
* One model with a single seed is compared with every seed of the other. Its own run-to-run noise is then not in the
  interval, since nothing is known about it.
* Every metric of `potstill.metrics` is exact on a resample, and computed for all of them at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from potstill.checks import problem as message
from potstill.errors import PotstillError, ShapeError
from potstill.metrics import METRICS, Array, Statistic, statistic

MetricFunction = Callable[[Array, Array], float]
Logits = Array | Sequence[Array]

# Weights of at most this many (resample, row) cells are held at once: 32 MB.
_CELLS = 2**22


@dataclass(frozen=True)
class Estimate:
    """A quantity with its interval.

    Attributes:
        mean: over seeds.
        interval: (low, high) at `level`.
        standard_error: of the mean, of test rows and, with several seeds, of runs.
        per_seed: the value of each seed.
        resamples: how often the test rows were resampled.
        level: of the interval, 0.95 for 95 %.
        test_error: the part of the standard error that more test rows (or, partly, more seeds) would shrink.
        run_error: the part that only more seeds would shrink; None with one seed, where it is unknown.
    """

    mean: float
    interval: tuple[float, float]
    standard_error: float
    per_seed: list[float]
    resamples: int
    level: float
    test_error: float
    run_error: float | None

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds (n - 1); None with one seed."""
        return float(np.std(self.per_seed, ddof=1)) if len(self.per_seed) > 1 else None


@dataclass(frozen=True)
class Comparison(Estimate):
    """The difference of two models, a less b, as an `Estimate` of it."""

    @property
    def difference(self) -> float:
        """The mean difference over seeds."""
        return self.mean


def bootstrap(
    metric: str | MetricFunction,
    problem: str,
    logits_a: Logits,
    logits_b: Logits,
    labels: Array,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """The difference in a metric between model a and model b on the same rows, with its interval.

    Args:
        metric: a key of `potstill.metrics`, or a function of (logits, labels), which is called for every resample and
            so is slow.
        problem: the kind of labels; not used with a function.
        logits_a, logits_b: one array [N, V], or a list of them, one a seed. Seeds are paired by index; a single one
            is compared with each of the other's.
        labels: [N] or [N, V].
        resamples: how often rows are drawn. 2,000 make the ends of the interval steady to about a twentieth of it.
        seed: of the drawing; the same seed draws the same rows for every model and metric.
        level: of the interval.

    Raises:
        ShapeError: if both have several seeds, but not equally many.
        PotstillError, DataError, ModelError: from `potstill.metrics.statistic`.
    """
    a, b = _seeds(logits_a), _seeds(logits_b)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ShapeError(
            message(
                "Seeds are compared in pairs, so both models need equally many, or one of them a single one",
                given=f"{len(a)} and {len(b)}",
                do="Evaluate both over the same seeds",
            )
        )
    values = _Values(metric, problem, labels, resamples, seed)
    (full_a, drawn_a), (full_b, drawn_b) = values.of(a), values.of(b)
    return Comparison(**vars(_estimate(full_a - full_b, drawn_a - drawn_b, level)))


def interval(
    metric: str | MetricFunction,
    problem: str,
    logits: Logits,
    labels: Array,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """One model's metric, with its interval, which never leaves 0 to 1 for metrics given in percent.

    Two such intervals that overlap don't show that two models are alike: compare them by `bootstrap`, which is paired.
    For the arguments see there.
    """
    full, drawn = _Values(metric, problem, labels, resamples, seed).of(_seeds(logits))
    estimate = _estimate(full, drawn, level)
    if isinstance(metric, str) and METRICS[metric].percent:
        low, high = estimate.interval
        return replace(estimate, interval=(max(0.0, low), min(1.0, high)))
    return estimate


def retained_interval(
    metric: str,
    problem: str,
    student: Logits,
    teacher: Array,
    labels: Array,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """The share of the teacher's metric that the student keeps, student / teacher on the same rows, at 95 %.

    Args:
        metric: a key; only of metrics where higher is better.
        student: logits [N, V], or a list of them, one a seed.
        teacher: logits [N, V].

    Returns:
        None where a share has no meaning: for a metric where lower is better, or if the teacher's metric isn't positive
        in every resample.
    """
    if not METRICS[metric].higher_is_better:
        return None
    values = _Values(metric, problem, labels, resamples, seed)
    (full_s, drawn_s), (full_t, drawn_t) = values.of(_seeds(student)), values.of([teacher])
    if min(full_t.min(), drawn_t.min()) <= 0:
        return None
    return _estimate(full_s / full_t, drawn_s / drawn_t, 0.95)


class _Values:
    """A metric of any number of models on the full rows and on the same resamples of them."""

    def __init__(self, metric: str | MetricFunction, problem: str, labels: Array, resamples: int, seed: int) -> None:
        if resamples < 2:
            raise PotstillError(message("A bootstrap needs at least 2 resamples", given=resamples, do="Take 2,000"))
        self.metric, self.problem, self.labels = metric, problem, np.asarray(labels)
        self.resamples, self.seed = resamples, seed

    def of(self, models: Sequence[Array]) -> tuple[Array, Array]:
        """Values on the full rows [S], and on each resample [R, S], for S models (or seeds)."""
        statistics = [self._statistic(np.asarray(logits)) for logits in models]
        rows = len(self.labels)
        full = np.array([of(np.ones((1, rows)))[0] for of in statistics])
        drawn = [np.stack([of(weights) for of in statistics], axis=1) for weights in self._weights(rows)]
        return full, np.concatenate(drawn)

    def _statistic(self, logits: Array) -> Statistic:
        if isinstance(self.metric, str):
            return statistic(self.metric, self.problem, logits, self.labels)
        function, labels, numbers = self.metric, self.labels, np.arange(len(self.labels))

        def of(weights: Array) -> Array:
            drawn = (np.repeat(numbers, counts.astype(np.intp)) for counts in weights)
            return np.array([function(logits[rows], labels[rows]) for rows in drawn])

        return of

    def _weights(self, rows: int) -> Iterator[Array]:
        """How often each row is drawn in each resample, [chunk, N] at a time; the same for the same seed."""
        generator = np.random.default_rng(self.seed)
        chunk = max(1, _CELLS // rows)
        for start in range(0, self.resamples, chunk):
            size = min(chunk, self.resamples - start)
            drawn = generator.integers(0, rows, size=(size, rows)) + rows * np.arange(size)[:, None]
            yield np.bincount(drawn.reshape(-1), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _seeds(logits: Logits) -> list[Array]:
    models = [logits] if isinstance(logits, np.ndarray) else list(logits)
    if not models:
        raise ShapeError(message("At least one seed's logits are needed", given="an empty list"))
    return models


def _estimate(full: Array, drawn: Array, level: float) -> Estimate:
    """The estimate from values per seed [S], and per resample and seed [R, S]. The method: see above."""
    count, tail = len(full), (1 - level) / 2
    mean, per_seed = float(full.mean()), [float(value) for value in full]
    if count == 1:
        low, high = np.quantile(drawn[:, 0], (tail, 1 - tail))
        error = float(drawn[:, 0].std(ddof=1))
        return Estimate(mean, (float(low), float(high)), error, per_seed, len(drawn), level, error, None)
    covariances = np.cov(drawn, rowvar=False)
    variance = float(np.trace(covariances)) / count  # V
    common = (count * float(covariances.mean()) - variance) / (count - 1)  # C, before it is held at 0
    explained = variance - common  # V - C
    rows = max(0.0, common) + explained / count  # the variance of the seeds' mean over test samples
    spread = float(full.var(ddof=1))  # s^2
    runs = max(0.0, spread - explained) / count
    error = math.sqrt(rows + runs)
    freedom = (count - 1) * (count * error**2 / spread) ** 2 if spread > 0 else math.inf
    reach = _t_quantile(1 - tail, freedom) * error
    ends = (mean - reach, mean + reach)
    return Estimate(mean, ends, error, per_seed, len(drawn), level, math.sqrt(rows), math.sqrt(runs))


def _t_quantile(share: float, freedom: float) -> float:
    """The quantile of Student's t; of the normal distribution where the degrees of freedom are very many."""
    if freedom > 1e6:
        return NormalDist().inv_cdf(share)
    # Imported here: scipy.special takes a while, and one seed never needs it.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))
