"""Augmentation from recipe to training: one view for all models, exactly resumed, and kept only where it is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import IMAGE, tiny_model
from tiny_images import NAMES, tiny_image_recipe, tiny_image_rows
from tiny_runs import Told, merged

from potstill.augment.image import VIEW, Augmentation, Jitter, ResizedCrop
from potstill.errors import CacheError, DataError, RecipeError
from potstill.objective import Objective, Term
from potstill.pipeline import cache, run
from potstill.recipe import load_recipe
from potstill.tasks import ImageClassification
from potstill.tasks.images import ImageReader
from potstill.training import TrainSettings, stages
from potstill.training.precision import Precision
from potstill.training.stages import Lesson, train
from potstill.workbench import Workbench, prepare_workbench

EXACT = Precision("float32", "the test says so")
AUGMENT = {"flip": 0.5, "crop": 3, "jitter": {"brightness": 0.5}}
MADE = Augmentation(resized_crop=ResizedCrop((0.4, 1.0)), flip=0.5, jitter=Jitter(0.4), erase=0.5)


def reader(mean: float, std: float) -> ImageReader:
    return ImageReader(IMAGE, IMAGE, 2, 1 / 255, (mean,) * 3, (std,) * 3, {})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_image_recipe(tmp_path_factory.mktemp("augmented"), {"data": {"augment": AUGMENT}})


def bench_of(recipe: dict[str, Any]) -> Workbench:
    return prepare_workbench(load_recipe(recipe), Told().say)


def test_teacher_and_student_see_one_view() -> None:
    task = ImageClassification(names=NAMES, augmentation=MADE)
    rows = [
        {**row, VIEW: [5, 1, number]} for number, row in enumerate(tiny_image_rows(6).rename_column("label", "labels"))
    ]
    batch = task.collator(reader(0.5, 0.5), reader(0.1, 0.25))(rows)
    student = batch["pixel_values"] * 0.5 + 0.5
    teacher = batch["teacher_pixel_values"] * 0.25 + 0.1
    torch.testing.assert_close(student, teacher, atol=1e-6, rtol=0)
    plain = task.collator(reader(0.5, 0.5))([{k: v for k, v in row.items() if k != VIEW} for row in rows])
    assert ((batch["pixel_values"] - plain["pixel_values"]).abs().amax((1, 2, 3)) > 0.1).all()


def test_mixed_rows_have_labels_in_proportion_for_both() -> None:
    task = ImageClassification(names=NAMES, augmentation=Augmentation(cutmix=1.0))
    rows = [
        {**row, VIEW: [0, 0, number]} for number, row in enumerate(tiny_image_rows(6).rename_column("label", "labels"))
    ]
    batch = task.collator(reader(0.5, 0.5), reader(0.1, 0.25))(rows)
    assert batch["labels"].shape == (6, 2)
    torch.testing.assert_close(batch["pixel_values"] * 0.5 + 0.5, batch["teacher_pixel_values"] * 0.25 + 0.1)
    assert task.masks(batch)["labels"].all() and torch.equal(task.targets(batch), batch["labels"])


def test_training_rows_alone_are_changed(recipe: dict[str, Any]) -> None:
    bench = bench_of(recipe)
    plain = merged(recipe, {})
    del plain["data"]["augment"]
    for split in ("train", "validation", "test"):
        batches = [one.collate(one.rows[split].select(range(3)).to_list()) for one in (bench, bench_of(plain))]
        assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    assert bench.digest != bench_of(plain).digest
    assert len(bench.transfer) == len(bench.rows["train"]) and VIEW not in bench.transfer.column_names


def test_fixed_views_are_rows_of_their_own(recipe: dict[str, Any]) -> None:
    bench = bench_of(merged(recipe, {"data": {"augment": {"views": 3}}, "seed": 7}))
    rows = bench.rows["train"]
    assert len(bench.transfer) == 3 * len(rows) and VIEW not in rows.column_names
    assert bench.transfer[len(rows) + 2][VIEW] == [7, 1, 2]
    batch = bench.collate([bench.transfer[2 + view * len(rows)] for view in range(3)])
    assert len({tuple(image.flatten().tolist()) for image in batch["pixel_values"]}) == 3


class Stopped(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("made", [MADE, Augmentation(crop=2, mixup=0.4, cutmix=1.0)], ids=["views", "mixed"])
def test_a_stopped_training_goes_on_with_the_views_it_would_have_had(
    tmp_path: Path, made: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does one whose images are read ahead by other processes."""
    seen: dict[str, list[torch.Tensor]] = {}
    task = ImageClassification(names=NAMES, augmentation=made)
    rows = task.encode(tiny_image_rows(10).rename_column("label", "labels"), reader(0.5, 0.5))
    teacher = tiny_model("vit", layers=2, seed=4)

    def go(name: str, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        def progress(step: int, _of: int, _loss: Any) -> None:
            if step == stop_at:
                raise Stopped

        torch.manual_seed(stop_at or 0)
        student = tiny_model("vit", layers=1, seed=2)
        hook = lambda _model, _args, given: seen.setdefault(name, []).append(given["pixel_values"].clone())  # noqa: E731
        handle = student.register_forward_pre_hook(hook, with_kwargs=True)
        settings = TrainSettings(epochs=3.0, batch_size=4, learning_rate=1e-3, checkpoint_steps=2)
        objective = Objective([Term("labels"), Term("logits")])
        lesson = Lesson(task, reader(0.5, 0.5), rows, objective, teacher)
        try:
            train(student, lesson, settings, tmp_path / name, precision=EXACT, seed=3, progress=progress)
        finally:
            handle.remove()
        return load_file(tmp_path / name / "final" / "student.safetensors")

    whole = go("whole")
    with pytest.raises(Stopped):
        go("broken", stop_at=6)
    resumed = go("broken")
    monkeypatch.setattr(stages, "loader_workers", lambda _columns: 1)
    ahead = go("ahead")
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]) and torch.equal(tensor, ahead[key]), key
    assert len(seen["whole"]) == 9  # three batches an epoch
    shown = [torch.cat(seen["whole"][start : start + 3]).flatten(1) for start in (0, 3, 6)]
    assert (torch.cdist(shown[0], shown[1]).min(1).values > 0.01).float().mean() > 0.7  # another view each epoch


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def test_a_cache_of_fixed_views_is_exact(recipe: dict[str, Any], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "data": {"augment": {"views": 2}},
        "cache": {"use": "never", "precision": "float32"},
        "distill": [
            {"terms": [{"knowledge": "logits"}, {"knowledge": "labels"}], "train": {"steps": 8, "batch_size": 8}}
        ],
    }
    run(merged(recipe, changes), tmp_path / "live")
    kept = run(merged(recipe, changes | {"cache": {"use": "always", "precision": "float32"}}), tmp_path / "kept")
    assert kept.results["models"]  # both ran to the end
    live, cached = weights(tmp_path / "live"), weights(tmp_path / "kept")
    for key, tensor in live.items():
        torch.testing.assert_close(cached[key], tensor, atol=1e-6, rtol=1e-5)
    shards = list((tmp_path / "kept" / "cache").rglob("*.safetensors"))
    assert shards


