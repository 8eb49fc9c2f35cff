"""Losses that compare what hidden states of a whole sequence look like together: [B, S, D].

Decisions:
- One value a sequence, [B], where the thing compared belongs to the sequence (a Gram matrix, an attention map over
  tokens); one a token, [B, S], where it has a row for each token. Sequences count alike, whatever their length.
- Matrices over positions (S x S) let the widths differ; those over dimensions (D x D) need one width.
- Padding is no token: it is in no sum, no count and no mean.
"""

from jaxtyping import Float
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.losses._inputs import full_precision, zeroed
from potstill.losses._vectors import counts, directions, mean_square, require_same_width, vectors_and_mask
from potstill.reduce import Mask

_TOKENS = "[B, S, D]"


def gram_mse(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """Mean squared difference of two Gram matrices: which dimensions are active together, over the sequence.

    gram_mse = mean over D x D of (H_S^T H_S / n - H_T^T H_T / n)^2,  n the number of tokens that count

    Args:
        student: hidden states, [B, S, D], projected to the teacher's width where it differs.
        teacher: hidden states, [B, S, D].
        mask: [B, S], true where a token counts.

    Returns:
        One value a sequence, [B]; 0 where no token counts.

    Raises:
        ShapeError: different shapes.

    References:
        Yang, Cui, Chen, Che, Liu, Wang, Hu: TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural
        Language Processing, 2020, https://arxiv.org/abs/2002.12620 (its ``gram``: ``fsp`` of a layer with itself)

    Prefer `similarity_mse` where widths differ, `flow_mse` for what happens between two layers.
    """
    return _flow(student, teacher, student, teacher, mask, caller="gram_mse")


def flow_mse(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    student_next: Float[Tensor, "B_s S_s D_s"],
    teacher_next: Float[Tensor, "B_n S_n D_n"],
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """Mean squared difference of two flow matrices (FSP): how one layer's dimensions go with a later layer's.

    flow_mse = mean over D x D_s of (H_S^T N_S / n - H_T^T N_T / n)^2,  N the later layer's hidden states, n the number
    of tokens that count

    Args:
        student: hidden states of the earlier layer, [B, S, D], projected to the teacher's width where it differs.
        teacher: hidden states of the earlier layer, [B, S, D].
        student_next: hidden states of the later layer, [B, S, D_s].
        teacher_next: hidden states of the later layer, [B, S, D_s].
        mask: [B, S], true where a token counts.

    Returns:
        One value a sequence, [B]; 0 where no token counts.

    Raises:
        ShapeError: different shapes, of either layer; layers of different batches or lengths.

    References:
        Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
        Learning, 2017, https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html

    Prefer `gram_mse` for one layer alone; with the same layer twice this is `gram_mse`.
    """
    return _flow(student, teacher, student_next, teacher_next, mask, caller="flow_mse")


def similarity_mse(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, "B S"]:
    """Mean squared difference of how similar each token is to the others, in student and teacher.

    similarity_mse = mean over tokens k that count of (h_S[q] . h_S[k] / D - h_T[q] . h_T[k] / D_t)^2, for each token q

    Args:
        student: hidden states, [B, S, D].
        teacher: hidden states, [B, S, D_t]; the width may differ.
        mask: [B, S], true where a token counts.

    Returns:
        One value a token, [B, S].

    Raises:
        ShapeError: different batches or lengths.

    References:
        Yang, Cui, Chen, Che, Liu, Wang, Hu: TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural
        Language Processing, 2020, https://arxiv.org/abs/2002.12620 (its ``mmd`` and ``nst``, a layer with itself)

    Prefer `relation_kl` on hidden states cut into heads for a distribution over tokens; `neuron_selectivity` is the
    publication that this one simplifies.
    """
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller="similarity_mse")
    with full_precision(student):
        difference = _similarity(student, student.shape[-1]) - _similarity(teacher, teacher.shape[-1])
        # Tokens that don't count are zeros in both, and so is their difference.
        return zeroed(difference.square().sum(-1) / counts(valid), valid)


def neuron_selectivity(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """How far the tokens that a student's dimensions select are from those of the teacher's (NST, squared MMD).

    neuron_selectivity = mean over D x D of k(s, s') + mean over D_t x D_t of k(t, t') - 2 * mean over D x D_t of
    k(s, t),  k(x, y) = (x . y)^2,  s and t the dimensions as vectors over tokens that count, of length 1

    Args:
        student: hidden states, [B, S, D].
        teacher: hidden states, [B, S, D_t]; the width may differ.
        mask: [B, S], true where a token counts.

    Returns:
        One value a sequence, [B], from 0 to 2. Computed as the squared difference of two S x S matrices, which it is:
        no kernel over D x D is made.

    Raises:
        ShapeError: different batches or lengths.

    References:
        Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017,
        https://arxiv.org/abs/1707.01219 (polynomial kernel of degree 2 without a constant)

    Prefer `similarity_mse` where the size of activations should count too.
    """
    student, teacher, _ = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller="neuron_selectivity")
    with full_precision(student):
        ours, theirs = (directions(states.transpose(1, 2)).transpose(1, 2) for states in (student, teacher))
        difference = _similarity(ours, ours.shape[-1]) - _similarity(theirs, theirs.shape[-1])
        return difference.square().sum(dim=(1, 2))


def attention_transfer(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """Squared distance of two maps of where in the sequence the activations are strong (AT).

    attention_transfer = sum over tokens that count of (a_S / ||a_S|| - a_T / ||a_T||)^2,  a = mean over D of h^2

    Args:
        student: hidden states, [B, S, D].
        teacher: hidden states, [B, S, D_t]; the width may differ.
        mask: [B, S], true where a token counts.

    Returns:
        One value a sequence, [B], from 0 to 2. A sum over tokens: published code takes their mean, which would weigh
        long sequences less.

    Raises:
        ShapeError: different batches or lengths.

    References:
        Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional Neural
        Networks via Attention Transfer, 2017, https://arxiv.org/abs/1612.03928

    Prefer `attention_kl` or `relation_kl` for a transformer's own attention, which this one knows nothing of.
    """
    student, teacher, _ = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller="attention_transfer")
    ours, theirs = (directions(mean_square(states)) for states in (student, teacher))
    return (ours - theirs).square().sum(-1)


def hidden_cka(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B_t S_t D_t"],
    *,
    mask: Mask | None = None,
) -> Float[Tensor, " B"]:
    """One minus the linear centred kernel alignment (CKA) of a sequence's hidden states.

    hidden_cka = 1 - <K_S, K_T> / (||K_S|| * ||K_T||),  K = X X^T with X the hidden states minus their mean over tokens
    that count

    Args:
        student: hidden states, [B, S, D].
        teacher: hidden states, [B, S, D_t]; the width may differ.
        mask: [B, S], true where a token counts.

    Returns:
        One value a sequence, [B], from 0 to 1: rotations, one factor and one shift of all tokens change nothing. Where
        all tokens are equal, or there is one, there is no alignment: 0.5 against any other, 0 against another such.

    Raises:
        ShapeError: different batches or lengths.

    References:
        Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, 2019,
        https://arxiv.org/abs/1905.00414

    Prefer it where widths differ and no projection should be learned; `hidden_mse` where dimensions mean the same.
    """
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller="hidden_cka")
    with full_precision(student):
        ours, theirs = (directions(_centred_similarity(states, valid).flatten(1)) for states in (student, teacher))
        # Half the squared distance of two directions is 1 - cosine, exactly 0 at equality and never below.
        return 0.5 * (ours - theirs).square().sum(-1)


