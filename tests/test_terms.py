"""Terms beyond one teacher and one pair: pooled states, several teachers, pairs by their flow, scheduled options."""

import inspect

import pytest
import torch
from tiny import tiny_batch, tiny_inputs, tiny_model

from potstill import losses
from potstill.errors import RecipeError, ShapeError
from potstill.kinds import ANY_WIDTH, KINDS
from potstill.knowledge import ModelShape, describe, observe
from potstill.losses.logits import probability_shifted
from potstill.mappings import EMBEDDINGS
from potstill.objective import Defaults, Objective, Scene, Term, pooled
from potstill.projectors import projector
from potstill.reduce import masked_mean
from potstill.schedules import schedule
from potstill.tasks import TextClassification
from potstill.transport import earth_movers_flow

TASK = TextClassification()
DEEP = ModelShape("bert", 6, 64, 4, 100)
SHALLOW = ModelShape("bert", 3, 64, 4, 100)
NARROW = ModelShape("bert", 3, 32, 2, 100)
LABELS = torch.tensor([0, 1, -100])


def bound(terms, student, teachers):
    return Objective(terms).bind(
        describe(student), {name: describe(model) for name, model in teachers.items()}, TASK.defaults()
    )


def parts(terms, student, teachers, batch=None, **options):
    batch = tiny_batch() | {"labels": LABELS} if batch is None else batch
    teachers = teachers if isinstance(teachers, dict) else {"teacher": teachers}
    objective = bound(terms, student, teachers)
    with torch.no_grad():
        taught = {name: observe(model, batch, objective.needs("teacher", name)) for name, model in teachers.items()}
    ours = observe(student, batch, objective.needs("student"))
    return objective(ours, taught, Scene(TASK.targets(batch), TASK.masks(batch), **options))


def hidden_losses():
    homes = KINDS["hidden"].families
    return [n for n in losses.__all__ if getattr(losses, n).__module__.rpartition(".")[2] in homes and n != "crd"]


def of_rows(name):
    return getattr(losses, name).__module__.rpartition(".")[2] in ("samples", "contrastive")


# ---- the tables


@pytest.mark.parametrize("name", hidden_losses())
def test_only_the_losses_that_say_so_take_any_width(name):
    loss = getattr(losses, name)
    shape = (4,) if of_rows(name) else (4, 5)
    states = [torch.randn(*shape, width) for width in (6, 6, 8, 8)]
    arguments = {"student": states[0], "teacher": states[2]}
    if "student_next" in inspect.signature(loss).parameters:
        arguments |= {"student_next": states[1], "teacher_next": states[3]}
    if name in ANY_WIDTH:
        assert loss(**arguments).isfinite().all()
    else:
        with pytest.raises(ShapeError):
            loss(**arguments)


def test_every_loss_fits_some_knowledge():
    families = {family for kind in KINDS.values() for family in kind.families}
    assert not {n for n in losses.__all__ if getattr(losses, n).__module__.rpartition(".")[2] not in families}


def test_losses_of_maps_are_for_tasks_that_answer_every_pixel():
    terms = Objective([{"knowledge": "logits", "loss": "channel_kl_divergence"}])
    with pytest.raises(RecipeError, match=r"'channel_kl_divergence' compares maps .* no answer a pixel"):
        terms.bind(SHALLOW, DEEP)
    assert terms.bind(SHALLOW, DEEP, Defaults(maps=True)).terms[0].kind == "logits"


# ---- pooled states


@pytest.mark.parametrize("left", [False, True])
def test_pooling_knows_no_padding(left):
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    if left:
        mask = mask.flip(1)
    first, last = (0, 1) if not left else (1, 2)
    states = states.masked_fill(~mask.unsqueeze(-1), float("nan"))
    torch.testing.assert_close(pooled(states, mask, "first"), torch.stack([states[0, first], states[1, 0]]))
    torch.testing.assert_close(pooled(states, mask, "last"), torch.stack([states[0, last], states[1, 2]]))
    expected = torch.stack([states[0, [first, last]].mean(0), states[1].mean(0)])
    torch.testing.assert_close(pooled(states, mask, "mean"), expected)


def test_pkd_compares_the_first_token_by_direction():
    teacher, student = tiny_model(layers=4, seed=1), tiny_model(layers=2, seed=2)
    term = Term("hidden", loss="hidden_normalised_mse", pool="first", layers="pkd_skip")
    found = parts([term], student, teacher)
    batch = tiny_batch()
    states = [model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher)]
    ours, theirs = states[0][1][:, 0], states[1][2][:, 0]  # the student's layer 0 from the teacher's layer 1
    expected = (ours / ours.norm(dim=-1, keepdim=True) - theirs / theirs.norm(dim=-1, keepdim=True)).square().sum(-1)
    torch.testing.assert_close(found.total, expected.mean())


