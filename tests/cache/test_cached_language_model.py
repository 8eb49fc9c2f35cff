"""Language models from a cache: dense logits and the likeliest tokens, packed rows of different lengths."""

import pytest
import torch
from datasets import Dataset
from tiny import VOCABULARY, tiny_causal, tiny_texts, tiny_tokenizer
from transformers import TrainingArguments

from potstill.cache import CachedTeacher, Identity, Storage, measure, write_cache
from potstill.knowledge import Needs, Observer
from potstill.losses.fused import SparseLogits
from potstill.objective import Objective
from potstill.tasks import CausalLM
from potstill.training import DistillationTrainer, distiller

TERMS = [{"knowledge": "labels", "weight": 0.5}, {"knowledge": "logits", "temperature": 2.0}]
LOGITS = Needs(logits=True)


@pytest.fixture
def tokenizer():
    made = tiny_tokenizer()
    made.eos_token = "[SEP]"
    return made


@pytest.fixture
def rows(tokenizer):
    return CausalLM().encode(Dataset.from_dict({"text": tiny_texts(40)[0]}), tokenizer, max_length=24)


def kept(root, teacher, rows, tokenizer, storage):
    collate = CausalLM().collator(tokenizer)
    return write_cache(root, Identity("t", "k", LOGITS, 24, storage=storage), teacher, rows, collate).cache


def weights(teacher, rows, tokenizer, folder):
    student = tiny_causal("llama", layers=1, seed=9)
    args = TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=6,
        learning_rate=0.05,
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    made = DistillationTrainer(student, Objective(TERMS), CausalLM(), tokenizer, rows, teacher=teacher, args=args)
    made.train()
    return torch.cat([p.detach().flatten() for p in student.parameters()])


@pytest.mark.parametrize(
    ("storage", "near"),
    [
        (Storage("float32"), 1e-4),
        (Storage("float16"), 2e-3),
        # One class is left, so that "any other" is that one: nothing is lost but digits.
        (Storage(top_k=VOCABULARY - 1, temperature=2.0), 5e-3),
    ],
    ids=["float32", "float16", "top-k"],
)
@pytest.mark.parametrize("large", [True, False], ids=["factored", "dense"])
def test_the_student_is_that_of_the_live_teacher(tmp_path, rows, tokenizer, monkeypatch, storage, near, large):
    if large:
        monkeypatch.setattr(distiller, "LARGE_VOCABULARY", 2)
    teacher = tiny_causal("llama", layers=2, seed=3)
    start = torch.cat([p.detach().flatten() for p in tiny_causal("llama", layers=1, seed=9).parameters()])
    live = weights(teacher, rows, tokenizer, tmp_path / "live")
    cache = kept(tmp_path / "cache", teacher, rows, tokenizer, storage)
    found = weights(CachedTeacher(cache), rows, tokenizer, tmp_path / "kept")
    moved = (live - start).norm()
    assert moved > 0.1
    assert (found - live).norm() / moved < near


def test_the_likeliest_tokens_come_back_sparse_and_their_mass_is_measured(tmp_path, rows, tokenizer):
    teacher = tiny_causal("llama", layers=2, seed=3)
    cache = kept(tmp_path, teacher, rows, tokenizer, Storage(top_k=4))
    collate, numbers = CausalLM().collator(tokenizer), [3, 0]
    batch = collate([rows[number] for number in numbers])
    source = CachedTeacher(cache)
    batch |= source.lookup("teacher", rows, LOGITS)(numbers, batch)
    known = source.recall("teacher", LOGITS)(batch).logits
    assert isinstance(known, SparseLogits)
    observed = Observer(teacher, LOGITS)(collate([rows[n] for n in numbers])).logits
    live = torch.log_softmax(observed.detach().float(), -1)
    counts = batch["token_mask"].bool()
    torch.testing.assert_close(known.values[counts], live.topk(4).values[counts], rtol=2e-3, atol=2e-3)
    assert torch.equal(known.ids[counts].sort(-1).values, live.topk(4).indices[counts].sort(-1).values)
    found = measure(cache, Observer(teacher, LOGITS), rows, collate)
    mass = live.topk(4).values.exp().sum(-1)[counts].mean()
    assert abs(found["columns"]["logits"]["mass"] - float(mass)) < 0.2
    assert 0 < found["columns"]["logits"]["mass_min"] < found["columns"]["logits"]["mass"] < 1
    assert found["columns"]["logits"]["kl"] < 1e-4
    assert found["columns"]["logits"]["agreement"] > 0.99
    headers = cache.bytes - cache.tokens * (4 * (2 + 2) + 4) - cache.rows * 20
    assert 0 < headers < 1000 * len(cache.shards)
