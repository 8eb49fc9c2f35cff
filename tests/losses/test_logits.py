"""Losses on logits: values by hand, and what would train nothing, or something else, in silence."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from potstill import losses
from potstill.errors import ArgumentError, ShapeError
from potstill.losses import (
    binary_kl_divergence,
    cross_entropy,
    decoupled_kl_divergence,
    dist,
    jensen_shannon,
    kl_divergence,
    logit_mse,
    pseudo_label_cross_entropy,
    reverse_kl_divergence,
    skewed_kl_divergence,
    skewed_reverse_kl_divergence,
    soft_cross_entropy,
    standardised_kl_divergence,
    symmetric_kl_divergence,
    total_variation,
    universal_logit_distance,
)
from potstill.losses.logits import probability_shifted
from potstill.reduce import masked_mean

LABELS = torch.arange(64) % 5


def drawn(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return student, teacher


def gradient(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    student = student.detach().clone().requires_grad_()
    loss(student).sum().backward()
    assert student.grad is not None
    return student.grad


# ---- divergences


def test_kl_by_hand() -> None:
    # p_T = (1/2, 1/2), p_S = (1/4, 3/4): KL = ln 2 - ln(3) / 2
    student, teacher = torch.tensor([0.25, 0.75]).log(), torch.zeros(2)
    assert kl_divergence(student, teacher).item() == pytest.approx(0.143841, abs=1e-6)
    assert kl_divergence(teacher, student).item() == pytest.approx(0.130812, abs=1e-6)
    assert reverse_kl_divergence(student, teacher).item() == pytest.approx(0.130812, abs=1e-6)
    assert symmetric_kl_divergence(student, teacher).item() == pytest.approx((0.143841 + 0.130812) / 2, abs=1e-6)
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(0.143841 + math.log(2), abs=1e-6)
    assert total_variation(student, teacher).item() == pytest.approx(0.25, abs=1e-6)


def test_kl_as_the_common_recipe_computes_it() -> None:
    student, teacher = drawn(6, 4)
    common = 9 * functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(kl_divergence(student, teacher, temperature=3.0).mean(), common)


def test_a_constant_on_the_logits_is_no_difference() -> None:
    _, teacher = drawn(3, 4)
    torch.testing.assert_close(kl_divergence(teacher + 5.0, teacher), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(logit_mse(teacher + 5.0, teacher), torch.full((3,), 25.0).double())


def test_standardised_logits_have_neither_scale_nor_shift() -> None:
    _, teacher = drawn(3, 4)
    values = standardised_kl_divergence(7 * teacher - 2, teacher)
    torch.testing.assert_close(values, torch.zeros(3).double(), atol=1e-6, rtol=0)
    assert (kl_divergence(7 * teacher - 2, teacher) > 0.1).all()


def test_logits_that_are_all_equal_have_a_finite_gradient() -> None:
    _, teacher = drawn(3, 4)
    for loss in (standardised_kl_divergence, dist):
        found = gradient(lambda z, loss=loss: loss(z, teacher), torch.full((3, 4), 0.5).double())
        assert found.isfinite().all()
        # Not blown up either: a student's new head may start there.
        assert found.abs().max() < 1e4


def test_bfloat16_is_softened_in_float32() -> None:
    student, teacher = (5 * torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = kl_divergence(student.double(), teacher.double(), temperature=3.0)
    torch.testing.assert_close(kl_divergence(student, teacher, temperature=3.0).double(), exact, atol=1e-5, rtol=1e-5)


RULED_OUT = pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -math.inf])


@RULED_OUT
@pytest.mark.parametrize(
    "loss",
    [kl_divergence, reverse_kl_divergence, symmetric_kl_divergence, jensen_shannon, skewed_kl_divergence,
     skewed_reverse_kl_divergence, total_variation, soft_cross_entropy, dist, universal_logit_distance],
)  # fmt: skip
def test_a_class_that_both_rule_out_is_no_class(loss: Any, low: float) -> None:
    student, teacher = (x.float() for x in drawn(6, 4))
    ruled_out = functional.pad(student, (0, 1), value=low), functional.pad(teacher, (0, 1), value=low)
    found = gradient(lambda z: loss(z, ruled_out[1]), ruled_out[0])
    assert found.isfinite().all()
    assert (found[:, -1] == 0).all()
    if loss is not dist:  # which sees a class of probability 0 between the others
        torch.testing.assert_close(loss(*ruled_out), loss(student, teacher))


def test_a_model_that_has_gone_wrong_is_not_hidden() -> None:
    _, teacher = drawn(3, 4)
    for wrong in (math.nan, math.inf):
        assert kl_divergence(torch.full((3, 4), wrong).double(), teacher).isnan().all()


def test_one_class_is_refused() -> None:
    one = torch.zeros(4, 1)
    for loss in (kl_divergence, jensen_shannon, standardised_kl_divergence, dist, pseudo_label_cross_entropy):
        with pytest.raises(ShapeError, match=rf"{loss.__name__}.*\(4, 1\).*logit_mse"):
            loss(one, one)
    assert logit_mse(torch.ones(4, 1), one).tolist() == [1.0] * 4
    assert binary_kl_divergence(one, one).tolist() == [0.0] * 4


def test_padded_vocabularies_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 8\).*\(2, 10\).*Cut both"):
        kl_divergence(torch.zeros(2, 8), torch.zeros(2, 10))


# ---- divergences with a bound


def test_bounds_where_nothing_is_in_common() -> None:
    student, teacher = torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4])
    assert kl_divergence(student, teacher).item() == pytest.approx(2e4)
    assert jensen_shannon(student, teacher).item() == pytest.approx(math.log(2))
    assert jensen_shannon(student, teacher, temperature=2.0).item() == pytest.approx(4 * math.log(2))
    assert skewed_kl_divergence(student, teacher).item() == pytest.approx(math.log(10))
    assert skewed_reverse_kl_divergence(student, teacher, alpha=0.25).item() == pytest.approx(math.log(4))
    assert total_variation(student, teacher, temperature=3.0).item() == pytest.approx(3.0)


def test_jensen_shannon_near_its_ends() -> None:
    student, teacher = drawn(6, 5)
    near = jensen_shannon(student, teacher, beta=1e-6) / 1e-6
    torch.testing.assert_close(near, kl_divergence(student, teacher), rtol=1e-4, atol=0)
    near = jensen_shannon(student, teacher, beta=1 - 1e-6) / 1e-6
    torch.testing.assert_close(near, reverse_kl_divergence(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(jensen_shannon(student, teacher), jensen_shannon(teacher, student))


def test_skewed_divergences_near_the_end_where_they_are_one_without() -> None:
    student, teacher = drawn(6, 5)
    near = skewed_kl_divergence(student, teacher, alpha=1e-9)
    torch.testing.assert_close(near, kl_divergence(student, teacher), rtol=1e-6, atol=0)
    near = skewed_reverse_kl_divergence(student, teacher, alpha=1e-9)
    torch.testing.assert_close(near, reverse_kl_divergence(student, teacher), rtol=1e-6, atol=0)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, math.nan])
def test_shares_at_the_ends_are_refused_with_what_to_take(share: float) -> None:
    pair = drawn(2, 5)
    with pytest.raises(ArgumentError, match=r"beta of jensen_shannon.* 0 take kl_divergence.* 1 reverse_kl_divergence"):
        jensen_shannon(*pair, beta=share)
    with pytest.raises(ArgumentError, match=r"alpha of skewed_kl_divergence.*instead of 0 take kl_divergence"):
        skewed_kl_divergence(*pair, alpha=share)
    with pytest.raises(ArgumentError, match=r"alpha of skewed_reverse_kl.*instead of 0 take reverse_kl_divergence"):
        skewed_reverse_kl_divergence(*pair, alpha=share)


# ---- temperatures


# Those that soften distributions. A contrastive loss has one number, and no T^2: it is no softened divergence.
TEMPERED = [
    name
    for name in losses.__all__
    if "temperature" in inspect.signature(getattr(losses, name)).parameters
    and getattr(losses, name).__module__ != "potstill.losses.contrastive"
]
SOFTENED = pytest.mark.parametrize("name", TEMPERED)


def arguments(name: str, rows: int) -> dict[str, Any]:
    return {"labels": LABELS[:rows]} if name == "decoupled_kl_divergence" else {}


def on_rows(name: str, student: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
    """The loss of rows [N, V], which are one image of N pixels to losses on maps."""
    if name in ("pixel_kl_divergence", "channel_kl_divergence"):
        student, teacher = student.T[None, :, None], teacher.T[None, :, None]
    values: Tensor = getattr(losses, name)(student, teacher, **arguments(name, 64), **settings)
    return values


@SOFTENED
def test_temperature_does_not_change_the_size_of_the_gradient(name: str) -> None:
    student, teacher = drawn(64, 5)
    sizes = [gradient(lambda z, t=t: on_rows(name, z, teacher, temperature=t), student).norm() for t in (50.0, 500.0)]
    # Without the factor inside it would be 1/100 (or 1/10), with one too many 100.
    assert (sizes[1] / sizes[0]).item() == pytest.approx(1.0, abs=0.1)


@SOFTENED
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_are_none_raise(name: str, temperature: float) -> None:
    with pytest.raises(ArgumentError, match=f"temperature of {name}"):
        on_rows(name, *drawn(64, 5), temperature=temperature)


@SOFTENED
def test_a_temperature_that_is_not_one_a_position_raises(name: str) -> None:
    with pytest.raises(ShapeError, match=rf"temperature of {name}.*temperature \(3, 2\), positions \("):
        on_rows(name, *drawn(64, 5), temperature=torch.ones(3, 2))


@SOFTENED
def test_one_temperature_a_position_is_that_temperature_there(name: str) -> None:
    student, teacher = drawn(64, 5)
    one = {"pixel_kl_divergence": (1, 1, 64), "channel_kl_divergence": (1,)}.get(name, (64,))
    # In float32, however exact the logits are, and with a gradient that must not be followed.
    temperature = torch.full(one, 2.5, requires_grad=True)
    values = on_rows(name, student.requires_grad_(), teacher, temperature=temperature)
    torch.testing.assert_close(values, on_rows(name, student, teacher, temperature=2.5))
    values.sum().backward()
    assert temperature.grad is None


# ---- decoupled


def test_decoupled_parts_are_the_whole_with_the_weights_that_the_whole_gives_them() -> None:
    student, teacher = drawn(8, 5)
    labels = LABELS[:8]
    right = decoupled_kl_divergence(student, teacher, labels=labels, alpha=1.0, beta=0.0)
    among = decoupled_kl_divergence(student, teacher, labels=labels, alpha=0.0, beta=1.0)
    others = 1 - teacher.softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    torch.testing.assert_close(right + others * among, kl_divergence(student, teacher))


def test_decoupled_among_others_where_the_teacher_is_sure() -> None:
    # 1 - p is 0 in float32, and the other classes' shares are still compared.
    teacher = torch.tensor([[60.0, 1.0, 0.0]])
    student = torch.tensor([[60.0, 0.0, 1.0]])
    others = kl_divergence(student[:, 1:], teacher[:, 1:])
    found = decoupled_kl_divergence(student, teacher, labels=torch.tensor([0]), alpha=0.0, beta=1.0)
    torch.testing.assert_close(found, others)
    assert kl_divergence(student, teacher).item() < 1e-6


def test_decoupled_without_a_label_is_nothing() -> None:
    student, teacher = drawn(4, 5)
    labels = torch.tensor([0, -100, 2, -100])
    for mask in (None, torch.tensor([True, True, False, False])):
        values = decoupled_kl_divergence(student, teacher, labels=labels, mask=mask)
        counts = (labels != -100) if mask is None else (labels != -100) & mask
        assert (values != 0).tolist() == counts.tolist()
        found = gradient(lambda z, m=mask: decoupled_kl_divergence(z, teacher, labels=labels, mask=m), student)
        assert (found[~counts] == 0).all()
    with pytest.raises(ShapeError, match=r"\(4, 5\).*\(2,\)"):
        decoupled_kl_divergence(student, teacher, labels=labels[:2])


# ---- correlation


def test_dist_is_blind_to_shift_and_scale_of_probabilities() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]).double()
    flatter = 0.5 * p + 0.5 / 3
    torch.testing.assert_close(dist(flatter.log(), p.log()), torch.zeros(3).double(), atol=1e-12, rtol=0)
    opposite = (2 / 3 - p).log()
    torch.testing.assert_close(dist(opposite, p.log(), gamma=0.5), torch.full((3,), 3.0).double())


def test_dist_gives_every_row_the_part_of_the_batch() -> None:
    student, teacher = drawn(6, 5)
    mask = torch.tensor([1, 1, 1, 1, 0, 0])
    within = dist(student, teacher, mask=mask, beta=0.0)
    assert within[0] > 0
    assert within.tolist() == [within[0].item()] * 4 + [0.0] * 2
    torch.testing.assert_close(within[:4], dist(student[:4], teacher[:4], beta=0.0))
    between = dist(student, teacher, mask=mask, gamma=0.0)
    torch.testing.assert_close(between[:1], dist(student[:1], teacher[:1], gamma=0.0))


def test_dist_of_what_does_not_vary() -> None:
    student, teacher = (x.float() for x in drawn(1, 5))
    # One row: no class varies over rows, so there is nothing to match, in either direction.
    assert dist(student, teacher, beta=0.0).tolist() == [0.0]
    assert dist(student, torch.full((1, 5), 3.0), gamma=0.0).tolist() == [0.0]
    assert dist(torch.full((1, 5), 3.0), teacher, gamma=0.0).tolist() == [1.0]
    for pair in ((student, teacher), (student, torch.zeros(1, 5)), (torch.zeros(1, 5), teacher)):
        assert gradient(lambda z, t=pair[1]: dist(z, t), pair[0]).isfinite().all()


def test_dist_of_what_varies_by_rounding_only() -> None:
    # The same prediction for every row: no mean of seven equal numbers is exactly that number.
    one, teacher = (x.float() for x in drawn(7, 50))
    student = one[:1].expand(7, 50).contiguous()
    torch.testing.assert_close(dist(student, teacher, beta=0.0), torch.ones(7))
    assert (gradient(lambda z: dist(z, teacher, beta=0.0), student) == 0).all()


# ---- sorted, pseudo-labels, scaled, shifted


def test_universal_distance_by_hand() -> None:
    # Sorted: (3/4, 1/4, 0) and (1/2, 1/4, 1/4), whichever classes they are.
    student, teacher = torch.tensor([0.25, 0.75]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    assert universal_logit_distance(student, teacher).item() == pytest.approx(0.5, abs=1e-6)
    assert universal_logit_distance(teacher, student).item() == pytest.approx(0.5, abs=1e-6)


def test_pseudo_labels_are_the_teachers_choice() -> None:
    student, teacher = drawn(16, 5)
    hard = cross_entropy(student, teacher.argmax(-1))
    torch.testing.assert_close(pseudo_label_cross_entropy(student, teacher), hard)


def test_pseudo_labels_below_the_confidence_are_nothing_but_count() -> None:
    student, teacher = drawn(16, 5)
    sure = teacher.softmax(-1).amax(-1) >= 0.5
    assert 0 < sure.sum() < 16
    values = pseudo_label_cross_entropy(student, teacher, confidence=0.5)
    assert (values != 0).tolist() == sure.tolist()
    torch.testing.assert_close(values[sure], pseudo_label_cross_entropy(student, teacher)[sure])
    torch.testing.assert_close(masked_mean(values), values.sum() / 16)
    found = gradient(lambda z: pseudo_label_cross_entropy(z, teacher, confidence=0.5), student)
    assert (found[~sure] == 0).all()
    for confidence in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match="confidence"):
            pseudo_label_cross_entropy(student, teacher, confidence=confidence)


def test_the_teachers_logits_are_scaled_before_the_difference() -> None:
    student, teacher = drawn(4, 5)
    torch.testing.assert_close(logit_mse(student, teacher, teacher_scale=0.25), logit_mse(student, 0.25 * teacher))
    torch.testing.assert_close(logit_mse(student, teacher, teacher_scale=0), student.square().mean(-1))
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="teacher_scale"):
            logit_mse(student, teacher, teacher_scale=scale)


def test_shifted_where_the_teacher_errs() -> None:
    teacher = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    before = teacher.clone()
    shifted = probability_shifted(teacher, torch.tensor([0, 1, -100]))
    assert shifted.tolist() == [[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]
    assert torch.equal(teacher, before)
    with pytest.raises(ShapeError, match=r"\(3, 3\).*\(2,\)"):
        probability_shifted(teacher, torch.tensor([0, 1]))
