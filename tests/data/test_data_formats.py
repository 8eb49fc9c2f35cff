"""One file to one table, and what a broken file says."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from potstill.data.formats import read_table
from potstill.errors import DataError


def table_of(tmp_path: Path, name: str, content: str | bytes) -> pa.Table:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path)


def refused(tmp_path: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        table_of(tmp_path, name, content)
    assert name in str(caught.value)
    return str(caught.value)


def test_csv_keeps_texts_as_they_are(tmp_path: Path) -> None:
    content = '\ufefftext,label,day\n"He said ""hi"", then\nleft",NA,2020-01-02\nnull,None,2021-01-02\n'
    table = table_of(tmp_path, "a.csv", content)
    assert table.to_pylist() == [
        {"text": 'He said "hi", then\nleft', "label": "NA", "day": "2020-01-02"},
        {"text": "null", "label": "None", "day": "2021-01-02"},
    ]


def test_csv_types_are_those_of_all_rows(tmp_path: Path) -> None:
    late = "label\n" + "1\n" * 300_000 + "one\n"  # longer than a block of Arrow's reader
    assert table_of(tmp_path, "a.csv", late).schema.field("label").type == pa.string()
    assert table_of(tmp_path, "a.csv", "label\n1\n\n2\n").column("label").to_pylist() == [1, 2]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    table = table_of(tmp_path, "a.tsv", 'sentence\tlabel\n"not closed\t1\nfine\t0\n')
    assert table.column("sentence").to_pylist() == ['"not closed', "fine"]


def test_csv_with_broken_rows(tmp_path: Path) -> None:
    said = refused(tmp_path, "a.csv", "text,label\na,1\nb\nc,1,2\nd\ne\n")
    assert "row 3: 1 fields instead of 2; row 4: 3 fields" in said and "and 1 more" in said


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    refused(tmp_path, name, "")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_files_of_another_kind(tmp_path: Path, name: str) -> None:
    assert "can't be read" in refused(tmp_path, name, b"this is nothing of the kind")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_not_utf8_names_the_line(tmp_path: Path, name: str) -> None:
    assert "line 2, is not UTF-8" in refused(tmp_path, name, b"text,label\ncaf\xe9,1\n")


def test_jsonl(tmp_path: Path) -> None:
    table = table_of(tmp_path, "a.jsonl", '{"text": "2020-01-02"}\n\n{"label": [1, 0], "text": "b\u2028c"}\r\n')
    assert table.to_pylist() == [{"text": "2020-01-02", "label": None}, {"text": "b\u2028c", "label": [1, 0]}]


def test_jsonl_with_broken_lines(tmp_path: Path) -> None:
    lines = ['{"a": 1}', "{", "[1]", '{"a" 2}', "}", "x"]
    said = refused(tmp_path, "a.jsonl", "\n".join(lines))
    assert "line 2:" in said and "line 4:" in said and "and 1 more lines" in said
    assert "line 2: list instead of an object" in refused(tmp_path, "a.jsonl", '{"a": 1}\n[1]\n')


def test_jsonl_with_mixed_values(tmp_path: Path) -> None:
    said = refused(tmp_path, "a.jsonl", '{"label": 1}\n{"label": 1}\n{"label": "one"}\n')
    assert "'label'" in said and "int in line 1, str in line 3" in said


def test_jsonl_with_half_a_character(tmp_path: Path) -> None:
    assert "'text'" in refused(tmp_path, "a.jsonl", '{"text": "\\ud83d"}\n')


@pytest.mark.parametrize(
    "content",
    [json.dumps([{"a": 1}, {"a": 2}]), json.dumps({"data": [{"a": 1}, {"a": 2}]}), '{"a": 1}\n{"a": 2}\n'],
)
def test_json_in_its_forms(tmp_path: Path, content: str) -> None:
    assert table_of(tmp_path, "a.json", content).to_pylist() == [{"a": 1}, {"a": 2}]


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.table(
        {"text": pa.array(["a", "b"]).dictionary_encode(), "label": [1.5, None], "__index_level_0__": [0, 1]}
    )
    want = [{"text": "a", "label": 1.5}, {"text": "b", "label": None}]
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, str(tmp_path / "b.arrow"))
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        found = read_table(tmp_path / name)
        assert found.to_pylist() == want and found.schema.field("text").type == pa.string()


def test_txt(tmp_path: Path) -> None:
    assert table_of(tmp_path, "a.txt", "one\r\n\n  \n two").column("text").to_pylist() == ["one", " two"]


def test_unknown_extension_and_missing_file(tmp_path: Path) -> None:
    assert "Use one of: .csv" in refused(tmp_path, "a.xlsx", "")
    with pytest.raises(DataError, match=r"There is no file.*isn't there either"):
        read_table(tmp_path / "no" / "a.csv")
