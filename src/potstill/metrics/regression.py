"""Regression metrics, each as a function of row weights (why: `potstill.metrics`).

Decisions held here:

* A correlation with a constant on either side is undefined; it is given as 0.0, since nothing was told apart.
* Spearman under weights is exact: weights are repetition counts, and the mean rank of a group of equal values follows
  from the counts below and within it. So a resample needs no loop and no approximation.
"""

import numpy as np

from potstill.checks import problem as message
from potstill.errors import DataError, ShapeError
from potstill.metrics.rows import Array, Statistic, check_rows, shapes, weighted_mean

# Below this share of the mean square over all rows, a variance is only rounding: the values count as constant.
_NOTHING = 1e-12


def pearson(predicted: Array, labels: Array) -> Statistic:
    """The linear correlation, cov(x, y) / (sd(x) sd(y)); 0.0 where either side is constant."""
    # Centred first, so that a large offset costs no precision.
    x, y = (values - values.mean() for values in _pair(predicted, labels))
    return lambda weights: _correlation(weights, x, y)


def spearman(predicted: Array, labels: Array) -> Statistic:
    """The linear correlation of the ranks, equal values sharing their mean rank; 0.0 where either side is constant.

    Prefer it to Pearson when only the order matters.
    """
    x, y = (_Ranks(values) for values in _pair(predicted, labels))
    return lambda weights: _correlation(weights, x.of(weights), y.of(weights))


def mse(predicted: Array, labels: Array) -> Statistic:
    """The mean squared error, in the label's unit squared."""
    x, y = _pair(predicted, labels)
    return weighted_mean((x - y) ** 2)


def mae(predicted: Array, labels: Array) -> Statistic:
    """The mean absolute error, in the label's unit. Prefer it to MSE when a few wild labels shouldn't decide."""
    x, y = _pair(predicted, labels)
    return weighted_mean(np.abs(x - y))


class _Ranks:
    """The ranks of fixed values under repetition counts."""

    def __init__(self, values: Array) -> None:
        self.order = np.argsort(values, kind="stable")
        new = np.append(True, np.diff(values[self.order]) != 0)
        self.starts = np.flatnonzero(new)
        self.group = np.empty(len(values), dtype=np.intp)
        self.group[self.order] = np.cumsum(new) - 1

    def of(self, weights: Array) -> Array:
        """Ranks [R, N], centred so that their weighted mean is 0 in every row."""
        counts = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        upto = np.cumsum(counts, axis=1)
        # Counts below, plus half of those within, less half of all: the mean rank less its mean, (n + 1) / 2.
        return np.asarray((upto - (counts + upto[:, -1:]) / 2)[:, self.group])


def _pair(predicted: Array, labels: Array) -> tuple[Array, Array]:
    """Both as float64 [N], checked."""
    flat = predicted[:, 0] if predicted.ndim == 2 and predicted.shape[1] == 1 else predicted
    if flat.ndim != 1 or flat.shape != labels.shape:
        raise ShapeError(
            message("Regression metrics take predictions [N] or [N, 1] and labels [N]", given=shapes(predicted, labels))
        )
    check_rows(flat)
    if not np.isfinite(labels).all():
        raise DataError(message("Labels must be finite numbers", do="Leave rows without a label out"))
    return flat.astype(np.float64), labels.astype(np.float64)


def _correlation(weights: Array, x: Array, y: Array) -> Array:
    """Weighted Pearson correlation [R] of x and y, each [N] or [R, N], nearly centred already."""
    rows = weights.sum(axis=1)

    def mean(values: Array) -> Array:
        total = weights @ values if values.ndim == 1 else np.einsum("rn,rn->r", weights, values)
        return np.asarray(total / rows)

    mean_x, mean_y = mean(x), mean(y)
    spread_x, spread_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    least_x, least_y = _NOTHING * (x * x).mean(), _NOTHING * (y * y).mean()
    defined = (spread_x > least_x) & (spread_y > least_y)
    below = np.sqrt(np.where(defined, spread_x * spread_y, 1.0))
    return np.where(defined, np.clip((mean(x * y) - mean_x * mean_y) / below, -1.0, 1.0), 0.0)
