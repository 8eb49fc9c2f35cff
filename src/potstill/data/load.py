"""A data set from wherever the recipe says: a packaged sample, a local folder, files, or the hub.

- Files are read here (`formats.py`), not by the hub's loaders: those keep a copy of each in a cache and give errors
  without a line number.
- The splits are called train, validation, test and unlabelled; other usual names are understood, and that is said.
- What the user has to know, such as a split that was left out, comes back as notes from `load_with_notes`.
- Splits that are missing are cut from train by a hash of the text, so the cut depends on neither the order of the rows
  nor chance, and equal texts stay together.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Value, load_dataset, load_from_disk
from datasets.fingerprint import generate_random_fingerprint

from potstill.checks import problem, unknown_name
from potstill.data.columns import LABELS, Columns, guess_columns, text_keys
from potstill.data.formats import READERS, read_table
from potstill.data.image_folders import read_image_folder
from potstill.data.images import with_image_columns
from potstill.data.samples import is_sample, load_sample_data
from potstill.errors import DataError

ALIASES = {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("val", "valid", "dev", "development", "eval", "evaluation", "validation_matched"), "validation"),
    **dict.fromkeys(("testing", "test_matched"), "test"),
    **dict.fromkeys(("unlabeled", "unsupervised", "transfer"), "unlabelled"),
}
SPLITS = ("train", "validation", "test", "unlabelled")


@dataclass(frozen=True)
class Source:
    """Where data comes from: either `name` or `files`.

    name: a packaged sample, a local folder or file, or a hub id. config and revision: of a hub data set. files:
    split -> path or paths. options: of a sample.
    """

    name: str | None = None
    config: str | None = None
    files: Mapping[str, str | Sequence[str]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None


def load(source: Source) -> DatasetDict:
    """The splits of a source. `load_with_notes` also says what was decided on the way.

    Raises:
        DataError: a file or the data set isn't there or can't be read, splits don't fit each other; all at once.
        SampleError: a packaged sample can't be fetched.
    """
    return load_with_notes(source)[0]


def load_with_notes(source: Source) -> tuple[DatasetDict, list[str]]:
    """As `load`, and one note for every decision: a split that was renamed or left out."""
    if (source.name is None) == (source.files is None):
        both = "both" if source.name is not None else "neither"
        raise DataError(problem("Data comes from either name or files", given=both, do="Give one of them"))
    notes: list[str] = []
    if source.files is not None:
        _refuse(source, ("config", "options", "revision"), "files")
        dataset, notes = _from_files(source.files)
    elif is_sample(str(source.name)):
        _refuse(source, ("config", "revision"), "a packaged sample")
        dataset = load_sample_data(str(source.name), source.options)
    elif _is_local(str(source.name)):
        _refuse(source, ("config", "options", "revision"), "a local folder")
        dataset, notes = _from_path(Path(str(source.name)).expanduser())
    else:
        _refuse(source, ("options",), "a hub data set")
        dataset, notes = _renamed(_from_hub(source))
    dataset, left_out = without_unlabelled(with_image_columns(dataset))
    return dataset, notes + left_out


def without_unlabelled(dataset: DatasetDict, column: str | None = None) -> tuple[DatasetDict, list[str]]:
    """Leave out validation and test splits whose labels are hidden: None or -1 in every row, as in GLUE.

    Args:
        column: the label column; without it, columns with the usual names are looked at.
    """
    notes = []
    kept = dict(dataset)
    for split in ("validation", "test"):
        rows = kept.get(split)
        if rows is None or not len(rows):
            continue
        wanted = [column] if column else [name for name in rows.column_names if name.casefold() in LABELS[:10]]
        if any(name in rows.column_names and _all_missing(rows, name) for name in wanted):
            del kept[split]
            notes.append(f"{split}: left out, since none of its {len(rows)} rows has a label")
    return DatasetDict(kept), notes


def missing_splits(
    dataset: DatasetDict,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    columns: Columns | Sequence[str] | None = None,
) -> tuple[DatasetDict, list[str]]:
    """Cut validation and test, where they are missing, from train.

    Rows with the same text (but for case and white space; of pairs, both texts) go to the same split. What goes where
    is a fixed draw from the texts and the seed.

    Args:
        validation, test: shares of the rows of train; 0 makes none.
        columns: the text columns; guessed by name when not given.

    Returns:
        the splits, and a note for each that was cut.

    Raises:
        DataError: there is no train, a share isn't one, or train is too small.
    """
    if "train" not in dataset:
        raise DataError(problem("The data has no split train", given=", ".join(dataset) or "no split"))
    shares = {"test": test, "validation": validation}
    wrong = [f"{name} {share}" for name, share in shares.items() if not 0 <= share < 1]
    wanted = {name: share for name, share in shares.items() if share > 0 and name not in dataset}
    if wrong or sum(wanted.values()) >= 1:
        raise DataError(
            problem("The shares of train to cut off lie between 0 and 1, together too", given=wrong or wanted)
        )
    if not wanted:
        return dataset, []
    train = dataset["train"]
    what = "texts" if columns is None or isinstance(columns, Sequence) else f"{columns.what.split()[-1]}s"
    cut = _cut(_keys(train, columns), wanted, seed)
    made = {name: train.select(sorted(rows)) for name, rows in cut.items()}
    notes = [
        f"{name}: {len(made[name])} of the {len(train)} rows of train, cut off by a fixed draw (seed {seed}); "
        f"equal {what} stay together"
        for name in wanted
    ]
    return DatasetDict({**dataset, **made}), notes


def _cut(keys: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Row numbers of each split and of what stays in train; rows with one key stay together."""
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    drawn = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest(), reverse=True)
    cut: dict[str, list[int]] = {name: [] for name in shares}
    for split, share in shares.items():
        while drawn and len(cut[split]) < max(1, round(share * len(keys))):
            cut[split] += groups[drawn.pop()]
    cut["train"] = [row for key in drawn for row in groups[key]]
    if not all(cut.values()):
        raise DataError(
            problem(
                f"The {len(keys)} rows of train, {len(groups)} of them different, are too few to cut "
                f"{' and '.join(shares)} from",
                do="Give these splits as files, or more rows",
            )
        )
    return cut


