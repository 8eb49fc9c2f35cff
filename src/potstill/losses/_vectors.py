"""Directions of vectors, with gradients that stay finite where there is no direction."""

import torch
from torch import Tensor


def directions(vectors: Tensor) -> Tensor:
    """The vectors [*, D] divided by their lengths. A vector of zeros has no direction, and stays zeros.

    torch's own normalize divides by an epsilon there, and hands back a gradient of 1e12.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(lengths == 0, torch.ones_like(lengths), lengths)
