"""A teacher that is remembered: it stands where a teacher model stands, and answers from a cache.

Two parts, since two sides of training need it. `Lookup` stands in the collator, beside the rows: it takes what is kept
of them out of the cache, pads it like the batch, and adds it as columns. `Recall` stands in the `Distiller`, on the
device: it makes `Knowledge` of those columns. What is kept in float16 stays so until a loss takes it in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.columns import DECODER, LOGITS, TOKENS, Codec, Size
from potstill.cache.identity import lacking
from potstill.cache.keys import row_keys
from potstill.cache.store import Cache
from potstill.checks import problem
from potstill.errors import CacheError
from potstill.knowledge.architectures import ModelShape
from potstill.knowledge.observe import decoder_mask, own_columns, token_mask
from potstill.knowledge.types import LAYERED, Knowledge, Needs
from potstill.losses.fused import SparseLogits

CACHED = "cached"
"""How the columns of a batch begin that hold what is remembered."""

Batch = dict[str, Any]
Spans = Mapping[str, tuple[list[int], list[int], int]]
"""``tokens`` -> where each row begins, how long it is, and the length of the padded axis."""


class CachedTeacher:
    """A teacher whose answers are read back from a cache, and are what they were.

    Hand it to `DistillationTrainer` or `Distiller` in place of a model. Nothing downstream can tell which.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    @property
    def shape(self) -> ModelShape:
        """The sizes of the teacher that was observed."""
        return self.cache.shape

    @property
    def needs(self) -> Needs:
        """All that is remembered."""
        return self.cache.identity.needs

    def recall(self, name: str, needs: Needs, prefix: str = "") -> "Recall":
        """What makes knowledge of a batch's columns. Raises `CacheError` where more is asked than is remembered."""
        return Recall(name, needs, self._codecs(needs), prefix)

    def lookup(self, name: str, rows: Any, needs: Needs, prefix: str = "") -> "Lookup":
        """What adds columns to a batch of these rows. Raises `CacheError` where rows are missing, and says how many."""
        shards, places = self.cache.locate(row_keys(rows, prefix))
        if absent := int((shards < 0).sum()):
            first = int(np.flatnonzero(shards < 0)[0])
            raise CacheError(
                problem(
                    f"The cache {self.cache.folder} lacks {absent:,} of the {len(shards):,} rows",
                    given=f"row {first} first" + (f"; {len(self.cache.damaged)} damaged" if self.cache.damaged else ""),
                    follows="Nothing is known of them, and they can't be learned",
                    do="Write them: potstill cache RECIPE",
                )
            )
        return Lookup(name, self.cache, self._codecs(needs), shards, places, prefix)

    def _codecs(self, needs: Needs) -> dict[str, Codec]:
        if missing := lacking(self.needs, needs):
            raise CacheError(
                problem(
                    f"The cache {self.cache.folder} doesn't hold all that the objective asks",
                    given=missing,
                    do="Write one that does: potstill cache RECIPE",
                )
            )
        wanted = {LOGITS: needs.logits} | {kind: getattr(needs, kind) for kind in LAYERED}
        return {
            name: codec
            for name, codec in self.cache.codecs.items()
            if (wanted[LOGITS] if codec.column.layer is None else codec.column.layer in wanted[codec.column.kind])
        }


@dataclass(frozen=True)
class Lookup:
    """Rows of a data set -> what is remembered of them, padded like their batch."""

    name: str
    cache: Cache
    codecs: Mapping[str, Codec]
    shards: np.ndarray[Any, Any]
    places: np.ndarray[Any, Any]
    prefix: str = ""

    def __call__(self, numbers: Sequence[int], batch: Mapping[str, Any]) -> Batch:
        """The columns of a batch that holds the rows of these numbers."""
        where = [(self.cache.shards[self.shards[number]], int(self.places[number])) for number in numbers]
        spans = spans_of(batch, self.prefix)
        for name, (_, lengths, _) in spans.items():
            kept = [shard.length(row).get(name) for shard, row in where]
            if kept != lengths and None not in kept:
                raise CacheError(
                    problem(
                        "The batch doesn't hold the rows as they were when the teacher saw them",
                        given=f"{name} {lengths}, remembered {kept}",
                        do="Leave the rows as Task.encode made them, one row of the data set a row of the batch",
                    )
                )
        found = {}
        for column, codec in self.codecs.items():
            for part in codec.parts:
                rows = [shard.part(column, part, row) for shard, row in where]
                axes = codec.column.shape if part == "" else codec.column.shape[:-1]
                found[f"{CACHED}/{self.name}/{column}/{part}"] = padded(rows, axes, spans)
        return found


