"""Segmentation metrics, each as a function of image weights (why: `potstill.metrics`), from counts of pixels an image.

Decisions held here:

* No metric sees pixels. One pass over batches counts each image's pixels (`pixel_counts`): an image of any size is
  then V x (V + 3) whole numbers, and every metric, of all images or of a resample of them, is exact from these. So
  the bootstrap resamples images, which are drawn on their own, and not pixels, which are not.
* Void pixels (-100) are in no count, whatever was predicted there.
* A class's IoU is of all images together, as published tables have it, and not a mean over images. A class that
  occurs neither in the truth nor in the predictions has none, and is left out of the mean; one that is only predicted
  has 0. The mean of accuracies is over the classes that occur in the truth. In a resample both are decided anew.
* Boundary IoU compares the bands along the edges: a pixel is in the band of its class where a pixel of another class,
  or the end of the image, is within the distance (rows and columns, the larger of the two). That is the mask minus its
  erosion by a 3 x 3 square as many times, which is how the publication has it. What void hides is unknown, so no edge
  is seen there: void is never the other class.
* The quarter protocol has the same metrics under other names (`mean_iou_quarter`), so that no number of it can be shown
  or compared as one at full resolution.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from potstill.checks import problem as message
from potstill.errors import DataError, ShapeError
from potstill.metrics.rows import Array, Statistic, ratio, shapes

VOID = -100
BOUNDARY = 0.02
"""The width of the band along an edge, as a share of the image's diagonal."""
BANDS = 3
"""Columns of counts beside the V of the confusion: the band of the truth, of the predictions, and both."""
QUARTER = "_quarter"


def pixel_counts(predicted: Array, labels: Array, classes: int, *, edges: bool = True) -> Array:
    """What all metrics need of a batch of images: [B, V, V + 3] int32.

    Args:
        predicted: class numbers, [B, H, W].
        labels: class numbers, [B, H, W]; -100 where a pixel is void.
        classes: V.
        edges: whether to count the bands along edges too, which is most of the work; else they are 0.

    Returns:
        For each image and true class k (rows): how many of its pixels were predicted as each class (columns 0 … V - 1);
        then, for class k, the pixels in the band along its edge in the truth, in the predictions, and in both.

    Raises:
        ShapeError: shapes that differ.
        DataError: numbers that are no class's.

    References:
        Cheng, Girshick, Dollár, Berg, Kirillov: Boundary IoU: Improving Object-Centric Image Segmentation Evaluation,
        2021, https://arxiv.org/abs/2103.16562
    """
    if predicted.shape != labels.shape or labels.ndim != 3:
        raise ShapeError(
            message("Predictions and labels are maps [B, H, W] of one size", given=shapes(predicted, labels))
        )
    for what, numbers in (("Predictions", predicted), ("Labels", labels[labels != VOID])):
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
            given = f"{numbers.min()} to {numbers.max()}"
            raise DataError(message(f"{what} are class numbers from 0 to {classes - 1}", given=given))
    return np.stack([_image_counts(said, true, classes, edges) for said, true in zip(predicted, labels, strict=True)])


def _image_counts(predicted: Array, labels: Array, classes: int, edges: bool) -> Array:
    """[V, V + 3] of one image [H, W]: one pass over its pixels, each of which is a number out of V x V x 4."""
    known = labels != VOID
    bands = 2 * edge_bands(labels) + edge_bands(np.where(known, predicted, VOID)) if edges else 0
    pairs = labels.astype(np.int64) * classes + predicted
    numbers = np.where(known, 4 * pairs + bands, 4 * classes**2)
    found = np.bincount(numbers.ravel(), minlength=4 * classes**2 + 1)[:-1].reshape(classes, classes, 2, 2)
    true, said, both = found[:, :, 1].sum(axis=(1, 2)), found[:, :, :, 1].sum(axis=(0, 2)), found[:, :, 1, 1].diagonal()
    return np.concatenate([found.sum(axis=(2, 3)), np.stack([true, said, both], axis=1)], axis=1).astype(np.int32)


def edge_bands(labels: Array, share: float = BOUNDARY) -> Array:
    """Which pixels of a map [H, W] lie along the edge of their class, within a share of the diagonal: [H, W] booleans.

    The distance is rounded to whole pixels, and at least 1. Void pixels (-100) are in no band and make no edge.
    """
    distance = max(1, round(share * math.hypot(*labels.shape)))
    size, void = 2 * distance + 1, labels == VOID
    labels = labels.astype(np.int32)  # of half the width, and so faster
    beyond = int(labels.max()) + 1  # the end of the image is another class
    low, high = np.where(void, beyond, labels), np.where(void, -1, labels)
    most = ndimage.maximum_filter(high, size=size, mode="constant", cval=beyond)
    least = ndimage.minimum_filter(low, size=size, mode="constant", cval=beyond)
    return np.asarray(~void & ((most != labels) | (least != labels)))


def mean_iou(counts: Array, labels: Array) -> Statistic:
    """The mean over classes of IoU = TP / (true + predicted - TP), classes that occur nowhere left out."""
    return _mean_over_classes(*_overlaps(counts, labels))