@pytest.mark.parametrize("name", hidden_losses())
def test_more_padding_changes_no_loss_of_hidden_states(name):
    teacher, student = tiny_model(layers=4, seed=1), tiny_model(layers=2, seed=2)
    batch = tiny_batch()
    longer = {key: torch.nn.functional.pad(value, (0, 5)) for key, value in batch.items()}
    found = [parts([Term("hidden", loss=name)], student, teacher, one).total for one in (batch, longer)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


# ---- pairs


def test_embeddings_are_a_pair_of_maps_that_go_over_all_layers():
    def layers(**options):
        return Objective([Term("hidden", **options)]).bind(SHALLOW, DEEP).terms[0].pairs

    assert (EMBEDDINGS, EMBEDDINGS) in layers()
    assert (EMBEDDINGS, EMBEDDINGS) in layers(layers="last1", embeddings=True)
    for options in ({"layers": "last1"}, {"layers": "pkd_last"}, {"pool": "first"}, {"embeddings": False}):
        assert (EMBEDDINGS, EMBEDDINGS) not in layers(**options), options


def test_earth_mover_weighs_every_pair_by_the_flow():
    teacher, student = tiny_model(layers=3, seed=1), tiny_model(layers=2, seed=2)
    batch = tiny_batch()
    costs = torch.tensor(
        [
            [
                parts([Term("hidden", layers={s: t}, embeddings=False)], student, teacher, batch).total.item()
                for t in (0, 1, 2)
            ]
            for s in range(2)
        ]
    )
    found = parts([Term("hidden", layers="earth_mover")], student, teacher, batch)
    torch.testing.assert_close(found.total, (earth_movers_flow(costs) * costs).sum())


def test_earth_mover_finds_that_a_copy_is_a_copy():
    teacher = tiny_model(layers=3, seed=1)
    student = tiny_model(layers=3, seed=1)
    assert parts([Term("hidden", layers="earth_mover")], student, teacher).total < 1e-10
    assert parts([Term("hidden", layers="all")], student, teacher).total > 1e-3  # plainly, all pairs count


def test_flow_compares_what_happens_between_two_layers():
    teacher, student = tiny_model(layers=4, seed=1), tiny_model(layers=2, seed=2)
    batch = tiny_batch()
    found = parts([Term("hidden", loss="flow_mse", layers="uniform", embeddings=False)], student, teacher, batch)
    states = [model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher)]
    mask = batch["attention_mask"].bool()
    expected = losses.flow_mse(
        states[0][1], states[1][2], student_next=states[0][2], teacher_next=states[1][4], mask=mask
    )
    torch.testing.assert_close(found.total, expected.mean())


def test_one_projection_may_serve_all_layers():
    shared = Objective([Term("hidden", share=True, project="relu")]).bind(NARROW, DEEP)
    assert shared.projections() == {"hidden_shared": ("relu", 32, 64)}
    apart = Objective([Term("hidden", layers="earth_mover")]).bind(NARROW, DEEP)
    assert set(apart.projections()) == {f"hidden_{layer}_to_all" for layer in range(3)}
    teacher, student = tiny_model(width=64, layers=2, seed=1), tiny_model(width=32, layers=2, seed=2)
    one = projector("relu", 32, 64)
    found = parts([Term("hidden", share=True, project="relu")], student, teacher, modules={"hidden_shared": one})
    assert found.total.requires_grad and found.total > 0


# ---- several teachers


def test_a_term_learns_from_every_teacher_alike_unless_told_otherwise():
    student = tiny_model(seed=0)
    teachers = {"teacher": tiny_model(seed=1), "second": tiny_model(seed=2)}
    alone = {name: parts([Term("logits")], student, {"teacher": model}).total for name, model in teachers.items()}
    found = parts([Term("logits")], student, teachers)
    assert list(found.terms) == ["logits from teacher", "logits from second"]
    torch.testing.assert_close(found.total, (alone["teacher"] + alone["second"]) / 2)
    weighted = parts([Term("logits")], student, teachers, influence={"teacher": 0.25, "second": 0.75})
    torch.testing.assert_close(weighted.total, 0.25 * alone["teacher"] + 0.75 * alone["second"])
    named = parts([Term("logits", teacher="second")], student, teachers, influence={"teacher": 0.25, "second": 0.75})
    torch.testing.assert_close(named.total, alone["second"])


def test_the_mean_divergence_has_the_gradient_of_the_divergence_from_the_mean():
    teachers = torch.randn(2, 3, 5)
    student = torch.randn(3, 5, requires_grad=True)
    mean_of = sum(losses.kl_divergence(student, teacher).sum() for teacher in teachers) / 2
    of_mean = losses.kl_divergence(student, teachers.softmax(-1).mean(0).log()).sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (mean_of, of_mean)))


