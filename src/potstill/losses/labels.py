"""The tasks' own hard losses: the student's logits against labels. The second argument takes the teacher's place.

Decisions:
- A label of -100 is no label: its value is 0. It still has to be left out of the count, by the mask `labels != -100` in
  `masked_mean`; the loss can't do that.
- Nothing is shifted here: a causal task shifts labels and mask together, once, before it calls a loss.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem, same_shape
from potstill.errors import ShapeError
from potstill.losses._inputs import at_least_float32, filled, zeroed
from potstill.reduce import Mask, position_mask

IGNORED = -100
"""The label that means: no label here. The value of transformers and of torch's own cross-entropy."""


def cross_entropy(
    student: Float[Tensor, "*positions V"],
    labels: Int[Tensor, "*positions_t"] | Float[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions"]:
    """Negative log-probability of the right class, in nats; of rows that were mixed, its mean over their classes.

    cross_entropy = -log softmax(z_S)[label], and 0 where the label is -100;
    of a distribution over the classes, -sum_c y_c log softmax(z_S)_c

    Args:
        student: logits, [*, V].
        labels: class numbers from 0 to V-1, or -100 for none, [*]; or distributions over the classes, [*, V].
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*].

    Raises:
        ShapeError: labels that are not one a position, or only one class.

    References:
        PyTorch: torch.nn.functional.cross_entropy, https://docs.pytorch.org

    Prefer `binary_cross_entropy` where several labels may be right at once, `squared_error` where labels are numbers.
    """
    mixed = labels.is_floating_point() and labels.shape == student.shape
    if student.ndim == 0 or not (mixed or labels.shape == student.shape[:-1]):
        raise ShapeError(
            problem(
                "cross_entropy takes logits [*, V] and one class number a position [*]",
                given=f"student {tuple(student.shape)}, labels {tuple(labels.shape)}",
                do="Take binary_cross_entropy for labels of shape [*, V], squared_error for regression",
            )
        )
    if student.shape[-1] == 1:
        raise ShapeError(
            problem(
                "cross_entropy chooses among at least two classes",
                given=f"student {tuple(student.shape)}, labels {tuple(labels.shape)}",
                follows="A softmax over one is constant, so that the loss and its gradient would be 0 everywhere",
                do="Take squared_error for regression, binary_cross_entropy for a single yes or no",
            )
        )
    valid = position_mask(mask, student.shape[:-1], caller="cross_entropy")
    if mixed:
        log_probabilities = torch.log_softmax(at_least_float32(filled(student, valid)), dim=-1)
        return zeroed(-(labels.to(log_probabilities.dtype) * log_probabilities).sum(-1), valid)
    labels = labels if valid is None else labels.masked_fill(~valid, IGNORED)
    logits = at_least_float32(filled(student, valid))
    values = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORED, reduction="none"
    )
    return values.reshape(labels.shape)


def binary_cross_entropy(
    student: Float[Tensor, "*positions V"],
    labels: Float[Tensor, "*positions_t V_t"] | Int[Tensor, "*positions_t V_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions"]:
    """Negative log-probability of each label's yes or no, in nats, averaged over labels.

    binary_cross_entropy = mean over V of -[y * log p + (1 - y) * log(1 - p)],  p = sigmoid(z_S)

    Args:
        student: logits, [*, V].
        labels: 1 (or a probability) where the label holds, 0 where not, [*, V].
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*]. Averaged over V, as transformers does; `binary_kl_divergence` is a sum.

    Raises:
        ShapeError: different shapes.

    References:
        PyTorch: torch.nn.functional.binary_cross_entropy_with_logits, https://docs.pytorch.org

    Prefer `cross_entropy` where exactly one class is right.
    """
    same_shape(student, labels, caller="binary_cross_entropy", hint="Labels are given as [*, V], one a class")
    valid = position_mask(mask, student.shape[:-1], caller="binary_cross_entropy")
    logits = at_least_float32(filled(student, valid))
    values = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return zeroed(values.mean(-1), valid)


def squared_error(
    student: Float[Tensor, "..."],
    labels: Float[Tensor, "*positions_t"] | Int[Tensor, "*positions_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions_t"]:
    """Squared difference of one predicted number from its label.

    squared_error = (z_S - y)^2

    Args:
        student: predictions, [*] or [*, 1].
        labels: numbers, [*].
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*], in squared units of the labels.

    Raises:
        ShapeError: predictions that are neither [*] nor [*, 1].

    References:
        PyTorch: torch.nn.functional.mse_loss, https://docs.pytorch.org

    Prefer `cross_entropy` for classes, also for ordered ones when there are few; `logit_mse` against a teacher.
    """
    if student.shape not in (labels.shape, (*labels.shape, 1)):
        raise ShapeError(
            problem(
                "squared_error takes one prediction a label, [*] or [*, 1]",
                given=f"student {tuple(student.shape)}, labels {tuple(labels.shape)}",
                do="Give the model one output (num_labels=1), or take cross_entropy for classes",
            )
        )
    valid = position_mask(mask, labels.shape, caller="squared_error")
    predictions = at_least_float32(student.reshape(labels.shape))
    return zeroed(predictions - labels.to(predictions.dtype), valid).square()
