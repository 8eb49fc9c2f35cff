"""Terms on feature maps and patch embeddings, as the objective computes them: from two models' stages to a value a row.

Decisions:
- Where maps differ in size, both are averaged down to the smaller height and the smaller width (adaptive average
  pooling), before they are projected: a value that is made up by interpolation is nothing to learn from.
- Patch embeddings are maps whose grid has the image's proportions; they are brought together in the same way.
- Where outputs are of pixels, void ones are left out: a place of a map counts where any pixel under it does, so that an
  image that counts has places that count at every stage.
- Losses on maps see [B,C,H,W]; all others see the places as tokens [B,H*W,C], row by row.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.kinds import OF_MAPS, family, takes
from potstill.knowledge.types import Knowledge
from potstill.terms import BoundTerm

Size = tuple[int, int]
MOST_OFF = 1.5  # by as much a grid's height may be off: one row of 33 pixels, of patches of 32, is two, and 1.44 off


@dataclass(frozen=True)
class Surroundings:
    """What a term on stages is told besides the two models' knowledge.

    Args:
        modules: projections and memories by name.
        pixels: the images as the student sees them, [B,3,H,W].
        outputs: the outputs that count, [B] or, of pixels, [B,H,W].
        rows: the number of each row in the data set, for a memory.
    """

    modules: Mapping[str, Callable[..., Any]]
    pixels: Tensor | None
    outputs: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Places:
    """What two models hold of the same places: maps [B,C,H,W] of one size, and which places count, [B,H,W]."""

    student: Tensor
    teacher: Tensor
    counted: Tensor | None

    def tokens(self) -> "Places":
        """The same as tokens [B,H*W,C], with [B,H*W]."""
        student, teacher = (maps.flatten(2).transpose(1, 2) for maps in (self.student, self.teacher))
        return Places(student, teacher, None if self.counted is None else self.counted.flatten(1))


def stage_values(
    term: BoundTerm, student: Knowledge, teacher: Knowledge, around: Surroundings, options: Mapping[str, Any]
) -> Iterator[Float[Tensor, " B"]]:
    """A value a row, [B], for each pair of stages of a term on features or patches; one for each two of `flow_mse`."""
    joint: Mapping[int, Tensor] = {}
    if term.joint:
        joint = around.modules[term.joint_name](student, around.pixels)
    both = [_maps(term, student, teacher, pair, around, joint.get(pair[0])) for pair in term.pairs]
    if "student_next" in takes(term.loss):
        for (here, there), pairs in zip(pairwise(both), pairwise(term.pairs), strict=True):
            size = smallest(*here, *there)
            first, second = (
                _places(term, maps, pair, around, size).tokens()
                for maps, pair in zip((here, there), pairs, strict=True)
            )
            following = {"student_next": second.student, "teacher_next": second.teacher}
            yield _row_values(term, first, {**options, **following})
        return
    for maps, pair in zip(both, term.pairs, strict=True):
        places = _places(term, maps, pair, around, smallest(*maps))
        if term.pool is not None:
            yield _pooled_value(term, places.tokens(), pair, around, options)
        else:
            yield _row_values(term, places if family(term.loss) in OF_MAPS else places.tokens(), options)


def _maps(
    term: BoundTerm,
    student: Knowledge,
    teacher: Knowledge,
    pair: tuple[int, int],
    around: Surroundings,
    projected: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Both models' maps [B,C,H,W] of a pair of stages, each in its own size; the student's as a joint projection has
    made it."""
    ours = getattr(student, term.kind)[pair[0]] if projected is None else projected
    theirs = getattr(teacher, term.kind)[pair[1]]
    if term.kind == "features":
        return ours, theirs
    assert around.pixels is not None, "patch embeddings come from images"
    size = around.pixels.shape[-2:]
    return on_grid(ours, size), on_grid(theirs, size)


