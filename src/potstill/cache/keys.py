"""What a row is to a teacher, in 16 bytes: a hash of its encoded input, and of nothing else.

Rows are known by content, not by number. Shuffling, another batch size, another split or another number of processes
changes no key; a row that was augmented, or cut to another length, is another row.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from potstill.augment.image import VIEW
from potstill.knowledge.observe import READ
from potstill.tasks.pictures import image_bytes

INPUTS = (*READ, "position_ids", "decoder_input_ids", "pixel_values", "image", VIEW)
"""The columns that a teacher may read; labels and numbers of rows are none of its business."""

BYTES = 16
BATCH = 1000
Keys = np.ndarray[Any, Any]
"""[N] of `KEY`, one key a row."""

KEY = np.dtype(f"S{BYTES}")


def row_keys(rows: Any, prefix: str = "") -> Keys:
    """The key of each row, [N]; remembered for the data set at hand, which is asked for in every stage and seed.

    Args:
        rows: encoded rows, as `Task.encode` gives them.
        prefix: of the columns that hold the teacher's own ids, where it has another tokenizer than the student.
    """
    known = (getattr(rows, "_fingerprint", None), prefix)
    if known[0] is None or known not in _LATEST:
        _LATEST.clear()
        _LATEST[known] = _row_keys(rows, prefix)
    return _LATEST[known]


_LATEST: dict[tuple[str | None, str], Keys] = {}


def _row_keys(rows: Any, prefix: str) -> Keys:
    names = input_columns(rows.column_names, prefix)
    found: list[bytes] = []
    for table in rows.select_columns(list(names.values())).with_format("arrow").iter(batch_size=BATCH):
        columns = {name: table.column(column).combine_chunks() for name, column in names.items()}
        values = {name: _rows_of(column) for name, column in columns.items()}
        for number in range(table.num_rows):
            state = xxhash.xxh3_128()
            for name, own in values.items():
                state.update(name.encode())
                state.update(own[number])
            found.append(state.digest())
    return np.array(found, dtype=KEY)


def input_columns(present: list[str], prefix: str = "") -> dict[str, str]:
    """Input of the model -> column of the rows that holds it; the teacher's own columns before the student's."""
    own = {name: f"{prefix}{name}" for name in READ if prefix and f"{prefix}{name}" in present}
    if own:
        return own
    return {name: name for name in INPUTS if name in present}


def _rows_of(array: Any) -> list[bytes]:
    """The bytes of each row of an Arrow column, in one width of number whatever the column has."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):  # an image, by the content of its file
        return [image_bytes(one) for one in array.to_pylist()]
    ends = np.arange(len(array) + 1)
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        ends = np.asarray(array.offsets)[ends] - array.offsets[0].as_py()
        array = array.flatten()
    flat = np.asarray(array)
    flat = flat.astype(np.float32 if np.issubdtype(flat.dtype, np.floating) else np.int64)
    return [flat[start:end].tobytes() for start, end in pairwise(ends)]
