"""From a trained student to what ships: the folder, the exported files, and what each of them costs to run."""

import hashlib
import os
import platform
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from potstill import export
from potstill.checks import problem, unknown_name
from potstill.data import load
from potstill.data.images import just_images
from potstill.data.label_maps import save_classes
from potstill.errors import DataError, ExportError
from potstill.evaluation import cost
from potstill.evaluation.flops import count
from potstill.evaluation.peak_memory import classifier_workload, peak_memory
from potstill.evaluation.predict import Logits
from potstill.evaluation.segmentation import beside
from potstill.knowledge import TEACHERS, inputs_for, own_columns
from potstill.metrics import of_pixels, scores
from potstill.prediction import load_classifier
from potstill.progress import Step
from potstill.runs import replace_folder
from potstill.tasks import SemanticSegmentation, Task
from potstill.tasks.base import Reader, Sample, quiet_transformers
from potstill.terms import TEACHER
from potstill.workbench import Workbench

FILES = {"onnx": ("ONNX", "model.onnx"), "onnx-int8": ("ONNX int8", "model-int8.onnx")}
CALIBRATION_ROWS, CALIBRATION_BATCH = 256, 32
MOST_BATCHES, HELD_BYTES = 16, 2**29  # that models are timed on
TIMED_PATCHES = 8192  # of 16 x 16 pixels, in a batch that models are timed on: 4 images of 512 x 1024
PIXELS = "pixel_values"
TOLERANCE = 1e-3  # of the float32 file's logits; what float32 leaves is a hundredth of it
PACKAGES = ("potstill", "torch", "transformers", "accelerate", "datasets", "onnx", "onnxruntime")


def save_model(model: PreTrainedModel, reader: Reader, task: Task, place: Path) -> None:
    """A plain transformers folder, written beside and put in place as a whole. That of a segmentation also says what
    the ids of its label maps mean, as a data folder does."""
    beside = place.with_name(f".{place.name}.new")
    beside.parent.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(beside)
    reader.save_pretrained(beside)
    if isinstance(task, SemanticSegmentation):
        save_classes(task.classes, beside)
    replace_folder(beside, place)


def export_student(
    bench: Workbench, student: Path, logits: Logits, folder: Path, formats: Sequence[str], step: Step
) -> list[dict[str, Any]]:
    """Write each format, run it over the evaluated rows, and compare it with the student's logits; of a segmentation,
    whose logits aren't kept, with the student itself."""
    model = bench.load(student).model
    files = _write_files(model, bench.reader, folder, formats, _calibration(bench.sample_of_train, bench.collate))
    split = bench.evaluated_on
    order = np.argsort(-np.asarray(bench.rows[split]["length"]), kind="stable")
    found = []
    for number, name in enumerate(format for format in FILES if format in formats):
        step(number, len(formats), None)
        if of_pixels(bench.task.problem):
            found.append(_entry(name, files[name], *_verified_maps(name, files[name], model, bench)))
            continue
        made = _verified(name, files[name], _batches(bench, split, order, 32), logits[order], bench.task.problem)
        measured = scores(bench.task.problem, made.logits, bench.labels(split)[order])
        found.append(_entry(name, files[name], made, measured))
    for name, (_, file) in FILES.items():
        if name not in formats:  # made on the way, or by an earlier recipe
            (folder / file).unlink(missing_ok=True)
    return found


def _entry(name: str, file: Path, made: Any, measured: Mapping[str, float]) -> dict[str, Any]:
    """What `results.json` holds of an exported file; `made` has its largest difference and its agreement."""
    return {
        "key": name,
        "title": FILES[name][0],
        "file": f"{file.parent.name}/{file.name}",
        "bytes": file.stat().st_size,
        "sha256": digest_of(file),
        "max_logit_difference": made.max_logit_difference,
        "agreement": made.agreement,
        "metrics": measured,
    }


def _verified_maps(name: str, file: Path, model: PreTrainedModel, bench: Workbench) -> tuple[Any, dict[str, float]]:
    """A file of a segmentation model held against the model, batch by batch, and its metrics."""
    runner, split = export.OnnxModel(file, threads=torch.get_num_threads()), bench.evaluated_on
    made = beside(runner, model, bench.rows[split], bench.collate)  # type: ignore[arg-type]
    differences = [made.max_logit_difference]
    if name == "onnx" and runner.takes_any_size:
        differences += [_difference(runner, model, batch) for batch in _other_sizes(bench.reader.size)]
    export.require_near(float(np.max(differences)), TOLERANCE if name == "onnx" else None)
    return made, scores(bench.task.problem, made.counts, bench.labels(split))


