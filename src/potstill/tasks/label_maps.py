"""Label maps: what the ids of their pixels mean, and ids as class numbers.

- A map holds one id a pixel: grey (8 or 16 bit) or by a palette, whose index is the id. A map in colours is read by the
  palette of the classes, where one is given.
- Some ids are void: pixels of no class, out of every loss and every metric. They become -100.
- Classes are the ids that aren't void, in order, as many as there are names: with void 11, eleven names stand for
  0 … 10; with void 0, for 1 … 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from potstill.checks import first_few, problem
from potstill.errors import DataError
from potstill.tasks.pictures import decoded

VOID = -100
UNKNOWN = -1
MOST_IDS = 65536
Colour: TypeAlias = tuple[int, int, int]
Ids: TypeAlias = np.ndarray[Any, Any]
"""[H,W] integers."""


@dataclass(frozen=True)
class MapClasses:
    """What the ids of label maps mean.

    Args:
        names: the classes, in the order of the logits.
        void: ids of pixels without a class.
        palette: a colour for each id, from 0; ids beyond it are black. Empty: none is known.
    """

    names: tuple[str, ...]
    void: tuple[int, ...] = ()
    palette: tuple[Colour, ...] = ()

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The id of each class: those from 0 that aren't void."""
        found = (number for number in range(MOST_IDS) if number not in self.void)
        return tuple(number for number, _ in zip(found, self.names, strict=False))

    @cached_property
    def lookup(self) -> Ids:
        """[65536] int64, class number of each id; -100 where it is void, -1 where it is no class's."""
        table = np.full(MOST_IDS, UNKNOWN, dtype=np.int64)
        table[list(self.void)] = VOID
        table[list(self.ids)] = np.arange(len(self.ids))
        return table

    def drawn(self, numbers: Ids) -> Image.Image:
        """Class numbers [H,W] as a label map: one id a pixel, shown in the colours of the classes.

        Pixels that are -100 become the lowest void id, or 0 where none is void.
        """
        wide = max(self.ids, default=0) > 255
        void = min(self.void, default=0)
        ids = np.append(np.asarray(self.ids), void)[np.where(numbers == VOID, len(self.ids), numbers)]
        if wide:
            return Image.fromarray(ids.astype(np.uint16))
        picture = Image.fromarray(ids.astype(np.uint8))
        picture.putpalette([channel for colour in self.palette or voc_palette(256) for channel in colour])
        return picture

    @property
    def colours(self) -> tuple[Colour, ...]:
        """The colour of each class; where no palette is known, that of PASCAL VOC."""
        known = self.palette or voc_palette(max(self.ids, default=0) + 1)
        return tuple(known[number] if number < len(known) else (0, 0, 0) for number in self.ids)

    def numbers(self, stored: Any) -> Ids:
        """The class number of each pixel of a stored map, [H,W] int64; -100 where it is void.

        Raises:
            DataError: the map can't be read, or holds an id that is no class's.
        """
        found = self.lookup[map_ids(stored, self.palette)]
        if (found == UNKNOWN).any():
            odd = np.unique(map_ids(stored, self.palette)[found == UNKNOWN])
            raise DataError(
                problem("A label map holds ids that are no class's", given=first_few([str(one) for one in odd]))
            )
        return found


def map_ids(stored: Any, palette: Sequence[Colour] = ()) -> Ids:
    """The ids of a stored map, [H,W].

    Args:
        stored: ``{"bytes", "path"}``, or a picture.
        palette: the colour of each id, for maps in colours.

    Raises:
        DataError: it can't be read, holds colours that no palette explains, or numbers that can be no ids.
    """
    picture = decoded(stored)
    if picture.mode in ("RGB", "RGBA"):
        return _ids_of_colours(picture.convert("RGB"), palette)
    if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
        raise DataError(
            problem(
                "A label map holds no ids",
                given=f"mode {picture.mode}",
                do="Save one id a pixel, grey or by a palette, as PNG",
            )
        )
    ids = np.asarray(picture)
    ids = ids.astype(np.uint8) if ids.dtype == bool else ids
    if ids.dtype.itemsize > 2 and ids.size and (ids.min() < 0 or ids.max() >= MOST_IDS):
        raise DataError(problem("A label map holds ids beyond 0 … 65535", given=f"{ids.min()} … {ids.max()}"))
    return ids


def _ids_of_colours(picture: Image.Image, palette: Sequence[Colour]) -> Ids:
    """Ids of a map in colours."""
    if not palette:
        raise DataError(
            problem(
                "A label map holds colours instead of ids",
                given=f"mode {picture.mode}",
                do="Give the colour of each id in data.palette, from id 0, or save the ids, grey or by a palette",
            )
        )
    red, green, blue = np.moveaxis(np.asarray(picture).astype(np.uint32), -1, 0)
    codes, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    known = {r << 16 | g << 8 | b: number for number, (r, g, b) in reversed(list(enumerate(palette)))}
    odd = [f"#{code:06x}" for code in codes.tolist() if code not in known]
    if odd:
        raise DataError(problem("A label map holds colours that data.palette doesn't name", given=first_few(odd)))
    return np.array([known[code] for code in codes.tolist()])[places].reshape(red.shape)


def voc_palette(count: int) -> tuple[Colour, ...]:
    """The first colours of PASCAL VOC: three bits of the number, again and again, from the highest bit of each channel.

    For class c, bit j of red is bit 3·(7 - j) of c, that of green the one above, that of blue the next.
    """
    found = []
    for number in range(count):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
        found.append((channels[0], channels[1], channels[2]))
    return tuple(found)
