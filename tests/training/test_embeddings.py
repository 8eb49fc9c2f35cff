"""Sparse embeddings: each row has its own AdamW, over the batches that it was in."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_ranks import on_two_ranks
from torch import nn

from potstill import school
from potstill.errors import ModelError, TrainingError
from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training import Precision, TrainSettings
from potstill.training.embeddings import LazyAdamW, clipped_norm, require_unsharded, sparse_table
from potstill.training.stages import Lesson, train

TASK = TextClassification()
OPTIONS = {"lr": 0.1, "weight_decay": 0.2, "betas": (0.9, 0.99)}
SETTINGS = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_steps": 2}


def stepped(table, optimiser, batches, sparse):
    table.sparse = sparse
    for ids in batches:
        optimiser.zero_grad()
        (table(torch.tensor(ids)) ** 3).sum().backward()
        assert table.weight.grad.is_sparse is sparse
        optimiser.step()
    return table.weight.detach()


def tables():
    torch.manual_seed(0)
    first = nn.Embedding(5, 3)
    return first, copy.deepcopy(first)


def test_rows_that_are_in_every_batch_learn_as_with_adamw():
    ours, theirs = tables()
    batches = [[0, 1, 2, 3, 4, 4], [4, 3, 2, 1, 0], [1, 0, 2, 4, 3, 0]]
    found = stepped(ours, LazyAdamW(ours.parameters(), **OPTIONS), batches, True)
    expected = stepped(theirs, torch.optim.AdamW(theirs.parameters(), **OPTIONS), batches, False)
    torch.testing.assert_close(found, expected)


def test_each_row_is_an_adamw_over_its_own_batches():
    """The naive form: a table of one row for each row, stepped in the batches that hold it."""
    ours, theirs = tables()
    batches = [[0, 1, 1], [0, 2], [1, 2], [0], [2, 2, 3]]
    found = stepped(ours, LazyAdamW(ours.parameters(), **OPTIONS), batches, True)
    for row in range(5):
        alone = nn.Embedding(1, 3, _weight=theirs.weight.detach()[row : row + 1].clone())
        own = [[0] * ids.count(row) for ids in batches if row in ids]
        expected = stepped(alone, torch.optim.AdamW(alone.parameters(), **OPTIONS), own, False)
        torch.testing.assert_close(found[row : row + 1], expected)
    assert torch.equal(found[4], theirs.weight[4]), "a row that was in no batch is not touched, not even decayed"


def test_dense_parameters_beside_it_are_adamws_fused():
    torch.manual_seed(0)
    modules = [nn.ModuleDict({"table": nn.Embedding(4, 3), "map": nn.Linear(3, 2)}) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    made = [
        LazyAdamW(modules[0].parameters(), fused=True, **OPTIONS),
        torch.optim.AdamW(modules[1].parameters(), fused=True, **OPTIONS),
    ]
    for module, optimiser, sparse in zip(modules, made, (True, False), strict=True):
        module["table"].sparse = sparse
        for _ in range(3):
            optimiser.zero_grad()
            module["map"](module["table"](torch.arange(4))).square().sum().backward()
            optimiser.step()
            assert module["table"].weight.grad is not None
    for ours, theirs in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("most", [0.5, 1e3, float("inf")])
def test_clipping_is_that_of_dense_gradients(most):
    ours, theirs = tables()
    linear = nn.Linear(3, 2)
    copied = copy.deepcopy(linear)
    for table, layer, sparse in ((ours, linear, True), (theirs, copied, False)):
        table.sparse = sparse
        layer(table(torch.tensor([0, 2, 2, 4]))).square().sum().backward()
    norm = clipped_norm([*ours.parameters(), *linear.parameters()], most)
    expected = nn.utils.clip_grad_norm_([*theirs.parameters(), *copied.parameters()], most)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.weight.grad)
    torch.testing.assert_close(linear.weight.grad, copied.weight.grad)


class Stopped(Exception):
    """Stands for Ctrl-C."""


def trained(folder, stop_at=None, **settings):
    def progress(step, _of, _loss):
        if step == stop_at:
            raise Stopped

    torch.manual_seed(stop_at or 0)
    student = tiny_model(layers=2, seed=1)
    rows = TASK.encode(tiny_rows(22), tiny_tokenizer(), max_length=32)
    lesson = Lesson(
        TASK, tiny_tokenizer(), rows, Objective([Term("labels"), Term("logits")]), tiny_model(layers=4, seed=2)
    )
    made = TrainSettings(**SETTINGS | settings)
    train(student, lesson, made, folder, precision=Precision("float32", "test"), seed=3, progress=progress)
    return student


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stopped_stage_with_sparse_embeddings_ends_where_an_unbroken_one_ends(tmp_path, accumulation):
    given = {"embeddings": "sparse", "accumulation": accumulation}
    whole = trained(tmp_path / "whole", **given)
    with pytest.raises(Stopped):
        trained(tmp_path / "broken", stop_at=4, **given)
    resumed = trained(tmp_path / "broken", **given)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    table, start = whole.get_input_embeddings(), tiny_model(layers=2, seed=1).get_input_embeddings()
    moved = (table.weight != start.weight).any(1)
    assert 3 < moved.sum() < len(moved), "[UNK] and words of no row stay"
    assert not table.sparse


def test_training_sparsely_is_near_training_densely(tmp_path):
    """In a first step both are the same on the rows of the batch: each moment is a first one."""
    dense, sparse = (
        trained(tmp_path / name, embeddings=name, steps=1, weight_decay=0.0, warmup=0.0, schedule="constant")
        for name in ("dense", "sparse")
    )
    for (name, ours), theirs in zip(sparse.state_dict().items(), dense.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_frozen_embeddings_stay(tmp_path):
    start = tiny_model(layers=2, seed=1).state_dict()
    found = trained(tmp_path, embeddings="frozen").state_dict()
    same = {name for name in start if torch.equal(start[name], found[name])}
    assert {name for name in start if ".embeddings." in name} <= same
    assert "classifier.weight" not in same


def test_tied_embeddings_are_refused_by_name():
    student = tiny_model("t5", layers=2)
    with (
        pytest.raises(ModelError, match=r"Tied embeddings can't learn sparsely.*shared\.weight"),
        sparse_table(student),
    ):
        pass


def test_what_can_not_exchange_sparse_gradients_is_refused(monkeypatch):
    require_unsharded(False)
    with pytest.raises(TrainingError, match="sharded parameters"):
        require_unsharded(True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    with pytest.raises(TrainingError, match="backend nccl"):
        require_unsharded(False)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "cpu:gloo")
    require_unsharded(False)


def of_one_rank():
    """Two steps of one of two processes, on its half of each batch; gives the weights that it ends with."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    require_unsharded(False)
    module = together()
    wrapped = nn.parallel.DistributedDataParallel(module)
    optimiser = LazyAdamW(module.parameters(), fused=True, **OPTIONS)
    for ids in HALVES:
        optimiser.zero_grad()
        wrapped(torch.tensor(ids[rank])).square().mean().backward()
        clipped_norm(module.parameters(), 0.1)
        optimiser.step()
    return module.state_dict()


HALVES = [([0, 1, 1, 3], [1, 2, 2, 0]), ([4, 1, 0, 0], [0, 3, 3, 3])]


def together():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Linear(3, 2))


def test_two_processes_over_gloo_learn_as_one_with_both_halves(tmp_path):
    ranks = on_two_ranks(of_one_rank, tmp_path)
    module = together()
    optimiser = LazyAdamW(module.parameters(), fused=True, **OPTIONS)
    for ids in HALVES:
        optimiser.zero_grad()
        module(torch.tensor([*ids[0], *ids[1]])).square().mean().backward()
        clipped_norm(module.parameters(), 0.1)
        optimiser.step()
    for found in ranks:
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(found[name], tensor)


def test_the_usual_value_leaves_digests_as_they_were():
    assert "embeddings" not in school._plain(TrainSettings())
    assert school._plain(TrainSettings(embeddings="sparse"))["embeddings"] == "sparse"
    assert school._without_later({"terms": [{"embeddings": None}], "train": {"embeddings": "dense"}}) == {
        "terms": [{"embeddings": None}],
        "train": {},
    }
