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

ENCODERS = (
    *("bert", "roberta", "xlm-roberta", "electra", "camembert", "mobilebert", "distilbert"),
    *("mpnet", "deberta-v2", "modernbert"),
)
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*ENCODERS, *DECODERS)  # one stack of layers, over text

ENCODER_DECODERS = ("t5", "bart", "marian")
PATCHES = ("vit", "deit", "beit", "dinov2")  # one stack of layers, over patches of an image
STAGED = ("swin", "segformer", "pvt_v2")  # layers in stages: all but one in the first, one in the second
CONVOLUTIONAL = ("mobilenet_v2", "resnet", "convnext")
IMAGES = (*PATCHES, *STAGED, *CONVOLUTIONAL)
BACKBONES = ("swin", "pvt_v2", "convnext", "resnet")  # of UperNet
ALL_FAMILIES = (*FAMILIES, *ENCODER_DECODERS, *IMAGES)
IMAGE = (32, 48)  # height and width: not square, so that a turned map is seen


def tiny_model(
    family: str = "bert",
    layers: int = 4,
    width: int = 32,
    heads: int = 4,
    labels: int = 2,
    seed: int = 0,
    **config: Any,
) -> Any:
    """A random model of a family, float32, in eval mode; weights are spread, so that layers differ.

    Texts and images are classified; encoder-decoders, which have `layers` in each stack, write.
    """
    made = {**_sizes(family, layers, width, heads), **config}
    if family not in IMAGES:
        made |= {"vocab_size": VOCABULARY, "pad_token_id": 0}
    full = transformers.AutoConfig.for_model(family, **made, num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _head(family).from_config(full).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=0.5)  # position biases and special tokens that begin as zeros
                elif parameter.ndim > 1 and family not in ("t5", *CONVOLUTIONAL):  # theirs are spread already
                    parameter.mul_(4)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
    return model


def tiny_causal(family: str = "llama", layers: int = 2, width: int = 32, seed: int = 0, **config: Any) -> Any:
    """A random language model of a family that has one stack of layers; float32, in eval mode."""
    made = {**_sizes(family, layers, width, 4), "vocab_size": VOCABULARY, "pad_token_id": 0, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **made)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
    return model


def _head(family: str) -> Any:
    if family in ENCODER_DECODERS:
        return transformers.AutoModelForSeq2SeqLM
    if family in IMAGES:
        return transformers.AutoModelForImageClassification
    return transformers.AutoModelForSequenceClassification


def _sizes(family: str, layers: int, width: int, heads: int) -> dict[str, Any]:
    common = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    if family in IMAGES:
        return _image_sizes(family, layers, width, heads)
    if family == "t5":
        sizes = {"d_model": width, "d_kv": width // heads, "num_heads": heads, "d_ff": 2 * width}
        return {**sizes, "num_layers": layers, "num_decoder_layers": layers, "decoder_start_token_id": 0}
    if family in ENCODER_DECODERS:
        sizes = {f"{stack}_{size}": n for stack in ("encoder", "decoder") for size, n in _stack(layers, width, heads)}
        sizes |= {"d_model": width, "max_position_embeddings": POSITIONS, "decoder_start_token_id": 2}
        return {**sizes, **ends, "forced_eos_token_id": None}
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
    if family == "mobilebert":  # its layers work at half of the width that they hand on
        return {**common, "embedding_size": width // 2, "intra_bottleneck_size": width // 2}
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


def _stack(layers: int, width: int, heads: int) -> Any:
    return {"layers": layers, "attention_heads": heads, "ffn_dim": 2 * width}.items()


def _image_sizes(family: str, layers: int, width: int, heads: int) -> dict[str, Any]:
    """Stages of half the width, then of the whole, with half the heads, then all."""
    plain = {"image_size": IMAGE, "patch_size": 8, "hidden_size": width, "num_hidden_layers": layers}
    depths = [layers - 1, 1]
    if family in PATCHES:
        sizes: dict[str, Any] = {"intermediate_size": 2 * width}
        if family == "dinov2":  # interpolates the positions of a square
            sizes = {"mlp_ratio": 2, "image_size": IMAGE[0]}
        if family == "beit":  # counts patches, and classifies by their mean
            sizes |= {"use_relative_position_bias": True, "out_indices": [0, 1]}
        if family == "deit":  # of its two classifiers
            sizes |= {"architectures": ["DeiTForImageClassification"]}
        return {**plain, **sizes, "num_attention_heads": heads}
    if family == "swin":
        sizes = {"image_size": IMAGE, "patch_size": 4, "window_size": 4, "embed_dim": width // 2}
        return {**sizes, "depths": depths, "num_heads": [heads // 2, heads], "mlp_ratio": 2.0}
    if family in STAGED:
        sizes = {"num_encoder_blocks": 2, "depths": depths, "hidden_sizes": [width // 2, width], "mlp_ratios": [2, 2]}
        reduced = {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
        return {**sizes, **reduced, "num_attention_heads": [heads // 2, heads], "decoder_hidden_size": width}
    if family == "resnet":
        sizes = {"embedding_size": width // 2, "hidden_sizes": [width // 2, width], "layer_type": "basic"}
        return {**sizes, "depths": depths}
    if family == "convnext":
        return {"num_stages": 2, "hidden_sizes": [width // 2, width], "depths": depths}
    return {"image_size": IMAGE, "depth_multiplier": 0.25}


def tiny_upernet(backbone: str, labels: int = 3, seed: int = 0) -> Any:
    """A random UperNet whose backbone of the given family has four stages of 1, 2, 1 and 1 layers."""
    depths, widths, heads = [1, 2, 1, 1], [8, 16, 24, 32], [1, 2, 3, 4]
    sizes: dict[str, Any] = {
        "pvt_v2": {"hidden_sizes": widths, "num_attention_heads": heads},
        "swin": {"image_size": IMAGE, "window_size": 4, "embed_dim": 8, "num_heads": [1, 2, 2, 4]},
        "convnext": {"hidden_sizes": widths},
        "resnet": {"hidden_sizes": widths, "embedding_size": 8, "layer_type": "basic"},
    }[backbone]
    stages = {"depths": depths, "out_features": [f"stage{number}" for number in (1, 2, 3, 4)]}
    inner = transformers.AutoConfig.for_model(backbone, **sizes, **stages)
    full = transformers.AutoConfig.for_model(
        "upernet", backbone_config=inner, hidden_size=16, use_auxiliary_head=False, num_labels=labels
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForSemanticSegmentation.from_config(full).eval()


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


def tiny_inputs(family: str, rows: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a family's model takes: `tiny_batch`, 7 more tokens to decode, or images [B,3,32,48]."""
    if family in IMAGES:
        return {"pixel_values": torch.randn(rows, 3, *IMAGE, generator=torch.Generator().manual_seed(seed))}
    batch = tiny_batch(rows, seed=seed)
    if family not in ENCODER_DECODERS:
        return batch
    decoder = tiny_batch(rows, tokens=7, seed=seed + 1)
    return batch | {f"decoder_{name}": tensor for name, tensor in decoder.items()}


def save_folder(model: Any, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A model folder as transformers writes it, with its tokenizer."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder
