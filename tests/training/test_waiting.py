"""A training step never waits for the device, and draws no dropout in the teacher.

A value that goes from the device to Python is an `aten::_local_scalar_dense`, a shape that depends on values an
`aten::nonzero` or the like. On a CPU they cost nothing, but they are the same operations.
"""

import traceback

import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_rows, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionMaskInterface, TrainerCallback

from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training import DistillationTrainer, Distiller, TrainSettings, trainer
from potstill.training.masks import masks_without_waiting
from potstill.training.stages import Lesson, training_arguments

TASK = TextClassification()
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::unique")
DRAWS = ("dropout", "bernoulli", "random")


class Seen(TorchDispatchMode):
    """Keeps the place of every operation of certain names."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if any(one in name for one in self.names):
            where = [f for f in traceback.extract_stack() if "torch/utils/_python" not in f.filename][-12:-1]
            self.found.append("".join([name, " at\n", *traceback.format_list(where)]))
        return func(*args, **(kwargs or {}))


class Watch(TrainerCallback):
    """Watches from the beginning of one step to the end of another."""

    def __init__(self, first, last):
        self.first, self.last = first, last
        self.seen = Seen(WAITS)

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.first:
            self.seen.__enter__()

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.last:
            self.seen.__exit__(None, None, None)


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    real = trainer.masks_without_waiting
    monkeypatch.setattr(trainer, "masks_without_waiting", lambda _device: real(torch.device("cuda")))


TERMS = {
    "labels and logits": [Term("labels"), Term("logits", temperature=2.0)],
    "hidden states, projected": [Term("logits"), Term("hidden")],
    "values and attention": [Term("values", options={"heads": 4}), Term("attention", layers="last1")],
}


@pytest.mark.usefixtures("as_on_an_accelerator")
@pytest.mark.parametrize("embeddings", ["dense", "sparse"])
@pytest.mark.parametrize("terms", TERMS)
def test_a_step_waits_for_nothing(tmp_path, terms, embeddings):
    student = tiny_model(layers=2, width=32, seed=1)
    teacher = tiny_model(layers=4, width=64, seed=2)
    for model in (student, teacher):
        model.config._attn_implementation = "eager" if "attention" in terms else "sdpa"
    rows = TASK.encode(tiny_rows(40), tiny_tokenizer(), max_length=32)
    objective = Objective(TERMS[terms])
    lesson = Lesson(TASK, tiny_tokenizer(), rows, objective, teacher)
    settings = TrainSettings(steps=6, batch_size=4)
    arguments = training_arguments(settings, student, lesson, tmp_path, bfloat16=False, seed=0)
    arguments.logging_steps = 100
    watch = Watch(2, 4)  # two whole steps, with the fetching of a batch between them
    made = DistillationTrainer(
        student,
        objective,
        TASK,
        tiny_tokenizer(),
        rows,
        teacher=teacher,
        args=arguments,
        sparse_embeddings=embeddings == "sparse",
        callbacks=[watch],
    )
    made.train()
    assert not watch.seen.found, "\n\n".join(watch.seen.found)


@pytest.mark.parametrize("dtype", [None, torch.qint8])
def test_a_teacher_draws_no_dropout(dtype):
    """Not though it came in training mode, and though its student draws."""
    teacher = tiny_model(layers=4, seed=2).train()
    student = tiny_model(layers=2, seed=1).train()
    distiller = Distiller(student, Objective([Term("logits"), Term("hidden")]), TASK, teacher, teacher_dtype=dtype)
    distiller.train()
    with Seen(DRAWS) as taught:
        known = distiller.teach(tiny_batch())["teacher"]
    assert not taught.found, "\n\n".join(taught.found)
    assert not known.logits.requires_grad
    with Seen(DRAWS) as learned:
        distiller(tiny_batch())
    assert learned.found


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_masks_that_were_not_looked_into_change_nothing(family, attention, padded):
    model = tiny_model(family, layers=2)
    model.config._attn_implementation = attention
    batch = tiny_batch()
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with torch.no_grad(), Seen(WAITS) as looked:
        plain = model(**batch).logits
    with torch.no_grad(), masks_without_waiting(torch.device("cuda")), Seen(WAITS) as unlooked:
        found = model(**batch).logits
    torch.testing.assert_close(found, plain)
    assert len(unlooked.found) < len(looked.found) or not looked.found
    with torch.no_grad(), Seen(WAITS) as again:
        model(**batch)
    assert len(again.found) == len(looked.found), "what was changed is put back"


def test_on_a_processor_masks_are_left_out_where_nothing_is_padded():
    before = dict(AttentionMaskInterface())
    with masks_without_waiting(torch.device("cpu")):
        assert dict(AttentionMaskInterface()) == before
    with pytest.raises(KeyError), masks_without_waiting(torch.device("cuda")):
        assert dict(AttentionMaskInterface()) != before
        raise KeyError
    assert dict(AttentionMaskInterface()) == before
