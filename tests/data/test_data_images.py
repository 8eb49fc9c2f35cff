"""Rows of images: their columns, folders of them, Parquet, and what is found before training."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from pictures import picture, png, put, stored

from potstill.data import images
from potstill.data import load as module
from potstill.data.images import (
    PIXELS,
    ImageColumns,
    decoded_once,
    guess_image_columns,
    image_names,
    just_images,
    with_image_columns,
)
from potstill.data.labels import encode_labels, infer_labels
from potstill.data.load import Source, load_with_notes, missing_splits, overlap_warnings
from potstill.data.rows import standard_columns
from potstill.errors import DataError
from potstill.tasks.pictures import decoded


def rows_of(*images: Any, **columns: Any) -> Dataset:
    features = Features({"image": Image(), **{name: Value("int64") for name in columns}})
    return Dataset.from_dict({"image": list(images), **columns}, features=features)


def test_a_folder_a_class(tmp_path: Path) -> None:
    put(tmp_path / "train" / "dog" / "1.png", picture(1))
    put(tmp_path / "train" / "cat" / "deep" / "2.PNG", picture(2))
    put(tmp_path / "train" / "cat" / "notes.txt", b"no")
    put(tmp_path / "train" / "cat" / ".hidden.png", b"no")
    put(tmp_path / "val" / "dog" / "3.png", picture(3))
    dataset, notes = load_with_notes(Source(name=str(tmp_path)))
    assert dataset["train"].features["label"] == ClassLabel(names=["cat", "dog"])
    assert dataset["train"]["label"][:] == [0, 1] and dataset["validation"]["label"][:] == [1]
    assert notes == [
        "train: 1 files are left out, no images by their names: cat/notes.txt",
        "validation: the split that is called 'val' there",
    ]
    assert dataset["train"][1]["image"].tobytes() == picture(1).tobytes()


def test_a_folder_a_class_without_splits_and_a_test_split_without_classes(tmp_path: Path) -> None:
    put(tmp_path / "plain" / "cat" / "1.png", picture(1))
    put(tmp_path / "plain" / "dog" / "2.png", picture(2))
    assert list(load_with_notes(Source(name=str(tmp_path / "plain")))[0]) == ["train"]
    put(tmp_path / "hidden" / "train" / "cat" / "1.png", picture(1))
    put(tmp_path / "hidden" / "test" / "2.png", picture(2))
    dataset, notes = load_with_notes(Source(name=str(tmp_path / "hidden")))
    assert list(dataset) == ["train"] and notes == ["test: left out, since none of its 1 rows has a label"]


def test_splits_are_known_in_capitals(tmp_path: Path) -> None:
    for split in ("Train", "VAL", "Test"):
        put(tmp_path / split / "cat" / "1.png", picture(1))
    dataset, notes = load_with_notes(Source(name=str(tmp_path)))
    assert set(dataset) == {"train", "validation", "test"}
    assert "test: the split that is called 'Test' there" in notes and len(notes) == 3


def test_folders_of_classes_may_be_links(tmp_path: Path) -> None:
    """Two links to one folder are two classes; one that leads back to a folder above ends there."""
    put(tmp_path / "elsewhere" / "1.png", picture(1))
    put(tmp_path / "elsewhere" / ".hidden" / "2.png", picture(2))
    put(tmp_path / "data" / "cow" / "3.png", picture(3))
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cow" / "back").symlink_to(tmp_path / "data")
    dataset, notes = load_with_notes(Source(name=str(tmp_path / "data")))
    rows = dataset["train"]
    assert rows.features["label"].names == ["cat", "cow", "dog"] and notes == []
    assert rows["label"][:] == [0, 1, 2] and rows[2]["image"].tobytes() == picture(1).tobytes()


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "train" / "cat" / "1.png", picture(1))

    def scandir(path: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DataError, match=r"train can't be read. Got: Permission denied"):
        load_with_notes(Source(name=str(tmp_path)))


def test_a_folder_beside_the_splits_may_be_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lost+found is, where a disk begins."""
    put(tmp_path / "train" / "cat" / "1.png", picture(1))
    put(tmp_path / "lost+found" / "2.png", picture(2))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "lost+found")
    assert load_with_notes(Source(name=str(tmp_path)))[1] == []


def test_folders_of_images_beside_the_splits_are_said_or_refused(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "1.png", picture(1))
    put(tmp_path / "holdout" / "cat" / "2.png", picture(2))
    put(tmp_path / "notes" / "a.txt", b"no")
    dataset, notes = load_with_notes(Source(name=str(tmp_path)))
    assert list(dataset) == ["train"]
    assert notes == ["holdout: left out, a folder of images beside the splits that isn't called after one"]
    for name in ("bus", "car", "train"):
        put(tmp_path / "vehicles" / name / "1.png", picture(1))
    with pytest.raises(DataError, match=r"called after a split.*beside others.*splits train; others bus, car"):
        load_with_notes(Source(name=str(tmp_path / "vehicles")))


