"""What losses share that look at several vectors together: checks that let widths differ, directions, angles.

Decisions:
- A vector of zeros has no direction and stays zeros. An epsilon in the norm, as torch's own normalize has it, would
  hand back a gradient of 1e12 there.
- Differences are taken before lengths are, never ||x||^2 + ||y||^2 - 2xy: in float32 that loses every digit where two
  vectors are near each other, and its root has an infinite gradient where they are equal.
"""

import torch
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.losses._inputs import at_least_float32, filled, full_precision, require_axes
from potstill.reduce import Mask, position_mask


def vectors_and_mask(
    student: Tensor, teacher: Tensor, mask: Mask | None, *, letters: str, caller: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float32 with zeros where masked, and the mask [*] as booleans, all true without one.

    `letters` says the shape, such as ``[B, S, D]``; the last axis may differ. Raises `ShapeError` that names both.
    """
    require_axes(student, teacher, axes=letters.count(",") + 1, letters=letters, caller=caller)
    positions = student.shape[:-1]
    if positions != teacher.shape[:-1]:
        raise ShapeError(
            problem(
                f"{caller} compares the same positions {letters[: letters.rindex(',')]}]; only widths may differ",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                do="Both need the same inputs, padded to the same length",
            )
        )
    valid = position_mask(mask, positions, caller=caller)
    if valid is None:
        valid = torch.ones(positions, dtype=torch.bool, device=student.device)
    return at_least_float32(filled(student, valid)), at_least_float32(filled(teacher, valid)), valid


def require_same_width(student: Tensor, teacher: Tensor, *, caller: str) -> None:
    """Raise `ShapeError`, naming both shapes, unless the last axes agree."""
    if student.shape[-1:] != teacher.shape[-1:]:
        raise ShapeError(
            problem(
                f"{caller} compares matrices D x D, so both need one width",
                given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
                do="Give a projection (project: linear), or take similarity_mse, which compares positions",
            )
        )


def directions(vectors: Tensor) -> Tensor:
    """The vectors [*, D] divided by their lengths; a vector of zeros stays zeros."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(lengths == 0, torch.ones_like(lengths), lengths)


def cosines(vertices: Tensor, ends: Tensor) -> Tensor:
    """The cosine of the angle at each vertex between each two ends, [*, N, K, K], from [*, N, D] and [*, N, K, D].

    0 where an end is the vertex itself, which has no direction.
    """
    arms = directions(ends - vertices.unsqueeze(-2))
    return arms @ arms.transpose(-1, -2)


def mean_square(vectors: Tensor) -> Tensor:
    """The mean over D of the squares of [*, D]. A product with itself moves half as much memory as squaring does."""
    with full_precision(vectors):
        squares: Tensor = torch.linalg.vecdot(vectors, vectors)
        return squares / vectors.shape[-1]


def counts(valid: Tensor) -> Tensor:
    """How many positions of the last axis count, at least 1, to divide by: [*, 1] from [*, N]."""
    return valid.sum(-1, keepdim=True).clamp(min=1)
