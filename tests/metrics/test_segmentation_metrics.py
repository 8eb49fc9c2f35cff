"""Metrics of segmentation from counts of pixels, against scikit-learn and naive loops over all pixels."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from potstill.errors import DataError, ShapeError
from potstill.evaluation.significance import bootstrap, interval
from potstill.metrics import METRICS, PROBLEMS, keys, primary, score, scores, statistic
from potstill.metrics.segmentation import VOID, edge_bands, image_iou, per_class, pixel_counts

V, H, W = 4, 17, 23


def maps(images=6, seed=0, wrong=0.3):
    """Blocky labels with some void, and predictions that are wrong in places: [N, H, W] both."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, V, size=(images, 4, 5))
    labels = coarse.repeat(5, axis=1).repeat(5, axis=2)[:, :H, :W]
    predicted = np.where(generator.random(labels.shape) < wrong, generator.integers(0, V, labels.shape), labels)
    return predicted, np.where(generator.random(labels.shape) < 0.05, VOID, labels)


def counted(predicted, labels, classes=V):
    """Counts, and the true pixels of each class in each image."""
    counts = pixel_counts(predicted, labels, classes)
    return counts, counts[:, :, :classes].sum(2)


def naive_band(mask, known, distance):
    """Mask minus its erosion by a 3 x 3 square, as many times; the outside of the image is outside, void is inside."""
    inside = np.pad(mask | ~known, 1)  # False around
    for _ in range(distance):
        shifted = [np.roll(inside, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        inside = np.logical_and.reduce(shifted)
        inside[[0, -1]] = inside[:, [0, -1]] = False
    return mask & ~inside[1:-1, 1:-1]


def naive_boundary_iou(predicted, labels, classes=V):
    distance = max(1, round(0.02 * math.hypot(*labels.shape[1:])))
    found = []
    for k in range(classes):
        above = below = 0
        for said, true in zip(predicted, labels, strict=True):
            known = true != VOID
            ours, theirs = (naive_band((x == k) & known, known, distance) for x in (said, true))
            above, below = above + (ours & theirs).sum(), below + (ours | theirs).sum()
        if below:
            found.append(above / below)
    return sum(found) / len(found)


def reference(key, predicted, labels):
    known = labels != VOID
    true, said = labels[known], predicted[known]
    return {
        "mean_iou": lambda: sk.jaccard_score(true, said, average="macro", labels=np.union1d(true, said)),
        "pixel_accuracy": lambda: sk.accuracy_score(true, said),
        "mean_accuracy": lambda: sk.recall_score(true, said, average="macro", labels=np.unique(true)),
        "boundary_iou": lambda: naive_boundary_iou(predicted, labels),
    }[key.removesuffix("_quarter")]()


EVERY = [(problem, key) for problem in ("segmentation", "segmentation_quarter") for key in PROBLEMS[problem]]


@pytest.mark.parametrize(("problem", "key"), EVERY)
def test_a_metric_is_that_of_all_pixels(problem, key):
    for seed in range(3):
        predicted, labels = maps(seed=seed)
        assert score(key, problem, *counted(predicted, labels)) == pytest.approx(reference(key, predicted, labels))


@pytest.mark.parametrize(("problem", "key"), EVERY)
def test_weights_are_the_metric_of_the_images_drawn(problem, key):
    predicted, labels = maps()
    labels[labels == 3] = 0
    labels[0, :3, :3] = predicted[0, :3, :3] = 3  # a class of one image
    draws = np.random.default_rng(1).integers(0, len(labels), size=(8, len(labels)))
    weights = np.stack([np.bincount(draw, minlength=len(labels)) for draw in draws]).astype(float)
    assert (weights[:, 0] == 0).any()
    expected = [reference(key, predicted[draw], labels[draw]) for draw in draws]
    np.testing.assert_allclose(statistic(key, problem, *counted(predicted, labels))(weights), expected)


@pytest.mark.parametrize("size", [(9, 9), (60, 80), (5, 200)])
def test_bands_are_masks_minus_their_erosion(size):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (-(-size[0] // 4), -(-size[1] // 4))).repeat(4, 0).repeat(4, 1)
    labels = labels[: size[0], : size[1]].copy()
    labels[2:4, 3:7] = VOID
    known, distance = labels != VOID, max(1, round(0.02 * math.hypot(*size)))
    expected = np.logical_or.reduce([naive_band(labels == k, known, distance) for k in range(3)])
    np.testing.assert_array_equal(edge_bands(labels), expected)


def test_void_makes_no_edge_and_the_end_of_the_image_does():
    labels = np.zeros((100, 100), dtype=int)
    labels[40:60, 40:60] = VOID
    band = edge_bands(labels)  # 3 pixels
    assert band[:3].all() and band[:, -3:].all() and not band[3:-3, 3:-3].any()
    labels[40:60, 40:60] = 1
    assert edge_bands(labels)[37:63, 37:63].any()


def test_what_is_predicted_on_void_changes_nothing():
    predicted, labels = maps()
    elsewhere = np.where(labels == VOID, (predicted + 1) % V, predicted)
    assert (elsewhere != predicted).any()
    np.testing.assert_array_equal(pixel_counts(elsewhere, labels, V), pixel_counts(predicted, labels, V))


def test_batches_are_counted_as_one():
    predicted, labels = maps()
    parts = [pixel_counts(predicted[k : k + 2], labels[k : k + 2], V) for k in (0, 2, 4)]
    whole = pixel_counts(predicted, labels, V)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (6, V, V + 3) and whole.dtype == np.int32


def test_classes_that_do_not_occur():
    labels = np.zeros((2, 8, 8), dtype=int)
    labels[:, :4] = 1
    predicted = labels.copy()
    of = scores("segmentation", *counted(predicted, labels))
    assert of == dict.fromkeys(keys("segmentation"), 1.0)  # classes 2 and 3 are nowhere, and left out
    predicted[0, 0, 0] = 2  # now class 2 is predicted: its IoU is 0 and counts, its accuracy doesn't exist
    of = scores("segmentation", *counted(predicted, labels))
    assert of["mean_iou"] == pytest.approx((1 + 63 / 64 + 0) / 3)
    assert of["mean_accuracy"] == pytest.approx((1 + 63 / 64) / 2)
    rows = per_class(*counted(predicted, labels), ["a", "b", "c", "d"])
    assert rows[3] == {"class": "d", "iou": None, "accuracy": None, "boundary_iou": None, "support": 0}
    assert rows[2] == {"class": "c", "iou": 0.0, "accuracy": None, "boundary_iou": 0.0, "support": 0}
    assert rows[1]["iou"] == pytest.approx(63 / 64) and rows[1]["support"] == 64
    nothing = counted(predicted, np.full_like(labels, VOID))
    assert scores("segmentation", *nothing) == dict.fromkeys(keys("segmentation"), 0.0)


def test_the_mean_of_each_image_orders_images():
    predicted, labels = maps()
    predicted[2] = np.where(labels[2] == VOID, 0, labels[2])
    found = image_iou(*counted(predicted, labels))
    assert found.argmax() == 2 and found[2] == 1.0
    for k in (0, 5):
        assert found[k] == pytest.approx(reference("mean_iou", predicted[k : k + 1], labels[k : k + 1]))


def test_intervals_draw_images_in_pairs():
    predicted, labels = maps(images=30)
    worse, _ = maps(images=30, wrong=0.6)
    good, truth = counted(predicted, labels)
    bad, _ = counted(worse, labels)
    alone = interval("mean_iou", "segmentation", good, truth, resamples=200)
    assert alone.interval[0] < alone.mean < alone.interval[1] <= 1
    assert alone.mean == pytest.approx(reference("mean_iou", predicted, labels))
    made = bootstrap("mean_iou", "segmentation", [good, good], [bad, bad], truth, resamples=200)
    assert 0 < made.interval[0] < made.difference == pytest.approx(alone.mean - reference("mean_iou", worse, labels))


def test_quarter_resolution_has_names_of_its_own():
    assert primary("segmentation_quarter") == "mean_iou_quarter"
    assert all("1/4 resolution" in METRICS[key].name for key in keys("segmentation_quarter"))
    assert not any("1/4" in METRICS[key].name for key in keys("segmentation"))


def test_bad_input_is_refused():
    predicted, labels = maps()
    with pytest.raises(ShapeError, match=r"logits \(6, 17, 23\), labels \(6, 17, 20\)"):
        pixel_counts(predicted, labels[:, :, :20], V)
    with pytest.raises(DataError, match=r"Predictions are class numbers from 0 to 2\. Got: 0 to 3"):
        pixel_counts(predicted, labels, 3)
    with pytest.raises(DataError, match=r"Labels are class numbers from 0 to 3\. Got: 0 to 7"):
        pixel_counts(predicted, np.where(labels == 2, 7, labels), V)
    counts, truth = counted(predicted, labels)
    with pytest.raises(ShapeError, match=r"logits \(6, 4, 7\), labels \(6, 5\)"):
        scores("segmentation", counts, np.zeros((6, 5)))
    with pytest.raises(DataError, match="at least one row"):
        scores("segmentation", counts[:0], truth[:0])
    truth[4, 1] += 1
    for key in keys("segmentation"):
        with pytest.raises(DataError, match=r"other pixels than the labels have\. Got: 1 of 6 images, first image 4"):
            score(key, "segmentation", counts, truth)
