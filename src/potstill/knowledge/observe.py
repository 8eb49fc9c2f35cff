"""`observe`: one forward pass of a model, and what was asked for as `Knowledge`.

Each model gets its own inputs out of the batch, chosen by the signature of its forward: a BERT teacher sees the
`token_type_ids` that its DistilBERT student does not take.
"""

import inspect
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import CLASSIFIERS
from potstill.knowledge.head import head_input, head_of, misfit
from potstill.knowledge.taps import tapped
from potstill.knowledge.types import LAYERED, Knowledge, Logits, Needs

NOTES = logging.getLogger(__name__)
IGNORED = -100  # the label of a position without one, as transformers writes it
TARGETS = ("labels", "label", "label_ids")
TEACHERS = "teacher_"
"""The prefix of the columns that hold a row as teachers read it, where they have another tokenizer than the student."""
READ = ("input_ids", "attention_mask", "token_type_ids")


@lru_cache(maxsize=64)
def _parameters(model_class: type) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters) - set(TARGETS)  # type: ignore[attr-defined]


def inputs_for(model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch this model's forward takes. Labels are never passed on: the objective computes the loss.

    Numbers that aren't whole, such as pixels, come in the model's own precision: a convolution takes no other. Models
    that could are told to keep no cache of keys and values: it would cost memory, and transformers looks for several
    documents in a row only without one.
    """
    known = _parameters(type(model))  # type: ignore[arg-type]
    found = {name: _in_precision(value, model) for name, value in batch.items() if name in known}
    return {**found, "use_cache": False} if "use_cache" in known else found


def _in_precision(value: Any, model: PreTrainedModel) -> Any:
    return value.to(model.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def own_columns(batch: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """A batch as a model with a tokenizer of its own reads it: the columns of its prefix, without it, before others.

    A batch without such columns is read as it is.
    """
    own = {name.removeprefix(prefix): value for name, value in batch.items() if prefix and name.startswith(prefix)}
    if not own:
        return batch
    return {**{name: value for name, value in batch.items() if name not in READ}, **own}


class Observer:
    """A model and what is asked of it; call it with a batch. Its mode and gradients are the caller's business.

    With a `prefix`, it reads its `own_columns`. Factored logits are tried on the first batch, see `knowledge.head`.
    """

    def __init__(self, model: PreTrainedModel, needs: Needs, *, prefix: str = "") -> None:
        self.model = model
        self.needs = needs
        self.prefix = prefix
        self._head = head_of(model) if needs.factored else None
        self._untried = needs.factored

    def __call__(self, batch: Mapping[str, Any]) -> Knowledge:
        """Run the model once on a batch and return what was asked for."""
        batch = own_columns(batch, self.prefix)
        inputs = inputs_for(self.model, batch)
        if self._untried:
            self._try_head(inputs)
        with tapped(self.model, self.needs) as found:
            logits, classifiers = self._run(inputs)
        for kind in LAYERED:
            missing = getattr(self.needs, kind) - found.get(kind, {}).keys()
            if missing:
                raise ModelError(
                    problem(
                        f"{type(self.model).__name__} gave no {kind} for layers {sorted(missing, key=str)}",
                        follows="A loss on them would silently be zero",
                        do="Check the layer numbers; a compiled model or a kernel of its own hides them from the taps",
                    )
                )
        mask = token_mask(batch)
        decodes = getattr(self.model.config, "is_encoder_decoder", False)
        return Knowledge(
            logits=logits,
            mask=mask,
            decoder_mask=decoder_mask(batch) if decodes else None,
            classifiers=classifiers,
            **found,
        )

    def _try_head(self, inputs: Mapping[str, Any]) -> None:
        """Settle on the form of the logits, by the first batch; taps must not be in place, since the model is run."""
        self._untried = False
        why = "its head is no plain linear layer" if self._head is None else misfit(self.model, self._head, inputs)
        if why is not None:
            self._head = None
            model = type(self.model).__name__
            NOTES.warning("The whole matrix of logits of %s is formed, which takes memory and time: %s.", model, why)

    def _run(self, inputs: Mapping[str, Any]) -> tuple[Logits | None, dict[str, Tensor]]:
        """The forward pass: its logits if they are asked for, and those of single classifiers."""
        if self._head is not None:
            states = head_input(self.model, self._head, inputs)
            return (self._head.logits(states) if self.needs.logits else None), {}
        output = self.model(**inputs)
        single = {name: output[CLASSIFIERS[name]] for name in self.needs.classifiers}
        return (output.logits if self.needs.logits else None), single


def token_mask(batch: Mapping[str, Any]) -> Tensor | None:
    """[B,S] true at tokens that are not padding: what a model is told, or what only the task knows; None for images."""
    told = batch.get("attention_mask", batch.get("token_mask"))
    return told.bool() if isinstance(told, Tensor) else None


def decoder_mask(batch: Mapping[str, Any]) -> Tensor | None:
    """[B,S] true at the positions of an encoder-decoder's decoder that count.

    What says it best, of what the batch has: ``decoder_attention_mask``; ``labels`` [B,S], where they aren't -100 (a
    position of the decoder predicts the label of the same number); ``decoder_input_ids``, all of which then count; and
    else ``attention_mask``, since a model that is given nothing to decode (classification) decodes its own input.
    """
    labels, ids = batch.get("labels"), batch.get("decoder_input_ids")
    given = batch.get("decoder_attention_mask")
    if isinstance(given, Tensor):
        return given.bool()
    if isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point():
        return labels != IGNORED
    if isinstance(ids, Tensor):
        return torch.ones_like(ids, dtype=torch.bool)
    mask = batch.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) else None


def observe(model: PreTrainedModel, batch: Mapping[str, Any], needs: Needs) -> Knowledge:
    """One forward pass of `model` on `batch`, giving the `needs` as `Knowledge`."""
    return Observer(model, needs)(batch)
