"""DeiT's two classifiers: each term reaches its own, the published loss is met, plain classes load what is saved."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_inputs, tiny_model
from transformers import AutoModelForImageClassification

from potstill.errors import RecipeError
from potstill.knowledge import Knowledge, ModelShape, Needs, describe, observe
from potstill.objective import Objective, Scene
from potstill.recipe import load_recipe

GOLDEN = json.loads((Path(__file__).parent / "losses" / "golden" / "deit.json").read_text(encoding="utf-8"))
TOKEN = ["DeiTForImageClassificationWithTeacher"]
HARD = [
    {"knowledge": "labels", "classifier": "class", "weight": 0.5},
    {"knowledge": "logits", "classifier": "distillation", "loss": "pseudo_label_cross_entropy", "weight": 0.5},
]
PLAIN, WITH_TOKEN = (
    ModelShape("vit", 2, 32, 4, None),
    ModelShape("deit", 2, 32, 4, None, classifiers=("class", "distillation")),
)


def student(**sizes):
    return tiny_model("deit", layers=2, labels=3, architectures=TOKEN, **sizes)


def scene(labels):
    rows = torch.ones(len(labels), dtype=torch.bool)
    return Scene(labels, {"labels": rows, "outputs": rows, "tokens": rows[:, None]})


def loss_of(terms, ours, theirs, labels):
    return Objective(terms).bind(WITH_TOKEN, PLAIN)(ours, theirs, scene(labels))


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: f"{entry['type']}-{entry['tau']}-{entry['seed']}")
def test_as_published(entry):
    drawn = torch.Generator().manual_seed(entry["seed"])
    ours, beside, theirs = (
        2 * torch.randn(entry["shape"], generator=drawn, dtype=torch.float64)
        for _ in ("class", "distillation", "teacher")
    )
    labels = torch.randint(0, entry["shape"][1], entry["shape"][:1], generator=drawn)
    alpha, tau, classes = entry["alpha"], entry["tau"], entry["shape"][1]
    soft = {"loss": "kl_divergence", "temperature": tau, "weight": alpha / classes}  # its mean is over classes too
    hard = {"loss": "pseudo_label_cross_entropy", "weight": alpha}
    terms = [
        {"knowledge": "labels", "classifier": "class", "weight": 1 - alpha},
        {"knowledge": "logits", "classifier": "distillation", **(soft if entry["type"] == "soft" else hard)},
    ]
    known = Knowledge(logits=(ours + beside) / 2, classifiers={"class": ours, "distillation": beside})
    found = loss_of(terms, known, Knowledge(logits=theirs), labels)
    assert ours[0, 0].item() == pytest.approx(entry["first"]), "other inputs than those of the value"
    assert found.total.item() == pytest.approx(entry["published"], rel=1e-9)


def test_each_term_reaches_its_own_classifier_alone():
    model = student()
    batch = tiny_inputs("deit")
    objective = Objective(HARD).bind(describe(model), PLAIN)
    assert objective.needs("student") == Needs(logits=True, classifiers=frozenset({"class", "distillation"}))
    assert objective.needs("teacher") == Needs(logits=True)
    shares = objective(
        observe(model, batch, objective.needs("student")),
        Knowledge(logits=torch.randn(3, 3)),
        scene(torch.tensor([0, 1, 2])),
    ).terms
    for term, its, other in (
        ("labels", "cls_classifier", "distillation_classifier"),
        ("logits", "distillation_classifier", "cls_classifier"),
    ):
        wanted = [model.get_submodule(name).weight for name in (its, other)]
        reached, untouched = torch.autograd.grad(shares[term], wanted, retain_graph=True, allow_unused=True)
        assert reached.abs().sum() > 0
        assert untouched is None


def test_without_a_name_the_mean_of_both_learns_as_it_answers():
    model = student()
    batch = tiny_inputs("deit")
    labels = torch.tensor([0, 1, 2])
    objective = Objective([{"knowledge": "labels"}]).bind(describe(model))
    assert objective.needs("student") == Needs(logits=True)
    found = objective(observe(model, batch, objective.needs("student")), None, scene(labels)).total
    output = model(**batch)
    torch.testing.assert_close(output.logits, (output.cls_logits + output.distillation_logits) / 2)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(output.logits, labels))


def test_other_students_give_nothing_more():
    model = tiny_model("deit", layers=2)
    assert describe(model).classifiers == ()
    assert observe(model, tiny_inputs("deit"), Needs(logits=True)).classifiers == {}


def test_a_saved_student_is_loaded_by_the_plain_classes(tmp_path):
    model = student()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded).__name__ == TOKEN[0]
    batch = tiny_inputs("deit")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("term", "shape", "said"),
    [
        (HARD[0], PLAIN, r"A term names one of several classifiers.*classifier: class, and vit with one.*DeiTForImage"),
        (
            {"knowledge": "labels", "classifier": "clas"},
            WITH_TOKEN,
            "Unknown classifier of deit 'clas'. Did you mean 'class'",
        ),
        (
            {"knowledge": "hidden", "classifier": "class"},
            WITH_TOKEN,
            "A classifier gives logits, and no hidden",
        ),
    ],
)
def test_classifiers_that_are_not_there_are_refused(term, shape, said):
    with pytest.raises(RecipeError, match=said):
        Objective([term]).bind(shape, PLAIN)


def test_an_unknown_classifier_is_found_in_the_recipe():
    recipe = {"task": "text_classification", "data": {"name": "reviews"}, "teacher": {"model": "x"}}
    recipe |= {"student": {"layers": 2}, "distill": [{"terms": [{"knowledge": "labels", "classifier": "cls"}]}]}
    with pytest.raises(RecipeError, match=r"terms.0.classifier: Input should be 'class' or 'distillation'"):
        load_recipe(recipe)
