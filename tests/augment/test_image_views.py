"""Views of rows: a function of seed, epoch and row; each part within its bounds; maps beside images."""

import pytest
import torch
from test_points import noise

from potstill.augment.geometry import VOID
from potstill.augment.image import Augmentation, Jitter, RandAugment, ResizedCrop, erased, generator_of
from potstill.augment.rand_augment import OPERATIONS, rand_augment

IMAGE = noise(0, (24, 32))
ALL = Augmentation(
    resized_crop=ResizedCrop((0.3, 1.0)),
    crop=2,
    flip=0.5,
    rand_augment=RandAugment(2, 9),
    jitter=Jitter(0.3, 0.3, 0.3, 0.1),
    erase=0.5,
)


def views(made: Augmentation, number: int, **more: int) -> list[torch.Tensor]:
    return [made.view(IMAGE, row=0, epoch=epoch, **more)[0] for epoch in range(number)]


def test_a_view_is_a_function_of_seed_epoch_and_row() -> None:
    before = torch.get_rng_state()
    one = ALL.view(IMAGE, row=3, epoch=2, seed=1)[0]
    assert torch.equal(one, ALL.view(IMAGE, row=3, epoch=2, seed=1)[0])
    assert torch.equal(before, torch.get_rng_state())
    for other in (
        {"row": 4, "epoch": 2, "seed": 1},
        {"row": 3, "epoch": 3, "seed": 1},
        {"row": 3, "epoch": 2, "seed": 0},
    ):
        found = ALL.view(IMAGE, **other)[0]
        assert found.shape != one.shape or not torch.equal(found, one)
    assert generator_of(1, 2).initial_seed() != generator_of(2, 1).initial_seed()


def test_nothing_asked_changes_nothing() -> None:
    found, label_map = Augmentation().view(IMAGE, row=0, epoch=0)
    assert torch.equal(found, IMAGE) and label_map is None
    assert not Augmentation().mixes and not Augmentation().fixed
    assert Augmentation(views=2).fixed and not Augmentation(views=2, mixup=0.1).fixed
    assert Augmentation(flip=0.5).digest != Augmentation(flip=0.25).digest


def test_flips_by_chance() -> None:
    found = views(Augmentation(flip=0.25), 400)
    flips = [torch.equal(one, IMAGE.flip(-1)) for one in found]
    assert all(flip or torch.equal(one, IMAGE) for flip, one in zip(flips, found, strict=True))
    assert 70 < sum(flips) < 130


def test_a_crop_moves_by_at_most_its_padding() -> None:
    seen = set()
    for one in views(Augmentation(crop=2, fill=0), 300):
        assert one.shape == IMAGE.shape
        fits = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if torch.equal(one[:, 2:-2, 2:-2], IMAGE[:, 2 + y : 22 + y, 2 + x : 30 + x])
        ]
        seen.update(fits)
        assert len(fits) == 1
    assert len(seen) == 25


def test_resized_crops_keep_to_area_and_ratio() -> None:
    areas = []
    for one in views(Augmentation(resized_crop=ResizedCrop((0.2, 0.6), (0.5, 2.0))), 200):
        height, width = one.shape[1:]
        areas.append(height * width / (24 * 32))
        assert 0.45 <= width / height <= 2.2
        place = [
            (y, x)
            for y in range(25 - height)
            for x in range(33 - width)
            if torch.equal(IMAGE[:, y : y + height, x : x + width], one)
        ]
        assert place
    assert 0.17 < min(areas) < 0.3 and 0.5 < max(areas) < 0.66
    sized = Augmentation(resized_crop=ResizedCrop(size=(10, 12)))
    assert {one.shape for one in views(sized, 5)} == {(3, 10, 12)}


def test_a_crop_that_never_fits_is_the_centre() -> None:
    wide = IMAGE[:, :2]  # 2 x 32: no area of 90 % has a ratio of 3/4 to 4/3
    found = Augmentation(resized_crop=ResizedCrop((0.9, 1.0))).view(wide, row=0, epoch=0)[0]
    assert torch.equal(found, wide[:, :, 14:17])


