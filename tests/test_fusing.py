"""Factored logits train as dense ones do: the same loss, shares and gradients, whoever teaches and however many."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import VOCABULARY, tiny_causal

from potstill.errors import ArgumentError
from potstill.fusing import fusable
from potstill.knowledge import Knowledge, Needs, describe, observe
from potstill.losses.fused import FactoredLogits, SparseLogits
from potstill.objective import Objective, Scene
from potstill.tasks import CausalLM

TASK = CausalLM()
TERMS = [
    {"knowledge": "labels", "weight": 0.3},
    {"knowledge": "logits", "temperature": {"schedule": "linear", "from": 4, "to": 2}, "weight": 0.5},
    {"knowledge": "logits", "loss": "jensen_shannon", "beta": 0.3},
    {"knowledge": "logits", "loss": "logit_mse", "weight": {"schedule": "linear", "from": 1, "to": 0}},
    {"knowledge": "hidden", "weight": 0.1},
]


def lm_batch(rows=3, tokens=9, seed=0):
    """Two documents in the first row, padding behind the others."""
    ids = torch.randint(4, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed)).tolist()
    lengths = [list(range(4)) + list(range(tokens - 4)), *(list(range(tokens - row)) for row in range(1, rows))]
    made = [{"input_ids": one[: len(at)], "position_ids": at} for one, at in zip(ids, lengths, strict=True)]
    return TASK.collator(tokenizer_of(0))(made)


def tokenizer_of(padding):
    return type("Tokenizer", (), {"pad_token_id": padding})()


def bound(terms, student, teachers):
    shapes = {name: describe(model) for name, model in teachers.items()}
    return Objective(terms).bind(describe(student), shapes, TASK.defaults())


def computed(terms, student, teachers, batch, *, factored, scene=None, change=lambda known: known):
    """Parts and the student's gradients."""
    student.zero_grad()
    objective = bound(terms, student, teachers)
    form = Needs(factored=factored)
    with torch.no_grad():
        theirs = {
            name: change(observe(model, batch, objective.needs("teacher", name) | form))
            for name, model in teachers.items()
        }
    ours = observe(student, batch, objective.needs("student") | form)
    assert isinstance(ours.logits, FactoredLogits if factored else torch.Tensor)
    scene = scene or Scene(TASK.targets(batch), TASK.masks(batch), progress=0.25)
    parts = objective(ours, theirs, scene)
    parts.total.backward()
    return parts, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def assert_same(found, wanted):
    torch.testing.assert_close(found[0].total, wanted[0].total, rtol=1e-5, atol=1e-6)
    assert list(found[0].terms) == list(wanted[0].terms)
    for name, share in wanted[0].terms.items():
        torch.testing.assert_close(found[0].terms[name], share.detach(), rtol=1e-5, atol=1e-6, check_dtype=False)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def models(**student):
    return tiny_causal(layers=2, seed=1, **student), {"teacher": tiny_causal(layers=2, width=32, seed=2)}


# ---- the same as dense


@pytest.mark.parametrize("tied", [False, True])
def test_fused_terms_are_the_dense_ones(tied):
    student, teachers = models(tie_word_embeddings=tied)
    found = computed(TERMS, student, teachers, lm_batch(), factored=True)
    assert_same(found, computed(TERMS, student, teachers, lm_batch(), factored=False))
    sum_of_shares = sum(share.item() for share in found[0].terms.values())
    assert math.isclose(sum_of_shares, found[0].total.item(), rel_tol=1e-5)


def test_counts_from_outside_and_influences_of_a_row_are_heeded():
    student, teachers = models()
    teachers["other"] = tiny_causal("gpt2", layers=2, seed=3)
    batch = lm_batch()
    counts = {name: torch.tensor(31.0) for name in TASK.masks(batch)}
    influence = {"teacher": torch.tensor([0.2, 1.0, 0.0]), "other": torch.tensor([0.8, 0.0, 1.0])}
    scene = Scene(TASK.targets(batch), TASK.masks(batch), counts=counts, progress=1.0, influence=influence)
    terms = TERMS[:4]
    found = computed(terms, student, teachers, batch, factored=True, scene=scene)
    assert len(found[0].terms) == 7
    assert_same(found, computed(terms, student, teachers, batch, factored=False, scene=scene))