def overlap(dataset: DatasetDict, columns: Columns | Sequence[str]) -> dict[tuple[str, str], int]:
    """(split, other split) -> how many rows of the other one have a text that stands in the first too.

    Only pairs with such rows are listed, an evaluated split second. Case and white space don't count; both texts of a
    pair must be equal.
    """
    names = columns if isinstance(columns, Sequence) else columns.inputs
    # Transfer text may lack the second text of a pair: nothing there to compare.
    whole = {name: rows for name, rows in dataset.items() if set(names) <= set(rows.column_names)}
    keys = {name: _keys(whole[name], columns) for name in sorted(whole, key=("validation", "test").count)}
    sets = {name: set(texts) for name, texts in keys.items()}
    counts = {(a, b): sum(text in sets[a] for text in keys[b]) for a, b in combinations(keys, 2)}
    return {pair: count for pair, count in counts.items() if count}


def overlap_warnings(dataset: DatasetDict, columns: Columns | Sequence[str]) -> list[str]:
    """`overlap` in words, for the splits that are evaluated: numbers on texts seen in training flatter a model."""
    what = "a text" if isinstance(columns, Sequence) else columns.what
    return [
        f"{count} of the {len(dataset[evaluated])} rows of {evaluated} have {what} that stands in {other} too: "
        f"the numbers on {evaluated} may look better than they are"
        for (other, evaluated), count in overlap(dataset, columns).items()
        if evaluated in ("validation", "test")
    ]


def _keys(rows: Dataset, columns: Columns | Sequence[str] | None) -> list[str]:
    if columns is None:
        try:
            columns = guess_columns(rows, labelled=False)[0]
        except DataError:
            columns = [
                name for name, kind in rows.features.items() if isinstance(kind, Value) and kind.dtype == "string"
            ]
    if not isinstance(columns, Sequence):
        return columns.keys(rows)
    if not columns:
        raise DataError(problem("There is no text column to tell rows apart by", given=", ".join(rows.column_names)))
    return text_keys(rows, columns)


def _refuse(source: Source, names: Sequence[str], what: str) -> None:
    given = [name for name in names if getattr(source, name)]
    if given:
        raise DataError(problem(f"data.{', data.'.join(given)} means nothing for {what}", do="Leave it out"))


def _is_local(name: str) -> bool:
    """Whether a name means a path: it is there, or no hub id looks so (those are ``name`` or ``owner/name``)."""
    path = Path(name).expanduser()
    return (
        path.exists()
        or name.startswith((".", "~", "/", "\\"))
        or path.is_absolute()
        or name.count("/") > 1
        or path.suffix.lower() in READERS
    )


def _from_hub(source: Source) -> DatasetDict:
    try:
        loaded = load_dataset(source.name, source.config, revision=source.revision)
    except Exception as error:  # every library below has errors of its own for a network that is away
        said = str(error).strip().splitlines()
        raise DataError(
            problem(
                f"The data set '{source.name}' can't be loaded from the hub",
                given=said[0] if said else type(error).__name__,
                do=(
                    "Check the name and data.config, and the network; or download it once and give its folder; "
                    "or take the packaged sample reviews"
                ),
            )
        ) from error
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})


