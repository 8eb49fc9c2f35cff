"""Losses on logits: published values, and what would train nothing in silence."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from potstill.errors import ArgumentError, ShapeError
from potstill.losses import binary_kl_divergence, kl_divergence, logit_mse


def test_kl_by_hand() -> None:
    # p_T = (1/2, 1/2), p_S = (1/4, 3/4): KL = ln 2 - ln(3) / 2
    student, teacher = torch.tensor([0.25, 0.75]).log(), torch.zeros(2)
    assert kl_divergence(student, teacher).item() == pytest.approx(0.143841, abs=1e-6)
    assert kl_divergence(teacher, student).item() == pytest.approx(0.130812, abs=1e-6)


def test_kl_as_the_common_recipe_computes_it() -> None:
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    common = 9 * functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(kl_divergence(student, teacher, temperature=3.0).mean(), common)


def test_a_constant_on_the_logits_is_no_difference() -> None:
    teacher = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kl_divergence(teacher + 5.0, teacher), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(logit_mse(teacher + 5.0, teacher), torch.full((3,), 25.0))


def test_bfloat16_is_softened_in_float32() -> None:
    student, teacher = (5 * torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = kl_divergence(student.double(), teacher.double(), temperature=3.0)
    torch.testing.assert_close(kl_divergence(student, teacher, temperature=3.0).double(), exact, atol=1e-5, rtol=1e-5)


def test_one_class_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 1\).*logit_mse"):
        kl_divergence(torch.zeros(4, 1), torch.zeros(4, 1))
    assert logit_mse(torch.ones(4, 1), torch.zeros(4, 1)).tolist() == [1.0] * 4
    assert binary_kl_divergence(torch.zeros(4, 1), torch.zeros(4, 1)).tolist() == [0.0] * 4


def test_padded_vocabularies_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 8\).*\(2, 10\).*Cut both"):
        kl_divergence(torch.zeros(2, 8), torch.zeros(2, 10))


SOFTENED = pytest.mark.parametrize("loss", [kl_divergence, binary_kl_divergence])


@SOFTENED
def test_temperature_does_not_change_the_size_of_the_gradient(loss: Any) -> None:
    teacher = 0.1 * torch.randn(64, 5, generator=torch.Generator().manual_seed(0))

    def gradient(temperature: float) -> float:
        student = torch.zeros_like(teacher, requires_grad=True)
        loss(student, teacher, temperature=temperature).sum().backward()
        assert student.grad is not None
        return student.grad.norm().item()

    # Without T^2 inside it would be near 1/64.
    assert gradient(8.0) / gradient(1.0) == pytest.approx(1.0, abs=0.05)


@SOFTENED
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_are_none_raise(loss: Any, temperature: float) -> None:
    with pytest.raises(ArgumentError, match="temperature"):
        loss(torch.zeros(2, 5), torch.zeros(2, 5), temperature=temperature)
