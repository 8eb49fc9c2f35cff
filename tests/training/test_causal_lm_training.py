"""Language models through the trainer: fused as dense, the same whatever the accumulation, tied or padded."""

import math

import pytest
import torch
from datasets import Dataset
from tiny import VOCABULARY, tiny_causal, tiny_texts, tiny_tokenizer
from torch import nn
from transformers import TrainingArguments

from potstill.errors import ModelError
from potstill.losses.fused import FactoredLogits
from potstill.objective import Objective
from potstill.tasks import CausalLM
from potstill.training import DistillationTrainer, Distiller
from potstill.training.combination import Combination
from potstill.training.distiller import LARGE_VOCABULARY, SPARE

TERMS = (
    {"knowledge": "labels", "weight": 0.5},
    {"knowledge": "logits", "temperature": 2.0},
    {"knowledge": "hidden", "layers": "uniform", "weight": 0.1},
)


def tokenizer():
    made = tiny_tokenizer()
    made.eos_token = "[SEP]"
    return made


def rows(n=40, packing="documents"):
    return CausalLM(packing).encode(Dataset.from_dict({"text": tiny_texts(n)[0]}), tokenizer(), max_length=24)


def still(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def trainer(
    folder, data, student, teacher, terms=TERMS, batch=8, accumulation=1, steps=3, packing="documents", **given
):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    objective = Objective(terms)
    return DistillationTrainer(
        student, objective, CausalLM(packing), tokenizer(), data, teacher=teacher, args=arguments, **given
    )


def losses(made):
    return [entry for entry in made.state.log_history if "loss" in entry]


def trained(folder, data, family="llama", student=None, **given):
    student = still(tiny_causal(family, layers=2, seed=1)) if student is None else student
    teacher = given.pop("teacher", None) or tiny_causal(family, layers=4, width=64, seed=2)
    made = trainer(folder, data, student, teacher, **given)
    made.train()
    return made


def assert_same_weights(found, wanted):
    for name, tensor in wanted.distiller.state_dict().items():
        torch.testing.assert_close(found.distiller.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture
def large(monkeypatch):
    """The tiny vocabulary counts as a large one."""
    monkeypatch.setattr("potstill.training.distiller.LARGE_VOCABULARY", 16)


def is_factored(distiller):
    batch = distiller.task.collator(tokenizer())(list(rows(8)))
    return isinstance(distiller._observe_student(batch).logits, FactoredLogits)


# ---- the same as dense


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("packing", ["documents", "blocks", "none"])
def test_fused_training_is_dense_training(tmp_path, family, packing, monkeypatch):
    data = rows(packing=packing)
    dense = trained(tmp_path, data, family, packing=packing)
    assert not is_factored(dense.distiller)
    monkeypatch.setattr("potstill.training.distiller.LARGE_VOCABULARY", 16)
    fused = trained(tmp_path, data, family, packing=packing)
    assert is_factored(fused.distiller)
    assert_same_weights(fused, dense)
    assert len(losses(fused)) == 3
    for ours, theirs in zip(losses(fused), losses(dense), strict=True):
        for key in ("loss", "part/labels", "part/logits", "part/hidden"):
            assert math.isclose(ours[key], theirs[key], rel_tol=1e-4), key


def test_tied_embeddings_get_the_gradient_of_both_uses(tmp_path, monkeypatch):
    def student():
        return tiny_causal("llama", layers=2, seed=1, tie_word_embeddings=True)

    dense = trained(tmp_path, rows(), student=student())
    monkeypatch.setattr("potstill.training.distiller.LARGE_VOCABULARY", 16)
    fused = trained(tmp_path, rows(), student=student())
    assert is_factored(fused.distiller)
    assert_same_weights(fused, dense)
    head, table = fused.distiller.student.get_output_embeddings(), fused.distiller.student.get_input_embeddings()
    assert head.weight is table.weight


def test_accumulation_changes_neither_weights_nor_losses(tmp_path, large):
    data = rows(60).select(range(8))
    assert len(set(data["length"])) > 1  # the windows' counts differ
    runs = [
        trained(tmp_path, data, batch=batch, accumulation=accumulation, steps=1)
        for batch, accumulation in ((8, 1), (2, 4), (3, 3), (1, 8))
    ]
    assert is_factored(runs[0].distiller)
    for run in runs[1:]:
        assert_same_weights(run, runs[0])
        assert math.isclose(losses(run)[0]["loss"], losses(runs[0])[0]["loss"], rel_tol=1e-5)


def test_a_student_learns(tmp_path, large):
    made = trained(tmp_path, rows(), terms=TERMS[:2], steps=30)
    found = losses(made)
    assert found[-1]["loss"] < 0.85 * found[0]["loss"]


# ---- vocabularies


@pytest.mark.parametrize("padded", ["student", "teacher"])
@pytest.mark.parametrize("factored", [False, True])
def test_a_padded_vocabulary_changes_nothing(tmp_path, padded, factored, monkeypatch):
    """Qwen's small models have 151,936 rows, its large ones 152,064, for one tokenizer."""
    monkeypatch.setattr("potstill.training.distiller.LARGE_VOCABULARY", 16 if factored else 10**6)

    def widened(model):
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(VOCABULARY + 7, mean_resizing=False)
        return model

    models = {
        "student": lambda: tiny_causal(layers=2, seed=1),
        "teacher": lambda: tiny_causal(layers=4, width=64, seed=2),
    }
    plain = trained(tmp_path, rows(), **{side: make() for side, make in models.items()}, terms=TERMS[:2])
    wide = {side: widened(make()) if side == padded else make() for side, make in models.items()}
    found = trained(tmp_path, rows(), **wide, terms=TERMS[:2])
    assert is_factored(found.distiller) == factored
    for ours, theirs in zip(losses(found), losses(plain), strict=True):
        assert math.isclose(ours["loss"], theirs["loss"], rel_tol=1e-5)
    weights = plain.distiller.student.state_dict()
    for name, tensor in found.distiller.student.state_dict().items():
        torch.testing.assert_close(tensor[: len(weights[name])], weights[name], rtol=1e-4, atol=1e-5)


def test_vocabularies_of_different_families_are_refused(tmp_path):
    student = tiny_causal(layers=2, vocab_size=VOCABULARY + SPARE + 1)
    with pytest.raises(ModelError, match="different vocabularies"):
        trainer(tmp_path, rows(), student, tiny_causal(layers=2))
    with pytest.raises(ModelError, match="more tokens"):
        trainer(tmp_path, rows(), tiny_causal(layers=2), tiny_causal(layers=2, vocab_size=VOCABULARY - 1))


# ---- when logits are factored


def asked(terms, combination=None, vocabulary=LARGE_VOCABULARY, teachers=("teacher",)):
    student = tiny_causal(layers=2, seed=1, vocab_size=vocabulary)
    held = {name: tiny_causal(layers=2, seed=2, vocab_size=vocabulary) for name in teachers}
    distiller = Distiller(student, Objective(terms), CausalLM(), held, combination=combination)
    observers = [distiller._observe_student, *distiller.__dict__["_observe_teachers"].values()]
    found = {observer.needs.factored for observer in observers}
    assert len(found) == 1
    return found.pop()


def test_logits_are_factored_where_a_vocabulary_is_large_and_no_term_needs_the_matrix():
    assert asked(TERMS)
    assert asked([{"knowledge": "hidden"}])
    assert not asked(TERMS, vocabulary=LARGE_VOCABULARY - 1)
    assert not asked([*TERMS, {"knowledge": "logits", "loss": "dist"}])
    assert not asked([{"knowledge": "logits", "temperature": {"schedule": "flow_weighted"}}])
    two = ("teacher", "other")
    assert asked(TERMS, Combination({"teacher": 1, "other": 2}), teachers=two)
    assert not asked(TERMS, Combination({"teacher": 1, "other": 1}, "confident"), teachers=two)


def test_rows_go_to_the_surest_teacher(tmp_path):
    other = tiny_causal(layers=2, seed=5)
    with torch.no_grad():
        other.lm_head.weight.mul_(30)  # very sure of everything
    teachers = {"teacher": tiny_causal(layers=2, seed=2), "other": other}
    combination = Combination({"teacher": 1, "other": 1}, "confident")
    made = trainer(tmp_path, rows(), tiny_causal(layers=2, seed=1), teachers, TERMS[1:2], combination=combination)
    made.train()
    assert all(entry["part/logits from teacher"] == 0 < entry["part/logits from other"] for entry in losses(made))


@pytest.mark.parametrize("peers", [1])
def test_language_models_learn_from_each_other(tmp_path, peers, monkeypatch):
    terms = [{"knowledge": "labels"}, {"knowledge": "logits", "teacher": "peers"}]

    def run():
        along = [tiny_causal(layers=2, seed=7)]
        made = trainer(tmp_path, rows(), tiny_causal(layers=2, seed=1), None, terms, peers=along)
        made.train()
        return made

    dense = run()
    monkeypatch.setattr("potstill.training.distiller.LARGE_VOCABULARY", 16)
    assert_same_weights(run(), dense)


def test_a_whole_row_is_compared_beside_its_tokens(tmp_path, large):
    terms = [*TERMS, {"knowledge": "hidden", "loss": "rkd_distance", "pool": "last", "weight": 0.1}]
    made = trained(tmp_path, rows(), terms=terms, steps=1)
    assert losses(made)[0]["part/hidden 2"] > 0
