"""Students that learn together, several teachers, and memories: what trains, what doesn't, what is checkpointed."""

import pytest
import torch
from tiny import tiny_batch, tiny_model

from potstill import losses
from potstill.errors import RecipeError
from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training.checkpoints import PEERS, load_weights, save_weights
from potstill.training.combination import Combination
from potstill.training.distiller import Distiller

TASK = TextClassification()
MUTUAL = [Term("labels"), Term("logits", teacher="peers")]


def batch():
    return tiny_batch() | {"labels": torch.tensor([0, 1, 1])}


def models(count, **options):
    return [tiny_model(seed=seed, **options) for seed in range(count)]


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [2, 3])
def test_each_student_learns_from_the_mean_of_the_others(count):
    students = models(count)
    distiller = Distiller(students[0], Objective(MUTUAL), TASK, peers=students[1:])
    found = distiller(batch())
    logits = [student(**tiny_batch()).logits for student in students]
    expected = torch.zeros(())
    for own in range(count):
        others = [losses.kl_divergence(logits[own], z.detach()).mean() for i, z in enumerate(logits) if i != own]
        expected = expected + torch.nn.functional.cross_entropy(logits[own], batch()["labels"])
        expected = expected + sum(others) / (count - 1)
    torch.testing.assert_close(found.total, expected)
    assert "peers" in found.terms


def test_no_gradient_reaches_a_student_through_what_it_teaches():
    students = models(2)
    distiller = Distiller(students[0], Objective(MUTUAL), TASK, peers=students[1:])
    distiller(batch()).total.backward()
    together = gradients(students[1])
    students[1].zero_grad()
    theirs = students[0](**tiny_batch()).logits.detach()
    own = students[1](**tiny_batch()).logits
    loss = torch.nn.functional.cross_entropy(own, batch()["labels"]) + losses.kl_divergence(own, theirs).mean()
    loss.backward()
    for name, gradient in gradients(students[1]).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-7)


def test_peers_are_checkpointed_and_the_student_is_apart(tmp_path):
    students = models(2)
    distiller = Distiller(students[0], Objective(MUTUAL), TASK, peers=students[1:])
    save_weights(distiller, tmp_path)
    assert (tmp_path / PEERS).exists()
    others = [tiny_model(seed=seed) for seed in (7, 8)]
    again = Distiller(others[0], Objective(MUTUAL), TASK, peers=others[1:])
    load_weights(again, tmp_path)
    for before, after in zip(students, others, strict=True):
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, after.state_dict()[name]), name


@pytest.mark.parametrize(
    "term",
    [
        Term("hidden"),  # each pairs its own layers with the teacher's
        Term("hidden", layers="last1", teacher="peers"),  # of each, the other asks for its last layer
        Term("hidden", layers={0: 1}, embeddings=False, teacher="peers"),  # a layer that its own terms don't look at
    ],
)
def test_students_of_different_depths_learn_together(term):
    teacher = tiny_model(layers=6)
    student, peer = tiny_model(layers=3, seed=1), tiny_model(layers=2, seed=2)
    distiller = Distiller(student, Objective([term, *MUTUAL]), TASK, teacher, peers=[peer])
    assert distiller(batch()).total.isfinite()


def test_peers_need_a_term_that_learns_from_them():
    students = models(1)
    with pytest.raises(RecipeError, match="no students learn together"):
        Distiller(students[0], Objective(MUTUAL), TASK)


def test_several_teachers_are_held_outside_and_only_those_asked():
    student, first, second, idle = models(4)
    teachers = {"teacher": first, "second": second, "idle": idle}
    terms = [Term("logits", teacher="teacher"), Term("hidden", teacher="second")]
    distiller = Distiller(student, Objective(terms), TASK, teachers)
    assert set(distiller.teachers) == {"teacher", "second"}
    held = {id(p) for model in teachers.values() for p in model.parameters()}
    assert not held & {id(p) for p in distiller.parameters()}
    distiller.train()(batch()).total.backward()
    assert all(p.grad is None for model in teachers.values() for p in model.parameters())


def test_rows_are_routed_by_the_teachers_own_logits():
    student, first, second = models(3)
    teachers = {"teacher": first, "second": second}
    combination = Combination(dict.fromkeys(teachers, 1.0), "confident")
    distiller = Distiller(student, Objective([Term("hidden")]), TASK, teachers, combination=combination)
    taught = distiller.teach(batch())
    assert all(known.logits is not None for known in taught.values())  # though no term asks for them
    influence = combination.influence(taught, batch())
    assert sum(influence.values()).tolist() == [1.0, 1.0, 1.0]
    assert distiller(batch()).total.isfinite()


def test_a_memory_learns_with_the_student_and_is_checkpointed(tmp_path):
    student, teacher = models(2)
    term = Term("hidden", loss="crd", layers="last1", options={"negatives": 4, "width": 8})
    distiller = Distiller(student, Objective([term]), TASK, teacher, rows=10).train()
    rows = batch() | {"row": torch.tensor([2, 5, 7])}
    (memory,) = distiller.projectors.values()
    before = memory.student_bank.clone()
    distiller(rows).total.backward()
    changed = (memory.student_bank != before).any(-1).nonzero().flatten().tolist()
    assert changed == [2, 5, 7]
    assert all(p.grad is not None for p in memory.parameters())
    save_weights(distiller, tmp_path)
    again = Distiller(tiny_model(seed=5), Objective([term]), TASK, teacher, rows=10).train()
    load_weights(again, tmp_path)
    (other,) = again.projectors.values()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in memory.state_dict().items())
