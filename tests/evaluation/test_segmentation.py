"""Segmentation models over images: counts under both protocols, fidelity by pixels, and that predictions stay small."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import IMAGE
from tiny_images import tiny_reader
from tiny_maps import CLASSES, VOID_ID, shapes, tiny_map_rows, tiny_segformer, tiny_segmenter
from torch.nn import functional

from potstill.evaluation.outputs import OUTPUTS
from potstill.evaluation.predict import load_predictions, save_predictions
from potstill.evaluation.segmentation import pixel_fidelity, predict_counts, predicted_maps
from potstill.metrics import keys, scores
from potstill.metrics.segmentation import pixel_counts
from potstill.tasks import MapClasses, SemanticSegmentation
from potstill.workbench import label_array

MAPS = MapClasses(CLASSES, (VOID_ID,))
TASKS = {protocol: SemanticSegmentation(MAPS, protocol) for protocol in ("full", "quarter")}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_segmenter(folder)
    return tiny_reader(folder)


def odd_sizes():
    """Images of other sizes than they are read at, each of its own."""
    pairs = [shapes(number, size) for number, size in enumerate(((40, 60), (32, 48), (50, 77)))]
    return Dataset.from_dict({"image": [image for image, _ in pairs], "label_map": [ids for _, ids in pairs]})


@pytest.mark.parametrize("protocol", TASKS)
def test_counts_are_of_each_map_at_the_size_of_the_protocol(protocol, reader):
    task, model, raw = TASKS[protocol], tiny_segformer(), odd_sizes()
    rows = task.encode(raw, reader)
    counts = predict_counts(model, rows, task.collator(reader))
    for number, row in enumerate(rows):
        with torch.no_grad():
            logits = model(pixel_values=reader(raw[number]["image"]).unsqueeze(0)).logits
        truth = task.truth(row["label_map"], IMAGE)
        if protocol == "full":
            assert truth.shape == raw[number]["image"].size[::-1]
            logits = functional.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
        expected = pixel_counts(logits.argmax(1).numpy(), truth[None], 3)[0]
        np.testing.assert_array_equal(counts[number], expected)
    assert list(scores(task.problem, counts, label_array(rows, task.problem))) == keys(task.problem)


def test_batches_change_nothing(reader):
    task, model = TASKS["full"], tiny_segformer()
    rows = task.encode(tiny_map_rows(5), reader)
    model.train()
    told = []
    whole = predict_counts(model, rows, task.collator(reader), progress=lambda *step: told.append(step))
    np.testing.assert_array_equal(whole, predict_counts(model, rows, task.collator(reader), tokens=1))
    assert model.training and told[-1][:2] == (5, 5)
    assert OUTPUTS[task.problem] is predict_counts


@pytest.mark.parametrize("protocol", TASKS)
def test_fidelity_is_a_mean_over_pixels_that_are_not_void(protocol, reader):
    task, student, teacher = TASKS[protocol], tiny_segformer(), tiny_segformer(seed=1)
    rows = task.encode(tiny_map_rows(4), reader)
    collate = task.collator(reader)
    batch = collate(rows.to_list())
    with torch.no_grad():
        ours, theirs = (model(pixel_values=batch["pixel_values"]).logits for model in (student, teacher))
    mask = task.masks(batch)["outputs"]
    if protocol == "full":
        ours, theirs = (functional.interpolate(x, IMAGE, mode="bilinear") for x in (ours, theirs))
    log_s, log_t = (x.movedim(1, -1)[mask].double().log_softmax(-1) for x in (ours, theirs))
    found = pixel_fidelity(student, teacher, rows, collate)
    assert found["agreement"] == pytest.approx((log_s.argmax(-1) == log_t.argmax(-1)).double().mean().item())
    expected = functional.kl_div(log_s, log_t, log_target=True, reduction="batchmean").item()
    assert found["kl"] == pytest.approx(expected, rel=1e-5)
    assert pixel_fidelity(student, student, rows, collate) == {"agreement": 1.0, "kl": 0.0}


def test_a_teacher_reads_images_by_its_own_reader(reader, tmp_path):
    task, student, teacher = TASKS["full"], tiny_segformer(), tiny_segformer(seed=1)
    tiny_segmenter(tmp_path)
    large = task.load_reader(tmp_path, size=(64, 96))
    rows = task.encode(tiny_map_rows(3), reader)
    own = pixel_fidelity(student, teacher, rows, task.collator(reader, large))
    assert own != pixel_fidelity(student, teacher, rows, task.collator(reader))


def test_what_is_kept_does_not_grow_with_the_images(reader, tmp_path):
    task = TASKS["full"]
    counts = {}
    for split, number in (("train", 4), ("validation", 2)):
        rows = task.encode(tiny_map_rows(number), reader)
        counts[split] = predict_counts(tiny_segformer(), rows, task.collator(reader))
    save_predictions(tmp_path / "one.parquet", counts)
    found = load_predictions(tmp_path / "one.parquet")
    assert found["train"].dtype == np.int32 and list(found) == ["train", "validation"]
    for split in counts:
        np.testing.assert_array_equal(found[split], counts[split])
    assert (tmp_path / "one.parquet").stat().st_size < 10_000 < 6 * 3 * IMAGE[0] * IMAGE[1]


def test_maps_of_a_few_images_come_in_the_order_of_the_rows(reader):
    task, model = TASKS["full"], tiny_segformer()
    rows = task.encode(odd_sizes(), reader)
    maps = predicted_maps(model, rows, task.collator(reader))
    counts = predict_counts(model, rows, task.collator(reader))
    for number, row in enumerate(rows):
        truth = task.truth(row["label_map"], IMAGE)
        np.testing.assert_array_equal(pixel_counts(maps[number][None], truth[None], 3)[0], counts[number])
