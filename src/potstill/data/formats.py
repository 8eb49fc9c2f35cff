"""One file of rows -> one Arrow table, by its extension: csv, tsv, json, jsonl, parquet, arrow, txt.

- The readers are Arrow's and Python's own, not pandas: a text "NA" or "null" stays a text, and a date stays as written.
- A broken file is named with the line, and several broken rows are told at once. Nothing is skipped in silence.
- tsv has no quoting, as its definition says (quotation marks are common at the start of a sentence); csv has.
- A row of a txt file is a line; empty lines are none.
- Text is UTF-8, with or without a byte order mark.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from potstill.checks import problem
from potstill.errors import DataError

_SHOWN = 3


def read_table(path: Path) -> pa.Table:
    """The rows of a file.

    Raises:
        DataError: there is no such file, its extension is unknown, or its content can't be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            problem(
                f"The format of {path} can't be told from its name",
                given=path.suffix or "no extension",
                do=f"Use one of: {', '.join(READERS)}",
            )
        )
    if not path.is_file():
        follows = f"The folder {path.parent} isn't there either" if not path.parent.is_dir() else ""
        raise DataError(problem(f"There is no file {path}", follows=follows))
    try:
        table = reader(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, str(error).strip().splitlines()[0]) from error
    if not table.num_columns:
        raise _unreadable(path, "no columns")
    return _plain(table)


def _unreadable(path: Path, given: str) -> DataError:
    return DataError(problem(f"The file {path} can't be read", given=given))


def _text(path: Path) -> str:
    """The content as text; `DataError` names the first line that isn't UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            problem(f"{path}, line {line}, is not UTF-8", given=repr(error.object[error.start]), do="Save it as UTF-8")
        ) from error


def _csv(path: Path) -> pa.Table:
    return _delimited(path, delimiter=",", quote_char='"')


def _tsv(path: Path) -> pa.Table:
    return _delimited(path, delimiter="\t", quote_char=False)


def _delimited(path: Path, *, delimiter: str, quote_char: Any) -> pa.Table:
    content = _text(path)
    if not content.strip():
        raise _unreadable(path, "an empty file")
    broken: list[str] = []

    def note(row: Any) -> str:
        broken.append(f"row {row.number}: {row.actual_columns} fields instead of {row.expected_columns}")
        return "skip"

    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter,
        quote_char=quote_char,
        newlines_in_values=quote_char is not False,
        invalid_row_handler=note,
    )
    source = content.encode()

    def read(types: dict[str, pa.DataType]) -> pa.Table:
        return pyarrow.csv.read_csv(
            pa.BufferReader(source),
            # Rows are numbered only without threads; one block, since types are inferred from the first block alone.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=min(len(source) + 1, 2**31 - 1)),
            parse_options=parse,
            convert_options=pyarrow.csv.ConvertOptions(column_types=types),
        )

    table = read({})
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise _unreadable(path, "; ".join(broken[:_SHOWN]) + more)
    dates = {field.name: pa.string() for field in table.schema if pa.types.is_temporal(field.type)}
    return read(dates) if dates else table


def _json(path: Path) -> pa.Table:
    """A list of rows, such a list under ``data``, or a row a line."""
    content = _text(path)
    try:
        whole = json.loads(content)
    except ValueError:
        return _rows_of_lines(path, content)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    rows = whole if isinstance(whole, list) else [whole]
    return _table_of_rows(path, enumerate(rows, 1), "row")


def _jsonl(path: Path) -> pa.Table:
    return _rows_of_lines(path, _text(path))


def _rows_of_lines(path: Path, content: str) -> pa.Table:
    rows, broken = [], []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except ValueError as error:
            broken.append(f"line {number}: {error}")
    if broken:
        more = f" and {len(broken) - _SHOWN} more lines" if len(broken) > _SHOWN else ""
        raise DataError(problem(f"The file {path} isn't valid JSON", given="; ".join(broken[:_SHOWN]) + more))
    return _table_of_rows(path, rows, "line")


def _table_of_rows(path: Path, numbered: Iterable[tuple[int, Any]], unit: str) -> pa.Table:
    """Rows as a table; a key that a row lacks is null there."""
    pairs = list(numbered)
    odd = [(number, row) for number, row in pairs if not isinstance(row, dict)]
    if odd:
        raise _unreadable(
            path, f"{unit} {odd[0][0]}: {type(odd[0][1]).__name__} instead of an object with named values"
        )
    if not pairs:
        raise _unreadable(path, "no rows")
    names = dict.fromkeys(name for _, row in pairs for name in row)
    columns, problems = {}, []
    for name in names:
        values = [row.get(name) for _, row in pairs]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            kinds: dict[str, int] = {}
            for (number, _), value in zip(pairs, values, strict=True):
                if value is not None:
                    kinds.setdefault(type(value).__name__, number)
            found = ", ".join(f"{kind} in {unit} {number}" for kind, number in kinds.items())
            said = found if len(kinds) > 1 else str(error).splitlines()[0]
            problems.append(problem(f"The values of '{name}' in {path} are of no one kind", given=said))
    if problems:
        raise DataError("\n".join(problems))
    return pa.table(columns)


def _parquet(path: Path) -> pa.Table:
    return pyarrow.parquet.read_table(path)


def _arrow(path: Path) -> pa.Table:
    """Either of the two layouts: with the index at its end (feather), or a plain stream, as datasets writes it."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _txt(path: Path) -> pa.Table:
    lines = [line.rstrip("\r") for line in _text(path).split("\n")]
    return pa.table({"text": pa.array([line for line in lines if line.strip()], pa.string())})


def _plain(table: pa.Table) -> pa.Table:
    """Dictionary columns as their values, and no index that pandas left behind."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table.drop_columns([name for name in table.column_names if name == "__index_level_0__"])


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _txt,
}
