"""An objective is 0 for a copy, blind to padding, a mean over its own positions, and says all that is wrong at once."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_model

from potstill.errors import RecipeError
from potstill.knowledge import ModelShape, Needs, describe, observe
from potstill.knowledge.types import STAGED
from potstill.mappings import EMBEDDINGS
from potstill.objective import KINDS, Defaults, Objective, Scene, Term, check_term
from potstill.projectors import projector
from potstill.students import build_student
from potstill.tasks import TextClassification

TASK = TextClassification()
DEEP = ModelShape("bert", 6, 64, 4, 100)
SHALLOW = ModelShape("bert", 3, 64, 4, 100)
NARROW = ModelShape("bert", 3, 32, 2, 100)
COMPARED = [kind for kind in KINDS if kind not in ("labels", *STAGED)]


def problems(terms, student=SHALLOW, teacher=DEEP, defaults=None):
    with pytest.raises(RecipeError) as raised:
        Objective(terms).bind(student, teacher, defaults)
    return str(raised.value)


def parts(terms, student, teacher, batch, **options):
    bound = Objective(terms).bind(describe(student), describe(teacher), TASK.defaults())
    with torch.no_grad():
        theirs = observe(teacher, batch, bound.needs("teacher"))
    ours = observe(student, batch, bound.needs("student"))
    return bound(ours, theirs, Scene(TASK.targets(batch), TASK.masks(batch), **options))


# ---- an exact copy


@pytest.mark.parametrize("family", FAMILIES)
def test_every_term_of_an_exact_copy_is_zero(family):
    teacher = tiny_model(family, layers=3)
    teacher.set_attn_implementation("eager")
    student = build_student(teacher)
    batch = tiny_batch()
    found = parts([{"knowledge": kind} for kind in COMPARED], student, teacher, batch).terms
    assert set(found) == set(COMPARED)
    for name, share in found.items():
        assert abs(share.item()) < 1e-6, name


@pytest.mark.parametrize("loss", ["hidden_cosine", "hidden_mse"])
@pytest.mark.parametrize("kept", [3, [0, 1, 2]])
def test_a_student_cut_to_all_layers_is_a_copy(loss, kept):
    teacher = tiny_model("bert", layers=3)
    found = parts([{"knowledge": "hidden", "loss": loss}], build_student(teacher, layers=kept), teacher, tiny_batch())
    assert abs(found.total.item()) < 1e-6


def test_a_student_of_other_weights_is_not_zero():
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    teacher.set_attn_implementation("eager")
    student.set_attn_implementation("eager")
    found = parts([{"knowledge": kind} for kind in COMPARED], student, teacher, tiny_batch()).terms
    for name, share in found.items():
        assert share.item() > 1e-4, name


# ---- padding and counts


def padded(batch, extra):
    def more(tensor):
        return torch.nn.functional.pad(tensor, (0, extra)) if tensor.ndim == 2 else tensor

    return {name: more(tensor) for name, tensor in batch.items()}


@pytest.mark.parametrize("family", ["bert", "mpnet", "deberta-v2", "modernbert", "llama"])
def test_more_padding_changes_no_term(family):
    teacher, student = tiny_model(family, seed=1), tiny_model(family, seed=2)
    teacher.set_attn_implementation("eager")
    student.set_attn_implementation("eager")
    batch = tiny_batch() | {"labels": torch.tensor([0, 1, -100])}
    terms = [{"knowledge": kind} for kind in ("labels", *COMPARED)]
    short = parts(terms, student, teacher, batch).terms
    long = parts(terms, student, teacher, padded(batch, 7)).terms
    for name, share in short.items():
        torch.testing.assert_close(share, long[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_mean_of_a_term_is_over_its_own_positions():
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    batch = tiny_batch() | {"labels": torch.tensor([1, -100, -100])}
    terms = [{"knowledge": kind} for kind in ("labels", "logits", "hidden")]
    alone = parts(terms, student, teacher, batch).terms
    counted = parts(terms, student, teacher, batch, counts={"labels": 2.0, "outputs": 6.0, "tokens": 48.0}).terms
    assert batch["attention_mask"].sum() == 24
    for name, times in {"labels": 2, "logits": 2, "hidden": 2}.items():
        torch.testing.assert_close(alone[name] / times, counted[name], msg=name)


def test_a_term_is_the_mean_over_its_layer_pairs():
    teacher, student = tiny_model(layers=4, seed=1), tiny_model(layers=2, seed=2)
    batch = tiny_batch()
    one = [parts([Term("values", layers={s: t})], student, teacher, batch).total for s, t in ((0, 1), (1, 3))]
    both = parts([Term("values", layers={0: 1, 1: 3})], student, teacher, batch).total
    torch.testing.assert_close(both, (one[0] + one[1]) / 2)


# ---- weights, temperatures


def test_weights_follow_their_schedule():
    teacher, student, batch = tiny_model(seed=1), tiny_model(seed=2), tiny_batch()
    full = parts([Term("logits")], student, teacher, batch).total
    scheduled = [Term("logits", weight={"schedule": "linear", "from": 2.0, "to": 0.0})]
    for progress, weight in ((0.0, 2.0), (0.25, 1.5), (1.0, 0.0)):
        torch.testing.assert_close(parts(scheduled, student, teacher, batch, progress=progress).total, weight * full)


def test_temperatures_follow_their_schedule():
    teacher, student, batch = tiny_model(seed=1), tiny_model(seed=2), tiny_batch()
    scheduled = [Term("logits", temperature={"schedule": "linear", "from": 4.0, "to": 2.0})]
    for progress, temperature in ((0.0, 4.0), (0.5, 3.0), (1.0, 2.0)):
        expected = parts([Term("logits", temperature=temperature)], student, teacher, batch).total
        torch.testing.assert_close(parts(scheduled, student, teacher, batch, progress=progress).total, expected)


def test_the_total_is_the_sum_of_the_shares():
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    terms = [Term("logits", weight=0.5), Term("hidden", weight=3.0), Term("hidden", loss="hidden_cosine")]
    found = parts(terms, student, teacher, tiny_batch())
    assert list(found.terms) == ["logits", "hidden", "hidden 2"]
    torch.testing.assert_close(found.total, sum(found.terms.values()))


# ---- what it asks for


def test_it_asks_only_for_what_its_terms_compare():
    bound = Objective([Term("hidden", layers="last"), Term("values", layers={0: 5})]).bind(SHALLOW, DEEP)
    assert bound.needs("teacher") == Needs(hidden=frozenset({EMBEDDINGS, 3, 4, 5}), values=frozenset({5}))
    assert bound.needs("student") == Needs(True, hidden=frozenset({EMBEDDINGS, 0, 1, 2}), values=frozenset({0}))
    assert bound.needs_teacher
    assert not Objective([Term("labels")]).bind(SHALLOW).needs_teacher


def test_projections_are_made_where_the_widths_differ_and_only_there():
    narrow = Objective([Term("hidden", layers={0: 1, 2: 5})]).bind(NARROW, DEEP)
    expected = {f"hidden_{pair}": ("linear", 32, 64) for pair in ("embeddings_to_embeddings", "0_to_1", "2_to_5")}
    assert narrow.projections() == expected
    assert Objective([Term("hidden")]).bind(SHALLOW, DEEP).projections() == {}
    asked = Objective([Term("hidden", layers={0: 1}, project="linear")]).bind(SHALLOW, DEEP)
    assert set(asked.projections().values()) == {("linear", 64, 64)}


def test_a_new_projection_keeps_lengths():
    states = torch.randn(5, 32)
    torch.testing.assert_close(projector("linear", 32, 64)(states).norm(dim=-1), states.norm(dim=-1))


def test_a_function_may_stand_for_a_loss():
    def difference(student, teacher):
        return (student - teacher).abs().mean(-1)

    found = parts([Term("logits", loss=difference)], tiny_model(seed=1), tiny_model(seed=2), tiny_batch())
    assert found.total > 0


# ---- what is wrong, before training


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"knowledge": "logit"}, "Did you mean 'logits'"),
        ({"knowledge": "logits", "loss": "kl_divergense"}, "Did you mean 'kl_divergence'"),
        ({"knowledge": "logits", "loss": "hidden_mse"}, "Unknown loss for logits 'hidden_mse'"),
        ({"knowledge": "hidden", "layers": "unifrom"}, "Did you mean 'uniform'"),
        ({"knowledge": "hidden", "layers": {0: 9}}, "no layer of the teacher"),
        ({"knowledge": "logits", "layers": "uniform"}, "has no layers"),
        ({"knowledge": "values", "options": {"head": 4}}, "Did you mean 'heads'"),
        ({"knowledge": "hidden", "temperature": 2.0}, "takes no temperature"),
        ({"knowledge": "hidden", "project": "linaer"}, "Did you mean 'linear'"),
        ({"knowledge": "values", "project": "linear"}, "Only hidden states, features and patches are projected"),
        ({"knowledge": "logits", "weight": {"schedule": "linaer"}}, "Did you mean 'linear'"),
        ({"knowledge": "logits", "weight": "much"}, "finite number"),
    ],
)
def test_what_is_wrong_in_a_term_is_said(term, message):
    found = problems([term])
    assert message in found
    assert found.startswith("terms.0")


@pytest.mark.parametrize("kind", ["attention", "values"])
def test_head_counts_that_differ_are_refused(kind):
    found = problems([Term(kind)], student=NARROW)
    assert "student 2, teacher 4" in found
    assert ("heads" in found) == (kind == "values") or "values, keys and queries" in found
    if kind == "values":
        assert Objective([Term("values", options={"heads": 4})]).bind(NARROW, DEEP)


def test_relation_heads_that_divide_no_width_are_refused_before_training():
    assert "divide" in problems([Term("values", options={"heads": 5})], student=NARROW)


def test_widths_that_differ_need_a_projection():
    assert "student 32, teacher 64" in problems([Term("hidden", project="none")], student=NARROW)


def test_a_loss_that_the_task_refuses_says_why():
    found = problems(
        [Term("logits", loss="kl_divergence")], defaults=TextClassification("regression", ("x",)).defaults()
    )
    assert "logit_mse" in found
    usual = TextClassification("multi_label").defaults()
    assert Objective([Term("logits")]).bind(SHALLOW, DEEP, usual).terms[0].loss.__name__ == "binary_kl_divergence"
    assert Objective([Term("logits")]).bind(SHALLOW, DEEP, Defaults()).terms[0].loss.__name__ == "kl_divergence"


def test_all_problems_are_said_at_once():
    found = problems([Term("logit"), Term("hidden", layers={0: 9}), Term("labels"), Term("values", project="linear")])
    assert [line.split(" ")[0] for line in found.splitlines()] == ["terms.0", "terms.1", "terms.3"]


def test_an_empty_objective_and_a_missing_teacher_are_refused():
    assert "at least one term" in problems([])
    assert "there is none" in problems([Term("logits")], teacher=None)


def test_an_unknown_key_of_a_term_is_refused_with_the_nearest_name():
    assert "Did you mean 'temperature'" in problems([{"knowledge": "logits", "temprature": 2.0}])
    with pytest.raises(RecipeError, match="'knowledge'"):
        Objective([{"knowlege": "logits"}])


def test_options_of_a_loss_stand_beside_the_other_keys_as_in_a_recipe():
    flat = Objective([{"knowledge": "values", "heads": 8}]).bind(SHALLOW, DEEP)
    assert (
        flat.terms[0].options == Objective([Term("values", options={"heads": 8})]).bind(SHALLOW, DEEP).terms[0].options
    )


def test_a_term_is_checked_without_models():
    check_term(Term("hidden"))
    with pytest.raises(RecipeError, match="Did you mean 'hidden'"):
        check_term(Term("hiden"))
