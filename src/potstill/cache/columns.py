"""One kind of knowledge of one layer, as a cache keeps it: how long it is for a row, and in which numbers.

Decisions:
- Nothing is padded. What goes with the tokens of a row is as long as the row: hidden states n * D numbers, attention
  maps H * n * n. A shard holds each column as one flat array, row after row.
- int8 has one scale a vector (the last axis): the largest magnitude there becomes 127.
- float16 holds the lowest number that it has where a score is ruled out (a causal mask holds the lowest float32), and
  that is read back as the lowest float32.
- Ids of a vocabulary beyond 65,536 are kept in 16 bits and a few more, packed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.cache.identity import Storage, layer_as_data, layer_from_data
from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.types import LAYERED, Knowledge, Layer, Needs

TOKENS, DECODER = "tokens", "decoder"
LOGITS = "logits"
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
SIXTEEN = 1 << 16
Size = int | str
"""A number, or the name of what is as long as the row: its tokens, or what its decoder reads."""


LOWEST = torch.finfo(torch.float16).min
RULED_OUT = -128  # of int8, whose numbers go to -127


@dataclass(frozen=True)
class Column:
    """What is kept of one kind of knowledge.

    Args:
        kind: a field of `Knowledge`.
        shape: of one row, ``tokens`` or ``decoder`` in place of what is as long as the row.
        layer: None for the logits.
    """

    kind: str
    shape: tuple[Size, ...]
    layer: Layer | None = None

    @property
    def name(self) -> str:
        """``hidden.3``, ``attention.encoder.0``, ``logits``."""
        parts = [] if self.layer is None else self.layer if isinstance(self.layer, tuple) else [self.layer]
        return ".".join([self.kind, *map(str, parts)])

    def row_shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a row of these lengths."""
        return tuple(lengths[size] if isinstance(size, str) else size for size in self.shape)

    def ruled_out(self, numbers: Tensor) -> Tensor:
        """Which of a column's numbers a mask put there: of scores before the softmax those below what float16 holds."""
        return numbers.float() < LOWEST if self.kind == "scores" else torch.zeros_like(numbers, dtype=torch.bool)

    def numbers(self, lengths: Mapping[str, Tensor], *, but_last: bool = False) -> Tensor:
        """How many numbers each row has, [N], from lengths [N]; `but_last` counts vectors."""
        count = torch.ones_like(next(iter(lengths.values())))
        for size in self.shape[:-1] if but_last else self.shape:
            count = count * (lengths[size] if isinstance(size, str) else size)
        return count

    def of(self, known: Knowledge) -> Tensor:
        """This column of what was observed, [B, …]; of logits of pixels the classes last, [B, h, w, V]."""
        found = getattr(known, self.kind)
        if self.kind == LOGITS and found.ndim == 4:
            return found.movedim(1, -1)  # type: ignore[no-any-return]
        return found if self.layer is None else found[self.layer]  # type: ignore[no-any-return]

    def as_dict(self) -> dict[str, Any]:
        """The column as plain data."""
        layer = None if self.layer is None else layer_as_data(self.layer)
        return {"kind": self.kind, "layer": layer, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Column":
        """The column that `as_dict` wrote."""
        layer = None if data["layer"] is None else layer_from_data(data["layer"])
        return cls(data["kind"], tuple(data["shape"]), layer)


def columns_of(known: Knowledge, needs: Needs, rows: int) -> list[Column]:
    """The columns that hold what was observed in a batch of so many rows.

    Raises:
        ModelError: something has another number of rows than the batch (windows of Swin): it can't be kept by row.
    """
    found = [Column(LOGITS, _logits_shape(known))] if needs.logits else []
    for kind in LAYERED:
        for layer in sorted(getattr(needs, kind), key=str):
            tensor = getattr(known, kind)[layer]
            if len(tensor) != rows:
                raise ModelError(
                    problem(
                        f"The {kind} of layer {layer} can't be kept row by row",
                        given=f"{len(tensor)} entries for {rows} rows",
                        do="Set cache.use=never, so that the teacher runs along",
                    )
                )
            found.append(Column(kind, _shape(kind, layer, tensor, known), layer))
    return found


def _logits_shape(known: Knowledge) -> tuple[Size, ...]:
    assert isinstance(known.logits, Tensor)
    shape = tuple(known.logits.shape[1:])
    if len(shape) == 3:
        return (*shape[1:], shape[0])
    if len(shape) != 2:
        return shape
    return (_length(DECODER if known.decoder_mask is not None else TOKENS, known, shape[0]), shape[1])


def _shape(kind: str, layer: Layer, tensor: Tensor, known: Knowledge) -> tuple[Size, ...]:
    stack = layer[0] if isinstance(layer, tuple) else ""
    rows = DECODER if stack == "decoder" or (stack == "cross" and kind not in ("keys", "values")) else TOKENS
    shape = tuple(tensor.shape[1:])
    if kind == "hidden":
        return (_length(rows, known, shape[0]), *shape[1:])
    if kind in ("attention", "scores"):
        columns = TOKENS if stack == "cross" else rows
        return (shape[0], _length(rows, known, shape[1]), _length(columns, known, shape[2]))
    if kind in ("queries", "keys", "values"):
        return (shape[0], _length(rows, known, shape[1]), shape[2])
    return shape


def _length(name: str, known: Knowledge, size: int) -> Size:
    """The name where this axis is as long as the row, else its size: images have patches, all as many."""
    mask = known.decoder_mask if name == DECODER else known.mask
    return name if mask is not None and mask.shape[1] == size else size


# What is written for a column, and what is read back


@dataclass(frozen=True)
class Codec:
    """Turns the numbers of a column into what is kept, and back.

    `parts` names what is kept for it: the numbers, and beside them scales, or ids and the mass of all others.
    """

    column: Column
    storage: Storage

    @property
    def sparse(self) -> bool:
        """Whether only the most likely classes are kept."""
        top_k = self.storage.top_k
        return self.column.kind == LOGITS and top_k is not None and top_k < self.classes

    @property
    def classes(self) -> int:
        """The number of classes of the logits."""
        return int(self.column.shape[-1])

    @property
    def kept(self) -> int:
        """How many classes are kept of each distribution."""
        return min(self.storage.top_k or self.classes, self.classes)

    @property
    def high_bits(self) -> int:
        """Bits of an id beyond the first sixteen: 0, 2, 4 or 8."""
        beyond = max(0, (self.classes - 1).bit_length() - 16)
        return next(bits for bits in (0, 2, 4, 8, 16) if bits >= beyond)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what is kept."""
        if self.sparse:
            return ("values", "ids", "tail", "high") if self.high_bits else ("values", "ids", "tail")
        return ("", "scales") if self.storage.precision == "int8" else ("",)

    def encode(self, row: Tensor) -> dict[str, Tensor]:
        """Part -> flat tensor, of one row without padding, [*row]."""
        if self.sparse:
            return self._encode_sparse(row)
        if self.storage.precision == "int8":
            row = row.float()
            out = self.column.ruled_out(row)  # which would be the scale of all others
            largest = row.masked_fill(out, 0.0).abs().amax(-1)
            scales = torch.where(largest == 0, 1.0, largest / 127)
            numbers = (row / scales.unsqueeze(-1)).round().masked_fill(out, RULED_OUT)
            return {"": numbers.to(torch.int8).flatten(), "scales": scales.flatten()}
        return {"": kept_as(row, self.storage.precision).flatten()}

    def _encode_sparse(self, row: Tensor) -> dict[str, Tensor]:
        log_p = torch.log_softmax(row.float() / self.storage.temperature, -1)
        values, ids = log_p.topk(self.kept, dim=-1)
        rest = log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
        parts = {
            "values": values.to(torch.float16).flatten(),
            "ids": (ids & (SIXTEEN - 1)).to(torch.uint16).flatten(),
            "tail": rest.flatten(),
        }
        if bits := self.high_bits:
            parts["high"] = packed(ids >> 16, bits).flatten()
        return parts

    def sizes(self, lengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Part -> how many numbers each row has of it, [N], from lengths [N]."""
        vectors = self.column.numbers(lengths, but_last=True)
        each = {"": _last(self.column, lengths), "scales": 1, "tail": 1}
        if self.sparse:
            each |= {"values": self.kept, "ids": self.kept, "high": packed_size(self.kept, self.high_bits)}
        return {part: vectors * each[part] for part in self.parts}

    def bytes(self, lengths: Mapping[str, Tensor]) -> Tensor:
        """The bytes of each row, [N], from lengths [N]."""
        widths = {"": DTYPES[self.storage.precision].itemsize, "scales": 4, "values": 2, "ids": 2, "tail": 4, "high": 1}
        return torch.stack([widths[part] * sizes for part, sizes in self.sizes(lengths).items()]).sum(0)

    def part_shape(self, part: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one part of a row."""
        shape = self.column.row_shape(lengths)
        if part == "":
            return shape
        if part in ("scales", "tail"):
            return shape[:-1]
        return (*shape[:-1], packed_size(self.kept, self.high_bits) if part == "high" else self.kept)

    def dense(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The numbers again, from parts of any leading shape; those of a float cache stay in their precision."""
        numbers = parts[""]
        found, ruled_out = numbers, LOWEST
        if self.storage.precision == "int8":
            found, ruled_out = numbers.float() * parts["scales"].unsqueeze(-1), RULED_OUT
        if self.column.kind == "scores" and numbers.dtype in (torch.int8, torch.float16):
            return found.float().masked_fill(numbers == ruled_out, torch.finfo(torch.float32).min)
        return found

    def ids(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Which classes were kept, [*, K]."""
        low = parts["ids"].to(torch.int64)
        if not self.high_bits:
            return low
        return low | unpacked(parts["high"], self.high_bits, self.kept) << 16


def kept_as(numbers: Tensor, precision: str) -> Tensor:
    """Numbers in the precision of a cache; what is beyond float16 becomes its largest."""
    if precision == "float16":
        largest = torch.finfo(torch.float16).max
        return numbers.clamp(-largest, largest).to(torch.float16)
    return numbers.to(DTYPES[precision])


def packed_size(count: int, bits: int) -> int:
    """Bytes that so many numbers of so many bits take."""
    return -(-count * bits // 8)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Numbers below 2^bits, [*, K], several to a byte, the first lowest: uint8 [*, `packed_size`]."""
    if bits == 16:
        return torch.stack([numbers & 255, numbers >> 8], -1).flatten(-2).to(torch.uint8)
    each = 8 // bits
    filled = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % each))
    shifts = torch.arange(0, 8, bits, device=numbers.device)
    bytes_of = filled.reshape(*numbers.shape[:-1], -1, each) << shifts
    return bytes_of.sum(-1).to(torch.uint8)


def unpacked(found: Tensor, bits: int, count: int) -> Tensor:
    """The numbers that `packed` made bytes of, int64 [*, count]."""
    numbers = found.to(torch.int64)
    if bits == 16:
        return numbers[..., 0::2] | numbers[..., 1::2] << 8
    shifts = torch.arange(0, 8, bits, device=found.device)
    several = (numbers.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return several.flatten(-2)[..., :count]


def _last(column: Column, lengths: Mapping[str, Tensor]) -> Tensor | int:
    size = column.shape[-1]
    return lengths[size] if isinstance(size, str) else size