def spans_of(batch: Mapping[str, Any], prefix: str = "") -> Spans:
    """Where the tokens of each row stand in a batch, on whichever side it is padded."""
    mask = token_mask(own_columns(batch, prefix))
    decoder = decoder_mask(batch) if "decoder_input_ids" in batch else None
    found = {TOKENS: mask, DECODER: decoder}
    return {
        name: (one.int().argmax(-1).tolist(), one.sum(-1).tolist(), one.shape[-1])
        for name, one in found.items()
        if isinstance(one, Tensor)
    }


def padded(rows: Sequence[Tensor], axes: Sequence[Size], spans: Spans) -> Tensor:
    """Rows of different lengths as one tensor [B, …], zeros where a row has nothing.

    Args:
        rows: one tensor a row.
        axes: the name of each axis that is as long as the row, a number for those that aren't.
        spans: where each row stands in a named axis.
    """
    shape = [spans[axis][2] if isinstance(axis, str) else axis for axis in axes]
    shape += rows[0].shape[len(axes) :]
    out = torch.zeros((len(rows), *shape), dtype=rows[0].dtype)
    for number, row in enumerate(rows):
        place: list[Any] = [number]
        for axis, extent in zip(axes, row.shape, strict=False):
            begin = spans[axis][0][number] if isinstance(axis, str) else 0
            place.append(slice(begin, begin + extent))
        out[tuple(place)] = row
    return out


@dataclass(frozen=True)
class Recall:
    """Columns of a batch -> `Knowledge`, as `Observer` gives it."""

    name: str
    needs: Needs
    codecs: Mapping[str, Codec]
    prefix: str = ""

    def __call__(self, batch: Mapping[str, Any]) -> Knowledge:
        """What the teacher answered when it saw these rows."""
        layered: dict[str, dict[Any, Tensor]] = {kind: {} for kind in LAYERED}
        logits: Any = None
        for column, codec in self.codecs.items():
            begin = f"{CACHED}/{self.name}/{column}/"
            parts = {key.removeprefix(begin): value for key, value in batch.items() if key.startswith(begin)}
            if not parts:
                raise CacheError(
                    problem(
                        f"The batch has no column that begins with {begin}",
                        follows="What the teacher answered isn't in it",
                        do="Batches come from a collator with a Lookup; DistillationTrainer makes one",
                    )
                )
            if codec.column.layer is not None:
                layered[codec.column.kind][codec.column.layer] = codec.dense(parts)
            elif codec.sparse:
                values, tail = parts["values"].float(), parts["tail"]
                logits = SparseLogits(values, codec.ids(parts), tail, codec.storage.temperature)
            else:
                logits = codec.dense(parts)
                logits = logits.movedim(-1, 1) if logits.ndim == 4 else logits  # of pixels: [B,V,h,w]
        return Knowledge(
            logits=logits,
            mask=token_mask(own_columns(batch, self.prefix)),
            decoder_mask=decoder_mask(batch) if self._decodes else None,
            **layered,
        )

    @property
    def _decodes(self) -> bool:
        return any(DECODER in codec.column.shape for codec in self.codecs.values())


@dataclass(frozen=True)
class CachedCollator:
    """A collator whose batches hold what is remembered of their rows too."""

    collate: Callable[[Sequence[Mapping[str, Any]]], Batch]
    lookups: Sequence[Lookup]
    row: str  # the column that numbers the rows

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The batch, and the columns ``cached/…``."""
        batch = self.collate(rows)
        numbers = [int(row[self.row]) for row in rows]
        for lookup in self.lookups:
            batch |= lookup(numbers, batch)
        return batch
