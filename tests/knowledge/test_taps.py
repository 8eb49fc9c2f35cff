"""Taps change nothing, come off again, and give what the model really computed: one table over all families."""

import gc

import pytest
import torch
from tiny import DECODERS, FAMILIES, tiny_batch, tiny_model
from torch import nn

from potstill.errors import ModelError
from potstill.knowledge import Needs, describe, observe
from potstill.knowledge.architectures import ARCHITECTURES, layers_of
from potstill.knowledge.taps import tapped
from potstill.mappings import EMBEDDINGS

LAYERS, WIDTH, HEADS = 3, 32, 4
ALL = frozenset(range(LAYERS))
EVERYTHING = Needs(True, ALL | {EMBEDDINGS}, queries=ALL, keys=ALL, values=ALL)
OWN_ATTENTION = ("mpnet", "deberta-v2")
THROUGH_INTERFACE = tuple(family for family in FAMILIES if family not in OWN_ATTENTION)


def made(family, attention=None, **config):
    model = tiny_model(family, layers=LAYERS, width=WIDTH, heads=HEADS, **config)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_family_of_the_table_is_tested():
    assert set(FAMILIES) == set(ARCHITECTURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tapped_model_gives_exactly_the_untapped_output_and_is_left_as_it_was(family):
    model, batch = made(family), tiny_batch()
    before = model.config._attn_implementation
    with torch.no_grad():
        plain = model(**batch).logits
        seen = observe(model, batch, EVERYTHING)
        again = model(**batch).logits
    assert torch.equal(plain, seen.logits)
    assert torch.equal(plain, again)
    assert model.config._attn_implementation == before
    assert hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_model(family):
    model, batch = made(family), tiny_batch()
    with torch.no_grad():
        seen = observe(model, batch, Needs(hidden=ALL | {EMBEDDINGS})).hidden
        states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    for number in range(LAYERS):  # states[i] enters layer i: layer i-1 gave it
        assert torch.equal(seen[EMBEDDINGS if number == 0 else number - 1], states[number])
    # The last one is before the final norm, where there is one; theirs is after it.
    if family in DECODERS or family == "modernbert":
        base = model.base_model
        norm = getattr(base, "norm", None) or getattr(base, "final_norm", None) or base.ln_f
        assert torch.equal(norm(seen[LAYERS - 1]), states[LAYERS])
        assert not torch.equal(seen[LAYERS - 1], states[LAYERS])
    else:
        assert torch.equal(seen[LAYERS - 1], states[LAYERS])


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_have_their_shapes(family):
    model, batch = made(family), tiny_batch(rows=3, tokens=9)
    seen = observe(model, batch, EVERYTHING)
    grouped = HEADS // 2 if family in ("llama", "mistral", "qwen2", "qwen3") else HEADS
    for layer in ALL:
        assert seen.queries[layer].shape == (3, HEADS, 9, WIDTH // HEADS)
        assert seen.keys[layer].shape == (3, grouped, 9, WIDTH // HEADS)
        assert seen.values[layer].shape == (3, grouped, 9, WIDTH // HEADS)
        assert seen.hidden[layer].shape == (3, 9, WIDTH)
    assert torch.equal(seen.mask, batch["attention_mask"].bool())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_of_a_student_carries_gradients(family):
    seen = observe(made(family), tiny_batch(), EVERYTHING)
    for kind in ("hidden", "queries", "keys", "values"):
        for layer, tensor in getattr(seen, kind).items():
            assert tensor.requires_grad, (kind, layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_maps_are_those_of_the_model(family):
    model, batch = made(family, attention="eager"), tiny_batch()
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions
        seen = observe(model, batch, Needs(attention=ALL)).attention
    real = batch["attention_mask"].bool()
    for layer in ALL:
        assert seen[layer].shape == (3, HEADS, 9, 9)
        rows = real[:, None, :, None].expand(-1, HEADS, -1, 9)
        torch.testing.assert_close(seen[layer][rows], maps[layer][rows], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(seen[layer].sum(-1)[real[:, None].expand(-1, HEADS, -1)].max(), torch.tensor(1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_the_softmax_of_the_scores(family):
    model, batch = made(family, attention="eager"), tiny_batch()
    with torch.no_grad():
        seen = observe(model, batch, Needs(True, attention=ALL, scores=ALL))
        alone = observe(model, batch, Needs(True, scores=ALL))
        plain = model(**batch).logits
    assert torch.equal(seen.logits, plain)
    padded = ~batch["attention_mask"].bool()[:, None, None, :].expand(-1, HEADS, 9, -1)
    for layer in ALL:
        assert torch.equal(seen.scores[layer].softmax(-1), seen.attention[layer])
        assert torch.equal(seen.scores[layer], alone.scores[layer])
        assert (seen.scores[layer][padded] < -1e30).all()
    assert not alone.attention


@pytest.mark.parametrize("family", THROUGH_INTERFACE)
def test_recorded_queries_and_keys_make_the_attention_maps(family):
    model, batch = made(family, attention="eager"), tiny_batch()
    with torch.no_grad():
        seen = observe(model, batch, Needs(attention=ALL, queries=ALL, keys=ALL, hidden=ALL))
    for layer, module in enumerate(layers_of(model)):
        query, key = seen.queries[layer], seen.keys[layer]
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
        scores = scores.masked_fill(~allowed(family, module, batch), float("-inf"))
        real = batch["attention_mask"].bool()[:, None, :].expand(-1, HEADS, -1)
        torch.testing.assert_close(scores.softmax(-1)[real], seen.attention[layer][real], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "modules"), [("mpnet", "attention.attn.{}"), ("deberta-v2", "attention.self.{}_proj")]
)
@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_hooked_modules_give_what_their_name_says(family, modules, kind):
    model = made(family)
    module = layers_of(model)[1].get_submodule(modules.format(kind[0] if family == "mpnet" else kind))
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(0.5)
        seen = observe(model, tiny_batch(), EVERYTHING)
    found = {"query": seen.queries, "key": seen.keys, "value": seen.values}
    for name, layers in found.items():
        assert (layers[1] == 0.5).all() == (name == kind)
        assert not (layers[0] == 0.5).all()


def allowed(family, layer, batch):
    """[B,1,S,S] true where a query may look at a key, written down from the families' papers, not from their code."""
    valid = batch["attention_mask"].bool()
    length = valid.shape[1]
    seen = valid[:, None, None, :].expand(-1, 1, length, -1)
    here, there = torch.arange(length)[:, None], torch.arange(length)[None, :]
    if family in DECODERS:
        seen = seen & (there <= here)
    window = next((m.sliding_window for m in layer.modules() if getattr(m, "sliding_window", None)), None)
    if family == "modernbert" and window:
        seen = seen & ((here - there).abs() < window)
    return seen


@pytest.mark.parametrize("family", ["bert", "llama", "mpnet", "deberta-v2"])
def test_maps_are_recorded_before_dropout(family):
    rates = {"attention_dropout": 0.6} if family == "llama" else {"attention_probs_dropout_prob": 0.6}
    model, batch = made(family, attention="eager", **rates), tiny_batch()
    for module in model.modules():  # only attention's own dropout is left, so that the first layer's map is the same
        if isinstance(module, nn.Dropout) and module.p != 0.6:
            module.p = 0.0
    with torch.no_grad():
        quiet = observe(model, batch, Needs(attention=frozenset({0}))).attention[0]
        torch.manual_seed(0)
        plain = model.train()(**batch).logits
        torch.manual_seed(0)
        seen = observe(model, batch, Needs(logits=True, attention=frozenset({0})))
    assert torch.equal(quiet, seen.attention[0])
    assert torch.equal(plain, seen.logits)  # dropout itself still happens, with the same draws
    assert not torch.equal(plain, model.eval()(**batch).logits)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_only_what_was_asked_for_is_kept(family):
    needs = Needs(hidden=frozenset({1}), values=frozenset({2}))
    seen = observe(made(family), tiny_batch(), needs)
    assert seen.logits is None
    assert set(seen.hidden) == {1}
    assert set(seen.values) == {2}
    assert not seen.queries
    assert not seen.keys
    assert not seen.attention
    with tapped(made(family), Needs(logits=True)) as found:
        pass
    assert found == {}


def test_nothing_is_held_after_the_knowledge_is_dropped():
    def alive():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)

    model, batch = made("bert"), tiny_batch()
    with torch.no_grad():
        observe(model, batch, EVERYTHING)
        before = alive()
        observe(model, batch, EVERYTHING)
    assert alive() == before


@pytest.mark.parametrize("family", ["bert", "mpnet", "llama"])
def test_taps_come_off_after_an_exception(family):
    model, batch = made(family, attention="eager"), tiny_batch()
    needs = Needs(True, *[ALL] * 6)
    broken = layers_of(model)[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        observe(model, batch, needs)
    broken.remove()
    assert hooks(model) == 0
    assert model.config._attn_implementation == "eager"
    assert torch.isfinite(observe(model, batch, needs).logits).all()


def test_taps_of_teacher_and_student_do_not_mix():
    teacher, student, batch = made("bert", seed=1), made("bert", seed=2), tiny_batch()
    with torch.no_grad():
        alone = observe(teacher, batch, EVERYTHING), observe(student, batch, EVERYTHING)
        with tapped(teacher, EVERYTHING) as theirs, tapped(student, EVERYTHING) as ours:
            student(**batch)
        with tapped(student, EVERYTHING) as outer:
            student(**batch)
            within = observe(teacher, batch, EVERYTHING)
    assert theirs == {}
    for layer in ALL:
        assert torch.equal(ours["values"][layer], alone[1].values[layer])
        assert torch.equal(outer["values"][layer], alone[1].values[layer])
        assert torch.equal(within.values[layer], alone[0].values[layer])
        assert torch.equal(outer["hidden"][layer], alone[1].hidden[layer])


@pytest.mark.parametrize("family", THROUGH_INTERFACE)
def test_maps_of_a_fused_kernel_are_refused(family):
    model = made(family, attention="sdpa")
    for kind in ("attention", "scores"):
        with pytest.raises(ModelError, match="eager"):
            observe(model, tiny_batch(), Needs(**{kind: frozenset({0})}))
    assert hooks(model) == 0


def test_a_layer_that_gave_nothing_is_an_error():
    with pytest.raises(ModelError, match=r"layers \[7\]"):
        observe(made("bert"), tiny_batch(), Needs(hidden=frozenset({7})))


def test_an_unknown_family_is_refused_by_name():
    from transformers import MobileBertConfig, MobileBertForSequenceClassification

    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4}
    config = MobileBertConfig(vocab_size=30, **sizes)
    model = MobileBertForSequenceClassification(config).eval()
    with pytest.raises(ModelError, match="mobilebert"):
        observe(model, tiny_batch(), Needs(hidden=frozenset({0})))
    assert observe(model, tiny_batch(), Needs(logits=True)).logits.shape == (3, 2)
    assert describe(model).layers == 1


def test_each_model_gets_its_own_inputs_and_never_the_labels():
    batch = tiny_batch() | {"token_type_ids": torch.ones(3, 9, dtype=torch.long), "labels": torch.zeros(3).long()}
    bert, distil = made("bert"), made("distilbert")
    with torch.no_grad():
        typed = observe(bert, batch, Needs(logits=True)).logits
        batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
        assert not torch.equal(typed, observe(bert, batch, Needs(logits=True)).logits)
        observe(distil, batch, Needs(logits=True))  # takes no token_type_ids, and does not fail


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("needs", [Needs(True, values=ALL), Needs(True, hidden=ALL)], ids=["values", "hidden"])
def test_gradient_checkpointing_gives_the_same_gradients(family, needs):
    found = []
    for checkpointing in (False, True):
        model = made(family).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        seen = observe(model, tiny_batch(), needs)
        kept = {**seen.values, **seen.hidden}
        (seen.logits.sum() + sum(tensor.square().mean() for tensor in kept.values())).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)
