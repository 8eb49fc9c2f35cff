"""How near what is kept comes to what was observed: measured on some rows whenever a cache is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.columns import Codec
from potstill.cache.store import FIDELITY, Cache, write_json
from potstill.cache.write import Collate, observe_rows, places_of, without_padding
from potstill.knowledge import Observer

SAMPLE = 128
FEW_CLASSES = 2


def measure(cache: Cache, observer: Observer, rows: Any, collate: Collate, sample: int = SAMPLE) -> dict[str, Any]:
    """What a fixed draw of rows loses by being kept, column by column.

    Gives, for logits over classes: ``kl``, the mean divergence of the kept distribution from the observed one, in nats,
    over the kept classes and all others together; ``kl_max``; ``agreement``, the share of equal first choices; and
    ``mass``, the mean share of probability that the kept classes hold (1 where all are kept). For all else:
    ``relative_error``, the norm of the difference over the norm of what was observed. Beside them the number of rows,
    and bytes a token and a row.
    """
    drawn = np.random.default_rng(0).permutation(len(rows))[:sample]
    found: dict[str, list[dict[str, Tensor]]] = {}
    for start in range(0, len(drawn), 32):
        numbers = drawn[start : start + 32].tolist()
        known = observe_rows(observer, rows, numbers, collate)
        places = places_of(known, len(numbers))
        for name, codec in cache.codecs.items():
            tensor = codec.column.of(known).cpu()
            for number in range(len(numbers)):
                row = without_padding(tensor[number], codec.column, places, number)
                found.setdefault(name, []).append(_lost(codec, row))
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


def _lost(codec: Codec, row: Tensor) -> dict[str, Tensor]:
    """What one row loses, as sums and counts."""
    lengths = dict(zip((s for s in codec.column.shape if isinstance(s, str)), _named_sizes(codec, row), strict=True))
    flat = codec.encode(row)
    parts = {name: part.view(codec.part_shape(name, lengths)) for name, part in flat.items()}
    if codec.column.kind != "logits" or codec.classes < FEW_CLASSES:
        finite = row.float().clamp(-1e30, 1e30)
        difference = codec.dense(parts).float().clamp(-1e30, 1e30) - finite
        ruled_out = row.float() < torch.finfo(torch.float16).min  # by a mask: no number to be near to
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


def _named_sizes(codec: Codec, row: Tensor) -> Sequence[int]:
    return [row.shape[axis] for axis, size in enumerate(codec.column.shape) if isinstance(size, str)]


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
