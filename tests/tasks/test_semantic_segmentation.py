"""A segmentation reads images and label maps at one size, and brings all logits to the labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE, tiny_upernet
from tiny_segmentation import CLASSES, segmentation_rows, tiny_segformer
from torch.nn import functional
from transformers import AutoConfig

from potstill.augment.image import Augmentation
from potstill.errors import ModelError
from potstill.knowledge import Knowledge
from potstill.metrics.segmentation import VOID
from potstill.objective import Objective
from potstill.tasks import SemanticSegmentation
from potstill.tasks.images import ImageReader, default_reader
from potstill.training.distiller import Distiller

TASK = SemanticSegmentation(names=CLASSES.names, classes=CLASSES)
QUARTER = SemanticSegmentation("segmentation_quarter", CLASSES.names, CLASSES)
H, W = IMAGE


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_segformer().save_pretrained(folder)
    return default_reader(folder, size=IMAGE)


def batch_of(task, reader, count=4, **options):
    return task.collator(reader, **options)(task.encode(segmentation_rows(count), reader).to_list())


def test_labels_are_the_nearest_pixels_of_the_maps_at_the_size_of_the_images(reader):
    rows = segmentation_rows(4)
    batch = batch_of(TASK, reader)
    assert batch["pixel_values"].shape == (4, 3, H, W) and batch["labels"].shape == (4, H, W)
    assert batch["labels"].dtype == torch.long
    ids = np.asarray(rows[0]["label_map"].resize((W, H), Image.Resampling.NEAREST)).astype(int)
    np.testing.assert_array_equal(batch["labels"][0], np.where(ids == 255, VOID, ids))
    assert (batch["labels"] == VOID).any()


def test_a_reader_that_cuts_and_pads_does_so_to_maps():
    reader = replace(own_reader(), size=(50, 30), resize=None)
    numbers = torch.arange(40 * 56).reshape(40, 56)
    found = reader.label_map(numbers)
    assert found.shape == (50, 30)
    torch.testing.assert_close(found[5:45], numbers[:, 13:43])
    assert (found[:5] == VOID).all() and (found[45:] == VOID).all()
    picture = Image.fromarray(np.zeros((40, 56, 3), np.uint8) + 255)
    padded = replace(reader, mean=(0.0,) * 3, std=(1.0,) * 3)(picture)[0] == 0
    assert padded.equal(found == VOID)


def own_reader():
    return ImageReader(IMAGE, IMAGE, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3, {"image_processor_type": "Own"})


def test_a_processor_of_its_own_needs_a_size():
    own = replace(own_reader(), processor=lambda picture, **_: None)
    assert own.label_map(torch.zeros(4, 4, dtype=torch.long)).shape == IMAGE
    with pytest.raises(ModelError, match=r"Set data\.image_size"):
        replace(own, resize=40).label_map(torch.zeros(4, 4, dtype=torch.long))


def test_the_quarter_protocol_has_labels_of_the_size_of_segformers_logits(reader):
    batch = batch_of(QUARTER, reader)
    with torch.no_grad():
        logits = tiny_segformer()(batch["pixel_values"]).logits
    assert batch["labels"].shape[1:] == logits.shape[2:] == (8, 12)
    full = batch_of(TASK, reader)["labels"]
    assert batch["labels"].equal(full[:, 2::4, 2::4])


def test_logits_of_any_size_come_to_the_labels(reader):
    batch = batch_of(TASK, reader)
    with torch.no_grad():
        small = tiny_segformer()(batch["pixel_values"]).logits
    found = TASK.outputs(Knowledge(logits=small), batch).logits
    expected = functional.interpolate(small, size=IMAGE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)
    own = TASK.outputs(Knowledge(logits=expected), batch).logits
    torch.testing.assert_close(own, found)


def test_void_is_in_no_mask_and_reaches_no_gradient(reader):
    batch = batch_of(TASK, reader)
    masks = TASK.masks(batch)
    assert masks["labels"].equal(batch["labels"] != VOID) and masks["outputs"].equal(masks["labels"])
    assert masks["rows"].equal(torch.ones(4, dtype=torch.bool))
    batch["labels"][1:] = VOID
    batch["pixel_values"][1:] = float("nan")  # what is void may be anything
    terms = Objective([{"knowledge": "labels"}, {"knowledge": "logits"}])
    distiller = Distiller(tiny_segformer(), terms, TASK, tiny_segformer(seed=1))
    parts = distiller.eval()(batch)
    alone = distiller({name: value[:1] for name, value in batch.items()})
    assert torch.isfinite(parts.total)
    torch.testing.assert_close(parts.total, alone.total)


def test_a_student_learns_pixel_by_pixel_from_a_teacher_of_another_size(reader):
    batch = batch_of(TASK, reader)
    teacher = tiny_upernet("convnext")  # answers at the size of the image
    student = tiny_segformer()
    found = Distiller(student, Objective([{"knowledge": "logits"}]), TASK, teacher).eval()(batch).total
    with torch.no_grad():
        ours = functional.interpolate(student(batch["pixel_values"]).logits, size=IMAGE, mode="bilinear")
        theirs = teacher(batch["pixel_values"]).logits
    each = functional.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(found, each[batch["labels"] != VOID].mean())


def test_class_weights_make_the_loss_of_labels_pytorchs_weighted_mean(reader):
    weights = (0.5, 2.0, 7.0)
    task = replace(TASK, class_weights=weights)
    batch, student = batch_of(task, reader), tiny_segformer()
    found = Distiller(student, Objective([{"knowledge": "labels"}]), task).eval()(batch).total
    logits = functional.interpolate(student(batch["pixel_values"]).logits, size=IMAGE, mode="bilinear")
    expected = functional.cross_entropy(logits, batch["labels"], torch.tensor(weights), ignore_index=VOID)
    torch.testing.assert_close(found, expected)


def test_a_view_moves_image_and_map_alike(reader):
    rows = TASK.encode(segmentation_rows(2), reader).to_list()
    flipping = SemanticSegmentation(names=CLASSES.names, classes=CLASSES, augmentation=Augmentation(flip=1.0))
    plain = TASK.collator(reader)(rows)
    shown = flipping.collator(reader)([{**row, "view": [0, 0, n]} for n, row in enumerate(rows)])
    assert shown["labels"].equal(plain["labels"].flip(-1))
    torch.testing.assert_close(shown["pixel_values"], plain["pixel_values"].flip(-1), atol=0.02, rtol=0)
    assert flipping.collator(reader).labels(rows).equal(plain["labels"])


def test_models_without_logits_a_pixel_are_refused(reader, tmp_path):
    with pytest.raises(ModelError, match="can be built"):
        TASK.load(AutoConfig.for_model("vit"))
    rows = {"train": TASK.encode(segmentation_rows(1), reader)}
    TASK.check_rows("student", tiny_segformer(), reader, rows)
    with pytest.raises(ModelError, match=r"The student gives no logits of every class and pixel\. Got: Segformer"):
        TASK.check_rows("student", tiny_segformer(labels=4), reader, rows)


def test_loaded_models_have_the_classes(tmp_path):
    tiny_segformer(labels=5).save_pretrained(tmp_path)
    loaded = TASK.load(tmp_path)
    assert loaded.model.config.id2label == {0: "ground", 1: "box", 2: "disc"}
    assert set(loaded.new_parameters) == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    assert isinstance(TASK.load(AutoConfig.for_model("segformer")).model, type(tiny_segformer()))


def test_two_readers_have_to_show_the_same_part():
    own = own_reader()
    assert "the student reads" in TASK.two_readers(own, replace(own, mean=(0.4,) * 3), [])
    with pytest.raises(ModelError, match="read images at different sizes"):
        TASK.two_readers(own, replace(own, size=(8, 8)), [])