def _from_path(path: Path) -> tuple[DatasetDict, list[str]]:
    """A folder that datasets saved, a folder with a file or more a split, or one file, which is train."""
    if path.is_file():
        return _from_files({"train": str(path)})
    if not path.is_dir():
        raise DataError(problem(f"There is no folder {path}", do="Check data.name"))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            saved = load_from_disk(str(path))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataError(problem(f"The saved data set {path} can't be read", given=str(error))) from error
        return _renamed(saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved}))
    files: dict[str, list[str]] = {}
    known = "|".join(sorted({*SPLITS, *ALIASES}, key=len, reverse=True))
    for file in sorted(path.iterdir()) + sorted((path / "data").glob("*")):
        match = re.match(rf"({known})(?![a-z])", file.name.lower())
        if match and file.suffix.lower() in READERS and file.is_file():
            files.setdefault(match[1], []).append(str(file))
    if not files and (images := read_image_folder(path, {*SPLITS, *ALIASES})) is not None:
        renamed, notes = _renamed(images[0])
        return renamed, images[1] + notes
    if not files:
        inside = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
        raise DataError(
            problem(
                f"The folder {path} holds no data that can be read",
                given=inside,
                do=f"Call the files after their split, such as train.csv ({', '.join(READERS)}), or set data.files; "
                "images lie in train/CLASS/, or in train/images/ beside train/labels/",
            )
        )
    return _from_files(files)


def _from_files(files: Mapping[str, str | Sequence[str]]) -> tuple[DatasetDict, list[str]]:
    problems: list[str] = []
    tables: dict[str, pa.Table] = {}
    if not files:
        problems.append(problem("data.files names no file", do="Give at least train"))
    for split, paths in files.items():
        if split not in SPLITS and split not in ALIASES:
            problems.append(unknown_name("split", split, SPLITS))
        parts = []
        for path in [paths] if isinstance(paths, str | Path) else paths:
            try:
                parts.append(read_table(Path(path).expanduser()))
            except DataError as error:
                problems.append(str(error))
        if parts:
            try:
                tables[split] = _joined(split, parts)
            except DataError as error:
                problems.append(str(error))
    try:
        tables = _of_one_schema(tables)
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    # without a fingerprint of their own, tables are pickled for one, which ends at 2 GB
    found = {split: Dataset(table, fingerprint=generate_random_fingerprint()) for split, table in tables.items()}
    return _renamed(DatasetDict(found))


def _joined(split: str, tables: Sequence[pa.Table]) -> pa.Table:
    """The files of one split, one after the other."""
    parts = _of_one_schema({f"file {number} of {split}": table for number, table in enumerate(tables, 1)})
    return pa.concat_tables(parts.values())


def _of_one_schema(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Tables with the same columns and types (integers become floats where another table has floats).

    Columns are compared with the first table's. Transfer text (the split unlabelled) may lack some.
    """
    if not tables:
        return {}
    (first, reference), *_ = tables.items()
    compared = {name: table for name, table in tables.items() if ALIASES.get(name, name) != "unlabelled"}
    problems = []
    for name, table in compared.items():
        missing = [column for column in reference.column_names if column not in table.column_names]
        extra = [column for column in table.column_names if column not in reference.column_names]
        if missing or extra:
            parts = [f"{what} {', '.join(found)}" for what, found in (("without", missing), ("with", extra)) if found]
            problems.append(problem(f"{name} has other columns than {first}", given=" and ".join(parts)))
    types: dict[str, pa.DataType] = {}
    for column in reference.column_names:
        kinds = {
            name: table.schema.field(column).type for name, table in tables.items() if column in table.column_names
        }
        try:
            schemas = [pa.schema([(column, kind)]) for kind in kinds.values()]
            types[column] = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            found = ", ".join(f"{kind} in {name}" for name, kind in kinds.items())
            problems.append(problem(f"The column '{column}' isn't of one type", given=found))
    if problems:
        raise DataError("\n".join(problems))
    return {name: _cast(table, types) for name, table in tables.items()}


def _cast(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    names = [name for name in types if name in table.column_names]
    names += [name for name in table.column_names if name not in types]
    schema = pa.schema([(name, types.get(name, table.schema.field(name).type)) for name in names])
    return table.select(names).cast(schema).replace_schema_metadata(None)


def _renamed(dataset: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Splits under our names, in lower case. A usual other name is taken where ours is free."""
    notes: list[str] = []
    done: dict[str, Dataset] = {}
    for name, rows in dataset.items():
        low = name.lower()
        ours = ALIASES.get(low, low if low in SPLITS else name)
        if ours != name and ours not in dataset:
            if ours in done:
                raise DataError(problem(f"Two splits mean {ours}", given=", ".join(dataset), do="Name one of them"))
            notes.append(f"{ours}: the split that is called '{name}' there")
            done[ours] = rows
        else:
            done[name] = rows
    return DatasetDict(done), notes


def _all_missing(rows: Dataset, name: str) -> bool:
    column = rows.select_columns([name]).with_format("arrow")[:].column(name)
    if pa.types.is_null(column.type):
        return True
    missing = column.is_null()
    if pa.types.is_integer(column.type):
        missing = pc.or_kleene(missing, pc.equal(column, -1))
    return bool(pc.all(pc.fill_null(missing, True)).as_py())
