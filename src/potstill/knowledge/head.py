"""The output head apart from its model: what goes into it and its weights, instead of the logits [B,S,V] they make.

Decisions:
- The head stays in its place, and is told for one forward pass to give logits of no width and to keep its input. To
  call the base model instead would miss what stands between them, such as BERT's transform or the scale of a tied T5.
- What follows the head is known only so far as `FactoredLogits` can say it: a scale and a soft cap, both read from the
  config. So on the first batch that an observer sees, both forms are made of a few of its positions and compared, once;
  beyond rounding, the model's own logits are taken from then on, and the log says so.
- Only a plain linear layer will do, whatever the comparison says: an adapter on the head (LoRA) begins as no change at
  all, and would be ignored while it is trained.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.losses.fused import FactoredLogits

POSITIONS = 16  # that the two forms are compared at
ROUNDING = 64  # units of the precision, of the largest logit


@dataclass(frozen=True)
class Head:
    """A linear head, and what its model does with the logits that it gives."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, states: Tensor) -> FactoredLogits:
        """The factored form, from what goes into the head, [B,S,D]."""
        return FactoredLogits(states, self.linear.weight, self.linear.bias, self.scale, self.softcap)


def head_of(model: PreTrainedModel) -> Head | None:
    """The head of a model that gives logits over a vocabulary; None where it is no plain linear layer."""
    linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear):
        return None
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    return Head(linear, scale, getattr(config, "final_logit_softcapping", None))  # Gemma


@contextmanager
def kept_apart(head: Head) -> Iterator[list[Tensor]]:
    """Let a head give logits of no width inside the context; what goes into it is collected."""
    found: list[Tensor] = []

    def forward(input: Tensor) -> Tensor:
        found.append(input)
        return input.new_empty(*input.shape[:-1], 0)

    head.linear.forward = forward  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del head.linear.forward


def head_input(model: PreTrainedModel, head: Head, inputs: Mapping[str, Any]) -> Tensor:
    """What goes into the head of a model, [B,S,D], in one forward pass that doesn't compute the head."""
    with kept_apart(head) as found:
        model(**inputs)
    (states,) = found
    return states


def misfit(model: PreTrainedModel, head: Head, inputs: Mapping[str, Any]) -> str | None:
    """Why a model's logits are not what its head makes of its input, or None where they are.

    Tried on the first positions of a batch's first row, in eval mode and without gradients, so that no dropout is
    drawn: a run that looks is the same as one that doesn't.
    """
    few = {key: _first(value) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            wanted: Tensor = model(**few).logits
            found = head.logits(head_input(model, head, few)).dense()
    except (RuntimeError, ValueError) as error:
        return f"the model can't do without its logits ({str(error).strip().splitlines()[0]})"
    finally:
        model.train(was_training)
    if found.shape != wanted.shape:
        return f"they have the shape {tuple(wanted.shape)}, and its head gives {tuple(found.shape)}"
    found, wanted = found.float(), wanted.float()
    apart, largest = (found - wanted).abs().amax(), wanted.abs().amax()
    if not apart <= ROUNDING * _precision(head, wanted) * largest:
        return f"they differ by up to {float(apart):.3g}, where the largest is {float(largest):.3g}"
    return None


def _first(value: Tensor) -> Tensor:
    """The first positions of the first row of [B,S]; the first row of anything else."""
    return value[:1, :POSITIONS] if value.ndim == 2 else value[:1]


def _precision(head: Head, logits: Tensor) -> float:
    """The unit of the coarsest precision that the logits went through."""
    device = head.linear.weight.device.type
    seen = {head.linear.weight.dtype, logits.dtype}
    if torch.is_autocast_enabled(device):
        seen.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(dtype).eps for dtype in seen)