@pytest.mark.parametrize("dense", [{"teacher"}, {"other"}, {"teacher", "other"}])
def test_teachers_whose_heads_have_no_factored_form(dense):
    student, teachers = models()
    teachers["other"] = tiny_causal("qwen3", layers=2, seed=3)
    names = iter(list(teachers) * 2)

    def change(known):
        return known.with_dense_logits() if next(names) in dense else known

    found = computed(TERMS, student, teachers, lm_batch(), factored=True, change=change)
    assert_same(found, computed(TERMS, student, teachers, lm_batch(), factored=False))


def test_terms_that_need_the_matrix_get_it_beside_those_that_do_not():
    student, teachers = models()
    more = [
        *TERMS,
        {"knowledge": "logits", "loss": "dist"},
        {"knowledge": "logits", "temperature": {"schedule": "confidence_weighted"}},
        {"knowledge": "logits", "shift": True},
    ]
    found = computed(more, student, teachers, lm_batch(), factored=True)
    assert_same(found, computed(more, student, teachers, lm_batch(), factored=False))


def test_labels_alone_need_no_teacher():
    student, _ = models()
    found = computed(TERMS[:1], student, {}, lm_batch(), factored=True)
    assert_same(found, computed(TERMS[:1], student, {}, lm_batch(), factored=False))


def test_where_nothing_counts_the_loss_is_0():
    student, teachers = models()
    batch = lm_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    parts, gradients = computed(TERMS[:3], student, teachers, batch, factored=True)
    assert parts.total == 0
    assert not any(gradient.any() for gradient in gradients.values())


def test_what_can_be_fused():
    terms = [
        *TERMS,
        {"knowledge": "logits", "loss": "dist"},
        {"knowledge": "logits", "shift": True},
        {"knowledge": "logits", "temperature": {"schedule": "flow_weighted"}},
    ]
    student, teachers = models()
    assert [fusable(term) for term in bound(terms, student, teachers).terms] == [True] * 4 + [False] * 4


# ---- sparse teachers


def sparse(known, kept, temperature=2.0):
    log_p = torch.log_softmax(known.with_dense_logits().logits.float() / temperature, dim=-1)
    values, ids = log_p.topk(kept, dim=-1)
    tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return replace(known, logits=SparseLogits(values, ids, tail, temperature))


@pytest.mark.parametrize("loss", ["kl_divergence", "reverse_kl_divergence", "jensen_shannon", "total_variation"])
@pytest.mark.parametrize("kept", [5, VOCABULARY - 1])
def test_a_sparse_teacher_gives_factored_and_dense_students_the_same(loss, kept):
    student, teachers = models()
    terms = [{"knowledge": "labels"}, {"knowledge": "logits", "loss": loss, "temperature": 2.0}]
    change = {"change": lambda known: sparse(known, kept)}
    found = computed(terms, student, teachers, lm_batch(), factored=True, **change)
    assert_same(found, computed(terms, student, teachers, lm_batch(), factored=False, **change))
    exact = computed(terms, student, teachers, lm_batch(), factored=False)[0].terms["logits"]
    if kept == VOCABULARY - 1:  # the tail is the one class left
        torch.testing.assert_close(found[0].terms["logits"], exact.detach(), rtol=1e-4, atol=1e-6)
    else:
        assert 0 < found[0].terms["logits"] < exact


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"loss": "dist"}, "all of the teacher's logits"),
        ({"loss": "logit_mse"}, "all of the teacher's logits"),
        ({"temperature": 3.0}, "one temperature alone"),
    ],
)
def test_what_a_sparse_teacher_cannot_give_is_refused(term, said):
    student, teachers = models()
    with pytest.raises(ArgumentError, match=said):
        computed(
            [
                {"knowledge": "logits", "temperature": 2.0} | term
                if "loss" not in term
                else {"knowledge": "logits"} | term
            ],
            student,
            teachers,
            lm_batch(),
            factored=False,
            change=lambda known: sparse(known, 5),
        )


# ---- the record


def test_a_record_is_cut_to_the_tokens_that_are_shared():
    logits = FactoredLogits(torch.randn(2, 3, 4), torch.randn(9, 4), torch.randn(9))
    cut = Knowledge(logits=logits).shared_logits(7)
    torch.testing.assert_close(cut.with_dense_logits().logits, logits.dense()[..., :7])
    assert Knowledge(logits=logits.dense()).shared_logits(7).logits.shape == (2, 3, 7)
    assert Knowledge(logits=logits).shared_logits(9).logits is logits
