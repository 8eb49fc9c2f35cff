"""The samples of images that other packages carry: fixed splits, and refused with what to install."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from potstill.data import image_samples
from potstill.data.image_samples import FASHION, fixed_splits
from potstill.data.load import Source, load
from potstill.data.samples import is_here
from potstill.errors import DataError, SampleError


def test_digits() -> None:
    dataset = load(Source(name="digits"))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 1266, "validation": 176, "test": 355}
    first = dataset["train"][0]
    assert (
        first["image"].size == (8, 8)
        and first["image"].mode == "L"
        and dataset["train"].features["label"].num_classes == 10
    )
    pixels = np.stack([np.asarray(image) for image in dataset["test"]["image"]])
    assert pixels.max() == 255 and set(np.unique(pixels)) <= {round(value * 255 / 16) for value in range(17)}
    with pytest.raises(DataError, match="takes no options"):
        load(Source(name="digits", options={"folder": "x"}))


def test_splits_are_fixed_and_of_every_class() -> None:
    labels = np.arange(200) % 10
    parts = fixed_splits(labels)
    assert sorted(row for part in parts.values() for row in part) == list(range(200))
    assert all(
        np.bincount(labels[parts[name]]).tolist() == [count] * 10 for name, count in (("test", 4), ("validation", 2))
    )
    assert parts["test"][:4] == [8, 13, 39, 43]  # on every machine and with every version


def test_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else known(name))
    assert not is_here("digits")
    with pytest.raises(SampleError, match="`pip install scikit-learn`"):
        load(Source(name="digits"))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files of the published form, their hashes in place of the published ones."""
    generator = np.random.default_rng(0)
    hashes = {}
    for prefix, rows in (("train", 12), ("t10k", 3)):
        pixels = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = (np.arange(rows) % 10).astype(np.uint8)
        for name, values in ((f"{prefix}-images-idx3-ubyte", pixels), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            hashes[name] = hashlib.sha256(content).hexdigest()
    assert hashes.keys() == FASHION.keys() and all(len(one) == 64 for one in FASHION.values())
    monkeypatch.setattr(image_samples, "FASHION", hashes)
    monkeypatch.setattr(image_samples, "HELD_BACK", 4)
    return tmp_path


def test_fashion_mnist_from_its_files(files: Path) -> None:
    dataset = load(Source(name="fashion-mnist", options={"folder": str(files)}))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 8, "validation": 4, "test": 3}
    assert dataset["validation"]["label"][:] == [8, 9, 0, 1]
    assert dataset["train"].features["label"].names[9] == "Ankle boot"
    with gzip.open(files / "t10k-images-idx3-ubyte.gz") as packed:
        assert dataset["test"][1]["image"].tobytes() == packed.read()[16 + 784 : 16 + 2 * 784]


def test_unpacked_files_and_the_folder_of_the_package(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = files / "t10k-labels-idx1-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setattr(image_samples, "DEBIAN", files)
    assert is_here("fashion-mnist")
    packed.unlink()
    assert not is_here("fashion-mnist") and len(load(Source(name="fashion-mnist"))["test"]) == 3


def test_missing_broken_and_other_files(files: Path, tmp_path: Path) -> None:
    source = Source(name="fashion-mnist", options={"folder": str(files)})
    labels = files / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc"))
    with pytest.raises(
        SampleError, match=r"aren't those of Fashion-MNIST.*t10k-labels.*MNIST has files of the same names"
    ):
        load(source)
    labels.write_bytes(b"\x1f\x8b\x08cut")
    with pytest.raises(SampleError, match="can't be read"):
        load(source)
    labels.unlink()
    with pytest.raises(
        SampleError, match=r"without t10k-labels-idx1-ubyte.gz. Install .*apt install dataset-fashion-mnist"
    ):
        load(source)
    with pytest.raises(DataError, match="Did you mean 'folder'"):
        load(Source(name="fashion-mnist", options={"foldr": "x"}))
