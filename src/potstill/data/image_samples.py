"""The packaged samples of images, which other packages carry: nothing is downloaded, and nothing is kept.

``digits``: 1,797 handwritten digits of 8 x 8 pixels, grey, 10 classes, from scikit-learn (Alpaydin and Kaynak, 1998).
Its values 0 … 16 are scaled to 0 … 255. It has no splits of its own: of each class, a fixed draw puts a fifth of the
rows into test and a tenth into validation.

``fashion-mnist``: 70,000 pictures of clothes of 28 x 28 pixels, grey, 10 classes (Xiao, Rasul and Vollgraf, 2017), from
the Debian package ``dataset-fashion-mnist``, or from a folder with its four files (option ``folder``). Test is the
published test split; validation is the last 5,000 rows of the published training split.
"""

import gzip
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from potstill.checks import first_few, problem, unknown_name
from potstill.errors import DataError, SampleError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HELD_BACK = 5000  # rows of the published training split that are validation
# SHA-256 of the unpacked files: MNIST, and others made like it, have files of the same names.
FASHION = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def digits_are_here() -> bool:
    """Whether scikit-learn, which carries the digits, is installed."""
    return importlib.util.find_spec("sklearn") is not None


def fashion_is_here() -> bool:
    """Whether the Debian package with Fashion-MNIST is installed."""
    return all((DEBIAN / f"{name}.gz").is_file() for name in FASHION)


def read_digits(options: Mapping[str, Any]) -> DatasetDict:
    """The handwritten digits, in train, validation and test.

    Raises:
        SampleError: scikit-learn isn't installed.
        DataError: an option was given; there are none.
    """
    _only(options, ())
    if not digits_are_here():
        raise SampleError(
            problem(
                "The sample 'digits' is part of scikit-learn, which isn't installed", do="`pip install scikit-learn`"
            )
        )
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    names = [str(name) for name in range(10)]
    return DatasetDict(
        {split: _rows(pixels[rows], labels[rows], names) for split, rows in fixed_splits(labels).items()}
    )


def fixed_splits(labels: Sequence[int] | np.ndarray[Any, Any]) -> dict[str, list[int]]:
    """Row numbers of train, validation and test: of each class a tenth and a fifth, drawn by a hash of the row number,
    so that they are the same with every version of every library."""
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in sorted(set(map(int, labels))):
        rows = [row for row, found in enumerate(labels) if found == label]
        drawn = sorted(rows, key=lambda row: hashlib.sha256(str(row).encode()).digest())
        tests, held = len(rows) // 5, len(rows) // 10
        parts["test"] += drawn[:tests]
        parts["validation"] += drawn[tests : tests + held]
        parts["train"] += drawn[tests + held :]
    return {split: sorted(rows) for split, rows in parts.items()}


def read_fashion(options: Mapping[str, Any]) -> DatasetDict:
    """Fashion-MNIST, in train, validation and test.

    Args:
        options: ``folder`` with the four files as published, packed (``.gz``) or not; without it, the Debian package's.

    Raises:
        SampleError: they aren't there, or are other files.
        DataError: an option is unknown.
    """
    _only(options, ("folder",))
    folder = Path(str(options.get("folder", DEBIAN))).expanduser()
    contents = {name: _content(folder, name) for name in FASHION}
    missing = [f"{name}.gz" for name, content in contents.items() if content is None]
    if missing:
        raise SampleError(
            problem(
                f"The sample 'fashion-mnist' isn't in {folder}",
                given=f"without {first_few(missing)}",
                do=f"Install the Debian package (`apt install {PACKAGE}`), or set data.options.folder to a folder with "
                "its four files",
            )
        )
    read = {name: content for name, content in contents.items() if content is not None}
    others = [name for name, content in read.items() if hashlib.sha256(content).hexdigest() != FASHION[name]]
    if others:
        raise SampleError(
            problem(
                f"The files in {folder} aren't those of Fashion-MNIST",
                given=f"another sha256 of {first_few(others)}",
                follows="MNIST has files of the same names and other classes",
                do="Give the published files, or other images as a folder with one folder a class",
            )
        )
    whole, test = (
        _rows(_idx(read[f"{prefix}-images-idx3-ubyte"]), _idx(read[f"{prefix}-labels-idx1-ubyte"]), CLOTHES)
        for prefix in ("train", "t10k")
    )
    cut = len(whole) - HELD_BACK
    return DatasetDict(train=whole.select(range(cut)), validation=whole.select(range(cut, len(whole))), test=test)


def _only(options: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            what = unknown_name("option of the sample", name, known) if known else ""
            raise DataError(what or problem("The sample takes no options", given=name, do="Leave out data.options"))


def _content(folder: Path, name: str) -> bytes | None:
    """The file unpacked; None if it isn't there."""
    try:
        if (packed := folder / f"{name}.gz").is_file():
            return gzip.decompress(packed.read_bytes())
        return (folder / name).read_bytes() if (folder / name).is_file() else None
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise SampleError(problem(f"The file {folder / name} can't be read", given=str(error))) from error


def _idx(content: bytes) -> Pixels:
    """An array of bytes in the IDX format: two zeros, the kind 8, the number of axes, their lengths, the values."""
    lengths = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(lengths)


def _rows(pixels: Pixels, labels: np.ndarray[Any, Any], names: Sequence[str]) -> Dataset:
    """Grey images [N,H,W] and their classes as rows. Each is a PGM file: a header, then the pixels as they are."""
    _, height, width = pixels.shape
    header = f"P5 {width} {height} 255\n".encode()
    images = [{"bytes": header + one.tobytes(), "path": None} for one in np.ascontiguousarray(pixels)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
