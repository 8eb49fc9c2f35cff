"""Cheap dropout: the right share dropped, the mean kept, seeds obeyed, the model as it was afterwards."""

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import nn

from potstill.training import dropout as module
from potstill.training.dropout import CheapDropout, cheap_dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_right_share_is_dropped_in_each_of_the_four_lanes(p: float) -> None:
    torch.manual_seed(0)
    values = dropout(torch.ones(400_000), p)
    for lane in range(4):
        share = (values[lane::4] == 0).double().mean().item()
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 100_000) ** 0.5 + 1 / 2**16)
    assert values.max().item() == pytest.approx(1 / (1 - p))
    assert values.mean().item() == pytest.approx(1, abs=0.03)


def test_lanes_and_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5) > 0).double()
    for shift in range(1, 9):
        together = (kept[shift:] * kept[:-shift]).mean().item()
        assert together == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4, 5)])
def test_any_shape_and_dtype_by_the_seed(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        values = torch.ones(shape, dtype=dtype)
        torch.manual_seed(3)
        first = dropout(values, 0.3)
        torch.manual_seed(3)
        assert torch.equal(first, dropout(values, 0.3))
        assert first.shape == values.shape and first.dtype == dtype


def test_the_gradient_is_that_of_the_kept_elements() -> None:
    values = torch.randn(64, requires_grad=True)
    out = dropout(values, 0.4)
    out.sum().backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, torch.where(out == 0, 0.0, 1 / 0.6))


def test_attention_is_that_of_sdpa_but_for_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_drop", lambda values, p: values)
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 6, 8, generator=chance) for _ in range(3))
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    allowed[1, ..., 4:] = False
    for mask in (None, allowed, torch.where(allowed, 0.0, -1e9)):
        found, _ = module.attention(nn.Identity(), query, key, value, mask, dropout=0.1, scaling=0.3)
        right = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
        assert torch.allclose(found, right.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "gpt2", "llama"])
def test_it_drops_in_training_only_and_leaves_the_model_as_it_was(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    classes = [type(part) for part in model.modules()]
    implementation = model.config._attn_implementation
    plain = model(**batch).logits
    with cheap_dropout(model):
        assert torch.allclose(model(**batch).logits, plain, atol=1e-6)
        model.train()
        torch.manual_seed(0)
        first = model(**batch).logits
        torch.manual_seed(0)
        assert torch.equal(model(**batch).logits, first)
        if family != "llama":  # which has no dropout
            assert any(isinstance(part, CheapDropout) for part in model.modules())
            assert not torch.equal(model(**batch).logits, first)
    model.eval()
    assert [type(part) for part in model.modules()] == classes
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(**batch).logits, plain)


def test_the_model_is_put_back_after_an_error() -> None:
    model = tiny_model()
    with pytest.raises(RuntimeError, match="stop"), cheap_dropout(model):
        raise RuntimeError("stop")
    assert not any(isinstance(part, CheapDropout) for part in model.modules())
    assert model.config._attn_implementation == "sdpa"


def test_recomputed_activations_drop_the_same_elements() -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny_model().train()
        if recompute:
            model.activation_checkpointing_enable()
        with cheap_dropout(model):
            torch.manual_seed(0)
            model(**tiny_batch()).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name
