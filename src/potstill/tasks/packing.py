"""Packing: documents of any length as rows of nearly one length, so that little of a batch is padding.

Plain lists of token ids; what keeps documents apart in a row is the business of the task.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

Packing = Literal["documents", "blocks", "none"]
Ids = list[int]


def pack(documents: Sequence[Ids], max_length: int, how: Packing) -> dict[str, list[Ids] | list[int]]:
    """Documents as the columns of rows of at most `max_length` tokens: ``input_ids``, ``length``.

    Args:
        documents: token ids of each, with what ends it.
        max_length: tokens of a row at most.
        how: ``documents`` gives ``position_ids`` too, which start again at 0 with each document; ``blocks`` cuts one
            long string of documents; ``none`` cuts what is longer than a row, and drops the rest.
    """
    if how == "documents":
        rows = best_fit([piece for ids in documents for piece in cut(ids, max_length)], max_length)
        positions = [[position for piece in row for position in range(len(piece))] for row in rows]
        packed = [list(chain.from_iterable(row)) for row in rows]
        return {"input_ids": packed, "position_ids": positions, "length": [len(ids) for ids in packed]}
    packed = [ids[:max_length] for ids in documents]
    if how == "blocks":
        packed = list(cut(list(chain.from_iterable(documents)), max_length))
    return {"input_ids": packed, "length": [len(ids) for ids in packed]}


def cut(ids: Ids, max_length: int) -> Iterator[Ids]:
    """Pieces of at most `max_length`; a last one of a single token, which would predict nothing, is left out."""
    for start in range(0, len(ids), max_length):
        if start == 0 or len(ids) - start > 1:
            yield ids[start : start + max_length]


def best_fit(pieces: Sequence[Ids], max_length: int) -> list[list[Ids]]:
    """Pieces put into rows, the longest first, each into the fullest row that still has room for it.

    References:
        Ding, Wang, Li, Fan et al.: Fewer Truncations Improve Language Modeling, 2024, https://arxiv.org/abs/2404.10830
    """
    rows: list[list[Ids]] = []
    room: list[tuple[int, int]] = []  # what each row has left, and its number, sorted
    for piece in sorted(pieces, key=len, reverse=True):
        at = bisect_left(room, (len(piece), -1))
        if at == len(room):
            rows.append([piece])
            left = (max_length - len(piece), len(rows) - 1)
        else:
            free, number = room.pop(at)
            rows[number].append(piece)
            left = (free - len(piece), number)
        if left[0]:
            insort(room, left)
    return rows
