"""Terms on feature maps and patch embeddings: between any two families of images, by stage, without void pixels."""

from copy import deepcopy

import pytest
import torch
from tiny import CONVOLUTIONAL, IMAGES, tiny_inputs, tiny_model
from tiny_images import tiny_image_rows, tiny_reader
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSemanticSegmentation

from potstill import losses
from potstill.cache import CachedCollator, CachedTeacher, Identity, Storage, write_cache
from potstill.errors import RecipeError, ShapeError
from potstill.kinds import KINDS
from potstill.kinds import family as home
from potstill.knowledge import describe, observe
from potstill.objective import Objective, Scene
from potstill.projectors import FUSIONS, PATCH_PROJECTIONS, projector
from potstill.staged import on_grid, places_that_count
from potstill.tasks import ImageClassification
from potstill.training import Distiller
from potstill.training.distiller import ROW

TRANSFORMERS = [name for name in IMAGES if name not in CONVOLUTIONAL]


def bound(terms, student, teacher):
    return Objective(terms).bind(describe(student), describe(teacher))


def modules_of(objective, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {name: projector(*sizes) for name, sizes in objective.projections().items()}
        return made | {name: joint.build() for name, joint in objective.joint_projections().items()}


def parts(terms, student, teacher, *, batch=None, outputs=None, modules=None, counts=None, change=lambda known: None):
    """The terms' shares, as a task would compute them whose outputs are of rows, or of pixels; `change` what is seen in
    the student."""
    objective = bound(terms, student, teacher)
    batch = tiny_inputs("vit") if batch is None else batch
    with torch.no_grad():
        theirs = observe(teacher, batch, objective.needs("teacher"))
    ours = observe(student, batch, objective.needs("student"))
    change(ours)
    rows = torch.ones(len(batch["pixel_values"]), dtype=torch.bool)
    masks = {"outputs": rows} if outputs is None else {"outputs": outputs, "rows": outputs.flatten(1).any(1)}
    scene = Scene(
        labels=None,
        masks=masks,
        counts=counts,
        modules=modules_of(objective) if modules is None else modules,
        pixels=batch["pixel_values"],
    )
    return objective(ours, theirs, scene)


def fitting(kind):
    return [name for name in losses.__all__ if home(getattr(losses, name)) in KINDS[kind].families and name != "crd"]


# ---- an exact copy, and any two families


@pytest.mark.parametrize("loss", fitting("features"))
def test_the_features_of_an_exact_copy_are_no_loss(loss):
    teacher = tiny_model("segformer", layers=3)
    found = parts([{"knowledge": "features", "loss": loss}], deepcopy(teacher), teacher)
    if loss != "info_nce":  # which is none of a copy only where rows are far from each other
        assert abs(found.total.item()) < 1e-6
    other = parts([{"knowledge": "features", "loss": loss}], tiny_model("segformer", layers=3, seed=1), teacher)
    assert other.total.item() > 1e-6


@pytest.mark.parametrize(
    ("loss", "family"),
    [*((loss, "segformer") for loss in fitting("patches")), *(("hidden_mse", name) for name in TRANSFORMERS)],
)
def test_the_patches_of_an_exact_copy_are_no_loss(loss, family):
    teacher = tiny_model(family, layers=3)
    found = parts([{"knowledge": "patches", "loss": loss}], deepcopy(teacher), teacher)
    if loss != "info_nce":
        assert abs(found.total.item()) < 1e-6
    other = parts([{"knowledge": "patches", "loss": loss}], tiny_model(family, layers=3, seed=1), teacher)
    assert other.total.item() > 1e-6


@pytest.mark.parametrize(("student", "teacher"), [(a, IMAGES[i - n]) for i, a in enumerate(IMAGES) for n in (1, 4)])
def test_any_two_families_meet(student, teacher):
    pair = tiny_model(student, layers=3, width=16), tiny_model(teacher, layers=3, width=32, seed=1)
    stages = [len(describe(model).channels) for model in pair]
    layers = "uniform" if stages[0] <= stages[1] else {0: 0, stages[0] - 1: stages[1] - 1}
    terms = [
        {"knowledge": "features", "layers": layers},
        {"knowledge": "features", "layers": layers, "loss": "attention_transfer"},
        {"knowledge": "features", "layers": {0: 0}, "loss": "channel_kl_divergence", "project": "conv_bn_relu"},
    ]
    found = parts(terms, *pair)
    found.total.backward()
    assert all(share.isfinite() and share > 0 for share in found.terms.values())
    assert sum(p.grad is not None and bool(p.grad.any()) for p in pair[0].parameters()) > 5


# ---- sizes, channels and pairs


def test_fitnets_is_a_regression_on_the_smaller_map():
    student, teacher = tiny_model("segformer", layers=3, width=16), tiny_model("resnet", layers=3, seed=1)
    terms = [{"knowledge": "features", "layers": {0: 1}}]
    objective = bound(terms, student, teacher)
    assert objective.projections() == {"features_0_to_1": ("conv", 8, 32)}
    modules, batch = modules_of(objective), tiny_inputs("vit")
    ours = observe(student, batch, objective.needs("student")).features[0]
    theirs = observe(teacher, batch, objective.needs("teacher")).features[1]
    assert ours.shape[2:] == (8, 12)
    assert theirs.shape[2:] == (4, 6)
    weight, bias = modules["features_0_to_1"].weight.flatten(1), modules["features_0_to_1"].bias
    pooled = functional.avg_pool2d(ours, 2)
    projected = torch.einsum("tc,bchw->bthw", weight, pooled) + bias[:, None, None]
    found = parts(terms, student, teacher, modules=modules).total
    torch.testing.assert_close(found, (projected - theirs).square().mean())


def test_a_flow_goes_from_one_stage_to_the_next():
    student, teacher = tiny_model("segformer", layers=3, seed=1), tiny_model("segformer", layers=3)
    found = parts([{"knowledge": "features", "loss": "flow_mse"}], student, teacher)
    seen = []
    for model in (student, teacher):
        objective = bound([{"knowledge": "features"}], model, model)
        first, second = observe(model, tiny_inputs("vit"), objective.needs("student")).features.values()
        seen.append(torch.einsum("bchw,bdhw->bcd", functional.avg_pool2d(first, 2), second) / 24)
    torch.testing.assert_close(found.total, (seen[0] - seen[1]).square().mean())


def test_stages_are_weighed():
    student, teacher = tiny_model("segformer", layers=3, seed=1), tiny_model("segformer", layers=3)
    each = [parts([{"knowledge": "patches", "layers": {s: s}}], student, teacher).total for s in (0, 1)]
    found = parts([{"knowledge": "patches", "stage_weights": [0.1, 2]}], student, teacher).total
    torch.testing.assert_close(found, 0.1 * each[0] + 2 * each[1])
    torch.testing.assert_close(parts([{"knowledge": "patches"}], student, teacher).total, (each[0] + each[1]) / 2)


def test_patches_of_other_grids_are_averaged():
    student = tiny_model("vit", layers=2, width=16, patch_size=4)
    teacher = tiny_model("vit", layers=2, patch_size=16)
    terms = [{"knowledge": "patches"}]
    objective = bound(terms, student, teacher)
    modules, batch = modules_of(objective), tiny_inputs("vit")
    ours = observe(student, batch, objective.needs("student")).patches[0]
    theirs = observe(teacher, batch, objective.needs("teacher")).patches[0]
    assert (ours.shape[1], theirs.shape[1]) == (96, 6)
    blocks = ours.reshape(3, 2, 4, 3, 4, 16).mean((2, 4)).reshape(3, 6, 16)
    expected = (modules["patches_0_to_0"](blocks) - theirs).square().mean()
    torch.testing.assert_close(parts(terms, student, teacher, modules=modules).total, expected)


@pytest.mark.parametrize(("image", "grid"), [((512, 1024), (16, 32)), ((33, 100), (2, 4)), ((32, 33), (1, 2))])
def test_a_grid_has_the_images_proportions(image, grid):
    maps = torch.randn(2, 5, *grid)
    assert torch.equal(on_grid(maps.flatten(2).transpose(1, 2), image), maps)


def test_patches_without_a_grid_are_refused():
    with pytest.raises(ShapeError, match="7 patches, an image of 32x32"):
        on_grid(torch.zeros(1, 7, 4), (32, 32))


def test_losses_of_rows_see_the_mean_of_a_stage():
    student, teacher = tiny_model("mobilenet_v2"), tiny_model("resnet", seed=1)
    terms = [{"knowledge": "features", "loss": "rkd_distance", "layers": {3: 1}}]
    objective = bound(terms, student, teacher)
    batch = tiny_inputs("vit")
    ours = observe(student, batch, objective.needs("student")).features[3].mean((2, 3))
    theirs = observe(teacher, batch, objective.needs("teacher")).features[1].mean((2, 3))
    expected = losses.rkd_distance(ours, theirs).mean()
    torch.testing.assert_close(parts(terms, student, teacher).total, expected, rtol=1e-4, atol=1e-6)


def test_a_memory_sees_the_mean_of_a_stage():
    student, teacher = tiny_model("mobilenet_v2"), tiny_model("resnet", seed=1)
    terms = [{"knowledge": "features", "loss": "crd", "layers": {3: 1}, "width": 8, "negatives": 3}]
    made = Distiller(student, Objective(terms), ImageClassification(), teacher, rows=6).train()
    memory = made.projectors["features_3_to_1"]
    assert (memory.student_head.in_features, memory.teacher_head.in_features) == (80, 32)
    before = memory.student_bank.clone()
    found = made(tiny_inputs("vit") | {"row": torch.tensor([0, 2, 5])})
    found.total.backward()
    assert memory.student_head.weight.grad.any()
    assert (memory.student_bank != before).any(1).tolist() == [True, False, True, False, False, True]


def test_a_cached_teacher_teaches_by_its_stages_too(tmp_path):
    terms = [
        {"knowledge": "features", "loss": "hcl", "project": "csf"},
        {"knowledge": "patches", "project": "gl_mixer", "stage_weights": [0.5, 1.0]},
    ]
    student, teacher = tiny_model("segformer", layers=3, width=16), tiny_model("segformer", layers=3)
    teacher.config.save_pretrained(tmp_path)
    task, reader = ImageClassification(), tiny_reader(tmp_path)
    rows = task.encode(tiny_image_rows(4), reader)
    live = Distiller(student, Objective(terms), task, teacher)
    asked = live.asked["teacher"]
    identity = Identity("t", "k", asked, None, storage=Storage("float32"))
    cached = CachedTeacher(write_cache(tmp_path / "cache", identity, teacher, rows, task.collator(reader)).cache)
    kept = Distiller(student, Objective(terms), task, cached)
    kept.projectors.load_state_dict(live.projectors.state_dict())
    collate = CachedCollator(task.collator(reader), [cached.lookup("teacher", rows, asked)], ROW)
    batch = collate(rows.add_column(ROW, [0, 1, 2, 3]).to_list())
    shares = [made.eval()(batch).terms for made in (live, kept)]
    torch.testing.assert_close(shares[1], shares[0])
    assert kept.teachers == {}
    assert shares[0].keys() == {"features", "patches"}


# ---- void pixels


def without_right_half() -> Tensor:
    outputs = torch.ones(3, 32, 48, dtype=torch.bool)
    outputs[:2, :, 24:] = False
    outputs[2] = False
    return outputs


def test_a_place_counts_where_any_pixel_under_it_does():
    pixels = torch.zeros(2, 4, 6, dtype=torch.bool)
    pixels[0, 1, 4] = True
    assert places_that_count(pixels, (2, 3)).tolist() == [
        [[False, False, True], [False, False, False]],
        [[False, False, False], [False, False, False]],
    ]


def segmentation(family, **sizes):
    model = tiny_model(family, layers=3, **sizes)
    made = AutoModelForSemanticSegmentation.from_config(model.config).eval()
    made.base_model.load_state_dict(model.base_model.state_dict())
    return made


@pytest.mark.parametrize(
    ("kind", "loss"),
    [(kind, loss) for kind in ("features", "patches") for loss in fitting(kind) if loss != "flow_mse"],
)
def test_void_places_and_rows_change_nothing(kind, loss):
    student, teacher = (segmentation("segformer", seed=seed) for seed in (1, 0))

    def disturb(known):
        for stage, value in getattr(known, kind).items():
            maps = (value if kind == "features" else on_grid(value, (32, 48))).clone()
            maps[:2, :, :, maps.shape[3] // 2 :] += 3 * torch.rand(2, *maps.shape[1:3], maps.shape[3] // 2)
            maps[2] = torch.randn(maps.shape[1:])
            getattr(known, kind)[stage] = maps if kind == "features" else maps.flatten(2).transpose(1, 2)

    terms = [{"knowledge": kind, "loss": loss}]
    outputs = without_right_half()
    first = parts(terms, student, teacher, outputs=outputs).total
    torch.testing.assert_close(parts(terms, student, teacher, outputs=outputs, change=disturb).total, first)
    everywhere = torch.ones_like(outputs)
    assert not torch.isclose(parts(terms, student, teacher, outputs=everywhere, change=disturb).total, first)


def test_images_count_alike_whatever_is_void():
    student, teacher = (segmentation("segformer", seed=seed) for seed in (1, 0))
    outputs = without_right_half()
    outputs[1] = True
    terms = [{"knowledge": "features"}]
    needs = bound(terms, student, teacher).needs("student")
    ours, theirs = (observe(model, tiny_inputs("vit"), needs).features for model in (student, teacher))
    expected = []
    for stage, maps in ours.items():
        squares = (maps - theirs[stage]).square()
        half = squares[0, :, :, : maps.shape[3] // 2].mean()
        expected.append((half + squares[1].mean()) / 2)  # the third has no pixel
    found = parts(terms, student, teacher, outputs=outputs).total
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2)


def test_micro_batches_add_up_to_the_batch():
    student, teacher = segmentation("segformer", width=16), segmentation("segformer", seed=1)
    terms = [{"knowledge": "features", "loss": "hcl"}, {"knowledge": "patches", "stage_weights": [0.1, 1]}]
    modules, outputs = modules_of(bound(terms, student, teacher)), without_right_half()
    outputs[1] = True
    pixels = tiny_inputs("vit")["pixel_values"]
    whole = parts(terms, student, teacher, outputs=outputs, modules=modules).terms
    shares = [
        parts(
            terms,
            student,
            teacher,
            batch={"pixel_values": pixels[rows]},
            outputs=outputs[rows],
            modules=modules,
            counts={"outputs": outputs.sum(), "rows": 2.0},
        ).terms
        for rows in (slice(0, 1), slice(1, 3))
    ]
    for name, share in whole.items():
        torch.testing.assert_close(shares[0][name] + shares[1][name], share)


# ---- what can't be meant


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"knowledge": "patches"}, "no patches of resnet: vision transformers have them"),
        ({"knowledge": "features", "project": "linear"}, "projection of features 'linear'"),
        ({"knowledge": "features", "project": "none", "layers": {0: 0}}, "student 16, teacher 8, project: none.*conv"),
        ({"knowledge": "features", "project": "csf", "share": True}, "one module for all stages already"),
        ({"knowledge": "features", "project": "csf", "layers": {0: [0, 1]}}, "Pair every stage of the student once"),
        ({"knowledge": "features", "project": "gl_mixer"}, "projection of features 'gl_mixer'"),
        ({"knowledge": "features", "pool": "first"}, "no first token"),
        ({"knowledge": "features", "pool": "mean", "loss": "hcl"}, "'hcl' compares maps"),
        ({"knowledge": "features", "loss": "kl_divergence"}, "loss for features 'kl_divergence'"),
        ({"knowledge": "features", "stage_weights": [1]}, r"\[1\], and 2 pairs"),
        ({"knowledge": "features", "stage_weights": [1, "x"]}, "one number for each pair"),
        ({"knowledge": "labels", "stage_weights": [1, 1]}, "not labels"),
        ({"knowledge": "hidden", "layers": {0: 0}, "project": "conv"}, "projection of hidden 'conv'"),
    ],
)
def test_what_does_not_fit_is_refused(term, said):
    student, teacher = tiny_model("segformer", layers=3), tiny_model("resnet", layers=3, width=16)
    if term["knowledge"] == "hidden":
        teacher = tiny_model("vit")
    with pytest.raises(RecipeError, match=said):
        bound([term], student, teacher)


def test_every_joint_projection_is_of_one_kind():
    assert set(FUSIONS) <= set(KINDS["features"].projections)
    assert set(PATCH_PROJECTIONS) <= set(KINDS["patches"].projections)
