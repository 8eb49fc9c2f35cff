"""How near what is kept comes to what is observed: some rows are read back whenever a cache is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.columns import Codec
from potstill.cache.keys import row_keys
from potstill.cache.store import FIDELITY, Cache, write_json
from potstill.cache.write import Collate, observe_rows, places_of, without_padding
from potstill.checks import problem
from potstill.errors import CacheError
from potstill.knowledge import Observer

SAMPLE = 128
FEW_CLASSES = 2


def measure(cache: Cache, observer: Observer, rows: Any, collate: Collate, sample: int = SAMPLE) -> dict[str, Any]:
    """What a fixed draw of the rows that are kept loses by it, column by column: read from the shards, beside what the
    teacher says now.

    Gives, for logits over classes: ``kl``, the mean divergence of the kept distribution from the observed one, in nats,
    over the kept classes and all others together; ``kl_max``; ``agreement``, the share of equal first choices; and
    ``mass``, the mean share of probability that the kept classes hold (1 where all are kept). For all else:
    ``relative_error``, the norm of the difference over the norm of what was observed. Beside them the number of rows,
    and bytes a token and a row.

    Raises:
        CacheError: what is kept for a row is of another size than what is observed of it.
    """
    shards, kept_at = cache.locate(row_keys(rows, observer.prefix))
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(shards >= 0))[:sample]
    found: dict[str, list[dict[str, Tensor]]] = {}
    for start in range(0, len(drawn), 32):
        numbers = drawn[start : start + 32].tolist()
        known = observe_rows(observer, rows, numbers, collate)
        places = places_of(known, len(numbers))
        for name, codec in cache.codecs.items():
            tensor = codec.column.of(known).cpu()
            for number, at in enumerate(numbers):
                row = without_padding(tensor[number], codec.column, places, number)
                shard, place = cache.shards[shards[at]], int(kept_at[at])
                parts = {part: shard.part(name, part, place) for part in codec.parts}
                found.setdefault(name, []).append(_lost(codec, row, parts))
    return {
        "rows": len(drawn),
        "columns": {name: _summary(losses) for name, losses in found.items()},
        "bytes_a_row": cache.bytes / max(1, cache.rows),
        "bytes_a_token": cache.bytes / cache.tokens if cache.tokens else None,
        "precision": cache.identity.storage.precision,
        "top_k": cache.identity.storage.top_k,
    }


def measure_and_keep(cache: Cache, observer: Observer, rows: Any, collate: Collate) -> dict[str, Any]:
    """The measurement, left beside the cache."""
    found = measure(cache, observer, rows, collate)
    write_json(cache.folder / FIDELITY, found)
    return found


def _lost(codec: Codec, row: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one row loses, as sums and counts: what is observed, and the parts that are kept for it."""
    held = parts["values"].shape[:-1] if codec.sparse else parts[""].shape[:-1]
    if held != row.shape[:-1]:
        what = "What is kept for a row isn't what is observed of it"
        given = f"{codec.column.name} {list(held)}, observed {list(row.shape[:-1])}"
        raise CacheError(problem(what, given=given, do="Remove the cache (potstill cache prune --all)"))
    if codec.column.kind != "logits" or codec.classes < FEW_CLASSES:
        finite = row.float().clamp(-1e30, 1e30)
        difference = codec.dense(parts).float().clamp(-1e30, 1e30) - finite
        ruled_out = codec.column.ruled_out(row)  # no number to be near to
        difference, finite = (one.masked_fill(ruled_out, 0.0).double() for one in (difference, finite))
        return {"error": difference.square().sum(), "norm": finite.square().sum()}
    temperature = codec.storage.temperature if codec.sparse else 1.0
    log_p = torch.log_softmax(row.double() / temperature, -1)
    if codec.sparse:
        ids, kept = codec.ids(parts), parts["values"].double()
        own = log_p.gather(-1, ids)
        rest, rest_kept = 1 - own.exp().sum(-1), parts["tail"].double()
        kl = (own.exp() * (own - kept)).sum(-1)
        kl = kl + torch.where(rest > 0, rest * (rest.clamp(min=1e-30).log() - rest_kept.clamp(min=-60)), 0.0)
        first, mass = ids.gather(-1, kept.argmax(-1, keepdim=True)).squeeze(-1), own.exp().sum(-1)
    else:
        kept = torch.log_softmax(codec.dense(parts).double(), -1)
        kl = (log_p.exp() * (log_p - kept)).sum(-1)
        first, mass = kept.argmax(-1), torch.ones(log_p.shape[:-1])
    agree = (first == log_p.argmax(-1)).double()
    count = torch.tensor(float(kl.numel()))
    sums = {"kl": kl.sum(), "agreement": agree.sum(), "mass": mass.double().sum()}
    return {**sums, "kl_max": kl.max(), "mass_min": mass.double().min(), "count": count}


def _summary(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The rows of one column together."""
    if "error" in losses[0]:
        error, norm = (sum(float(one[key]) for one in losses) for key in ("error", "norm"))
        return {"relative_error": (error / norm) ** 0.5 if norm else 0.0}
    count = sum(float(one["count"]) for one in losses)
    means = {key: sum(float(one[key]) for one in losses) / count for key in ("kl", "agreement", "mass")}
    return {
        **means,
        "kl_max": max(float(one["kl_max"]) for one in losses),
        "mass_min": min(float(one["mass_min"]) for one in losses),
    }