def _flow(
    student: Tensor, teacher: Tensor, student_next: Tensor, teacher_next: Tensor, mask: Mask | None, *, caller: str
) -> Tensor:
    require_same_width(student, teacher, caller=caller)
    require_same_width(student_next, teacher_next, caller=caller)
    student, teacher, valid = vectors_and_mask(student, teacher, mask, letters=_TOKENS, caller=caller)
    student_next, teacher_next, _ = vectors_and_mask(student_next, teacher_next, None, letters=_TOKENS, caller=caller)
    if student.shape[:2] != student_next.shape[:2]:
        raise ShapeError(
            problem(
                f"{caller} takes two layers of the same sequences",
                given=f"student {tuple(student.shape)}, student_next {tuple(student_next.shape)}",
            )
        )
    student_next, teacher_next = (
        later.masked_fill(~valid.unsqueeze(-1), 0.0) for later in (student_next, teacher_next)
    )
    with full_precision(student):
        share = counts(valid).unsqueeze(-1)
        difference = student.transpose(1, 2) @ (student_next / share) - teacher.transpose(1, 2) @ (teacher_next / share)
        return difference.square().mean(dim=(1, 2))


def _similarity(states: Tensor, width: int) -> Tensor:
    """X X^T / width, [B, S, S], from [B, S, D]."""
    return (states / width) @ states.transpose(1, 2)


def _centred_similarity(states: Tensor, valid: Tensor) -> Tensor:
    """X X^T of the states minus their mean over valid tokens, [B, S, S]; zeros where a token doesn't count."""
    mean = states.sum(1, keepdim=True) / counts(valid).unsqueeze(-1)
    centred = (states - mean).masked_fill(~valid.unsqueeze(-1), 0.0)
    return centred @ centred.transpose(1, 2)
