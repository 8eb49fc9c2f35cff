"""Logits that are not there as a matrix: a head that has not been applied, and the likeliest classes read from a cache.

Decisions:
- A head is a product, a scale, a bias and a cap, in this order; whatever else a model does to its logits has no place
  here, and such a model gives its logits as they are.
- Nothing is checked when one is made: that would be once a step, and `fused_loss` checks both sides together.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class FactoredLogits:
    """The logits of a head that has not been applied yet.

    logits = scale * (states @ weight.T) + bias, and softcap * tanh(logits / softcap) of that where there is one

    Attributes:
        states: what goes into the head, [*, D].
        weight: the head's matrix, [V, D]; may be the matrix of the embeddings.
        bias: [V].
        scale: what the product is multiplied by, before the bias: D ** -0.5 in a T5 whose embeddings are tied.
        softcap: the bound of logits that are kept small by a tanh, as in Gemma 2.
    """

    states: Float[Tensor, "*positions D"]
    weight: Float[Tensor, "V D_w"]
    bias: Float[Tensor, " V_b"] | None = None
    scale: float | int = 1.0
    softcap: float | int | None = None

    def dense(self) -> Float[Tensor, "*positions_l V_l"]:
        """The logits as a matrix, for few positions or a small vocabulary, and to compare with."""
        logits = torch.nn.functional.linear(self.states, self.weight)
        logits = logits if self.scale == 1 else logits * self.scale
        logits = logits if self.bias is None else logits + self.bias
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class SparseLogits:
    """The K likeliest classes of each position and the mass of all others, as a cache keeps a teacher's distribution.

    Attributes:
        values: log-probabilities of softmax(logits / temperature), [*, K].
        ids: the classes that they are of, none twice at a position, [*, K].
        tail: logarithm of the mass of all other classes, minus infinity where there is none, [*].
        temperature: the one that the probabilities were taken at; it can't be changed afterwards, since the mass of the
            others at another temperature can't be told from their mass at this one.
    """

    values: Float[Tensor, "*positions K"]
    ids: Int[Tensor, "*positions_i K_i"]
    tail: Float[Tensor, "*positions_t"]
    temperature: float | int = 1.0


Teacher = FactoredLogits | SparseLogits | Float[Tensor, "*positions_t V_t"]
"""The forms in which a teacher's logits may come."""
