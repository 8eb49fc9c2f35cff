"""Tiny random models by config, a real tokenizer of whole words, and texts with labels: what tests build on, offline.

Every family of potstill.knowledge.architectures has a row here, so that a test can be run over all of them.
"""

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

GOOD = ("good", "great", "fine", "lovely", "bright")
BAD = ("bad", "awful", "poor", "dull", "bleak")
PLAIN = ("the", "film", "plot", "cast", "was", "and", "with", "a", "very", "of", "in", "it", "we", "saw", "today")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = len(SPECIAL) + len(PLAIN) + len(GOOD) + len(BAD)
POSITIONS = 64

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "camembert", "distilbert", "mpnet", "deberta-v2", "modernbert")
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*ENCODERS, *DECODERS)


def tiny_model(
    family: str = "bert",
    layers: int = 4,
    width: int = 32,
    heads: int = 4,
    labels: int = 2,
    seed: int = 0,
    **config: Any,
) -> Any:
    """A random sequence classifier of a family, float32, in eval mode; weights are spread, so that layers differ."""
    made = {**_sizes(family, layers, width, heads), **config}
    full = transformers.AutoConfig.for_model(family, **made, vocab_size=VOCABULARY, num_labels=labels, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_config(full).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
    return model


def _sizes(family: str, layers: int, width: int, heads: int) -> dict[str, Any]:
    common = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    if family == "distilbert":
        return {
            "n_layers": layers,
            "dim": width,
            "n_heads": heads,
            "hidden_dim": 2 * width,
            "max_position_embeddings": 64,
        }
    if family == "gpt2":
        return {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": POSITIONS, **ends}
    common |= {"intermediate_size": 2 * width, "max_position_embeddings": POSITIONS}
    if family == "electra":
        return {**common, "embedding_size": width // 2}
    if family == "deberta-v2":
        relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
        return {
            **common,
            **relative,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        }
    if family == "modernbert":
        tokens = {"cls_token_id": 2, "sep_token_id": 3, **ends}
        return {**common, **tokens, "global_attn_every_n_layers": 2, "local_attention": 8, "reference_compile": False}
    if family in DECODERS:
        return {**common, **ends, "num_key_value_heads": heads // 2, "head_dim": width // heads}
    return common


def tiny_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that writes pairs as BERT does; `[PAD]` is id 0."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *PLAIN, *GOOD, *BAD))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        padding_side=padding_side,
    )


def tiny_texts(n: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """`n` sentences of 4 to 20 words, and whether each is good (1) or bad (0): learnable, balanced."""
    chance = random.Random(seed)
    texts, labels = [], []
    for number in range(n):
        label = number % 2
        words = [chance.choice(PLAIN) for _ in range(chance.randint(3, 19))]
        words.insert(chance.randrange(len(words) + 1), chance.choice(GOOD if label else BAD))
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def tiny_rows(n: int, seed: int = 0) -> Dataset:
    """Rows as data loading gives them: columns ``text`` and ``labels``."""
    texts, labels = tiny_texts(n, seed)
    return Dataset.from_dict({"text": texts, "labels": labels})


def tiny_batch(rows: int = 3, tokens: int = 9, seed: int = 0, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Random ids [B,S] with a mask: the first row is full, the others are padded by 1, 2, ... tokens."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, tokens), generator=chance)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, slice(0, row) if left else slice(tokens - row, tokens)] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def save_folder(model: Any, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A model folder as transformers writes it, with its tokenizer."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder
