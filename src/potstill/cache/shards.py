"""Shards: the files of a cache. Each is one safetensors file, memory-mapped, and named by the checksum of its bytes.

Decisions:
- A shard is written beside its place and renamed: what has the name of a shard is whole. Several processes write at
  once without knowing of each other; where two wrote the same row, either is read.
- The checksum is the name. A file whose bytes don't give its name is damaged; it is set aside under another name, and
  its rows, which nobody holds then, are written again.
- A shard holds ``rows`` (their keys), ``length.tokens`` and the like, and each part of each column as one flat array.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from potstill.cache.columns import Codec
from potstill.cache.keys import BYTES, KEY, Keys

SUFFIX = ".safetensors"
UNFINISHED, DAMAGED = ".part", ".damaged"
ROWS, LENGTH = "rows", "length."
READ_AT_ONCE = 1 << 24


@dataclass
class Shard:
    """One file, mapped into memory when something is read."""

    path: Path
    codecs: Mapping[str, Codec]  # column -> its codec
    _tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def keys(self) -> Keys:
        """The key of each row, [N]."""
        return self._tensor(ROWS).numpy().reshape(-1, BYTES).copy().view(KEY).reshape(-1)

    @cached_property
    def lengths(self) -> dict[str, Tensor]:
        """``tokens`` (and ``decoder``) -> how long each row is, [N]."""
        with safe_open(self.path, "pt") as opened:
            names = [name.removeprefix(LENGTH) for name in opened.keys() if name.startswith(LENGTH)]  # noqa: SIM118
        return {name: self._tensor(f"{LENGTH}{name}").long() for name in names}

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        """The lengths as plain numbers, which each row of each batch asks for."""
        return {name: lengths.tolist() for name, lengths in self.lengths.items()}

    @cached_property
    def _ends(self) -> dict[tuple[str, str], list[int]]:
        """(column, part) -> where each row ends in the flat array, after a 0."""
        return {
            (name, part): [0, *sizes.cumsum(0).tolist()]
            for name, codec in self.codecs.items()
            for part, sizes in codec.sizes(self.lengths).items()
        }

    def length(self, row: int) -> dict[str, int]:
        """How long a row is."""
        return {name: lengths[row] for name, lengths in self._numbers.items()}

    def part(self, name: str, part: str, row: int) -> Tensor:
        """One part of one row of a column, in its own shape; a view of the file."""
        ends = self._ends[name, part]
        flat = self._tensor(_key(name, part))[ends[row] : ends[row + 1]]
        return flat.view(self.codecs[name].part_shape(part, self.length(row)))

    def _tensor(self, key: str) -> Tensor:
        """A tensor of the file, mapped and not yet read."""
        if key not in self._tensors:
            with safe_open(self.path, "pt") as opened:
                self._tensors[key] = opened.get_tensor(key)
        return self._tensors[key]


def _key(name: str, part: str) -> str:
    return f"{name}:{part}" if part else name


def write_shard(
    folder: Path, keys: Keys, lengths: Mapping[str, Tensor], parts: Mapping[tuple[str, str], Tensor]
) -> Path:
    """Write a shard of so many rows; its name is the checksum of what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_key(*names): flat for names, flat in parts.items()}
    tensors[ROWS] = torch.from_numpy(np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(-1, BYTES).copy())
    tensors |= {f"{LENGTH}{name}": values.to(torch.int32) for name, values in lengths.items()}
    beside = folder / f"{unfinished_prefix()}{len(keys)}{UNFINISHED}"
    save_file(tensors, beside)
    with beside.open("rb+") as opened:
        os.fsync(opened.fileno())
    place = folder / f"{checksum(beside)}{SUFFIX}"
    beside.replace(place)
    return place


def unfinished_prefix() -> str:
    """How the files begin that this process is writing."""
    return f"{socket.gethostname()}-{os.getpid()}-"


def checksum(path: Path) -> str:
    """32 hexadecimal digits of a file's bytes (XXH3)."""
    state = xxhash.xxh3_128()
    with path.open("rb") as opened:
        while block := opened.read(READ_AT_ONCE):
            state.update(block)
    return state.hexdigest()


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, whole or not as they may be."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def is_whole(path: Path) -> bool:
    """Whether a shard's bytes give its name; looked at once in a process, as long as the file stays as it is.

    One that another process sets aside meanwhile was none.
    """
    try:
        found = path.stat()
        return _is_whole(path, found.st_mtime_ns, found.st_size)
    except FileNotFoundError:
        return False


@lru_cache(maxsize=100_000)
def _is_whole(path: Path, _changed: int, _size: int) -> bool:
    if checksum(path) != path.name.removesuffix(SUFFIX):
        return False
    try:
        with safe_open(path, "pt") as opened:
            return ROWS in opened.keys()  # noqa: SIM118
    except SafetensorError:
        return False


def set_aside(path: Path) -> Path:
    """Rename a damaged shard, so that its rows count as missing."""
    place = path.with_name(f"{path.name}{DAMAGED}")
    path.replace(place)
    return place


def leftovers(folder: Path) -> Iterator[Path]:
    """What no cache needs: damaged shards, and what processes left that were stopped while they wrote."""
    if not folder.is_dir():
        return
    yield from sorted(folder.glob(f"*{DAMAGED}"))
    for path in sorted(folder.glob(f"*{UNFINISHED}")):
        if not _at_work(path.name):
            yield path


def _at_work(name: str) -> bool:
    """Whether the process that writes a file may be alive: one of another machine may."""
    host, process = name.rsplit("-", 2)[:2]
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True
