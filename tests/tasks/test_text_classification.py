"""Text classification: rows become batches that mean what the rows said, and a model's head is known for what it is."""

import pytest
import torch
from datasets import Dataset
from tiny import PLAIN, save_folder, tiny_model, tiny_rows, tiny_texts, tiny_tokenizer

from potstill.errors import ModelError
from potstill.knowledge import describe, observe
from potstill.objective import Objective, Scene
from potstill.tasks import TextClassification, load_tokenizer

NAN = float("nan")
SINGLE = TextClassification()
MULTI = TextClassification("multi_label", ("a", "b", "c"))
NUMBER = TextClassification("regression", ("score",))


def batch_of(task, labels, side="right", pairs=False):
    columns = {"text": tiny_texts(len(labels))[0]} | ({"labels": labels} if labels[0] is not None else {})
    if pairs:
        columns["text_pair"] = tiny_texts(len(labels), seed=1)[0]
    tokenizer = tiny_tokenizer(side)
    rows = task.encode(Dataset.from_dict(columns), tokenizer, max_length=32)
    return task.collator(tokenizer)([rows[number] for number in range(len(rows))])


# ---- rows to batches


def test_encoded_rows_keep_labels_and_say_their_length():
    tokenizer = tiny_tokenizer()
    rows = SINGLE.encode(tiny_rows(6), tokenizer, max_length=8)
    texts, labels = tiny_texts(6)
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "labels", "length"}
    assert list(rows["labels"]) == labels
    for text, row in zip(texts, rows, strict=True):
        assert row["length"] == len(row["input_ids"]) == min(len(text.split()) + 2, 8)
        assert row["input_ids"][0] == tokenizer.cls_token_id
        assert row["input_ids"][-1] == tokenizer.sep_token_id


def test_pairs_are_told_apart_by_their_types():
    rows = Dataset.from_dict({"text": ["the film was good"], "text_pair": ["we saw it"], "labels": [1]})
    encoded = SINGLE.encode(rows, tiny_tokenizer(), max_length=32)[0]
    assert encoded["token_type_ids"] == [0] * 6 + [1] * 4
    cut = SINGLE.encode(rows, tiny_tokenizer(), max_length=8)[0]
    assert cut["length"] == 8
    assert 1 in cut["token_type_ids"]


def test_rows_without_labels_are_encoded_too():
    rows = SINGLE.encode(tiny_rows(2).remove_columns("labels"), tiny_tokenizer(), max_length=32)
    assert "labels" not in rows.column_names
    batch = SINGLE.collator(tiny_tokenizer())(list(rows))
    assert "labels" not in batch
    assert SINGLE.masks(batch)["labels"].tolist() == [False, False]
    assert SINGLE.targets(batch) is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_what_the_tokenizer_itself_would_make(side):
    batch = batch_of(SINGLE, [0, 1, 1], side=side, pairs=True)
    tokenizer = tiny_tokenizer(side)
    texts, seconds = tiny_texts(3)[0], tiny_texts(3, seed=1)[0]
    expected = tokenizer(texts, seconds, truncation=True, max_length=32, padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name


def test_a_padding_id_other_than_zero_is_the_tokenizers():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "[SEP]"
    rows = [{"input_ids": [2, 5, 3], "labels": 0}, {"input_ids": [2, 3], "labels": 1}]
    batch = SINGLE.collator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("task", "labels", "dtype", "shape"),
    [
        (SINGLE, [0, 1, -100], torch.int64, (3,)),
        (MULTI, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [NAN, NAN, NAN]], torch.float32, (3, 3)),
        (NUMBER, [0.5, 2.0, NAN], torch.float32, (3,)),
    ],
)
def test_labels_targets_and_masks(task, labels, dtype, shape):
    batch = batch_of(task, labels)
    assert batch["labels"].dtype == dtype
    assert batch["labels"].shape == shape
    masks = task.masks(batch)
    assert masks["labels"].tolist() == [True, True, False]
    assert masks["outputs"].tolist() == [True, True, True]
    assert torch.equal(masks["tokens"], batch["attention_mask"].bool())
    targets = task.targets(batch)
    assert not targets.is_floating_point() or targets.isfinite().all()
    assert torch.equal(targets[:2], batch["labels"][:2])


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (SINGLE, [0, 1, -100]),
        (MULTI, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [NAN, NAN, NAN]]),
        (NUMBER, [0.5, 2.0, NAN]),
    ],
)
def test_rows_without_a_label_add_nothing_to_the_labels_term_and_no_nan_to_the_gradient(task, labels):
    gradients = []
    for rows in (labels, labels[:2]):
        model = tiny_model(labels=len(task.names))
        batch = batch_of(task, rows)
        objective = Objective([{"knowledge": "labels"}]).bind(describe(model), None, task.defaults())
        scene = Scene(task.targets(batch), task.masks(batch))
        found = objective(observe(model, batch, objective.needs("student")), None, scene)
        found.total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        assert found.total.isfinite()
    for ours, without in zip(*gradients, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, without, rtol=1e-4, atol=1e-6)


# ---- models


def test_a_head_of_the_task_is_taken_as_it_is(tmp_path):
    model = tiny_model()
    loaded = SINGLE.load(save_folder(model, tmp_path))
    assert loaded.new_parameters == ()
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize(("task", "kind"), [(SINGLE, "single_label_classification"), (NUMBER, "regression")])
def test_class_names_and_problem_are_kept_in_the_config(tmp_path, task, kind):
    loaded = task.load(save_folder(tiny_model(labels=len(task.names)), tmp_path / "first")).model
    again = task.load(save_folder(loaded, tmp_path / "again")).model
    for model in (loaded, again):
        assert tuple(model.config.id2label[number] for number in range(len(task.names))) == task.names
        assert model.config.label2id == {name: number for number, name in enumerate(task.names)}
        assert model.config.problem_type == kind
        assert model.config.num_labels == len(task.names)


def test_a_head_of_another_number_of_classes_is_new(tmp_path):
    loaded = MULTI.load(save_folder(tiny_model(labels=2), tmp_path))
    assert loaded.new_parameters == ("classifier.bias", "classifier.weight")
    assert loaded.model.classifier.weight.shape[0] == 3


def test_a_checkpoint_without_a_head_gets_a_new_one(tmp_path):
    model = tiny_model()
    loaded = SINGLE.load(save_folder(model.bert, tmp_path))
    assert loaded.new_parameters == ("classifier.bias", "classifier.weight")
    ours, theirs = (m.encoder.layer[0].attention.self.query.weight for m in (loaded.model.bert, model.bert))
    assert torch.equal(ours, theirs)


def test_attention_is_loaded_as_asked(tmp_path):
    folder = save_folder(tiny_model(), tmp_path)
    assert SINGLE.load(folder, attention="eager").model.config._attn_implementation == "eager"
    assert SINGLE.load(folder).model.config._attn_implementation == "sdpa"


def test_a_model_that_is_not_there_is_an_error_in_the_houses_form(tmp_path):
    with pytest.raises(ModelError, match="can't be loaded"):
        SINGLE.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="No tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = PLAIN[0]
    tokenizer.save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == PLAIN[0]


def test_what_makes_no_sense_in_a_task_is_refused_with_a_reason():
    for task, loss in ((MULTI, "kl_divergence"), (NUMBER, "cross_entropy"), (SINGLE, "squared_error")):
        reason = task.defaults().refused[loss]
        assert "Use " in reason
