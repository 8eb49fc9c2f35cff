"""Losses that compare hidden states, position by position.

Decisions:
- Both have the same width. A narrower student gets a projection before, which trains beside it (`potstill.projectors`):
  a loss holds no weights.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import same_shape
from potstill.losses._inputs import at_least_float32, filled, zeroed
from potstill.losses._vectors import directions, mean_square
from potstill.reduce import Mask, position_mask

_WIDTHS = "Different widths need a projection (project: linear); different lengths are not comparable"


def hidden_mse(
    student: Float[Tensor, "*positions D"],
    teacher: Float[Tensor, "*positions_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions"]:
    """Mean squared difference of two hidden states.

    hidden_mse = mean over D of (h_S - h_T)^2

    Args:
        student: hidden states, [*, D], usually [B, S, D], projected to the teacher's width where it differs.
        teacher: hidden states, [*, D].
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*], in squared units of the hidden states.

    Raises:
        ShapeError: different shapes.

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets, 2015,
        https://arxiv.org/abs/1412.6550
        Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu: TinyBERT: Distilling BERT for Natural Language Understanding,
        2020, https://arxiv.org/abs/1909.10351

    Prefer `hidden_cosine` where only directions matter, or where few very large dimensions rule the squared difference.
    """
    same_shape(student, teacher, caller="hidden_mse", hint=_WIDTHS)
    valid = position_mask(mask, student.shape[:-1], caller="hidden_mse")
    difference = filled(at_least_float32(student) - at_least_float32(teacher), valid)
    return mean_square(difference)


def hidden_cosine(
    student: Float[Tensor, "*positions D"],
    teacher: Float[Tensor, "*positions_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions"]:
    """One minus the cosine of the angle between two hidden states.

    hidden_cosine = 1 - h_S . h_T / (||h_S|| * ||h_T||)

    Args:
        student: hidden states, [*, D], usually [B, S, D], projected to the teacher's width where it differs.
        teacher: hidden states, [*, D].
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*], from 0 (same direction) to 2 (opposite). A hidden state of zeros has no direction: 1.

    Raises:
        ShapeError: different shapes.

    References:
        Sanh, Debut, Chaumond, Wolf: DistilBERT, a distilled version of BERT, 2019, https://arxiv.org/abs/1910.01108

    Prefer `hidden_mse` where the student's layers are the teacher's own, so that lengths mean the same.
    """
    same_shape(student, teacher, caller="hidden_cosine", hint=_WIDTHS)
    valid = position_mask(mask, student.shape[:-1], caller="hidden_cosine")
    directions = at_least_float32(filled(student, valid)), at_least_float32(teacher)
    return zeroed(1 - functional.cosine_similarity(*directions, dim=-1), valid)


def hidden_normalised_mse(
    student: Float[Tensor, "*positions D"],
    teacher: Float[Tensor, "*positions_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "*positions"]:
    """Squared distance of two hidden states, each divided by its length.

    hidden_normalised_mse = sum over D of (h_S / ||h_S|| - h_T / ||h_T||)^2

    Args:
        student: hidden states, [*, D], projected to the teacher's width where it differs. [B, D] for the first token
            of each row, as the publication has it, [B, S, D] for all tokens.
        teacher: hidden states, [*, D].
        mask: [*], true where a position counts.

    Returns:
        One value a position, [*], from 0 (same direction) to 4 (opposite): a sum over D, not a mean. A hidden state of
        zeros has no direction and is taken as it is: 1 against any other, with a gradient of at most 2.

    Raises:
        ShapeError: different shapes.

    References:
        Sun, Cheng, Gan, Liu: Patient Knowledge Distillation for BERT Model Compression, 2019,
        https://arxiv.org/abs/1908.09355

    Prefer `hidden_cosine` for new work: it is half of this one. Prefer this one to follow the publication's weights.
    """
    same_shape(student, teacher, caller="hidden_normalised_mse", hint=_WIDTHS)
    valid = position_mask(mask, student.shape[:-1], caller="hidden_normalised_mse")
    ours, theirs = directions(at_least_float32(filled(student, valid))), directions(at_least_float32(teacher))
    return filled(ours - theirs, valid).square().sum(-1)
