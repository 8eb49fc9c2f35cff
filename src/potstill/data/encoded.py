"""Encoded rows kept on disk, so that a second run of the same rows, tokenizer and length encodes nothing.

Decided here:

* Rows are known by content: every column, the tokenizer (its whole definition, and the versions of the libraries that
  run it), the length and the task. Nothing goes by file names or times.
* They lie in ``<cache>/encoded/<key>``, beside the packaged samples, as datasets writes them: Arrow, memory-mapped. A
  folder is made beside its place and renamed as a whole; of two processes, the second takes the first one's.
* A manifest of file sizes finds a damaged folder, which is made again. One that nobody has read for 30 days is removed.
* A cache is a convenience: a disk that is full, or not to be written, costs the time of encoding and nothing else.
* Fewer than a thousand rows are encoded anew: that takes no longer than to look for them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from potstill.data.samples import cache_folder
from potstill.tasks.base import bars_on_a_terminal

LEAST_ROWS = 1000
DAYS = 30
MANIFEST = "manifest.json"
_LAYOUT = 1  # part of the key: raise it when a task encodes differently
_BATCH = 1000


def kept(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    made_from: str,
    encode: Callable[[], Dataset],
) -> Dataset:
    """What `encode` gives, from the cache where it was given before.

    Args:
        rows: what is encoded.
        tokenizer: what encodes it.
        made_from: whatever else decides the result, as text.
        encode: gives the encoded rows, one for each of `rows`.
    """
    if len(rows) < LEAST_ROWS:
        return encode()
    shelf = cache_folder() / "encoded"
    place = shelf / _key(rows, tokenizer, made_from)
    found = _read(place, len(rows))
    if found is not None:
        return found
    made = encode()
    with contextlib.suppress(OSError):
        _write(made, shelf, place)
    return _read(place, len(rows)) or made


def _key(rows: Dataset, tokenizer: PreTrainedTokenizerBase, made_from: str) -> str:
    found = hashlib.sha256(repr((_LAYOUT, made_from, rows.column_names)).encode())
    found.update(repr([version(name) for name in ("tokenizers", "transformers")]).encode())
    found.update(tokenizer_digest(tokenizer).encode())
    for batch in rows.with_format(None).iter(_BATCH):
        found.update(repr(batch).encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:24]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides how a tokenizer encodes, whatever it was called with before."""
    names = ("padding_side", "truncation_side", "model_input_names", "model_max_length")
    settings = repr((type(tokenizer).__name__, [getattr(tokenizer, name) for name in names]))
    found = hashlib.sha256(settings.encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # of the last call
            definition.pop(name, None)
        found.update(json.dumps(definition, sort_keys=True).encode())
        return found.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                found.update(file.name.encode())
                found.update(file.read_bytes())
    return found.hexdigest()


def _read(place: Path, rows: int) -> Dataset | None:
    """The rows of a folder, if it is there, whole, and of so many rows."""
    try:
        sizes = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if not all((place / name).stat().st_size == size for name, size in sizes.items()):
            return None
        found = load_from_disk(str(place))
        os.utime(place / MANIFEST)
    except Exception:  # whatever a damaged folder makes datasets or Arrow raise: it is encoded again
        return None
    return found if isinstance(found, Dataset) and len(found) == rows else None


def _write(made: Dataset, shelf: Path, place: Path) -> None:
    """Put encoded rows in their place as a whole. What another process has put there in the meantime stays."""
    shelf.mkdir(parents=True, exist_ok=True)
    _remove_unread(shelf)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=shelf, ignore_cleanup_errors=True) as partial:
        beside = Path(partial) / "made"
        with bars_on_a_terminal():
            made.save_to_disk(str(beside))
        sizes = {path.name: path.stat().st_size for path in beside.iterdir()}
        (beside / MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        if _read(place, len(made)) is None and place.exists():
            place.rename(Path(partial) / "damaged")
        with contextlib.suppress(OSError):  # another process was faster
            beside.rename(place)


def _remove_unread(shelf: Path) -> None:
    """Remove folders that nobody has read for long, and what killed processes left."""
    now = time.time()
    for path in shelf.iterdir():
        with contextlib.suppress(OSError):
            marker = path / MANIFEST
            last = (marker if marker.exists() else path).stat().st_mtime
            if now - last > (24 * 3600 if path.name.startswith(".") else DAYS * 24 * 3600):
                shutil.rmtree(path, ignore_errors=True)
