"""What all competitors get: models, rows and orders, made once and written to a folder.

Classification: `minilm-l6` trained on `reviews` as the packaged recipe trains it, and a student of every second of its
layers. Language: two Llamas of random weights, since how long a step takes doesn't depend on what the weights are, and
rows of the same reviews, strung together.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Rows, Settings
from safetensors.numpy import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from potstill.data.samples import fetch_model, load_sample_data
from potstill.objective import Objective
from potstill.students import build_student
from potstill.tasks import TextClassification, load_tokenizer
from potstill.training import TrainSettings, detect_precision
from potstill.training.sampler import LengthGroupedSampler
from potstill.training.stages import Lesson, train

TOKENS = 128  # rows are cut to so many; a review has 21 on average
SEEDS = range(64)
VOCABULARY = 32_000
LANGUAGE = {"teacher": (8, 512), "student": (4, 256)}  # layers, width
LANGUAGE_ROWS, LANGUAGE_TOKENS = 4, 512  # of a batch, of a row


def encoded(split: str, tokenizer: Any, task: TextClassification) -> Any:
    """The rows of a split of `reviews`, as our own task encodes them."""
    rows = load_sample_data("reviews", {})[split]
    rows = rows.map(lambda row: {"labels": int(row["label"] == "positive")}).select_columns(["text", "labels"])
    return task.encode(rows, tokenizer, max_length=TOKENS)


def in_memory(rows: Any) -> Rows:
    """The same rows as competitors read them."""
    return Rows([np.asarray(ids, dtype=np.int32) for ids in rows["input_ids"]], np.asarray(rows["labels"], np.int64))


def save_orders(path: Path, lengths: list[int], batch: int) -> None:
    """The order in which our own sampler takes the rows, for each seed."""
    orders = {str(seed): np.asarray(list(LengthGroupedSampler(lengths, batch, seed)), np.int64) for seed in SEEDS}
    save_file(orders, path)


def classification(folder: Path, threads: int, *, steps: int | None = None) -> Settings:
    """Train the teacher, unless the folder holds it already, and write everything.

    Args:
        folder: where to.
        threads: of PyTorch.
        steps: of the teacher's training, for a trial; None trains two epochs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task, path = TextClassification(), fetch_model("minilm-l6")
    tokenizer = load_tokenizer(path)
    rows, validation = encoded("train", tokenizer, task), encoded("validation", tokenizer, task)
    teacher, sample = folder / ("teacher" if steps is None else f"teacher-{steps}"), folder / "sample"
    if not (teacher / "config.json").exists():
        torch.manual_seed(0)
        model = task.load(path).model
        settings = TrainSettings(epochs=2, steps=steps, learning_rate=2e-4, batch_size=64)
        lesson = Lesson(task, tokenizer, rows, Objective([{"knowledge": "labels"}]))
        train(model, lesson, settings, folder / "training", precision=detect_precision())
        tokenizer.save_pretrained(teacher)
        model.save_pretrained(teacher)
    build_student(task.load(teacher).model, layers=3, rule="uniform").save_pretrained(teacher / "student")
    rows.save_to_disk(sample)
    in_memory(rows).save(folder / "rows.safetensors")
    in_memory(validation).save(folder / "validation.safetensors")
    batch = 32
    save_orders(folder / "orders.safetensors", list(rows["length"]), batch)
    return Settings(
        teacher=str(teacher),
        student=str(teacher / "student"),
        rows=str(folder / "rows.safetensors"),
        validation=str(folder / "validation.safetensors"),
        orders=str(folder / "orders.safetensors"),
        batch_size=batch,
        learning_rate=1e-4,
        weight_decay=0.01,
        warmup=0.1,
        max_grad_norm=1.0,
        temperature=2.0,
        threads=threads,
        pad=tokenizer.pad_token_id,
        sample=str(sample),
    )


def language(folder: Path, threads: int) -> Settings:
    """Write two language models and rows of a fixed length."""
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(fetch_model("minilm-l6"))
    tokenizer.eos_token = tokenizer.sep_token
    for name, (layers, width) in LANGUAGE.items():
        torch.manual_seed(layers)
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = LlamaConfig(**sizes, **special, num_hidden_layers=layers, vocab_size=VOCABULARY)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    texts = load_sample_data("reviews", {})["train"]["text"]
    ids = np.concatenate([np.asarray(one, np.int32) for one in tokenizer(list(texts))["input_ids"]])
    rows = ids[: len(ids) // LANGUAGE_TOKENS * LANGUAGE_TOKENS].reshape(-1, LANGUAGE_TOKENS)
    Rows(list(rows), np.zeros(len(rows), np.int64)).save(folder / "rows.safetensors")
    lengths, sample = [LANGUAGE_TOKENS] * len(rows), folder / "sample"
    Dataset.from_dict({"input_ids": rows.tolist(), "length": lengths}).save_to_disk(sample)
    save_orders(folder / "orders.safetensors", lengths, LANGUAGE_ROWS)
    return Settings(
        teacher=str(folder / "teacher"),
        student=str(folder / "student"),
        rows=str(folder / "rows.safetensors"),
        validation=str(folder / "rows.safetensors"),
        orders=str(folder / "orders.safetensors"),
        batch_size=LANGUAGE_ROWS,
        learning_rate=1e-4,
        weight_decay=0.01,
        warmup=0.1,
        max_grad_norm=1.0,
        temperature=1.0,
        threads=threads,
        pad=tokenizer.pad_token_id,
        task="language",
        sample=str(sample),
    )


def described(section: str, given: Any) -> dict[str, Any]:
    """What a section was measured on, for its readers."""
    if section == "language":
        sizes = [f"{layers} layers of width {width}" for layers, width in LANGUAGE.values()]
        models = f"Llama, {sizes[0]} teach {sizes[1]}, a vocabulary of {VOCABULARY:,}"
        work = {"models": models, "batch": f"{LANGUAGE_ROWS} rows of {LANGUAGE_TOKENS} tokens"}
        return work | {"repeats": given.language_repeats, "steps": given.language_steps, "threads": given.threads}
    made = {"models": "minilm-l6: 6 layers teach 3 of them", "rows": "reviews", "threads": given.threads}
    if section == "accuracy":
        made |= {"epochs": 3, "runs": given.runs, "points_an_epoch": given.points, "curve_steps": given.curve_steps}
    else:
        made |= {"batch": 32, "repeats": given.repeats, "steps": given.steps, "order": "rows of like length"}
    return made | {"teacher_steps": given.teacher_steps}
