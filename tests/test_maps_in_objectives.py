"""Objectives over logits of every pixel: classes are moved last for losses of positions, and labels may be weighted."""

import pytest
import torch
from torch.nn import functional

from potstill import losses
from potstill.errors import RecipeError
from potstill.knowledge import Knowledge, ModelShape
from potstill.objective import Defaults, Objective, Scene
from potstill.reduce import masked_mean

V = 5
SHAPE = ModelShape("segformer", 4, 8, 1, None)
VOID = -100


def scene(*, weights=None, rows=slice(None), counts=None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, V, (3, 4, 6), generator=generator)
    labels[0, :2] = VOID
    labels[2] = VOID
    labels = labels[rows]
    known = labels != VOID
    masks = {"labels": known, "outputs": known, "rows": known.flatten(1).any(1)}
    if weights is not None:
        masks["weights"] = torch.where(known, weights[labels.clamp(min=0)], 0.0)
    return Scene(labels, masks, counts=counts)


def maps(rows=slice(None)):
    student, teacher = torch.randn(2, 3, V, 4, 6, generator=torch.Generator().manual_seed(1))
    return student[rows], teacher[rows]


def share(term, around, rows=slice(None)):
    student, teacher = maps(rows)
    student.requires_grad_()
    bound = Objective([term]).bind(SHAPE, SHAPE, Defaults(maps=True))
    total = bound(Knowledge(logits=student), Knowledge(logits=teacher), around).total
    return total, torch.autograd.grad(total, student)[0]


@pytest.mark.parametrize("name", ["kl_divergence", "reverse_kl_divergence", "dist", "decoupled_kl_divergence"])
def test_a_loss_of_positions_is_a_mean_over_pixels(name):
    around, (student, teacher) = scene(), maps()
    last = student.movedim(1, -1), teacher.movedim(1, -1)
    mask = around.masks["outputs"]
    labels = {"labels": around.labels} if name == "decoupled_kl_divergence" else {}
    expected = masked_mean(getattr(losses, name)(*last, mask=mask, **labels), mask)
    found, gradient = share({"knowledge": "logits", "loss": name}, around)
    torch.testing.assert_close(found, expected)
    assert (gradient.movedim(1, -1)[~mask] == 0).all()


@pytest.mark.parametrize("name", ["channel_kl_divergence", "pairwise_affinity_mse"])
def test_a_loss_of_maps_is_a_mean_over_images_that_show_anything(name):
    around = scene()
    values = getattr(losses, name)(*maps(), mask=around.masks["outputs"])
    found, _ = share({"knowledge": "logits", "loss": name}, around)
    torch.testing.assert_close(found, values[:2].mean())  # the third image is void


def test_a_temperature_that_follows_the_logits_is_one_a_pixel():
    term = {"knowledge": "logits", "temperature": {"schedule": "flow_weighted"}}
    expected, gradient = share(term, scene())
    found, also = share(term | {"loss": "pixel_kl_divergence"}, scene())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(also, gradient)
    with pytest.raises(RecipeError, match="no temperature of pixels fits"):
        share(term | {"loss": "channel_kl_divergence"}, scene())


def test_what_void_pixels_cannot_be_left_out_of_is_refused():
    for kind in ("hidden", "attention", "scores", "values"):
        with pytest.raises(RecipeError, match=f"Void pixels can't be left out of {kind}"):
            Objective([{"knowledge": kind}]).bind(SHAPE, SHAPE, Defaults(maps=True))


def test_weighted_labels_are_torchs_weighted_mean():
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])
    around, (student, _) = scene(weights=weights), maps()
    expected = functional.cross_entropy(student, around.labels, weight=weights, ignore_index=VOID)
    found, _ = share({"knowledge": "labels"}, around)
    torch.testing.assert_close(found, expected)
    plain, _ = share({"knowledge": "labels"}, scene())
    torch.testing.assert_close(plain, functional.cross_entropy(student, around.labels, ignore_index=VOID))
    other, _ = share({"knowledge": "logits"}, around)  # no loss of anything but labels is weighted
    torch.testing.assert_close(other, share({"knowledge": "logits"}, scene())[0])


def test_weights_are_counted_over_the_accumulation_window():
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])
    whole = scene(weights=weights)
    counts = {name: mask.sum() for name, mask in whole.masks.items()}
    expected, gradient = share({"knowledge": "labels"}, whole)
    parts = [
        share({"knowledge": "labels"}, scene(weights=weights, rows=r, counts=counts), r)
        for r in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(total for total, _ in parts), expected)
    torch.testing.assert_close(torch.cat([found for _, found in parts]), gradient)


def test_weights_of_nothing_but_zeros_give_zero():
    found, gradient = share({"knowledge": "labels"}, scene(weights=torch.zeros(V)))
    assert found == 0 and (gradient == 0).all()
