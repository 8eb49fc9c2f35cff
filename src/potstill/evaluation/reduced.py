"""What a teacher's answers lose in a lower precision, and whether that is little enough to teach with.

Decided here: the float32 teacher is the truth, on training rows, since that is where it teaches. Both bounds have to
hold. Neither is a matter of speed: what a precision gains is measured elsewhere, what it costs is said here.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from potstill.evaluation import fidelity
from potstill.evaluation.predict import predict_logits
from potstill.evaluation.segmentation import pixel_fidelity
from potstill.metrics import of_pixels
from potstill.training.precision import teacher_at

ROWS = 512
MOST_KL = 0.01  # nats a row: a student that is near its teacher stays at several hundredths
LEAST_AGREEMENT = 0.99
MOST_DIFFERENCE = 0.02  # of a regression: of the standard deviation of the teacher's values


@dataclass(frozen=True)
class Reduced:
    """A teacher in a lower precision beside itself in float32; `difference` is regression's measure, else None."""

    precision: str
    rows: int
    kl: float | None
    agreement: float | None
    difference: float | None

    @property
    def allowed(self) -> bool:
        """Whether its answers are near enough; a value that is not a number is not."""
        if self.difference is not None:
            return self.difference <= MOST_DIFFERENCE
        assert self.kl is not None and self.agreement is not None
        return self.kl <= MOST_KL and self.agreement >= LEAST_AGREEMENT

    def as_dict(self) -> dict[str, Any]:
        """As plain data, the verdict with it; None where a number is none."""
        plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}
        return {**plain, "allowed": self.allowed, "why": self.why}

    @property
    def why(self) -> str:
        """The numbers in words."""
        if self.difference is not None:
            return f"mean difference from float32 {self.difference:.4f} of a standard deviation, on {self.rows:,} rows"
        return f"KL to float32 {self.kl:.2g} nats, agreement {100 * (self.agreement or 0):.2f} %, on {self.rows:,} rows"


def reduced_fidelity(model: PreTrainedModel, precision: str, rows: Any, collate: Any, problem: str) -> Reduced:
    """How far a model's answers in a lower precision are from its own in float32.

    Args:
        model: in float32, on the device that it will teach on.
        precision: ``bfloat16`` or ``int8``.
        rows: encoded training rows with a column ``length``; the first `ROWS` are taken.
        collate: pads a list of rows to a batch.
        problem: what the labels are.

    Raises:
        ModelError: the model can't run in that precision here.
    """
    rows = rows.select(range(min(ROWS, len(rows))))
    if of_pixels(problem):
        near = pixel_fidelity(teacher_at(model, precision), model, rows, collate)
        return Reduced(precision, len(rows), near["kl"], near["agreement"], None)
    lower = predict_logits(teacher_at(model, precision), rows, collate)
    exact = predict_logits(model, rows, collate)
    difference = None
    if problem == "regression":
        difference = fidelity.mean_absolute_difference(lower, exact) / max(float(exact.std()), 1e-12)
    return Reduced(
        precision,
        len(rows),
        fidelity.kl_to_teacher(lower, exact, problem),
        fidelity.agreement(lower, exact, problem),
        difference,
    )
