"""Folders of images and label maps, their classes, and what is wrong with them before training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import label_map, picture, put

from potstill.data.images import ImageColumns
from potstill.data.label_maps import LabelMaps, class_weights, read_label_maps
from potstill.data.load import Source, load_with_notes
from potstill.errors import DataError

COLUMNS = ImageColumns("image", label_map="label_map")
MAP = ([0, 0, 1], [1, 2, 0])


def pair(folder: Path, split: str, name: str, *rows: list[int], size: tuple[int, int] = (3, 2)) -> None:
    put(folder / split / "images" / f"{name}.jpg", picture(len(name), size))
    put(folder / split / "labels" / f"{name}.png", label_map(*(rows or MAP)))


def read(folder: Path, **given: Any) -> LabelMaps:
    return read_label_maps(load_with_notes(Source(name=str(folder)))[0], COLUMNS, folder=folder, **given)


def refused(folder: Path, **given: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, **given)
    return str(caught.value).splitlines()


def test_pairs_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "train", "b")
    pair(tmp_path, "train", "town/a.1")
    pair(tmp_path, "val", "c")
    dataset, notes = load_with_notes(Source(name=str(tmp_path)))
    assert list(dataset) == ["train", "validation"] and notes == ["validation: the split that is called 'val' there"]
    assert len(dataset["train"]) == 2
    assert np.asarray(dataset["train"][0]["label_map"]).tolist() == list(MAP)


def test_what_doesnt_pair_is_named(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    put(tmp_path / "train" / "images" / "b.jpg", picture())
    put(tmp_path / "train" / "images" / "a.png", picture())
    put(tmp_path / "train" / "labels" / "c.png", label_map(*MAP))
    with pytest.raises(DataError) as caught:
        load_with_notes(Source(name=str(tmp_path)))
    twice, images, maps = str(caught.value).splitlines()
    assert "stand for two files. Got: a.jpg and a.png" in twice
    assert images.startswith("1 images of train have no label map. Got: b. ")
    assert maps.startswith("1 label maps of train have no image. Got: c. ")


def test_splits_of_two_kinds_are_refused(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    put(tmp_path / "test" / "cat" / "a.png", picture())
    with pytest.raises(DataError, match="with: train; without: test"):
        load_with_notes(Source(name=str(tmp_path)))


def test_classes_of_the_recipe_and_pixels(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    pair(tmp_path, "train", "b", [0, 0, 0], [0, 0, 255])
    found = read(tmp_path, names=["sky", "road", "car"], void=[255])
    assert found.classes.names == ("sky", "road", "car") and found.notes == ()
    assert found.pixels["train"].tolist() == [8, 2, 1]


def test_problems_of_maps_at_once(tmp_path: Path) -> None:
    pair(tmp_path, "train", "good")
    pair(tmp_path, "train", "odd", [0, 9, 255], [0, 9, 0])
    pair(tmp_path, "train", "small", size=(4, 2))
    pair(tmp_path, "validation", "broken")
    put(tmp_path / "validation" / "labels" / "broken.png", b"")
    sizes, ids, broken = refused(tmp_path, names=["sky", "road", "car"])
    assert sizes.startswith(
        "1 of the 3 label maps of train have another size than their image. Got: labels/small.png (3 x 2"
    )
    assert "its image 4 x 2" in sizes
    assert ids.startswith(
        "1 of the 3 label maps of train hold ids that are no class's. Got: ids 9 (in 1 maps), 255 (in 1 "
    )
    assert "labels/odd.png" in ids and "3 classes, ids 0 to 2, none void" in ids
    assert broken.startswith(
        "1 of the 1 label maps of validation can't be used. Got: labels/broken.png (an empty file)"
    )


def test_classes_without_names_are_counted(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    pair(tmp_path, "validation", "b", [0, 4, 4], [0, 3, 3])
    found = read(tmp_path, void=[0])
    assert found.classes.names == ("class 1", "class 2", "class 3", "class 4") and found.classes.ids == (1, 2, 3, 4)
    assert found.notes == (
        "4 classes, ids 1 to 4 as found in the maps; they have no names: set data.names",
        "2 of 4 classes have no pixel in train: class 3, class 4",
    )


def test_a_file_of_classes(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    said = {"names": ["sky", "road"], "palette": [[1, 2, 3], [4, 5, 6]], "void": [2]}
    put(tmp_path / "classes.json", json.dumps(said).encode())
    found = read(tmp_path)
    assert found.classes.names == ("sky", "road") and found.classes.colours == ((1, 2, 3), (4, 5, 6))
    assert found.notes == (f"names and palette and void of the classes: from {tmp_path / 'classes.json'}",)
    assert read(tmp_path, names=["a", "b"]).classes.names == ("a", "b")
    put(tmp_path / "classes.json", b'["sky", "road", "car"]')
    assert read(tmp_path).classes.names == ("sky", "road", "car")
    put(tmp_path / "classes.json", b'{"name": []}')
    assert "doesn't describe classes" in refused(tmp_path)[0]
    put(tmp_path / "classes.json", b"{")
    assert "isn't valid JSON" in refused(tmp_path)[0]


def test_a_palette_of_the_maps(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    coloured = label_map(*MAP).convert("P")
    coloured.putpalette([9, 9, 9, 1, 2, 3, 7, 7, 7])
    put(tmp_path / "train" / "labels" / "a.png", coloured)
    assert read(tmp_path, names=["a", "b", "c"]).classes.colours == ((9, 9, 9), (1, 2, 3), (7, 7, 7))


def test_a_broken_first_map_is_told_as_any_other(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    pair(tmp_path, "train", "b", size=(4, 2))
    put(tmp_path / "train" / "labels" / "a.png", b"no")
    for given in ({"names": ["sky", "road", "car"]}, {}, {"void": [0, 1, 2]}):
        broken, sizes = refused(tmp_path, **given)
        assert broken.startswith(
            "1 of the 2 label maps of train can't be used. Got: labels/a.png (no image that Pillow"
        )
        assert sizes.startswith("1 of the 2 label maps of train have another size")


@pytest.mark.parametrize(
    "said",
    [
        *('{"void": ["void"]}', '{"void": [3.0]}', '{"void": [true]}', '{"names": [1, 1]}', "[1, 2]"),
        *('{"palette": [1, 2, 3]}', '{"palette": [[1, 2]]}', '{"palette": [[1, 2, 3.5]]}', '{"palette": ["abc"]}'),
    ],
)
def test_a_file_of_classes_with_other_values_is_refused(tmp_path: Path, said: str) -> None:
    pair(tmp_path, "train", "a")
    put(tmp_path / "classes.json", said.encode())
    assert "classes.json doesn't describe classes. Write {" in refused(tmp_path)[0]


def test_maps_in_colours(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    coloured = label_map(*MAP).convert("P")
    coloured.putpalette([9, 9, 9, 1, 2, 3, 7, 7, 7])
    put(tmp_path / "train" / "labels" / "a.png", coloured.convert("RGB"))
    assert "labels/a.png (" in refused(tmp_path, names=["a", "b", "c"])[0]
    palette = [[9, 9, 9], [1, 2, 3], [7, 7, 7]]
    assert read(tmp_path, names=["a", "b", "c"], palette=palette).pixels["train"].tolist() == [3, 2, 1]


def test_what_is_given_wrongly(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    lines = refused(tmp_path, names=["a", "a"], void=[70000], palette=[[1, 2, 300]])
    assert ["stands twice" in lines[0], "65535" in lines[1], "[1, 2, 300]" in lines[2]] == [True] * 3
    pair(tmp_path / "void", "train", "a", [0, 0, 0], [0, 0, 0])
    assert "show no class" in refused(tmp_path / "void", void=[0])[0]


def test_nothing_but_void(tmp_path: Path) -> None:
    pair(tmp_path, "train", "a")
    pair(tmp_path, "train", "bc", [3, 3, 3], [3, 3, 3])
    assert read(tmp_path, names=["a", "b", "c"], void=[3]).notes == (
        "train: 1 label maps hold nothing but void: labels/bc.png",
    )


def test_class_weights() -> None:
    pixels = np.array([75, 25, 0])
    assert class_weights(pixels, None) is None
    found = class_weights(pixels, "frequency")
    assert found == pytest.approx([1 / np.log(1.77), 1 / np.log(1.27), 1 / np.log(1.02)])
    assert class_weights(pixels, [1, 2, 0.5]) == (1.0, 2.0, 0.5)
    for wrong, said in [([1, 2], "2 weights, 3 classes"), ([1, -1, 1], "negative"), ([1, float("nan"), 1], "finite")]:
        with pytest.raises(DataError, match=said):
            class_weights(pixels, wrong)
