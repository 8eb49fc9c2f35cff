"""Causal language modelling: rows of running text, in which each token is predicted from those before it.

Decisions:
- Labels are shifted here, once: position i of the outputs is compared with label i, which is token i + 1. So outputs,
  labels and masks line up, and neither a loss nor the objective knows that anything was shifted. A position has the
  label -100 where no token of its own document follows: at the end of each document, and at padding. The end-of-text
  token itself is a label like any other, or the student would never learn to stop (padding is told by length, not by
  id, since many tokenizers pad with the end-of-text token).
- Models are given no attention mask. Under causal attention nothing sees what stands right of it, so padding on the
  right needs none, and the fused kernels are fastest without; transformers moreover looks for documents in a packed row
  only where there is none. The mask of tokens travels as ``token_mask``, which no model takes.
- Documents in a packed row are kept apart by ``position_ids`` that start again at 0, from which transformers derives
  the mask (given no cache of keys and values: `potstill.knowledge.inputs_for` asks for none). Some models take
  positions and attend across documents all the same, as do recurrent layers. That would train something else in
  silence, so `CausalLM.check_model` tries it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill.checks import problem, unknown_name
from potstill.errors import ArgumentError, ModelError
from potstill.knowledge import inputs_for
from potstill.objective import Defaults
from potstill.tasks.base import Batch, LoadedModel, bars_on_a_terminal, load_pretrained
from potstill.tasks.packing import Packing, pack
from potstill.tasks.tokens import ReadsTokens

IGNORED = -100
ROW = "row"  # the number of a row in the data set, for a memory

_NUMBERS = "the next token is one of many, not a number. Use cross_entropy."
_ONE = "each position has exactly one next token."
DEFAULTS = Defaults(
    "cross_entropy",
    "kl_divergence",
    {
        "binary_cross_entropy": f"{_ONE} Use cross_entropy.",
        "binary_kl_divergence": f"{_ONE} Use kl_divergence.",
        "squared_error": _NUMBERS,
    },
)


@dataclass(frozen=True)
class CausalLM(ReadsTokens):
    """Args:
    packing: ``documents``: rows are filled with whole documents as far as they fit, and no token attends to another
        document; ``blocks``: documents are strung together and cut into rows of one length, and attend to what stands
        before them in the row, as most models were pretrained; ``none``: one document a row, cut to the longest length.

    Raises:
        ArgumentError: another packing.

    Prefer ``documents``: nothing is padded to speak of, and each document is learned as if it stood alone. ``blocks``
    is for models that can't keep documents apart; ``none`` for those, and for documents about as long as a row.
    """

    packing: Packing = "documents"

    auto_class = AutoModelForCausalLM
    problem = "causal_lm"
    names = ()
    of_tokens = True

    def __post_init__(self) -> None:
        if self.packing not in get_args(Packing):
            raise ArgumentError(unknown_name("packing", self.packing, get_args(Packing)))

    def load(
        self,
        path: str | Path | PreTrainedConfig,
        *,
        attention: str | None = None,
        trust_remote_code: bool = False,
        reader: Any = None,
    ) -> LoadedModel:
        """Load a language model in float32."""
        return load_pretrained(self.auto_class, path, attention=attention, trust_remote_code=trust_remote_code)

    def encode(self, rows: Dataset, reader: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """The column ``text`` as rows of at most `max_length` tokens, the end-of-text token after each document.

        Gives ``input_ids`` and ``length``; and ``position_ids`` where documents are packed and kept apart.

        Documents are packed a thousand at a time, so that memory doesn't grow with their number; what remains of each
        thousand is a shorter row. A document with fewer than two tokens predicts nothing, and is left out.

        Raises:
            ModelError: the tokenizer has no end-of-text token.
        """
        end = reader.eos_token_id
        if end is None:
            raise ModelError(
                problem(
                    "Documents are told apart by an end-of-text token, and the tokenizer has none",
                    follows="The student would never learn where a text ends",
                    do="Set tokenizer.eos_token to the token that ended the teacher's texts",
                )
            )

        def tokens(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            found = reader(batch["text"], truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
            documents = [ids if ids and ids[-1] == end else [*ids, end] for ids in found]
            return pack([ids for ids in documents if len(ids) > 1], max_length, self.packing)

        with bars_on_a_terminal():
            return rows.map(tokens, batched=True, remove_columns=rows.column_names, desc="encoding")

    def collator(
        self, reader: PreTrainedTokenizerBase, teachers: PreTrainedTokenizerBase | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """Pads to the longest row of the batch, always on the right, and shifts the labels.

        Raises:
            ModelError: the teachers have another tokenizer, whose tokens would be other ones.
        """
        if teachers is not None:
            raise ModelError(
                problem(
                    "Language models are compared token by token, and the teachers have another tokenizer",
                    follows="What the teacher expects next would be learned for another token",
                    do="Use a student with the teacher's tokenizer",
                )
            )
        return CausalCollator(0 if reader.pad_token_id is None else int(reader.pad_token_id))

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The token after each position, [B,S]; -100 where its document ends."""
        return batch.get("labels")

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Positions that predict a token [B,S], twice (``labels``, ``outputs``); ``tokens`` [B,S]; ``rows`` [B]."""
        predicting = batch["labels"] != IGNORED
        tokens = batch["token_mask"]
        return {"labels": predicting, "outputs": predicting, "tokens": tokens, "rows": tokens.any(-1)}

    def defaults(self) -> Defaults:
        """Cross-entropy and KL."""
        return DEFAULTS

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise `ModelError` where documents are packed, and the model doesn't keep them apart."""
        if self.packing == "documents" and not separates_documents(model):
            raise ModelError(
                problem(
                    f"{type(model).__name__} doesn't keep the documents of a packed row apart",
                    given=f"attention '{model.config._attn_implementation}'",
                    follows="Each document would be learned as if it went on from the one before",
                    do="Use CausalLM(packing='none'), or packing='blocks' where that is meant",
                )
            )


