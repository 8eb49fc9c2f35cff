"""Losses on maps: void pixels, and what each of them sees."""

import pytest
import torch
from torch import Tensor

from potstill.errors import ArgumentError, ShapeError
from potstill.losses import channel_kl_divergence, kl_divergence, pairwise_affinity_mse, pixel_kl_divergence
from potstill.reduce import masked_mean


def drawn() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return student, teacher


def test_pixels_are_the_positions_of_a_divergence() -> None:
    student, teacher = drawn()
    values = pixel_kl_divergence(student, teacher, temperature=2.0)
    assert values.shape == (2, 4, 5)
    rows = (x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (student, teacher))
    torch.testing.assert_close(values.flatten(), kl_divergence(*rows, temperature=2.0))


def test_each_sees_what_the_other_does_not() -> None:
    student, _ = drawn()
    by_pixel, by_channel = torch.randn(2, 1, 4, 5).double(), torch.randn(1, 3, 1, 1).double()
    zeros = torch.zeros(2, 4, 5).double()
    torch.testing.assert_close(pixel_kl_divergence(student + by_pixel, student), zeros, atol=1e-12, rtol=0)
    assert (channel_kl_divergence(student + by_pixel, student) > 0.01).all()
    torch.testing.assert_close(channel_kl_divergence(student + by_channel, student), zeros[:, 0, 0], atol=1e-12, rtol=0)
    assert (pixel_kl_divergence(student + by_channel, student) > 0).all()


def test_void_pixels_are_left_out_of_the_channels_softmax() -> None:
    student, teacher = drawn()
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0, :2] = True  # the second row has no pixel at all
    student[0, :, 2:], teacher[0, :, 2:], student[1] = 1e3, -1e3, torch.nan
    student.requires_grad_()
    values = channel_kl_divergence(student, teacher, mask=mask)
    torch.testing.assert_close(values[:1], channel_kl_divergence(student[:1, :, :2], teacher[:1, :, :2]))
    assert values[1] == 0
    masked_mean(values, mask.flatten(1).any(1)).backward()
    assert student.grad is not None
    assert (student.grad.movedim(1, -1)[~mask] == 0).all()
    assert student.grad.abs().max() > 0


def test_one_temperature_a_row_of_maps() -> None:
    student, teacher = drawn()
    found = channel_kl_divergence(student, teacher, temperature=torch.tensor([1.0, 4.0]))
    alone = [channel_kl_divergence(student, teacher, temperature=t)[i] for i, t in enumerate((1.0, 4.0))]
    torch.testing.assert_close(found, torch.stack(alone))


def test_maps_of_different_size_say_what_to_do() -> None:
    student, teacher = drawn()
    for loss in (pixel_kl_divergence, channel_kl_divergence):
        with pytest.raises(ShapeError, match=r"\(2, 3, 4, 5\).*\(2, 3, 2, 5\).*Resize"):
            loss(student, teacher[:, :, :2])
    with pytest.raises(ShapeError, match=r"pixel_kl_divergence compares.*two classes"):
        pixel_kl_divergence(student[:, :1], teacher[:, :1])
    with pytest.raises(ShapeError, match=r"channel_kl_divergence.*one pixel"):
        channel_kl_divergence(student[:, :, :1, :1], teacher[:, :, :1, :1])


def affinity(student: Tensor, teacher: Tensor, mask: Tensor, patch: int) -> float:
    """The pairwise loss of one image [C, H, W], by a loop over parts and pairs."""
    sides = [range(0, size, patch) for size in mask.shape]
    parts = [(slice(y, y + patch), slice(x, x + patch)) for y in sides[0] for x in sides[1]]
    nodes = [[x[:, p, q][:, mask[p, q]].mean(1) for p, q in parts if mask[p, q].any()] for x in (student, teacher)]
    alike = [[torch.cosine_similarity(a, b, dim=0) for a in own for b in own] for own in nodes]
    return torch.stack([(s - t) ** 2 for s, t in zip(*alike, strict=True)]).mean().item()


@pytest.mark.parametrize("patch", [1, 2, 3, 9])
def test_affinities_are_of_parts_of_a_map_in_two_directions(patch: int) -> None:
    student, teacher = drawn()
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1, :2, :2] = False  # a node without a pixel
    for valid in (mask, torch.ones_like(mask)):
        values = pairwise_affinity_mse(student, teacher, mask=valid, patch=patch)
        for b in range(2):
            assert values[b].item() == pytest.approx(affinity(student[b], teacher[b], valid[b], patch), abs=1e-12)


def test_affinities_do_not_see_lengths_and_turns() -> None:
    student, _ = drawn()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()).Q
    lengths = torch.rand(2, 1, 4, 5).double() + 0.5
    other = torch.einsum("bchw,dc->bdhw", student * lengths, turn)
    values = pairwise_affinity_mse(other, student, patch=1)
    torch.testing.assert_close(values, torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_affinities_that_mean_nothing_are_refused() -> None:
    student, teacher = drawn()
    with pytest.raises(ShapeError, match=r"\(2, 1, 4, 5\).*single channel"):
        pairwise_affinity_mse(student[:, :1], teacher)
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 5\).*\(2, 3, 2, 5\).*Resize"):
        pairwise_affinity_mse(student, teacher[:, :, :2])
    for patch in (0, True):
        with pytest.raises(ArgumentError, match=f"patch of pairwise_affinity_mse .* Got: {patch}"):
            pairwise_affinity_mse(student, teacher, patch=patch)