def test_a_cache_of_views_that_change_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    mixing = {"data": {"augment": {"views": 2, "mixup": 0.2}}}
    for use in ("always", "only"):
        for changes in ({}, mixing):
            with pytest.raises(RecipeError, match=f"cache.use: {use} keeps a teacher's answers.*data.augment.views"):
                load_recipe(merged(recipe, {**changes, "cache": {"use": use}}))
    load_recipe(merged(recipe, {"data": {"augment": {"views": 2}}, "cache": {"use": "always"}}))
    for changes, why in (({}, "another view of each image in every epoch"), (mixing, "mixes each batch anew")):
        with pytest.raises(CacheError, match=rf"can't be kept.*{why}.*Set data.augment.views"):
            cache(merged(recipe, changes), tmp_path / why[:5])
        assert not (tmp_path / why[:5] / "teacher").exists(), "a teacher was trained for it"
    told = Told()
    several = {"distill": [{"terms": [{"knowledge": "logits"}], "train": {"steps": 8, "batch_size": 8}}]}
    run(merged(recipe, several), tmp_path / "auto", progress=told)
    assert "it runs along: data.augment shows another view of each image in every epoch" in told.text
    assert not list((tmp_path / "auto").glob("cache/*"))


def test_what_makes_no_sense_is_refused(recipe: dict[str, Any]) -> None:
    for changes, said in [
        ({"data": {"augment": {"flip": 1.5}}}, "data.augment.flip"),
        ({"data": {"augment": {"flop": 0.5}}}, "Did you mean 'flip'"),
        ({"data": {"augment": {"jitter": {"bright": 0.5}}}}, "data.augment.jitter"),
        (
            {
                "data": {"augment": {"mixup": 0.2}},
                "distill": [{"terms": [{"knowledge": "logits", "loss": "decoupled_kl_divergence"}]}],
            },
            "decoupled_kl_divergence asks",
        ),
    ]:
        with pytest.raises(RecipeError, match=said):
            load_recipe(merged(recipe, changes))
    text = {"task": "text_classification", "data": {"name": "reviews", "augment": {"flip": 0.5}}}
    rest = {"teacher": {"model": "x"}, "student": {"layers": 1}, "distill": [{"terms": [{"knowledge": "logits"}]}]}
    with pytest.raises(RecipeError, match=r"data.augment mean nothing for text_classification"):
        load_recipe(text | rest)


def test_an_error_of_a_process_that_reads_ahead_is_as_it_was_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "loader_workers", lambda _columns: 1)
    task = ImageClassification(names=NAMES)
    rows = task.encode(tiny_image_rows(4).rename_column("label", "labels"), reader(0.5, 0.5))
    broken = rows.map(lambda row: {"image": {"bytes": b"none", "path": None}}, features=rows.features)
    lesson = Lesson(task, reader(0.5, 0.5), broken, Objective([Term("labels")]))
    with pytest.raises(DataError) as raised:
        train(tiny_model("vit", layers=1), lesson, TrainSettings(steps=1, batch_size=4), tmp_path, precision=EXACT)
    assert "Traceback" not in str(raised.value) and "Repair" in str(raised.value)
