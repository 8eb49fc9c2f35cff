"""What all metrics share: rows, their weights, and the checks on them.

Decisions held here: a metric of logits that aren't finite is an error, not a number; 0/0 is 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.checks import problem as message
from potstill.errors import DataError, ModelError

Array = npt.NDArray[Any]
# Row weights [R, N] in, values [R] out.
Statistic = Callable[[Array], Array]


def weighted_mean(values: Array) -> Statistic:
    """The mean of values [N] that each row contributes alone."""
    contributions = np.asarray(values, dtype=np.float64)
    return lambda weights: np.asarray(weights @ contributions / weights.sum(axis=1))


def ratio(above: Array, below: Array) -> Array:
    """above / below, and 0 where below is not positive."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def shapes(logits: Array, labels: Array) -> str:
    """The two shapes, as a message gives them."""
    return f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"


def check_rows(logits: Array) -> None:
    """Raise unless there is at least one row, and every logit is finite."""
    if len(logits) == 0:
        raise DataError(message("A metric needs at least one row", given="0 rows"))
    broken = int((~np.isfinite(logits.reshape(len(logits), -1))).any(axis=1).sum())
    if broken:
        raise ModelError(
            message(
                "Logits must be finite numbers",
                given=f"NaN or infinity in {broken} of {len(logits)} rows",
                follows="No metric of such a model means anything",
                do="Lower the learning rate, or evaluate in float32",
            )
        )
