"""The teacher's knowledge on disk: written once, keyed by content, and read back in any order."""

from potstill.cache.fidelity import measure, measure_and_keep
from potstill.cache.identity import Identity, Storage, teacher_digest
from potstill.cache.keys import row_keys
from potstill.cache.read import CACHED, CachedCollator, CachedTeacher, Lookup, Recall
from potstill.cache.store import Cache, caches, find, nearest, open_cache
from potstill.cache.write import Estimate, Work, Written, estimate, plan_work, row_bytes, row_lengths, write_cache
from potstill.data.encoded import tokenizer_digest

__all__ = [
    "CACHED",
    "Cache",
    "CachedCollator",
    "CachedTeacher",
    "Estimate",
    "Identity",
    "Lookup",
    "Recall",
    "Storage",
    "Work",
    "Written",
    "caches",
    "estimate",
    "find",
    "measure",
    "measure_and_keep",
    "nearest",
    "open_cache",
    "plan_work",
    "row_bytes",
    "row_keys",
    "row_lengths",
    "teacher_digest",
    "tokenizer_digest",
    "write_cache",
]