def test_rows_go_to_the_teacher_that_they_are_routed_to():
    student = tiny_model(seed=0)
    teachers = {"teacher": tiny_model(seed=1), "second": tiny_model(seed=2)}
    route = torch.tensor([1.0, 0.0, 1.0])
    found = parts([Term("hidden")], student, teachers, influence={"teacher": route, "second": 1 - route})
    batch = tiny_batch()
    mask = batch["attention_mask"].bool()
    expected = 0.0
    for own, model in zip((route, 1 - route), teachers.values(), strict=True):
        states = [m(**batch, output_hidden_states=True).hidden_states for m in (student, model)]
        values = [losses.hidden_mse(s, t, mask=mask) * own[:, None] for s, t in zip(*states, strict=True)]
        expected += torch.stack([masked_mean(value, mask) for value in values]).mean()
    torch.testing.assert_close(found.total, expected)


def test_teachers_may_differ_in_depth_and_width():
    student = tiny_model(layers=2, width=32, seed=0)
    teachers = {"teacher": tiny_model(layers=4, width=32, seed=1), "wide": tiny_model(layers=6, width=64, seed=2)}
    objective = bound([Term("hidden")], student, teachers)
    assert [term.pairs[-1] for term in objective.terms] == [(1, 3), (1, 5)]
    assert set(objective.projections().values()) == {("linear", 32, 64)}
    assert all(name.startswith("hidden_from_wide") for name in objective.projections())


# ---- what changes over training, or with the logits


def test_an_argument_of_a_loss_may_follow_a_schedule():
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    grown = {"teacher_scale": {"schedule": "annealing", "steps": 4}}
    for progress, scale in ((0.0, 0.25), (0.3, 0.5), (1.0, 1.0)):
        found = parts([Term("logits", loss="logit_mse", options=grown)], student, teacher, progress=progress)
        fixed = parts([Term("logits", loss="logit_mse", options={"teacher_scale": scale})], student, teacher)
        torch.testing.assert_close(found.total, fixed.total)


@pytest.mark.parametrize("kind", ["flow_weighted", "confidence_weighted"])
def test_a_temperature_may_follow_the_logits(kind):
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    batch = tiny_batch()
    found = parts([Term("logits", temperature={"schedule": kind})], student, teacher, batch)
    with torch.no_grad():
        theirs = teacher(**batch).logits
    ours = student(**batch).logits
    temperature = schedule({"schedule": kind})(0.0, ours, theirs)
    assert temperature.shape == (3,) and len(temperature.unique()) > 1
    torch.testing.assert_close(found.total, losses.kl_divergence(ours, theirs, temperature=temperature).mean())


def test_shifted_logits_say_what_is_true():
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    batch = tiny_batch() | {"labels": torch.tensor([0, 1, 1])}
    found = parts([Term("logits", shift=True)], student, teacher, batch)
    inputs = tiny_batch()
    shifted = probability_shifted(teacher(**inputs).logits, batch["labels"])
    assert shifted.argmax(-1).tolist() == [0, 1, 1]
    torch.testing.assert_close(found.total, losses.kl_divergence(student(**inputs).logits, shifted).mean())


def test_losses_that_need_labels_are_means_over_labelled_rows():
    teacher, student = tiny_model(labels=4, seed=1), tiny_model(labels=4, seed=2)
    found = parts([Term("logits", loss="decoupled_kl_divergence", temperature=2.0)], student, teacher)
    batch = tiny_batch()
    values = losses.decoupled_kl_divergence(
        student(**batch).logits, teacher(**batch).logits, labels=LABELS, temperature=2.0
    )
    torch.testing.assert_close(found.total, values[:2].mean())