def pixel_accuracy(counts: Array, labels: Array) -> Statistic:
    """The share of pixels that are given their class; void ones aside. 0 without any pixel."""
    confusion = _confusions(counts, labels)
    hits, pixels = np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2))
    return lambda weights: ratio(weights @ hits, weights @ pixels)


def mean_accuracy(counts: Array, labels: Array) -> Statistic:
    """The mean over classes of the share of their pixels that are found, classes without a true pixel left out."""
    confusion = _confusions(counts, labels)
    return _mean_over_classes(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2))


def boundary_iou(counts: Array, labels: Array) -> Statistic:
    """The mean over classes of the IoU of the bands along their edges, classes without any band left out.

    Prefer it to mean IoU where edges matter: a large mask hides a bad edge in its inside.
    """
    checked_counts(counts, labels)
    return _mean_over_classes(*_band_overlaps(counts))


FULL: dict[str, Callable[[Array, Array], Statistic]] = {
    "mean_iou": mean_iou,
    "pixel_accuracy": pixel_accuracy,
    "mean_accuracy": mean_accuracy,
    "boundary_iou": boundary_iou,
}
AT_A_QUARTER = {f"{key}{QUARTER}": function for key, function in FULL.items()}


def per_class(counts: Array, labels: Array, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """IoU, accuracy, boundary IoU and support (true pixels) of every class, over all images.

    None where there is nothing to divide by, which the means leave out too: a class that occurs neither in maps nor in
    predictions has no IoU, one without a true pixel no accuracy. `names` are the V class names; without them a class
    is called by its number.
    """
    every = np.ones(len(counts))
    confusion = np.tensordot(every, _confusions(counts, labels), axes=1)
    hits, true = np.diagonal(confusion), confusion.sum(axis=1)
    both, either = (np.tensordot(every, found, axes=1) for found in _band_overlaps(counts))
    shares = {
        "iou": (hits, true + confusion.sum(axis=0) - hits),
        "accuracy": (hits, true),
        "boundary_iou": (both, either),
    }
    columns = {key: np.where(below > 0, ratio(above, below), np.nan) for key, (above, below) in shares.items()}
    called = names if names is not None else [str(k) for k in range(len(hits))]
    return [
        {
            "class": name,
            **{key: None if np.isnan(column[k]) else float(column[k]) for key, column in columns.items()},
            "support": int(true[k]),
        }
        for k, name in enumerate(called)
    ]


def confusion(counts: Array, labels: Array) -> list[list[int]]:
    """The V x V counts of pixels of all images: rows are the truth, columns the predictions."""
    total = checked_counts(counts, labels)[:, :, : labels.shape[1]].sum(axis=0, dtype=np.int64)
    return [[int(count) for count in row] for row in total]


def image_iou(counts: Array, labels: Array) -> Array:
    """The mean IoU of each image on its own, [N]: what orders images from best to worst; 0 where all is void."""
    hits, union = _overlaps(counts, labels)
    return ratio(ratio(hits, union).sum(axis=1), (union > 0).sum(axis=1))


def checked_counts(counts: Array, labels: Array) -> Array:
    """The counts [N, V, V + 3], if they are of images that have so many true pixels of each class, [N, V].

    Raises:
        ShapeError: shapes that don't fit.
        DataError: no image, or other pixels than the labels have: the models saw other images, or other void.
    """
    if counts.ndim != 3 or labels.ndim != 2 or counts.shape != (*labels.shape, labels.shape[1] + BANDS):
        raise ShapeError(
            message("Segmentation metrics take counts [N, V, V + 3] and labels [N, V]", given=shapes(counts, labels))
        )
    if len(counts) == 0:
        raise DataError(message("A metric needs at least one row", given="0 images"))
    differing = (counts[:, :, : labels.shape[1]].sum(axis=2) != labels).any(axis=1)
    if differing.any():
        raise DataError(
            message(
                "Counts of predictions cover other pixels than the labels have",
                given=f"{int(differing.sum())} of {len(counts)} images, first image {int(differing.argmax())}",
                follows="The models would be compared on different pixels",
                do="Predict with the same data, protocol and void ids",
            )
        )
    return counts


def _confusions(counts: Array, labels: Array) -> Array:
    """[N, V, V], rows the truth."""
    return checked_counts(counts, labels)[:, :, : labels.shape[1]].astype(np.float64)


def _overlaps(counts: Array, labels: Array) -> tuple[Array, Array]:
    """Intersection and union of each class in each image, [N, V] both."""
    confusion = _confusions(counts, labels)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return hits, confusion.sum(axis=1) + confusion.sum(axis=2) - hits


def _band_overlaps(counts: Array) -> tuple[Array, Array]:
    """Intersection and union of each class's bands in each image, [N, V] both."""
    true, said, both = np.moveaxis(counts[:, :, -BANDS:].astype(np.float64), 2, 0)
    return both, true + said - both


def _mean_over_classes(above: Array, below: Array) -> Statistic:
    """The mean of sum(above) / sum(below) over the classes where there is anything below, from [N, V] both."""

    def of(weights: Array) -> Array:
        parts, wholes = weights @ above, weights @ below
        return ratio(ratio(parts, wholes).sum(axis=1), (wholes > 0).sum(axis=1))

    return of