def separates_documents(model: PreTrainedModel) -> bool:
    """Whether a document in a packed row gets the logits that it gets alone: tried on two documents of 4 and 3 tokens.

    Without gradients, in eval mode, which is put back; a difference is one beyond rounding in the model's precision.
    """
    ids = torch.arange(1, 8, device=model.device).unsqueeze(0)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=model.device)
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        packed = model(**inputs_for(model, {"input_ids": ids, "position_ids": positions})).logits[:, 4:]
        alone = model(**inputs_for(model, {"input_ids": ids[:, 4:], "position_ids": positions[:, 4:]})).logits
    model.train(was_training)
    rounding = torch.finfo(model.dtype).eps ** 0.5 * alone.abs().amax()
    return bool((packed - alone).abs().amax() <= rounding)


@dataclass(frozen=True)
class CausalCollator:
    """Encoded rows -> a padded batch: ids, positions where there are some, the mask of tokens, and shifted labels."""

    padding: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """``input_ids``, ``labels`` [B,S] int64, ``token_mask`` [B,S]; ``position_ids`` [B,S] of packed documents.

        What is padded counts as one more document, so that no token of a packed row attends to it.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.padding)
        positions = torch.arange(longest).repeat(len(rows), 1)
        tokens = torch.zeros(len(rows), longest, dtype=torch.bool)
        packed = "position_ids" in rows[0]
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[number, :length] = torch.as_tensor(row["input_ids"])
            tokens[number, :length] = True
            if packed:
                positions[number, :length] = torch.as_tensor(row["position_ids"])
                positions[number, length:] -= length
        labels = torch.full_like(ids, IGNORED)
        follows = tokens[:, 1:] & (positions[:, 1:] == positions[:, :-1] + 1)
        labels[:, :-1] = torch.where(follows, ids[:, 1:], IGNORED)
        batch = {"input_ids": ids, "labels": labels, "token_mask": tokens}
        if packed:
            batch["position_ids"] = positions
        if ROW in rows[0]:
            batch[ROW] = torch.tensor([row[ROW] for row in rows])
        return batch
