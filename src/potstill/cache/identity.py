"""What a cache is the knowledge of. Two identities that differ in anything are two caches; the difference is named.

Decisions:
- A teacher is known by its weights and config, not by its name: a folder that was trained again is another teacher.
- What was asked for is part of the identity, but a cache serves every request for less (`Needs` within its own).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from potstill.checks import problem, unknown_name
from potstill.errors import ArgumentError
from potstill.knowledge.types import LAYERED, Layer, Needs

FORMAT = 2
"""Raised when what is written can't be read by what came before. 2: int8 keeps what a mask rules out apart."""

PRECISIONS = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Storage:
    """How knowledge is kept.

    Args:
        precision: of every number: float32, float16, bfloat16, or int8 with one scale a vector.
        top_k: of the logits keep only so many, as log-probabilities, and the mass of all others; None keeps all.
        temperature: at which the distribution that `top_k` cuts is taken.
    """

    precision: str = "float16"
    top_k: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ArgumentError(unknown_name("precision of a cache", self.precision, PRECISIONS))
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(problem("A cache keeps at least one logit", given=f"top_k {self.top_k}"))


@dataclass(frozen=True)
class Identity:
    """Everything that decides what a cache holds, but for the rows.

    Args:
        teacher: the digest of weights and config, by `teacher_digest`.
        tokenizer: the digest of what made its input: of a tokenizer, by `data.encoded.tokenizer_digest`, or of an
            `ImageReader`.
        max_length: to which rows were cut; None where nothing was.
        runs_in: the precision that the teacher runs in.
        needs: what was observed in it.
        storage: how that is kept.
    """

    teacher: str
    tokenizer: str
    needs: Needs
    max_length: int | None = None
    runs_in: str = "float32"
    storage: Storage = field(default_factory=Storage)
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """The identity as plain data."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**found, "needs": needs_as_data(self.needs), "storage": asdict(self.storage)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Identity":
        """The identity that `as_dict` wrote."""
        own = {**data, "needs": needs_from_data(data["needs"]), "storage": Storage(**data["storage"])}
        return cls(**own)

    @property
    def digest(self) -> str:
        """A short name for it, of 16 hexadecimal digits."""
        return xxhash.xxh3_64(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def serves(self, asked: "Identity") -> bool:
        """Whether a cache of this identity holds all that `asked` needs."""
        return not any(self.differences(asked))

    def differences(self, asked: "Identity") -> Iterator[str]:
        """What keeps a cache of this identity from serving `asked`, one line each."""
        names = {
            "format": "format",
            "teacher": "the teacher's weights or config (digest)",
            "tokenizer": "tokenizer or image reader (digest)",
            "max_length": "max_length",
            "runs_in": "precision that the teacher runs in",
        }
        for key, title in names.items():
            here, there = getattr(self, key), getattr(asked, key)
            if here != there:
                yield f"{title}: {here} in the cache, {there} here"
        for f in fields(Storage):
            here, there = getattr(self.storage, f.name), getattr(asked.storage, f.name)
            if here != there and (f.name != "temperature" or self.storage.top_k is not None):
                yield f"{f.name} it is kept with: {here} in the cache, {there} here"
        if missing := lacking(self.needs, asked.needs):
            yield f"knowledge that the cache doesn't hold: {missing}"


def lacking(held: Needs, asked: Needs) -> str:
    """What of `asked` isn't in `held`, in words; empty where all is."""
    found = ["logits"] if asked.logits and not held.logits else []
    for kind in LAYERED:
        if missing := getattr(asked, kind) - getattr(held, kind):
            found.append(f"{kind} of layers {', '.join(map(str, sorted(missing, key=str)))}")
    return "; ".join(found)


def needs_as_data(needs: Needs) -> dict[str, Any]:
    """Needs as plain data, in a fixed order; a layer of a stack is a list of two."""
    layered = {kind: [layer_as_data(one) for one in sorted(getattr(needs, kind), key=str)] for kind in LAYERED}
    return {"logits": needs.logits, **{kind: layers for kind, layers in layered.items() if layers}}


def needs_from_data(data: Mapping[str, Any]) -> Needs:
    """The needs that `needs_as_data` wrote."""
    layered = {kind: frozenset(layer_from_data(one) for one in data.get(kind, ())) for kind in LAYERED}
    return Needs(logits=data["logits"], **layered)  # type: ignore[arg-type]


def layer_as_data(layer: Layer) -> Any:
    """A layer as JSON has it."""
    return list(layer) if isinstance(layer, tuple) else layer


def layer_from_data(data: Any) -> Layer:
    """A layer from what JSON made of it."""
    return (str(data[0]), int(data[1])) if isinstance(data, list) else int(data)


def teacher_digest(model: PreTrainedModel) -> str:
    """A digest of a model's weights and config: what decides its answers, wherever it lies."""
    state = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    config = model.config.to_dict()
    for told_elsewhere in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"):
        config.pop(told_elsewhere, None)
    state.update(json.dumps(config, sort_keys=True, default=str).encode())
    return state.hexdigest()
