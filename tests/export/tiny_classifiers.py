"""Tiny random classifiers of five encoder families and a decoder, and batches for them."""

from typing import Any

import torch
import transformers

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
COMMON = {"vocab_size": 200, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZES, **COMMON),
    "distilbert": lambda: transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **COMMON),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, **{**COMMON, "pad_token_id": 1}),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES, **{**COMMON, "pad_token_id": 1}),
    "electra": lambda: transformers.ElectraConfig(embedding_size=16, **SIZES, **COMMON),
    "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **SIZES, **COMMON),
}
# What the family's tokenizer makes.
MADE = {
    "bert": ["input_ids", "token_type_ids", "attention_mask"],
    "electra": ["input_ids", "token_type_ids", "attention_mask"],
}


def tiny(family: str, **changes: Any) -> Any:
    """A random classifier of a family, in eval mode. Weights are spread, so that logits aren't all near 0."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


class Names:
    """All that an export asks of a tokenizer."""

    def __init__(self, family: str) -> None:
        self.model_input_names = MADE.get(family, ["input_ids", "attention_mask"])


def batch(family: str, rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of random ids, every row but the first padded at its end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, int(torch.randint(1, tokens + 1, (1,), generator=generator)) :] = 0
    ids = ids.masked_fill(mask == 0, CONFIGS[family]().pad_token_id)
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: made[name] for name in Names(family).model_input_names}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """The logits of the transformers model, as numpy."""
    with torch.no_grad():
        return model(**inputs).logits.numpy()
