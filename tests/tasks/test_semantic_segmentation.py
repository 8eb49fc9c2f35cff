"""Segmentation: labels and logits at one size under both protocols, void pixels, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE, tiny_model, tiny_upernet
from tiny_images import tiny_reader
from tiny_maps import CLASSES, VOID_ID, tiny_map_rows, tiny_segformer, tiny_segmenter
from torch.nn import functional

from potstill.augment.geometry import nearest
from potstill.augment.image import VIEW, Augmentation
from potstill.data.rows import without_labels
from potstill.errors import ArgumentError, ModelError
from potstill.knowledge import Knowledge
from potstill.objective import Objective
from potstill.tasks import MapClasses, SemanticSegmentation
from potstill.tasks.semantic_segmentation import quarter, resized_logits
from potstill.training.distiller import Distiller

MAPS = MapClasses(CLASSES, (VOID_ID,))
TASK = SemanticSegmentation(MAPS)
QUARTER = SemanticSegmentation(MAPS, "quarter")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_segmenter(folder)
    return tiny_reader(folder)


def batch_of(task, reader, rows=3, **options):
    return task.collator(reader, **options)(task.encode(tiny_map_rows(rows), reader).to_list())


def test_nearest_is_pillows_and_a_quarter_is_what_a_stride_of_four_gives():
    numbers = np.random.default_rng(0).integers(0, 9, (30, 45))
    for size in ((8, 12), (7, 45), (64, 88), (30, 45), (4, 4)):
        expected = Image.fromarray(numbers.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        found = nearest(torch.from_numpy(numbers), size)
        np.testing.assert_array_equal(found.numpy(), np.asarray(expected))
    for size in ((32, 48), (30, 45), (33, 1)):
        convolution = torch.nn.Conv2d(1, 1, kernel_size=7, stride=4, padding=3)
        assert tuple(convolution(torch.zeros(1, 1, *size)).shape[2:]) == quarter(size)


def test_a_batch_holds_images_and_class_numbers(reader):
    batch = batch_of(TASK, reader)
    assert batch["pixel_values"].shape == (3, 3, *IMAGE)
    row = tiny_map_rows(3)[1]
    ids = torch.from_numpy(np.asarray(row["label_map"]).astype(np.int64))
    assert torch.equal(batch["labels"][1], torch.where(ids == VOID_ID, -100, ids))
    assert set(batch["labels"].unique().tolist()) == {-100, 0, 1, 2}


def test_labels_are_read_at_the_size_of_the_images(reader, tmp_path):
    tiny_segmenter(tmp_path)
    half = TASK.load_reader(tmp_path, size=(16, 24))
    small, large = batch_of(TASK, half), batch_of(TASK, reader)
    assert torch.equal(small["labels"], nearest(large["labels"], (16, 24)))
    both = batch_of(TASK, half, teachers=reader)
    assert torch.equal(both["teacher_pixel_values"], large["pixel_values"])
    assert torch.equal(both["labels"], small["labels"])


def test_logits_are_brought_to_the_labels_or_labels_to_a_quarter(reader):
    batch = batch_of(TASK, reader)
    known = Knowledge(logits=torch.randn(3, 3, 8, 12))
    full = TASK.compared(known, batch).logits
    expected = functional.interpolate(known.logits, IMAGE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(full, expected)
    assert torch.equal(TASK.targets(batch), batch["labels"])
    assert torch.equal(QUARTER.compared(known, batch).logits, known.logits)
    assert torch.equal(QUARTER.targets(batch), nearest(batch["labels"], (8, 12)))
    for task in (TASK, QUARTER):
        masks, targets = task.masks(batch), task.targets(batch)
        assert torch.equal(masks["outputs"], targets != -100)
        assert torch.equal(masks["labels"], masks["outputs"])
        assert masks["rows"].all()
        assert (~masks["outputs"]).any()
    torch.testing.assert_close(resized_logits(full, (8, 12)), QUARTER.compared(Knowledge(logits=full), batch).logits)


def test_teacher_and_student_of_other_sizes_meet(reader):
    """UperNet's logits have the size of the image, SegFormer's a quarter of it."""
    student, teacher = tiny_segformer(), tiny_upernet("pvt_v2")
    batch = batch_of(TASK, reader)
    with torch.no_grad():
        ours, theirs = (model(pixel_values=batch["pixel_values"]).logits for model in (student, teacher))
    assert ours.shape[2:] != theirs.shape[2:]
    for task in (TASK, QUARTER):
        distiller = Distiller(student, Objective([{"knowledge": "logits"}]), task, teacher).eval()
        size = task.targets(batch).shape[1:]
        placed = [resized_logits(x, size).movedim(1, -1).log_softmax(-1)[task.masks(batch)["outputs"]]
                  for x in (ours, theirs)]  # fmt: skip
        expected = functional.kl_div(*placed, log_target=True, reduction="batchmean")
        torch.testing.assert_close(distiller(batch).total, expected)


@pytest.mark.parametrize("task", [TASK, QUARTER])
def test_an_exact_copy_has_nothing_to_learn_from_its_teacher(task, reader):
    student, teacher = tiny_segformer(), tiny_segformer()
    names = ("kl_divergence", "channel_kl_divergence", "pairwise_affinity_mse", "dist", "pixel_kl_divergence")
    terms = [{"knowledge": "logits", "loss": name} for name in names]
    parts = Distiller(student, Objective(terms), task, teacher).eval()(batch_of(task, reader))
    assert len(parts.terms) == len(names)
    assert all(abs(share.item()) < 1e-6 for share in parts.terms.values())


def test_void_pixels_have_no_gradient(reader):
    """What a model says where a label is void changes no term's loss."""
    batch = batch_of(TASK, reader)
    student, teacher = torch.randn(2, 3, 3, *IMAGE, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    terms = [{"knowledge": "labels"}, {"knowledge": "logits"}, {"knowledge": "logits", "loss": "channel_kl_divergence"}]
    distiller = Distiller(tiny_segformer(), Objective(terms), TASK, tiny_segformer(seed=1))
    distiller._observe_student = lambda _: Knowledge(logits=student)
    distiller.__dict__["_observe_teachers"] = {"teacher": lambda _: Knowledge(logits=teacher)}
    distiller(batch).total.backward()
    void = batch["labels"] == -100
    assert (student.grad.movedim(1, -1)[void] == 0).all()
    assert (student.grad.movedim(1, -1)[~void] != 0).any()


def test_images_without_a_map_teach_by_their_teacher_alone(reader):
    rows = tiny_map_rows(2)
    more = without_labels(rows.remove_columns("label_map"), rows)
    encoded = TASK.encode(more, reader)
    assert encoded["labels"] == [[0, 0, 0]] * 2
    batch = TASK.collator(reader)([*TASK.encode(rows, reader).to_list(), *encoded.to_list()])
    masks = TASK.masks(batch)
    assert not masks["labels"][2:].any() and masks["outputs"][2:].all()
    assert (TASK.targets(batch)[2:] == -100).all()
    alone = TASK.collator(reader)(encoded.to_list())
    assert "labels" not in alone and TASK.targets(alone) is None
    for task, size in ((TASK, IMAGE), (QUARTER, (8, 12))):
        assert task.masks(alone)["outputs"].shape == (2, *size)
        assert task.masks(alone)["outputs"].all() and not task.masks(alone)["labels"].any()


def test_weights_of_classes_stand_beside_the_masks(reader):
    task = SemanticSegmentation(MAPS, "full", (0.5, 1.0, 4.0))
    batch = batch_of(task, reader)
    weights = task.masks(batch)["weights"]
    assert "weights" not in TASK.masks(batch)
    for number, weight in {0: 0.5, 1: 1.0, 2: 4.0, -100: 0.0}.items():
        assert (weights[batch["labels"] == number] == weight).all()


def test_a_view_moves_map_and_image_alike(reader):
    task = SemanticSegmentation(MAPS, augmentation=Augmentation(flip=1.0))
    rows = task.encode(tiny_map_rows(2), reader).to_list()
    plain, shown = (task.collator(reader)([{**row, **view} for row in rows]) for view in ({}, {VIEW: [0, 0, 1]}))
    assert torch.equal(shown["labels"], plain["labels"].flip(-1))
    torch.testing.assert_close(shown["pixel_values"], plain["pixel_values"].flip(-1))


def test_rows_know_how_many_pixels_of_each_class_metrics_see(reader):
    rows = tiny_map_rows(3)
    ids = [np.asarray(picture) for picture in rows["label_map"]]
    assert TASK.encode(rows, reader)["labels"] == [[int((one == k).sum()) for k in range(3)] for one in ids]
    stored = TASK.encode(rows, reader)[0]["label_map"]
    small = [nearest(torch.from_numpy(one.astype(np.int64)), (8, 12)).numpy() for one in ids]
    assert QUARTER.encode(rows, reader)["labels"] == [[int((one == k).sum()) for k in range(3)] for one in small]
    assert TASK.truth(stored, (4, 4)).shape == IMAGE and QUARTER.truth(stored, IMAGE).shape == (8, 12)


def test_models_carry_the_classes_and_those_without_known_stages_are_refused(tmp_path):
    tiny_segmenter(tmp_path)
    loaded = TASK.load(tmp_path)
    assert loaded.model.config.id2label == dict(enumerate(CLASSES)) and loaded.new_parameters == ()
    wider = SemanticSegmentation(MapClasses((*CLASSES, "sky")))
    assert wider.load(tmp_path).new_parameters == ("decode_head.classifier.bias", "decode_head.classifier.weight")
    for model in (tiny_segformer(), tiny_upernet("swin")):
        TASK.check_model(model)
    with pytest.raises(ModelError, match=r"stages of BertFor.* aren't known.*'bert'.*SegFormer"):
        TASK.check_model(tiny_model("bert"))


def test_what_can_not_be_is_refused(reader, tmp_path):
    with pytest.raises(ArgumentError, match="Did you mean 'quarter'"):
        SemanticSegmentation(MAPS, "quater")
    with pytest.raises(ArgumentError, match="2 weights, 3 classes"):
        SemanticSegmentation(MAPS, class_weights=(1.0, 2.0))
    with pytest.raises(ArgumentError, match=r"can't be mixed.*mixup 0\.2"):
        SemanticSegmentation(MAPS, augmentation=Augmentation(mixup=0.2))
    tiny_segmenter(tmp_path)
    small = TASK.load_reader(tmp_path, size=16)
    with pytest.raises(ModelError, match=r"at one size.*16 x 16.*32 x 48.*protocol=full"):
        QUARTER.collator(small, reader)
    with pytest.raises(ModelError, match=r"read whole.*resized to 40 before.*image_size"):
        TASK.encode(tiny_map_rows(1), replace(reader, resize=40))
