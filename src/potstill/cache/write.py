"""Writing a cache: the teacher sees each row once, in batches of like length, and a shard is put down at a time.

Decisions:
- What is missing is told from the shards that are there, so that stopped work goes on wherever it was stopped, with
  another number of processes too.
- The rows that are missing are sorted by length and cut into parcels, one shard each.
- Of several processes each takes the rows whose key says so. None waits for another, and it is the same whichever of
  them is done first.
- The disk space is known before: lengths and columns say it to the byte.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.cache.columns import DECODER, TOKENS, Codec, Column, columns_of
from potstill.cache.identity import Identity, Storage
from potstill.cache.keys import BYTES, Keys, input_columns, row_keys
from potstill.cache.shards import write_shard
from potstill.cache.store import Cache, create, find, set_damaged_aside
from potstill.checks import problem
from potstill.errors import CacheError
from potstill.knowledge import Knowledge, Observer, describe

SHARD_BYTES = 64 << 20
BATCH_TOKENS = 8192
BATCH_ROWS = 256
Progress = Callable[[int, int, float | None], None]  # rows, of how many, nothing
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What is to be written: which rows are missing, in which parcels, and how large all of it gets."""

    keys: Keys
    lengths: np.ndarray[Any, Any]
    parcels: tuple[np.ndarray[Any, Any], ...]  # row numbers
    bytes: int

    @property
    def rows(self) -> int:
        """Rows that are missing."""
        return sum(len(parcel) for parcel in self.parcels)


@dataclass(frozen=True)
class Estimate:
    """How much room the knowledge of some rows takes."""

    columns: tuple[Column, ...]
    rows: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Written:
    """A cache that holds what was asked, and what it took."""

    cache: Cache
    rows: int
    seconds: float
    replaced: tuple[Path, ...] = ()  # damaged shards that were set aside


