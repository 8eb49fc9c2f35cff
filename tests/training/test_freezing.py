"""What is frozen stays to the last bit, the rest learns, and afterwards everything may learn again."""

import pytest
import torch
from tiny import tiny_model

from potstill.errors import ModelError
from potstill.training.freezing import frozen, parts


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "modernbert"])
def test_parts_are_told_apart(family):
    model = tiny_model(family, layers=3)
    whole = {id(p) for p in model.parameters()}
    named = [{id(p) for p in parts(model, [name])} for name in ("embeddings", 0, 1, 2, "head")]
    assert all(named)
    assert sum(len(one) for one in named) == len(set().union(*named))  # no parameter in two parts
    rest = [name for name, p in model.named_parameters() if id(p) in whole - set().union(*named)]
    assert all("norm" in name or "ln_f" in name or "pooler" in name for name in rest), rest


def test_the_frozen_parts_do_not_learn():
    model = tiny_model(layers=3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with frozen(model, ["embeddings", 0]):
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        model(input_ids=torch.tensor([[2, 5, 3]]), labels=torch.tensor([1])).loss.backward()
        optimiser.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any("embeddings" in name or "layer.0." in name for name in moved)
    assert any("layer.1." in name for name in moved)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", [3, -1, "layer"])
def test_a_part_that_is_not_there_is_refused(name):
    with pytest.raises(ModelError, match="Name layers from 0 to 2"):
        parts(tiny_model(layers=3), [name])


def test_nothing_is_frozen_where_nothing_is_named():
    model = tiny_model(layers=2)
    with frozen(model, []):
        assert all(p.requires_grad for p in model.parameters())
