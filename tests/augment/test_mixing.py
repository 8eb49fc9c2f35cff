"""Mixup and CutMix: images beside a loop, labels in proportion, draws from the right distribution."""

import pytest
import torch

from potstill.augment import mixing
from potstill.augment.image import Augmentation
from potstill.augment.mixing import Box


def images(rows: int = 4, size: tuple[int, int] = (6, 8)) -> torch.Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(0))


def test_mixup_and_cutmix_as_a_loop_has_them() -> None:
    x, order = images(), torch.tensor([2, 0, 3, 1])
    mixed = mixing.mixup(x, order, 0.7)
    where = Box(1, 2, 4, 7)
    cut = mixing.cutmix(x, order, where)
    for row, other in enumerate(order.tolist()):
        torch.testing.assert_close(mixed[row], 0.7 * x[row] + 0.3 * x[other])
        for i in range(6):
            for j in range(8):
                source = other if 1 <= i < 4 and 2 <= j < 7 else row
                assert torch.equal(cut[row, :, i, j], x[source, :, i, j])


def test_labels_in_proportion() -> None:
    order = torch.tensor([1, 0, 2, 0])
    found = mixing.mixed_labels(torch.tensor([0, 2, 1, -100]), order, 0.75, 3)
    assert found[:3].tolist() == [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 1, 0]] and found[3].isnan().all()
    with_unknown = mixing.mixed_labels(torch.tensor([0, -100]), torch.tensor([1, 0]), 0.75, 2)
    assert with_unknown.isnan().all()
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert mixing.mixed_labels(soft, torch.tensor([1, 0]), 0.5, 2).tolist() == [[0.75, 0.25], [0.75, 0.25]]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_beta_has_its_mean_and_variance(alpha: float) -> None:
    generator = torch.Generator().manual_seed(1)
    draws = torch.tensor([mixing.beta(alpha, generator) for _ in range(4000)])
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.07)
    assert draws.min() >= 0 and draws.max() <= 1
    below = float((draws < 0.1).double().mean())  # Beta(0.2, 0.2) has 0.359 of its mass there, Beta(3, 3) 0.009
    assert below == pytest.approx({0.2: 0.359, 1.0: 0.1, 3.0: 0.0086}[alpha], abs=0.025)


def test_small_alphas_give_numbers() -> None:
    generator = torch.Generator().manual_seed(2)
    assert all(0 <= mixing.beta(1e-3, generator) <= 1 for _ in range(200))


def test_boxes_stay_inside_and_have_about_their_area() -> None:
    generator = torch.Generator().manual_seed(3)
    shares = []
    for _ in range(300):
        where = mixing.box(20, 30, 0.75, generator)
        assert 0 <= where.top <= where.bottom <= 20 and 0 <= where.left <= where.right <= 30
        shares.append(where.share(20, 30))
    assert max(shares) == pytest.approx(0.25) and min(shares) < 0.15  # cut off at the edges


def batch() -> dict[str, torch.Tensor]:
    x = images(5, (8, 8))
    bigger = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return {"pixel_values": x, "teacher_pixel_values": bigger, "labels": torch.arange(5), "row": torch.arange(5)}


def test_cutmix_counts_its_box_exactly_and_shows_both_models_the_same() -> None:
    given = batch()
    for epoch in range(20):
        mixed = Augmentation(cutmix=1.0).mix(given, 5, rows=range(5), epoch=epoch)
        changed = (mixed["pixel_values"] != given["pixel_values"]).any(1)
        for row in range(5):
            if changed[row].any():
                assert float(mixed["labels"][row, row]) == pytest.approx(1 - float(changed[row].double().mean()))
        small = mixed["teacher_pixel_values"][:, :, ::2, ::2]
        assert torch.equal(small, mixed["pixel_values"])
        torch.testing.assert_close(mixed["labels"].sum(1), torch.ones(5))
    assert given["labels"].ndim == 1 and torch.equal(given["pixel_values"], batch()["pixel_values"])


def test_mixup_mixes_images_and_labels_by_one_number() -> None:
    given = batch()
    mixed = Augmentation(mixup=1.0).mix(given, 5, rows=range(5), epoch=3)
    by_labels = torch.einsum("bv,vchw->bchw", mixed["labels"], given["pixel_values"])  # row v has class v
    torch.testing.assert_close(by_labels, mixed["pixel_values"])


def test_mixing_is_a_function_of_seed_epoch_and_rows() -> None:
    made = Augmentation(mixup=0.8, cutmix=1.0)
    first = made.mix(batch(), 5, rows=range(5), epoch=1, seed=2)
    assert torch.equal(first["pixel_values"], made.mix(batch(), 5, rows=range(5), epoch=1, seed=2)["pixel_values"])
    for other in ({"epoch": 2, "seed": 2}, {"epoch": 1, "seed": 3}):
        assert not torch.equal(first["pixel_values"], made.mix(batch(), 5, rows=range(5), **other)["pixel_values"])
    cuts = 0
    for epoch in range(40):
        mixed = made.mix(batch(), 5, rows=range(5), epoch=epoch)
        paired = mixed["labels"].diagonal() < 0.99  # the others were drawn beside themselves
        same = (mixed["pixel_values"] == batch()["pixel_values"])[paired]
        cuts += bool(same.float().mean() > 0.01)  # CutMix keeps pixels of a row, mixup none
    assert 8 < cuts < 30
