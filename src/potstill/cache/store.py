"""A cache on disk: a folder of one identity, with a manifest and shards.

    <root>/<digest of the identity>/manifest.json   what it is the knowledge of, its columns, the teacher's shape
                                    fidelity.json   how near what is kept comes to what was observed
                                    shards/*.safetensors

Decisions:
- The manifest is written once, before the first shard, and never changed: what rows there are, the shards say.
- A root may hold the caches of many teachers. A request is served by the first that holds all of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from potstill.cache.columns import Codec, Column
from potstill.cache.identity import FORMAT, Identity
from potstill.cache.keys import KEY, Keys
from potstill.cache.shards import Shard, is_whole, leftovers, set_aside, shard_files, unfinished_prefix
from potstill.checks import problem
from potstill.errors import CacheError
from potstill.knowledge.architectures import ModelShape

MANIFEST, FIDELITY, SHARDS = "manifest.json", "fidelity.json", "shards"


@dataclass
class Cache:
    """A cache that is there, opened. Rows that other processes add later are seen by `reopened`.

    Args:
        folder: of the cache.
        identity: what it is the knowledge of.
        shape: the teacher's sizes, so that an objective can be bound without its weights.
        columns: what is kept.
        damaged: shards whose bytes aren't what was written; their rows count as missing.
    """

    folder: Path
    identity: Identity
    shape: ModelShape
    columns: tuple[Column, ...]
    shards: tuple[Shard, ...] = ()
    damaged: tuple[Path, ...] = field(default_factory=tuple)

    @property
    def codecs(self) -> dict[str, Codec]:
        """Column -> how its numbers are kept."""
        return {column.name: Codec(column, self.identity.storage) for column in self.columns}

    @cached_property
    def _index(self) -> tuple[Keys, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The keys of all rows in order, and for each its shard and its place there."""
        keys = [shard.keys for shard in self.shards]
        if not keys:
            return np.empty(0, KEY), np.empty(0, np.int64), np.empty(0, np.int64)
        everything = np.concatenate(keys)
        order = np.argsort(everything, kind="stable")
        shards = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
        places = np.concatenate([np.arange(len(own)) for own in keys])
        return everything[order], shards[order], places[order]

    def locate(self, keys: Keys) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The shard and the place there of each row, [N] each, from the rows' keys [N]; -1 where a row is missing."""
        known, shards, places = self._index
        if not len(known):
            return np.full(len(keys), -1), np.full(len(keys), -1)
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        there = known[at] == keys
        return np.where(there, shards[at], -1), np.where(there, places[at], -1)

    def missing(self, keys: Keys) -> np.ndarray[Any, Any]:
        """The numbers of the rows, of these keys [N], that aren't here; of equal ones the first."""
        first = np.sort(np.unique(keys, return_index=True)[1])
        return np.asarray(first[self.locate(keys[first])[0] < 0])

    @property
    def rows(self) -> int:
        """Distinct rows."""
        return len(np.unique(self._index[0]))

    @property
    def tokens(self) -> int:
        """Tokens of all rows; 0 where rows have none."""
        return sum(int(shard.lengths["tokens"].sum()) for shard in self.shards if "tokens" in shard.lengths)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.path.stat().st_size for shard in self.shards)

    @property
    def fidelity(self) -> dict[str, Any] | None:
        """What was measured when it was written, as `fidelity.measure` gives it."""
        file = self.folder / FIDELITY
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def reopened(self) -> "Cache":
        """The cache with all that is there now."""
        return open_cache(self.folder)

    def leftovers(self) -> Iterator[Path]:
        """Files that nothing is read from."""
        return leftovers(self.folder / SHARDS)

    def require(self, asked: Identity) -> None:
        """Raise `CacheError`, naming every difference, unless it serves what is asked."""
        if differing := list(self.identity.differences(asked)):
            raise CacheError(
                problem(
                    f"The cache {self.folder} is of other knowledge than is asked for",
                    given="; ".join(differing),
                    follows="Its answers would be another teacher's, or of other input",
                    do="Leave the cache out, so that one of its own is written, or put the difference right",
                )
            )


def create(root: Path, identity: Identity, shape: ModelShape, columns: Sequence[Column]) -> Cache:
    """A cache of this identity under `root`, made where there is none yet. Several processes may do so at once."""
    folder = root / identity.digest
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        data = {
            "identity": identity.as_dict(),
            "teacher": {**asdict(shape), "stacks": dict(shape.stacks)},
            "columns": [column.as_dict() for column in columns],
        }
        write_json(folder / MANIFEST, data)
    return open_cache(folder)


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, beside and then renamed."""
    beside = path.with_name(f".{unfinished_prefix()}{path.name}")  # processes of two machines may have one number
    beside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def open_cache(folder: Path) -> Cache:
    """The cache in a folder, its shards verified.

    Raises:
        CacheError: the folder holds none, or one of a format that this version doesn't read.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise CacheError(problem(f"{folder} holds no cache", given=f"no {MANIFEST}", do="Give the folder of one"))
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        found = data["identity"].get("format")
        if found != FORMAT:
            do = "Remove it (potstill cache prune --all), and it is written again"
            raise CacheError(problem(f"The cache {folder} has format {found}, and {FORMAT} is read here", do=do))
        identity = Identity.from_dict(data["identity"])
        shape = _shape(data["teacher"])
        columns = tuple(Column.from_dict(one) for one in data["columns"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        do = "Remove the folder, and the cache is written again"
        raise CacheError(problem(f"The manifest of the cache {folder} can't be read", given=error, do=do)) from error
    codecs = {column.name: Codec(column, identity.storage) for column in columns}
    found_whole = {path: is_whole(path) for path in shard_files(folder / SHARDS)}
    shards = tuple(Shard(path, codecs) for path, whole in found_whole.items() if whole)
    damaged = tuple(path for path, whole in found_whole.items() if not whole)
    return Cache(folder, identity, shape, columns, shards, damaged)


def _shape(data: Mapping[str, Any]) -> ModelShape:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return ModelShape(**given)


def caches(root: Path) -> list[Path]:
    """The folders of all caches under a root, or the folder itself where it is one.

    A cache has a manifest and a folder of shards beside it: other folders with a ``manifest.json`` are none.
    """
    if (root / MANIFEST).exists() and (root / SHARDS).is_dir():
        return [root]
    found = root.glob(f"*/{MANIFEST}") if root.is_dir() else ()
    return sorted(path.parent for path in found if (path.parent / SHARDS).is_dir())


def find(root: Path, asked: Identity) -> Cache | None:
    """A cache under `root` that serves what is asked; None where there is none. One that can't be read is none."""
    for folder in caches(root):
        try:
            identity = Identity.from_dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["identity"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            continue
        if identity.serves(asked):
            return open_cache(folder)
    return None


def nearest(root: Path, asked: Identity) -> str:
    """What keeps the nearest cache under `root` from serving what is asked; empty where there is none at all."""
    found = []
    for folder in caches(root):
        try:
            cache = open_cache(folder)
        except CacheError:
            continue
        found.append((list(cache.identity.differences(asked)), folder))
    if not found:
        return ""
    differing, folder = min(found, key=lambda one: len(one[0]))
    return f"{folder}: {'; '.join(differing)}"


def set_damaged_aside(cache: Cache) -> list[Path]:
    """Rename the damaged shards, so that their rows are written again; those that no other process has renamed."""
    found = []
    for path in cache.damaged:
        with suppress(FileNotFoundError):
            found.append(set_aside(path))
    return found