def _places(
    term: BoundTerm, maps: tuple[Tensor, Tensor], pair: tuple[int, int], around: Surroundings, size: Size
) -> Places:
    ours, theirs = (resized(one, size) for one in maps)
    if term.project is not None and not term.joint:
        module = around.modules[term.module_name(pair)]
        ours = module(ours) if term.kind == "features" else module(ours.movedim(1, -1)).movedim(-1, 1)
    counted = places_that_count(around.outputs, size) if around.outputs.ndim == 3 else None
    return Places(ours, theirs, counted)


def _row_values(term: BoundTerm, places: Places, options: Mapping[str, Any]) -> Tensor:
    """A loss's values, a mean over the places that count where it has one a place."""
    known = {"mask": places.counted} if "mask" in takes(term.loss) else {}
    values = term.loss(places.student, places.teacher, **known, **options)
    if values.ndim == 1:
        return values
    if places.counted is None:
        return values.flatten(1).mean(1)
    counted = places.counted.flatten(1)
    return values.flatten(1).masked_fill(~counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)


def _pooled_value(
    term: BoundTerm, places: Places, pair: tuple[int, int], around: Surroundings, options: Mapping[str, Any]
) -> Tensor:
    """A loss of rows, of the mean over the places that count."""
    counted = places.counted
    valid = torch.ones_like(places.student[..., 0], dtype=torch.bool) if counted is None else counted
    number = valid.sum(1, keepdim=True).clamp(min=1)
    ours, theirs = (
        states.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1) / number for states in (places.student, places.teacher)
    )
    known = {"mask": valid.any(1)} if "mask" in takes(term.loss) else {}
    if term.memory is None:
        return term.loss(ours, theirs, **known, **options)
    assert around.rows is not None, "a memory needs to know which rows it sees"
    return term.loss(**around.modules[term.module_name(pair)](ours, theirs, around.rows), **known, **options)


def smallest(*maps: Tensor) -> Size:
    """The smallest height and the smallest width of several maps [B,C,H,W]."""
    return min(one.shape[-2] for one in maps), min(one.shape[-1] for one in maps)


def resized(maps: Float[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """The maps averaged down to a height and width; as they are where they have them already."""
    return maps if tuple(maps.shape[-2:]) == size else functional.adaptive_avg_pool2d(maps, size)


def places_that_count(pixels: Bool[Tensor, "B H W"], size: Size) -> Bool[Tensor, "B h w"]:
    """True at the places of a map under which any pixel counts.

    Args:
        pixels: true where a pixel counts.
        size: height and width of the map.
    """
    return functional.adaptive_max_pool2d(pixels.unsqueeze(1).float(), size).squeeze(1) > 0


def on_grid(patches: Float[Tensor, "B N C"], image: Sequence[int]) -> Float[Tensor, "B C H W"]:
    """Patch embeddings, row by row, as a map: of all grids of N patches, the one nearest to the image's proportions.

    Args:
        patches: patch embeddings, [B,N,C].
        image: height and width of the image.

    Raises:
        ShapeError: N patches have no grid of about these proportions.
    """
    count = patches.shape[1]
    rows = _rows(count, image[0] / image[1])
    if rows is None:
        raise ShapeError(
            problem(
                "Patch embeddings don't cover the image in rows and columns",
                given=f"{count} patches, an image of {image[0]}x{image[1]}",
                follows="Where each patch lies can't be told",
            )
        )
    return patches.transpose(1, 2).reshape(len(patches), -1, rows, count // rows)


@lru_cache(maxsize=64)
def _rows(count: int, proportion: float) -> int | None:
    """How many rows a grid of so many patches has, if its height and width are about in this proportion."""

    wanted = math.sqrt(count * proportion)

    def off(rows: int) -> float:
        return max(rows / wanted, wanted / rows)

    nearest = min((rows for rows in range(1, count + 1) if count % rows == 0), key=off)
    return nearest if off(nearest) < MOST_OFF else None
