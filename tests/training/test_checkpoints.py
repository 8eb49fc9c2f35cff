"""Only whole checkpoints are resumed from, and the only whole one is never removed."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from potstill.errors import ModelError
from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training import Distiller
from potstill.training.checkpoints import latest, load_weights, mark_complete, prune, save_weights, take_projections


def made(seed=1, width=32):
    student, teacher = tiny_model(layers=2, width=width, seed=seed), tiny_model(layers=2, width=64, seed=9)
    return Distiller(student, Objective([Term("hidden")]), TextClassification(), teacher)


def folders(tmp_path, *steps):
    found = []
    for step in steps:
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "weights").write_text("x")
        found.append(path)
    return found


def test_weights_of_student_and_projections_come_back(tmp_path):
    first, second = made(1), made(2)
    save_weights(first, tmp_path)
    load_weights(second, tmp_path)
    assert any(name.startswith("projectors.") for name in first.state_dict())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_projections_are_apart_from_the_student(tmp_path):
    from safetensors.torch import load_file

    distiller = made()
    save_weights(distiller, tmp_path)
    assert set(load_file(tmp_path / "student.safetensors")) == set(distiller.student.state_dict())
    assert set(load_file(tmp_path / "projectors.safetensors")) == set(distiller.projectors.state_dict())


def test_shared_weights_are_saved_once_and_come_back_shared(tmp_path):
    first, second = made(1), made(2)
    for distiller in (first, second):
        layers = distiller.student.bert.encoder.layer
        layers[1].output.dense.weight = layers[0].output.dense.weight
    save_weights(first, tmp_path)
    load_weights(second, tmp_path)
    ours, theirs = (d.student.bert.encoder.layer for d in (second, first))
    assert torch.equal(ours[1].output.dense.weight, theirs[0].output.dense.weight)
    assert ours[1].output.dense.weight is ours[0].output.dense.weight


def test_weights_of_another_model_are_refused(tmp_path):
    save_weights(Distiller(tiny_model(layers=3), Objective([Term("labels")]), TextClassification()), tmp_path)
    with pytest.raises(ModelError, match="another model"):
        load_weights(Distiller(tiny_model(layers=2), Objective([Term("labels")]), TextClassification()), tmp_path)
    with pytest.raises(ModelError, match="another model"):
        load_weights(Distiller(tiny_model(layers=4), Objective([Term("labels")]), TextClassification()), tmp_path)


def test_the_latest_is_the_newest_whole_one_by_number(tmp_path):
    assert latest(tmp_path) is None
    two, ten, eleven = folders(tmp_path, 2, 10, 11)
    assert latest(tmp_path) is None
    mark_complete(two)
    mark_complete(ten)
    assert latest(tmp_path) == ten
    mark_complete(eleven)
    assert latest(tmp_path) == eleven


def test_pruning_removes_all_but_what_is_kept(tmp_path):
    two, four, six = folders(tmp_path, 2, 4, 6)
    (tmp_path / "final").mkdir()
    prune(tmp_path, {four})
    assert not two.exists()
    assert not six.exists()
    assert four.exists()
    assert (tmp_path / "final").exists()


def test_projections_of_the_same_name_and_shape_go_on_in_the_next_stage(tmp_path: Path) -> None:
    objective = Objective([{"knowledge": "hidden", "layers": "last"}])
    student, teacher = tiny_model(layers=2, width=16), tiny_model(layers=2, width=32)
    first, second = (Distiller(student, objective, TextClassification(), teacher) for _ in range(2))
    name, weights = next(iter(first.projectors.state_dict().items()))
    assert not torch.equal(second.projectors.state_dict()[name], weights)
    save_weights(first, tmp_path)
    take_projections(second, tmp_path)
    assert torch.equal(second.projectors.state_dict()[name], weights)
    take_projections(second, tmp_path / "nowhere")
