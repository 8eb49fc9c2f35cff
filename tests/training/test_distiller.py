"""The module that is trained: student and projections in it, the teacher never."""

import pytest
import torch
from tiny import tiny_batch, tiny_model

from potstill.errors import ModelError, RecipeError
from potstill.objective import Objective, Term
from potstill.students import build_student
from potstill.tasks import TextClassification
from potstill.training import Distiller

TASK = TextClassification()
TERMS = [Term("labels"), Term("logits"), Term("hidden"), Term("values", options={"heads": 4})]


def batch():
    return tiny_batch() | {"labels": torch.tensor([0, 1, -100])}


def pair():
    return tiny_model(layers=2, width=32, heads=4, seed=1), tiny_model(layers=4, width=64, heads=4, seed=2)


def test_the_teacher_is_no_part_of_the_module():
    student, teacher = pair()
    distiller = Distiller(student, Objective(TERMS), TASK, teacher)
    inside = {id(p) for p in distiller.parameters()}
    assert not inside & {id(p) for p in teacher.parameters()}
    assert {id(p) for p in student.parameters()} < inside
    assert all(name.startswith(("student.", "projectors.")) for name in distiller.state_dict())
    assert len(distiller.projectors) == 3
    assert all(module is not teacher for module in distiller.modules())
    assert distiller.teacher is teacher


def test_the_teacher_gets_no_gradient_stays_in_eval_mode_and_is_left_as_it_was():
    student, teacher = pair()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distiller = Distiller(student, Objective(TERMS), TASK, teacher.train()).train()
    assert student.training
    assert not teacher.training
    distiller(batch()).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in distiller.projectors.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    seen = distiller.teach(batch())["teacher"]
    assert not any(t.requires_grad for t in (seen.logits, *seen.hidden.values(), *seen.values.values()))


def test_a_teacher_in_bfloat16_is_a_copy():
    student, teacher = tiny_model("llama", layers=2), tiny_model("llama", layers=4)
    distiller = Distiller(student, Objective([Term("logits")]), TASK, teacher, teacher_dtype=torch.bfloat16)
    assert teacher.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in teacher.parameters())
    assert distiller.teacher is not teacher
    assert all(p.dtype == torch.bfloat16 for p in distiller.teacher.parameters())
    frequencies = dict(distiller.teacher.named_buffers())["model.rotary_emb.inv_freq"]
    assert torch.equal(frequencies, dict(teacher.named_buffers())["model.rotary_emb.inv_freq"])
    assert distiller(batch()).total.isfinite()
    kept = Distiller(student, Objective([Term("logits")]), TASK, teacher, teacher_dtype=torch.float32)
    assert kept.teacher is teacher


def test_the_teacher_does_not_run_in_the_students_autocast():
    student, teacher = pair()
    distiller = Distiller(student, Objective([Term("hidden")]), TASK, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert distiller.teach(batch())["teacher"].hidden[3].dtype == torch.float32
        assert distiller(batch()).total.dtype == torch.float32


def test_without_a_term_that_compares_there_is_no_teacher():
    student, teacher = pair()
    distiller = Distiller(student, Objective([Term("labels")]), TASK, teacher)
    assert distiller.teacher is None
    assert distiller(batch()).total > 0


def test_an_exact_copy_has_no_loss_but_its_labels():
    teacher = tiny_model()
    terms = [Term(kind) for kind in ("logits", "hidden", "queries", "keys", "values")]
    found = Distiller(build_student(teacher), Objective(terms), TASK, teacher)(batch())
    assert all(abs(share.item()) < 1e-6 for share in found.terms.values())


def test_what_does_not_fit_is_refused_before_training():
    teacher = tiny_model()
    student = build_student(teacher, layers=2)
    with pytest.raises(ModelError, match="one object"):
        Distiller(teacher, Objective([Term("logits")]), TASK, teacher)
    student.config.vocab_size += 1
    with pytest.raises(ModelError, match="different vocabularies"):
        Distiller(student, Objective([Term("logits")]), TASK, teacher)
    student.config.vocab_size -= 1
    with pytest.raises(ModelError, match="eager"):
        Distiller(student, Objective([Term("attention")]), TASK, teacher)
    student.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="eager"):
        Distiller(student, Objective([Term("attention")]), TASK, teacher)
    with pytest.raises(RecipeError, match=r"terms\.0"):
        Distiller(student, Objective([Term("hidden", layers="unifrom")]), TASK, teacher)


def test_an_unknown_family_is_refused_before_training():
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4}
    teacher, student = tiny_model(layers=2), None
    config = AlbertConfig(vocab_size=teacher.config.vocab_size, **sizes)
    student = AlbertForSequenceClassification(config)
    with pytest.raises(ModelError, match="albert"):
        Distiller(student, Objective([Term("hidden")]), TASK, teacher)
    assert Distiller(student, Objective([Term("logits")]), TASK, teacher)(batch()).total.isfinite()