# ---- what is wrong, before training


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"knowledge": "hidden", "layers": ""}, "Unknown layer map ''"),
        ({"knowledge": "values", "heads": "four"}, "heads four"),
        ({"knowledge": "logits", "pool": "first"}, "Only hidden states are pooled"),
        ({"knowledge": "hidden", "pool": "frist"}, "Did you mean 'first'"),
        ({"knowledge": "hidden", "loss": "flow_mse", "pool": "first"}, "nothing can be pooled"),
        ({"knowledge": "hidden", "loss": "flow_mse", "layers": "last1"}, "this map has one pair"),
        ({"knowledge": "hidden", "shift": True}, "Only the teacher's logits are shifted"),
        ({"knowledge": "hidden", "share": True, "project": "none"}, "Remove one of the keys"),
        ({"knowledge": "values", "share": True}, "Only hidden states, features and patches are projected"),
        ({"knowledge": "values", "embeddings": True}, "The embeddings have hidden states"),
        ({"knowledge": "labels", "teacher": "second"}, "Labels come from no teacher"),
        ({"knowledge": "logits", "teacher": "secnd"}, "Unknown teacher 'secnd'"),
        ({"knowledge": "logits", "teacher": "peers"}, "no students learn together"),
        ({"knowledge": "logits", "weight": {"schedule": "flow_weighted"}}, "can't follow the logits"),
        ({"knowledge": "hidden", "loss": "info_nce", "temperature": {"schedule": "flow_weighted"}}, "that of logits"),
        ({"knowledge": "hidden", "loss": "crd", "negatives": {"schedule": "linear", "from": 1, "to": 2}}, "made once"),
        ({"knowledge": "hidden", "loss": "crd", "project": "linear"}, "projections of its own"),
    ],
)
def test_what_does_not_go_together_is_said(term, message):
    with pytest.raises(RecipeError, match=r"terms\.0") as raised:
        Objective([term]).bind(SHALLOW, DEEP, TASK.defaults())
    assert message in str(raised.value)


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
@pytest.mark.parametrize("name", ["reverse_kl_divergence", "dist", "decoupled_kl_divergence", "jensen_shannon"])
def test_losses_of_one_distribution_are_refused_where_there_is_none(problem, name):
    defaults = TextClassification(problem, ("x",)).defaults()
    with pytest.raises(RecipeError, match="can't be used here"):
        Objective([Term("logits", loss=name)]).bind(SHALLOW, DEEP, defaults)
    with pytest.raises(RecipeError, match="can't be used here"):
        Objective([Term("logits", shift=True)]).bind(SHALLOW, DEEP, defaults)


STAGED = ModelShape("segformer", 4, 8, 1, None, channels=(8, 16, 24, 32), patches=(8, 16, 24, 32))


def stage_weights(term):
    return Objective([term]).bind(STAGED, STAGED).terms[0].stage_weights


def test_the_weights_of_stages_are_those_of_the_pairs_beside_them():
    term = {"knowledge": "patches", "stage_weights": [1.0, 0.1]}
    assert stage_weights(term | {"layers": {0: 0, 3: 3}}) == (1.0, 0.1)
    for layers in ({3: 3, 0: 0}, [[3, 3], [0, 0]]):
        with pytest.raises(RecipeError, match=r"from the first stage to the last.*layers: \[\[0, 0\], \[3, 3\]\]"):
            stage_weights(term | {"layers": layers})
    several = term | {"layers": {0: [0, 1]}, "project": "linear"}
    assert stage_weights(several) == (1.0, 0.1)
    with pytest.raises(RecipeError, match=r"3 pairs: \[\[0, 0\], \[0, 1\], \[1, 2\]\]"):
        stage_weights(term | {"layers": {0: [0, 1], 1: 2}})


def test_a_loss_between_two_stages_has_a_weight_for_each_two():
    term = {"knowledge": "features", "loss": "flow_mse", "layers": "last3"}
    assert stage_weights(term | {"stage_weights": [1.0, 2.0]}) == (1.0, 2.0)
    with pytest.raises(RecipeError, match="one number for each two pairs of stages that follow one another"):
        stage_weights(term | {"stage_weights": [1.0, 2.0, 3.0]})


def test_relation_heads_divide_the_widths_of_the_layers_that_are_compared():
    ours, theirs = (
        ModelShape("segformer", 2, widths[-1], 1, None, {}, widths, (1, 2)) for widths in ((32, 160), (64, 320))
    )
    for layers, heads in (({0: 0}, 32), ({1: 1}, 5)):
        Objective([{"knowledge": "values", "layers": layers, "heads": heads}]).bind(ours, theirs)
    for layers, heads, said in (
        ("all", 64, "student 160, teacher 320"),
        ({0: 0}, 0, "heads 0"),
        ({0: 0}, -4, "-4"),
    ):
        with pytest.raises(RecipeError, match=f"their number must divide both.*{said}"):
            Objective([{"knowledge": "values", "layers": layers, "heads": heads}]).bind(ours, theirs)


def test_windows_of_an_image_are_places_of_it():
    student, teacher = (tiny_model("swin", seed=seed, attn_implementation="eager") for seed in (0, 1))
    batch = tiny_inputs("swin", rows=2)
    objective = Objective([{"knowledge": "attention"}]).bind(describe(student), describe(teacher))
    known = [
        observe(model, batch, objective.needs(side)) for model, side in ((student, "student"), (teacher, "teacher"))
    ]
    rows = torch.ones(2, dtype=torch.bool)
    found = objective(*known, Scene(None, {"labels": rows, "outputs": rows})).total
    pairs = objective.terms[0].pairs
    expected = [losses.attention_kl(known[0].attention[a], known[1].attention[b]).mean() for a, b in pairs]
    assert len(known[0].attention[0]) > 2
    torch.testing.assert_close(found, sum(expected) / len(pairs))
