"""The head apart from its model: exactly its logits, or the model's own and a word about it."""

import logging

import pytest
import torch
from tiny import VOCABULARY, tiny_batch, tiny_causal, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from potstill.knowledge import Needs, Observer, observe
from potstill.losses.fused import FactoredLogits

FACTORED = Needs(logits=True, factored=True)


def built(family, auto=AutoModelForCausalLM, **config):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    made = AutoConfig.for_model(family, vocab_size=VOCABULARY, pad_token_id=0, **sizes, **config)
    return auto.from_config(made).eval()


def decoder(family, **config):
    given = {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
    return built(family, **given, **config)


EXACT = {
    "gpt2": lambda: tiny_causal("gpt2"),
    "llama": lambda: tiny_causal("llama"),
    "tied": lambda: tiny_causal("qwen3", tie_word_embeddings=True),
    "gemma2, capped": lambda: decoder("gemma2", final_logit_softcapping=0.5),
    "gemma2": lambda: decoder("gemma2", final_logit_softcapping=None),
    "granite, scaled": lambda: decoder("granite", logits_scaling=8.0),
    "cohere, scaled": lambda: decoder("cohere", logit_scale=0.0625),
    "bert, after a transform": lambda: built("bert", AutoModelForMaskedLM),
    "t5": lambda: tiny_model("t5", layers=2),
}


@pytest.mark.parametrize("name", EXACT)
def test_factored_logits_are_the_models_own(name, caplog):
    model = EXACT[name]()
    batch = tiny_batch()
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"]
    found = observe(model, batch, FACTORED).logits
    if name == "t5":  # scaled in front of the head, so it is in the states
        assert isinstance(found, FactoredLogits)
    assert isinstance(found, FactoredLogits), caplog.text
    torch.testing.assert_close(found.dense(), observe(model, batch, Needs(logits=True)).logits)
    assert not caplog.records


class Louder(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 1.001


def with_louder_head():
    model = tiny_causal("llama")
    model.lm_head.__class__ = Louder
    return model


def with_other_logits(change):
    model = tiny_causal("llama")
    forward = model.forward

    def changed(*args, **given):
        output = forward(*args, **given)
        output.logits = change(output.logits)
        return output

    changed.__signature__ = __import__("inspect").signature(forward)
    model.forward = changed
    return model


UNFIT = {
    "another head": (with_louder_head, "no plain linear layer"),
    "a little louder": (lambda: with_other_logits(lambda z: z * 1.0001), "differ by up to"),
    "a bias behind": (lambda: with_other_logits(lambda z: z + torch.zeros(VOCABULARY)), "without its logits"),
    "cut": (lambda: with_other_logits(lambda z: z[..., :-1]), "shape"),
    "not a number": (lambda: with_other_logits(lambda z: z * float("nan")), "differ"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_on_any_difference_the_models_own_are_taken_and_that_is_said_once(name, caplog):
    make, why = UNFIT[name]
    observer = Observer(make(), FACTORED)
    with caplog.at_level(logging.WARNING):
        first, second = observer(tiny_batch()).logits, observer(tiny_batch(seed=1)).logits
    assert type(first) is type(second) is torch.Tensor
    assert [why in record.getMessage() for record in caplog.records] == [True]


def test_an_adapter_on_the_head_is_not_ignored_though_it_begins_as_no_change():
    model = tiny_causal("llama")
    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", nn.Identity())
    assert isinstance(observe(model, tiny_batch(), FACTORED).logits, torch.Tensor)
    hooked = tiny_causal("llama")
    hooked.lm_head.register_forward_hook(lambda module, args, output: output)
    assert isinstance(observe(hooked, tiny_batch(), FACTORED).logits, torch.Tensor)


def test_looking_at_the_first_batch_draws_no_numbers_and_records_nothing():
    """A run that goes on from a checkpoint looks again: it must draw what the unbroken one drew."""
    model = tiny_causal("gpt2", layers=2).train()
    needs = FACTORED | Needs(hidden=frozenset({1}))
    torch.manual_seed(0)
    first = observe(model, tiny_batch(), needs)
    assert model.training
    torch.manual_seed(0)
    observer = Observer(model, needs)
    observer._untried = False
    torch.testing.assert_close(observer(tiny_batch()).logits.states, first.logits.states)
    assert first.hidden[1].shape[:2] == tiny_batch()["input_ids"].shape
    assert first.hidden[1].requires_grad


def test_the_head_is_not_computed_and_back_in_its_place():
    model = tiny_causal("llama")
    calls = []
    observer = Observer(model, FACTORED)
    observer(tiny_batch())
    hook = model.lm_head.register_forward_hook(lambda module, args, output: calls.append(output.shape[-1]))
    observer(tiny_batch())
    hook.remove()
    assert calls == [0]
    assert "forward" not in vars(model.lm_head)
    assert model(**tiny_batch()).logits.shape[-1] == VOCABULARY


def test_nothing_of_the_head_is_kept_where_logits_are_not_asked_for():
    assert observe(tiny_causal("llama"), tiny_batch(), Needs(factored=True)).logits is None


def test_gradients_reach_head_and_body():
    model = tiny_causal("llama")
    found = observe(model, tiny_batch(), FACTORED).logits
    found.dense().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