def write_cache(
    root: Path,
    identity: Identity,
    teacher: PreTrainedModel,
    rows: Any,
    collate: Collate,
    *,
    prefix: str = "",
    part: tuple[int, int] = (0, 1),
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Written:
    """Have everything in a cache that is asked of these rows: those that are missing, the teacher sees now.

    Args:
        root: the folder of caches; one of this identity, or one that holds more, is taken up.
        identity: what is asked.
        teacher: the model, in the precision that the identity says.
        rows: encoded rows.
        collate: pads rows to a batch.
        prefix: of the columns that hold the teacher's own ids, if any.
        part: (number, of how many): this process writes its share of the rows; others do the rest.
        shard_bytes: about the size of a shard.

    Raises:
        CacheError: the disk has too little space; nothing was written then.
    """
    started = time.monotonic()
    keys = row_keys(rows, prefix)
    cache = find(root, identity)
    replaced: list[Path] = []
    if cache is not None:
        replaced = set_damaged_aside(cache)
        cache = cache.reopened() if replaced else cache
        if not len(cache.missing(keys)):
            return Written(cache, 0, time.monotonic() - started, tuple(replaced))
    elif not len(rows):
        raise CacheError(problem("A cache of no rows would hold nothing", do="Give rows"))
    needs = identity.needs if cache is None else cache.identity.needs
    observer = Observer(teacher, needs, prefix=prefix)
    if cache is None:
        columns = columns_of(observe_rows(observer, rows, [0], collate), needs, 1)
        cache = create(root, identity, describe(teacher), columns)
    work = plan_work(cache, keys, row_lengths(rows, prefix), part, shard_bytes)
    require_space(cache, work)
    done = 0
    for parcel in work.parcels:
        _write_parcel(cache, observer, rows, parcel, work, collate)
        done += len(parcel)
        if progress is not None:
            progress(done, work.rows, None)
    return Written(cache.reopened(), done, time.monotonic() - started, tuple(replaced))


def estimate(observer: Observer, rows: Any, collate: Collate, storage: Storage) -> Estimate:
    """The room that what is observed takes: from the rows' lengths, and what the teacher says to the first of them.

    Raises:
        ModelError: something of it can't be kept by row.
    """
    columns = columns_of(observe_rows(observer, rows, [0], collate), observer.needs, 1)
    codecs = {column.name: Codec(column, storage) for column in columns}
    _, first = np.unique(row_keys(rows, observer.prefix), return_index=True)
    lengths, counts = np.unique(row_lengths(rows, observer.prefix)[first], return_counts=True)
    sizes = row_bytes(columns, codecs, lengths)
    return Estimate(tuple(columns), len(first), int(lengths @ counts), int(sizes @ counts))


def row_lengths(rows: Any, prefix: str = "") -> np.ndarray[Any, Any]:
    """How many tokens the teacher reads in each row, [N]; of images, what their work is in tokens, if they say it."""
    import pyarrow.compute as pc

    column = input_columns(rows.column_names, prefix).get("input_ids")
    if column is None:
        said = rows["length"] if "length" in rows.column_names else np.zeros(len(rows))
        return np.asarray(said, dtype=np.int64)
    tables = rows.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return np.concatenate([np.asarray(pc.list_value_length(table.column(column))) for table in tables]).astype(np.int64)


def plan_work(
    cache: Cache,
    keys: Keys,
    lengths: np.ndarray[Any, Any],
    part: tuple[int, int] = (0, 1),
    shard_bytes: int = SHARD_BYTES,
) -> Work:
    """The rows of one part that a cache lacks, longest first, in parcels of about so many bytes."""
    missing = cache.missing(keys)
    missing = missing[[int.from_bytes(keys[number][:4], "little") % part[1] == part[0] for number in missing]]
    order = missing[np.argsort(-lengths[missing], kind="stable")]
    sizes = row_bytes(cache.columns, cache.codecs, lengths[order])
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // shard_bytes)) + 1
    parcels = tuple(one for one in np.split(order, cuts) if len(one))
    return Work(keys, lengths, parcels, int(sizes.sum()))


def row_bytes(
    columns: Sequence[Column], codecs: Mapping[str, Codec], lengths: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """The bytes that each row takes, [N], from how many tokens it has [N]; a decoder's are taken to be as many."""
    tokens = torch.as_tensor(lengths)
    found = torch.full_like(tokens, BYTES + 4)
    for column in columns:
        found += codecs[column.name].bytes({TOKENS: tokens, DECODER: tokens})
    return found.numpy()


def require_space(cache: Cache, work: Work) -> None:
    """Raise `CacheError` where the disk can't hold what is to be written."""
    free = shutil.disk_usage(cache.folder).free
    if work.bytes > free:
        raise CacheError(
            problem(
                f"The disk of {cache.folder} has too little space for the cache",
                given=f"{free / 1e9:.2f} GB free, {work.bytes / 1e9:.2f} GB needed for {work.rows:,} rows",
                do="Free some space, name another folder (cache.folder), keep less (cache.precision=int8), "
                "or let the teacher run along (cache.use=never)",
            )
        )


def observe_rows(observer: Observer, rows: Any, numbers: Sequence[int], collate: Collate) -> Knowledge:
    """What the teacher says to some rows."""
    device = observer.model.device
    batch = {key: value.to(device) for key, value in collate(rows.select(numbers).to_list()).items()}
    observer.model.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return observer(batch)


def _write_parcel(
    cache: Cache, observer: Observer, rows: Any, parcel: np.ndarray[Any, Any], work: Work, collate: Collate
) -> None:
    """Observe the rows of one parcel and put them down as one shard."""
    codecs = cache.codecs
    lengths: dict[str, list[int]] = {}
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for numbers in batches(parcel, work.lengths):
        known = observe_rows(observer, rows, numbers.tolist(), collate)
        places = places_of(known, len(numbers))
        for name, spans in places.items():
            lengths.setdefault(name, []).extend(length for _, length in spans)
        for name, codec in codecs.items():
            tensor = codec.column.of(known).cpu()
            rows_of: dict[str, list[Tensor]] = {}
            for number in range(len(numbers)):
                for part, flat in codec.encode(without_padding(tensor[number], codec.column, places, number)).items():
                    rows_of.setdefault(part, []).append(flat)
            for part, flats in rows_of.items():  # one tensor a batch: one a row takes kilobytes beside its numbers
                parts.setdefault((name, part), []).append(torch.cat(flats))
    made = {names: torch.cat(flats) for names, flats in parts.items()}
    counted = {name: torch.tensor(values) for name, values in lengths.items()}
    counted = counted or {TOKENS: torch.zeros(len(parcel), dtype=torch.int64)}
    write_shard(cache.folder / "shards", work.keys[parcel], counted, made)


def batches(parcel: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """A parcel, longest rows first, in batches of at most so many tokens and rows."""
    found, start = [], 0
    while start < len(parcel):
        longest = max(1, int(lengths[parcel[start]]))
        stop = start + max(1, min(BATCH_ROWS, BATCH_TOKENS // longest))
        found.append(parcel[start:stop])
        start = stop
    return found


Places = Mapping[str, list[tuple[int, int]]]
"""``tokens`` -> where each row begins, and how long it is."""


def places_of(known: Knowledge, rows: int) -> Places:
    """Where the tokens of each row stand in what was observed."""
    found = {}
    for name, mask in ((TOKENS, known.mask), (DECODER, known.decoder_mask)):
        if mask is not None:
            starts, counts = mask.int().argmax(-1).tolist(), mask.sum(-1).tolist()
            found[name] = list(zip(starts, counts, strict=True))
    return found


def without_padding(row: Tensor, column: Column, places: Places, number: int) -> Tensor:
    """One row of a batch [*padded], without its padding [*row]."""
    for axis, size in enumerate(column.shape):
        if isinstance(size, str):
            start, length = places[size][number]
            row = row.narrow(axis, start, length)
    return row