def _other_sizes(size: tuple[int, int]) -> Iterator[dict[str, torch.Tensor]]:
    """Images of noise, two a batch, that are less high and wider than a size, and the other way round; odd ones."""
    random = torch.Generator().manual_seed(0)
    for height, width in ((3, 5), (5, 3)):
        yield {"pixel_values": torch.randn(2, 3, size[0] * height // 4 | 1, size[1] * width // 4 | 1, generator=random)}


def _difference(runner: Any, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> float:
    """The largest between a file's logits and the model's; NaN where one is not a number, or shapes differ."""
    with torch.inference_mode():
        expected = model(**inputs_for(model, batch)).logits.numpy()
    found = runner(batch)
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")


def export_folder(model: Path, folder: Path, formats: Sequence[str], data: str | None = None) -> list[dict[str, Any]]:
    """Write a model's folder as each format, and compare the files with it on made-up rows of several sizes. They take
    the place of older ones when all of them are verified; other files stay.

    Args:
        model: of a classifier of texts, images or pixels.
        folder: where the files are written.
        formats: keys of `FILES`.
        data: a packaged sample, a hub id, a folder or a file with images, on which the int8 ranges of convolutions are
            found; labels aren't read.

    Raises:
        ExportError: an unknown format; a network of convolutions as int8 without `data`; a file that isn't the model.
        DataError: `data` can't be read, or the model reads texts.
    """
    unknown = [name for name in formats if name not in FILES]
    if unknown:
        raise ExportError(unknown_name("format", unknown[0], FILES))
    task, loaded, reader = load_classifier(model)
    calibration = None if data is None else _images_of(data, task, reader)
    folder.mkdir(parents=True, exist_ok=True)
    batches, kind = task.made_up(reader, loaded), task.problem
    if of_pixels(kind):  # each place of each map is a row
        batches, kind = [*batches, *_other_sizes(reader.size)], "single_label"
    with torch.inference_mode():
        logits = np.concatenate([_rows(loaded(**inputs_for(loaded, batch)).logits.numpy()) for batch in batches])
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as beside:
        files = _write_files(loaded, reader, Path(beside), formats, calibration)
        for name in dict.fromkeys(formats):
            made = _verified(name, files[name], batches, logits, kind)
            entry = {"max_logit_difference": made.max_logit_difference, "agreement": made.agreement}
            place = folder / FILES[name][1]
            found.append({"key": name, "file": str(place), "bytes": files[name].stat().st_size, **entry})
        for one in found:
            files[one["key"]].replace(one["file"])
    return found


def _write_files(
    model: PreTrainedModel,
    reader: Any,
    folder: Path,
    formats: Sequence[str],
    calibration: Iterable[Mapping[str, Any]] | None = None,
) -> dict[str, Path]:
    """The float32 file, which the others are made from, and those others that are asked for."""
    files = {"onnx": export.export_onnx(model, reader, folder / FILES["onnx"][1])}
    if "onnx-int8" in formats:
        files["onnx-int8"] = export.quantize_onnx(files["onnx"], folder / FILES["onnx-int8"][1], calibration)
    return files


def _calibration(rows: Any, collate: Callable[[Any], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Batches of the first of some rows, for int8 files whose ranges have to be known before."""
    for start in range(0, min(CALIBRATION_ROWS, len(rows)), CALIBRATION_BATCH):
        yield collate(rows.select(range(start, min(start + CALIBRATION_BATCH, len(rows)))).to_list())


def _images_of(data: str, task: Task, reader: Any) -> Iterator[Mapping[str, Any]]:
    """Batches of a fixed draw of the images of some data: of train, or else of its first split."""
    if task.columns != ("image",):
        do = "Leave out --data: int8 files of transformers over texts need no rows"
        raise DataError(problem("Rows to find int8 ranges on are images", given="a model of texts", do=do))
    found, _ = load.load_with_notes(
        load.Source(**{"files": {"train": data}} if Path(data).is_file() else {"name": data})
    )
    drawn = just_images(found, CALIBRATION_ROWS)
    return _calibration(task.encode(drawn, reader, max_length=0), task.collator(reader))


def _verified(
    name: str, file: Path, batches: Iterable[Mapping[str, Any]], logits: Logits, problem: str
) -> export.Verification:
    """A file held against the logits of the model that it was made from; int8 is reported, float32 must agree."""
    runner = export.OnnxModel(file, threads=torch.get_num_threads())
    return export.verify(
        lambda batch: _rows(runner(batch)),
        batches,
        logits,
        problem=problem,
        tolerance=TOLERANCE if name == "onnx" else None,
    )


def _rows(logits: Logits) -> Logits:
    """Logits as rows: [N,V] as they are, and the places of maps [B,V,h,w] one after the other, [B·h·w,V]."""
    return logits if logits.ndim == 2 else np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])


def _batches(bench: Workbench, split: str, order: Any, size: int) -> Iterator[Mapping[str, Any]]:
    for start in range(0, len(order), size):
        yield bench.collate(bench.rows[split].select(order[start : start + size].tolist()).to_list())


def measure_cost(
    bench: Workbench, models: Mapping[str, Path], exports: Mapping[str, Path], step: Step
) -> dict[str, dict[str, Any]]:
    """Parameters, bytes, MACs, latency, throughput and peak memory of models and exported files, by name.

    Latency is measured in turns, round by round, on rows of the evaluated split as they come. A teacher with another
    reader reads the same rows by that.
    """
    split = bench.evaluated_on
    order = list(range(len(bench.rows[split])))
    random.Random(0).shuffle(order)
    size = min(32, len(order))
    if bench.task.columns == ("image",):  # large ones would fill the memory at the end of a long run
        size = min(size, max(1, TIMED_PATCHES // int(np.max(bench.rows[split]["length"]))))
    batches = {1: list(_batches(bench, split, np.asarray(order[:64]), 1))}
    held = max(1, min(MOST_BATCHES, len(order) // size, HELD_BYTES // max(1, size * _bytes(batches[1][0]))))
    batches[size] = list(_batches(bench, split, np.asarray(order[: size * held]), size))
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    loaded = {name: bench.load(path, as_shipped=True).model for name, path in models.items()}
    runners: dict[str, Any] = {name: cost.torch_runner(model, device) for name, model in loaded.items()}
    if bench.teachers is not None and TEACHER in runners:
        teacher = runners[TEACHER]
        runners[TEACHER] = lambda batch: teacher(own_columns(batch, TEACHERS))
    threads = torch.get_num_threads()
    runners |= {name: export.OnnxModel(path, threads=threads) for name, path in exports.items()}
    step(0, 2 + len(runners), None)
    latency = cost.measure_latency(runners, batches)
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(runners):
        step(1 + number, 2 + len(runners), None)
        reads = bench.reads(name)
        sample, long = (reads.task.sample(reads.reader, reads.rows[split], n, long=n > 1) for n in (1, size))
        timed = {str(k): {"p50_ms": v.p50_ms, "p95_ms": v.p95_ms} for k, v in latency[name].items()}
        found[name] = {"latency": timed, "throughput_per_s": latency[name][size].rows_per_s}
        given = {"shapes": long.shapes, "threads": threads}
        if name in loaded:
            found[name] |= {
                "parameters": cost.parameters(loaded[name]),
                "bytes": cost.bytes_on_disk(models[name]),
                **_multiply_adds(loaded[name], sample, device),
            }
            given |= {"path": str(models[name]), "device": device.type, "auto_class": bench.task.auto_class.__name__}
            found[name]["peak_memory_bytes"] = peak_memory(classifier_workload, given)
        else:
            found[name]["peak_memory_bytes"] = peak_memory(export.onnx_workload, given | {"path": str(exports[name])})
    return found


def _multiply_adds(model: PreTrainedModel, sample: Sample, device: torch.device) -> dict[str, Any]:
    """Of one row; of an image also without the products of attention, as they are published."""
    if PIXELS not in sample.shapes:
        return {"macs": cost.macs(model, cost.filled(sample.shapes, device)), "macs_at": sample.text}
    made = count(model, sample.shapes[PIXELS][1:])
    return {"macs": made.with_attention, "macs_at": sample.text, "macs_without_attention": made.multiply_adds}


def _bytes(batch: Mapping[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in batch.values())


def digest_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(path: str) -> str:
    """What decides a model's answers: for a local folder the digest of its weights, else its name."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    found = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        if file.exists():
            found.update(bytes.fromhex(digest_of(file)))
    return found.hexdigest()[:16]


def hardware() -> dict[str, Any]:
    """The machine that the numbers were made on."""
    listing = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in listing.read_text(errors="replace").splitlines()
            if line.startswith("model name")
        ]
        if listing.exists()
        else []
    )
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_bytes": memory,
    }


def versions() -> dict[str, str]:
    """The packages that made the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