def test_a_folder_without_images_says_how_images_lie(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "notes.txt", b"no")
    with pytest.raises(DataError, match="images lie in train/CLASS/"):
        load_with_notes(Source(name=str(tmp_path)))


def test_parquet_with_images_and_with_plain_bytes(tmp_path: Path) -> None:
    rows_of(stored(picture(1)), stored(picture(2)), label=[0, 1]).to_parquet(str(tmp_path / "train.parquet"))
    dataset, _ = load_with_notes(Source(files={"train": str(tmp_path / "train.parquet")}))
    assert isinstance(dataset["train"].features["image"], Image)
    assert dataset["train"][1]["image"].tobytes() == picture(2).tobytes()
    table = pa.table({"img": [None, png(picture(3))], "blob": [b"x", b"y"], "label": [0, 1]})
    pq.write_table(table, tmp_path / "bytes.parquet")
    dataset, _ = load_with_notes(Source(name=str(tmp_path / "bytes.parquet")))
    assert dataset["train"].features["blob"] == Value("binary")
    assert dataset["train"][1]["img"].tobytes() == picture(3).tobytes()
    assert with_image_columns(DatasetDict()) == {}


def test_a_split_may_hold_more_than_two_gigabytes_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine rows that share the memory of one, which nobody writes to: more than the offsets of one array count."""
    size = 2**28
    offsets = pa.py_buffer(np.array([0, size], np.int32))
    files = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(bytes(size))])
    row = pa.StructArray.from_arrays([files, pa.array(["a/1.png"])], ["bytes", "path"])
    table = pa.table({"image": pa.chunked_array([row] * 9)})
    monkeypatch.setattr(module, "read_table", lambda path: table)
    dataset, _ = load_with_notes(Source(files={"train": "large.parquet"}))
    assert isinstance(dataset["train"].features["image"], Image)
    assert image_names(dataset["train"], "image") == ["a/1.png"] * 9


def test_a_column_that_is_called_as_that_of_our_keys_stays() -> None:
    rows = Dataset.from_dict(
        {"pixels": [stored(picture(seed)) for seed in range(3)], "label": [0, 1, 0]},
        features=Features({"pixels": Image(), "label": Value("int64")}),
    )
    columns, _ = guess_image_columns(DatasetDict(train=rows))
    done, _ = decoded_once(DatasetDict(train=rows), columns)
    assert done["train"][1]["pixels"].tobytes() == picture(1).tobytes()
    assert columns.standard(done["train"], ["label"]).column_names == ["image", PIXELS, "label"]
    again, _ = decoded_once(done, columns)
    assert again["train"].column_names == done["train"].column_names


def test_columns_are_guessed_and_said() -> None:
    rows = Dataset.from_dict(
        {"picture": [stored(picture())], "fine_label": [1]},
        features=Features({"picture": Image(), "fine_label": ClassLabel(names=["a", "b"])}),
    )
    columns, notes = guess_image_columns(DatasetDict(train=rows))
    assert columns == ImageColumns("picture", "fine_label") and columns.label_columns == ("fine_label",)
    assert [note.split(" (")[0] for note in notes] == ["image column: 'picture'", "label column: 'fine_label'"]
    columns, notes = guess_image_columns(rows, {"image": "picture", "label": ["fine_label"]})
    assert (columns.label, notes) == ("fine_label", [])
    assert guess_image_columns(rows, labelled=False)[0].label is None


def test_columns_of_image_and_map() -> None:
    maps = Features({"pixel_values": Image(), "label": Image()})  # as some data sets on the hub have it
    rows = Dataset.from_dict({"pixel_values": [stored(picture())], "label": [stored(picture())]}, features=maps)
    columns, _ = guess_image_columns(rows, maps=True)
    assert columns == ImageColumns("pixel_values", None, "label") and columns.label_columns == ()
    with pytest.raises(DataError, match="Which column holds the label can't be told"):
        guess_image_columns(rows)


def test_every_problem_of_columns_at_once() -> None:
    text = Dataset.from_dict({"text": ["a"], "label": [1]})
    with pytest.raises(DataError, match=r"No column holds images. Got: text \(string\), label \(int64\)"):
        guess_image_columns(text)
    with pytest.raises(DataError) as caught:
        guess_image_columns(text, {"image": "text", "label": "lable"})
    lines = str(caught.value).splitlines()
    assert "'text' holds no images. Got: string" in lines[0] and "Did you mean 'label'" in lines[1] and len(lines) == 2


def test_broken_images_are_named_with_counts(tmp_path: Path) -> None:
    whole = png(picture(size=(40, 40)))
    files = [
        put(tmp_path / "a" / "empty.png", b""),
        put(tmp_path / "a" / "cut.png", whole[:-900]),
        put(tmp_path / "a" / "text.png", b"hello"),
        put(tmp_path / "a" / "good.png", whole),
    ]
    train = rows_of(*map(str, files), str(tmp_path / "gone.png"), None)
    floats = rows_of({"bytes": tiff(np.full((2, 2), 0.5, np.float32)), "path": None})
    with pytest.raises(DataError) as caught:
        decoded_once(DatasetDict(train=train, test=floats), ImageColumns("image"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("5 of the 6 images of train can't be used. Got: a/empty.png (an empty file), a/cut.png (")
    assert "a/text.png (no image that Pillow knows)" in first and "row 5 (no image)" in first
    assert "1 of the 1 images of test can't be used. Got: row 0 (numbers without a known range, mode F)" in second


def tiff(values: Any) -> bytes:
    import io

    from PIL import Image as Pillow

    content = io.BytesIO()
    Pillow.fromarray(values).save(content, "TIFF")
    return content.getvalue()


def test_conversions_and_animations_are_said() -> None:
    import io

    moving = io.BytesIO()
    picture(1).save(moving, "GIF", save_all=True, append_images=[picture(2)])
    images = [picture(0), picture(1, mode="L"), picture(2, mode="L"), picture(3, mode="RGBA")]
    train = rows_of(*map(stored, images), {"bytes": moving.getvalue(), "path": "x/moving.gif"})
    sixteen = rows_of({"bytes": tiff(np.full((2, 2), 9, np.uint16)), "path": None})
    done, notes = decoded_once(DatasetDict(train=train, test=sixteen), ImageColumns("image"))
    assert notes[0].startswith(
        "train: 4 of the 5 images are converted to RGB: 2 grey (mode L), first row 1; 1 with tran"
    )
    assert notes[1] == "train: 1 images have several frames, of which the first is taken: x/moving.gif"
    assert "16 bit, scaled to 8 (mode I;16), first row 0" in notes[2]
    assert len(set(done["train"][PIXELS])) == 5


def test_only_what_is_drawn_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(*(stored(picture(seed)) for seed in range(20)))
    seen: list[Any] = []
    monkeypatch.setattr(images, "decoded", lambda one: seen.append(one) or decoded(one))
    found = just_images(DatasetDict(train=rows), 3)
    expected = rows.shuffle(seed=0).select(range(3))
    assert len(seen) == 3 and [one.tobytes() for one in found["image"]] == [one.tobytes() for one in expected["image"]]
    assert len(just_images(DatasetDict(other=rows), 30)) == 20


def test_a_row_is_known_by_its_pixels() -> None:
    same = {"bytes": tiff(np.asarray(picture(1))), "path": None}  # another format without loss
    turned = {"bytes": png(picture(1).transpose(3)), "path": None}
    train = rows_of(*(stored(picture(seed)) for seed in range(20)), label=[0, 1] * 10)
    data = DatasetDict(train=train, test=rows_of(same, turned, stored(picture(90)), label=[0, 1, 1]))
    columns = ImageColumns("image", "label")
    done, notes = decoded_once(data, columns)
    assert notes == [] and done["test"][PIXELS][0] == done["train"][PIXELS][1]
    assert columns.keys(data["test"]) == list(done["test"][PIXELS])
    warnings = overlap_warnings(done, [PIXELS])
    assert len(warnings) == 1 and warnings[0].startswith("1 of the 3 rows of test have")
    cut, said = missing_splits(done, validation=0.2, columns=[PIXELS])
    again, _ = missing_splits(
        DatasetDict({**done, "train": done["train"].shuffle(seed=1)}), validation=0.2, columns=[PIXELS]
    )
    assert len(cut["validation"]) == 4 and len(said) == 1
    assert set(cut["validation"][PIXELS]) == set(again["validation"][PIXELS])


def test_rows_under_the_tasks_names() -> None:
    rows = rows_of(stored(picture(1)), target=[3]).add_column("other", [0])
    columns = ImageColumns("image", "target")
    done, _ = decoded_once(DatasetDict(train=rows), columns)
    labels = infer_labels(done["train"], "target", names=["0", "1", "2", "3"])
    encoded = encode_labels(done, columns, labels)
    found = standard_columns(encoded, columns)
    assert found["train"].column_names == ["image", PIXELS, "labels"] and found["train"]["labels"][:] == [3]
