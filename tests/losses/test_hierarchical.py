"""The hierarchical loss on maps: a naive loop over parts of a map, void pixels among them."""

import pytest
import torch
from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses import hcl, hidden_mse
from potstill.reduce import masked_mean

H, W = 8, 12


def drawn() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, 2, 3, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return student, teacher


def naive(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    """Of one image: parts of the map one by one, each the mean over its pixels that count."""

    def level(rows: int, columns: int) -> float:
        squares = []
        for i in range(rows):
            for j in range(columns):
                part = (slice(i * H // rows, (i + 1) * H // rows), slice(j * W // columns, (j + 1) * W // columns))
                if mask[part].any():
                    means = [x[:, *part][:, mask[part]].mean(1) for x in (student, teacher)]
                    squares.append((means[0] - means[1]).square().mean().item())
        return sum(squares) / len(squares)

    return (level(H, W) + level(4, 4) / 2 + level(2, 2) / 4 + level(1, 1) / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)


def test_is_the_mean_square_at_several_sizes() -> None:
    student, teacher = drawn()
    everywhere = torch.ones(H, W, dtype=torch.bool)
    expected = [naive(*images, everywhere) for images in zip(student, teacher, strict=True)]
    assert hcl(student, teacher).tolist() == pytest.approx(expected)


def test_void_pixels_are_in_no_part() -> None:
    student, teacher = drawn()
    mask = torch.rand(2, H, W, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0, :4, :6] = False  # a whole part
    mask[1] = False
    expected = naive(student[0], teacher[0], mask[0])
    student = student.masked_fill(~mask.unsqueeze(1), torch.nan).requires_grad_()
    values = hcl(student, teacher, mask=mask)
    assert values.tolist() == pytest.approx([expected, 0])
    masked_mean(values, mask.flatten(1).any(1)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad.movedim(1, -1)[~mask] == 0).all()
    assert student.grad.abs().max() > 0


def test_sees_what_is_wrong_on_the_whole_more_than_what_is_wrong_by_pixel() -> None:
    teacher = torch.zeros(1, 1, 8, 8)
    checked = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    wrong, shifted = teacher + checked, teacher + 1
    pixels = [hidden_mse(x.movedim(1, -1), teacher.movedim(1, -1)).mean() for x in (wrong, shifted)]
    assert pixels[0] == pixels[1] == 1
    assert hcl(wrong, teacher).item() == pytest.approx(8 / 15)
    assert hcl(shifted, teacher).item() == pytest.approx(1)


def test_maps_of_different_size_are_refused() -> None:
    student, teacher = drawn()
    with pytest.raises(ShapeError, match=r"hcl compares.*\(2, 3, 8, 12\).*\(2, 3, 4, 12\)"):
        hcl(student, teacher[:, :, :4])
