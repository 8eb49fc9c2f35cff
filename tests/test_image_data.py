"""What a recipe over a folder of images says and refuses before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_images import tiny_image_model, tiny_pictures
from tiny_runs import Told

from potstill.errors import DataError
from potstill.recipe import load_recipe
from potstill.workbench import Workbench, prepare_workbench


def folder_of_classes(folder: Path, rows: int = 12) -> Path:
    """A folder a class, in one split; the first picture grey."""
    for number, (picture, label) in enumerate(zip(*tiny_pictures(rows), strict=True)):
        place = folder / ("dark", "light")[label]
        place.mkdir(parents=True, exist_ok=True)
        (picture if number else picture.convert("L")).save(place / f"{number}.png")
    return folder


def bench_of(folder: Path, told: Told, **data: Any) -> Workbench:
    recipe = {
        "task": "image_classification",
        "data": {"name": str(folder), "validation": 0.25, "test": 0.25, **data},
        "teacher": {"model": tiny_image_model(folder.with_name("model")), "train": {"steps": 1}},
        "student": {"layers": 1},
        "distill": [{"terms": [{"knowledge": "logits"}]}],
    }
    return prepare_workbench(load_recipe(recipe), told.say)


def test_a_folder_becomes_rows_and_what_is_decided_is_said(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "data")
    Image.open(folder / "light" / "1.png").save(folder / "light" / "copy.bmp")  # the same pixels in another format
    told = Told()
    bench = bench_of(folder, told)
    assert bench.task.names == ("dark", "light") and sum(map(len, bench.rows.values())) == 13
    assert "train: 1 of the 13 images are converted to RGB: 1 grey (mode L), first dark/0.png" in told.text
    assert "equal images stay together" in told.text
    homes = {Path(one["path"]).name: split for split, rows in bench.rows.items() for one in rows["image"]}
    assert homes["1.png"] == homes["copy.bmp"]


def test_an_image_in_two_splits_is_said(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        folder_of_classes(tmp_path / "data" / split)
    told = Told()
    bench_of(tmp_path / "data", told)
    assert "12 of the 12 rows of test have an image that stands in train too" in told.text


def test_a_split_that_is_left_out_is_not_decoded(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        folder_of_classes(tmp_path / "data" / split)
    (tmp_path / "data" / "unlabelled").mkdir()
    (tmp_path / "data" / "unlabelled" / "broken.png").write_bytes(b"no")
    told = Told()
    assert (
        "unlabelled" not in bench_of(tmp_path / "data", told).rows and "the split unlabelled is left out" in told.text
    )


def test_broken_files_stop_a_run_before_it_trains(tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "data")
    (folder / "light" / "3.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1 of the 12 images of train can't be used. Got: light/3.png \(no image"):
        bench_of(folder, Told())


def test_images_without_labels_teach_unless_they_are_evaluated(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        folder_of_classes(tmp_path / "data" / split, 6)
    more = tmp_path / "more"
    more.mkdir()
    for number, picture in enumerate(tiny_pictures(4, seed=9)[0]):
        picture.save(more / f"{number}.png")
    Image.open(tmp_path / "data" / "test" / "light" / "1.png").save(more / "seen.png")
    told = Told()
    bench = bench_of(tmp_path / "data", told, unlabelled={"name": str(more)})
    assert len(bench.rows["unlabelled"]) == 4 and len(bench.transfer) == 10
    assert bench.rows["unlabelled"]["labels"][:] == [-100] * 4
    assert "1 unlabelled rows are left out: they show nothing, or what is in validation or test" in told.text
    batch = bench.collate([bench.transfer[0], bench.transfer[9]])
    assert bench.task.masks(batch)["labels"].tolist() == [True, False]