def test_erasing_hides_a_box_and_voids_its_map() -> None:
    label_map = torch.zeros(24, 32, dtype=torch.long)
    seen = 0
    for number in range(100):
        found, void = erased(IMAGE, label_map, generator_of(number))
        assert void is not None
        hidden = void == VOID
        assert torch.equal(found[:, ~hidden], IMAGE[:, ~hidden])
        if hidden.any():
            seen += 1
            rows, columns = hidden.any(1).nonzero(), hidden.any(0).nonzero()
            high, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert high * wide == int(hidden.sum()) and 0.01 < high * wide / 768 < 0.36 and 0.2 < high / wide < 4.5
            assert (found[:, hidden] != IMAGE[:, hidden]).float().mean() > 0.9
    assert seen > 90 and int(label_map.sum()) == 0


def test_fourteen_operations_and_no_effect_at_magnitude_0() -> None:
    assert len(OPERATIONS) == 14
    label_map = torch.arange(24 * 32).reshape(24, 32)
    for name, operation in OPERATIONS.items():
        found, moved = operation(IMAGE, label_map, 0.0, 128)
        if name not in ("autocontrast", "equalize"):
            assert torch.equal(found, IMAGE) and moved is not None and torch.equal(moved, label_map), name
        strong, _ = operation(IMAGE, None, -1.0, 128)
        assert strong.shape == IMAGE.shape and strong.dtype == torch.uint8
        same = torch.equal(strong, IMAGE)
        assert same == (name == "identity") or name in ("autocontrast", "equalize"), name


def test_magnitudes_are_those_of_the_paper() -> None:
    from potstill.augment import geometry, points

    height, width = IMAGE.shape[1:]
    for sign in (1, -1):
        expected = {
            "rotate": geometry.moved(IMAGE, None, geometry.rotation(sign * 15, (height, width)))[0],
            "shear_x": geometry.moved(IMAGE, None, geometry.shear_x(sign * 0.15))[0],
            "translate_y": geometry.moved(IMAGE, None, geometry.translation(0, sign * 75 / 331 * height))[0],
            "color": points.saturation(IMAGE, 1 + sign * 0.45),
            "posterize": points.posterize(IMAGE, 6),
            "solarize": points.solarize(IMAGE, 128),
        }
        for name, image in expected.items():
            assert torch.equal(OPERATIONS[name](IMAGE, None, sign * 0.5, 128)[0], image), name


def test_rand_augment_draws_all_operations_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float]] = []

    def watched(name: str):  # type: ignore[no-untyped-def]
        return lambda image, label_map, level, fill: (drawn.append((name, level)), (image, label_map))[1]

    for name in list(OPERATIONS):
        monkeypatch.setitem(OPERATIONS, name, watched(name))
    generator = generator_of(0)
    for _ in range(700):
        rand_augment(IMAGE, None, 2, 15, generator)
    names = [name for name, _ in drawn]
    assert len(drawn) == 1400 and all(60 < names.count(name) < 145 for name in OPERATIONS)
    assert {level for _, level in drawn} == {0.5, -0.5}


def test_a_map_goes_with_its_image() -> None:
    label_map = torch.arange(24 * 32).reshape(24, 32)
    image = torch.stack([label_map // 256, label_map % 256, torch.zeros_like(label_map)]).to(torch.uint8)
    exact = Augmentation(resized_crop=ResizedCrop((0.3, 1.0)), crop=3, flip=0.5, fill=255)
    for epoch in range(30):
        found, moved = exact.view(image, label_map, row=0, epoch=epoch)
        assert moved is not None
        ids = found[0].long() * 256 + found[1].long()
        assert torch.equal(torch.where(found[2] == 255, VOID, ids), moved)
    for epoch in range(10):
        found, moved = ALL.view(image, label_map, row=0, epoch=epoch)
        assert moved is not None and found.shape[1:] == moved.shape


def test_jitter_stays_within_its_factors() -> None:
    white = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = [
        int(one[0, 0, 0])
        for one in (Augmentation(jitter=Jitter(0.4)).view(white, row=r, epoch=0)[0] for r in range(200))
    ]
    assert 60 <= min(values) < 66 and 134 < max(values) <= 140
    coloured = Augmentation(jitter=Jitter(hue=0.1))
    assert all(torch.equal(coloured.view(white, row=r, epoch=0)[0], white) for r in range(5))
