"""Taps change nothing, come off again, and give what the model really computed: one table over all families."""

import gc

import pytest
import torch
from tiny import (
    ALL_FAMILIES,
    CONVOLUTIONAL,
    DECODERS,
    ENCODER_DECODERS,
    FAMILIES,
    IMAGES,
    PATCHES,
    STAGED,
    tiny_batch,
    tiny_inputs,
    tiny_model,
)
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, T5EncoderModel, T5Model

from potstill.errors import ModelError
from potstill.knowledge import Needs, describe, inputs_for, observe
from potstill.knowledge.architectures import ARCHITECTURES, cross_attentions, layer_modules
from potstill.knowledge.taps import FUSED, check_needs, tapped
from potstill.knowledge.types import LAYERED
from potstill.mappings import EMBEDDINGS

LAYERS, WIDTH, HEADS = 3, 32, 4
ALL = frozenset(range(LAYERS))
EVERYTHING = Needs(True, ALL | {EMBEDDINGS}, queries=ALL, keys=ALL, values=ALL)
OWN_ATTENTION = ("mpnet", "deberta-v2", "pvt_v2")
ATTENDING = tuple(family for family in ALL_FAMILIES if family not in CONVOLUTIONAL)
THROUGH_INTERFACE = tuple(family for family in ATTENDING if family not in OWN_ATTENTION)


def made(family, attention=None, **config):
    model = tiny_model(family, layers=LAYERS, width=WIDTH, heads=HEADS, **config)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def all_of(model, *, maps=False):
    """All that a model's family has, of every layer; attention and scores where `maps` says so."""
    layers = frozenset(layer_modules(model))
    below = {(layer[0], EMBEDDINGS) if isinstance(layer, tuple) else EMBEDDINGS for layer in layers}
    attending = layers | frozenset(cross_attentions(model))
    forms = {kind: attending for kind in ("attention", "scores") if maps}
    relations = {kind: attending for kind in ("queries", "keys", "values")}
    stages = frozenset(range(len(describe(model).channels)))
    return Needs(True, layers | below, **forms, **relations, features=stages)


def found(knowledge):
    """Every observed tensor, by kind and layer."""
    return {(kind, layer): t for kind in LAYERED for layer, t in getattr(knowledge, kind).items()}


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def implementations(model):
    return [part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)]


def test_every_family_of_the_table_is_tested():
    assert {*ALL_FAMILIES, "upernet", "timm_wrapper"} == set(ARCHITECTURES)  # in test_backbones, test_timm_stages


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_tapped_model_gives_exactly_the_untapped_output_and_is_left_as_it_was(family):
    model, batch = made(family), tiny_inputs(family)
    before, needs = implementations(model), all_of(model)
    with torch.no_grad():
        plain = model(**batch).logits
        seen = observe(model, batch, needs)
        again = model(**batch).logits
    assert {(kind, layer) for kind in LAYERED for layer in getattr(needs, kind)} == found(seen).keys()
    assert torch.equal(plain, seen.logits)
    assert torch.equal(plain, again)
    assert implementations(model) == before
    assert hooks(model) == 0


class Kernels(TorchFunctionMode):
    """Counts the calls of PyTorch's fused attention."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", THROUGH_INTERFACE)
def test_hidden_states_and_relations_leave_the_fused_kernel_on(family):
    model, batch = made(family), tiny_inputs(family)
    needs, inside = all_of(model), []
    assert model.config._attn_implementation == "sdpa"
    for part in layer_modules(model).values():
        part.register_forward_pre_hook(lambda *_: inside.append(set(implementations(model))))
    calls = []
    for asked in (Needs(True), Needs(hidden=needs.hidden), needs):
        with torch.no_grad(), Kernels() as kernels:
            observe(model, batch, asked)
        calls.append(kernels.count)
    attentions = len(needs.queries)
    assert calls == [attentions] * 3
    layers = len(layer_modules(model))
    assert inside == [{"sdpa"}] * 2 * layers + [{FUSED}] * layers


@pytest.mark.parametrize("family", [*FAMILIES, *PATCHES])
def test_hidden_states_are_those_of_the_model(family):
    model, batch = made(family), tiny_inputs(family)
    with torch.no_grad():
        seen = observe(model, batch, Needs(hidden=ALL | {EMBEDDINGS})).hidden
        states = model(**batch, output_hidden_states=True).hidden_states
    # The last one is before the final norm, where there is one; Llama's and its like are after it, ViT's are not.
    final = ("norm", "final_norm", "ln_f") if family in (*DECODERS, "modernbert") else ()
    same_states(seen, states, [getattr(model.base_model, name, None) for name in final])


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_hidden_states_of_encoder_decoders_are_those_of_the_model(family):
    model, batch = made(family), tiny_inputs(family)
    with torch.no_grad():
        seen = observe(model, batch, all_of(model)).hidden
        output = model(**batch, output_hidden_states=True)
    for stack in ("encoder", "decoder"):
        hidden = {number: state for (name, number), state in seen.items() if name == stack}
        final = getattr(model.base_model, stack).final_layer_norm if family == "t5" else None
        same_states(hidden, output[f"{stack}_hidden_states"], [final])


def same_states(seen, states, final):
    """`seen` by layer, EMBEDDINGS first, are the model's own `states`, whose last one is after a `final` norm."""
    assert len(states) == LAYERS + 1
    for number in range(LAYERS):  # states[i] enters layer i: layer i-1 gave it
        assert torch.equal(seen[EMBEDDINGS if number == 0 else number - 1], states[number])
    norms = [norm for norm in final if norm is not None]
    last = seen[LAYERS - 1]
    with torch.no_grad():
        assert torch.equal(norms[0](last) if norms else last, states[LAYERS])
    assert not norms or not torch.equal(last, states[LAYERS])


@pytest.mark.parametrize("family", STAGED)
def test_hidden_states_within_stages_are_those_of_the_model(family):
    model, batch = made(family), tiny_inputs(family)
    base = model.base_model
    stages = base.stages if family == "segformer" else base.encoder.layers
    with torch.no_grad():
        seen = observe(model, batch, all_of(model)).hidden
        states = model(**batch, output_hidden_states=True).hidden_states
        if family == "swin":
            assert torch.equal(seen[EMBEDDINGS], states[0])
            assert torch.equal(stages[0].downsample(seen[1], (8, 12)), states[1])
            assert torch.equal(seen[2], states[2])
            assert torch.equal(layers_at(model)[1](seen[0], (8, 12))[0], seen[1])
            return
        for stage, last in enumerate((1, 2)):
            assert torch.equal(stages[stage].layer_norm(seen[last]), states[stage].flatten(2).transpose(1, 2))
        after = layers_at(model)[1](seen[0], 8, 12)
        assert torch.equal(after[0] if isinstance(after, tuple) else after, seen[1])


def layers_at(model):
    return list(layer_modules(model).values())


def tokens_of(family, layer):
    """(rows, queries, keys) of a layer's attention, for `tiny_inputs`."""
    if family == "swin":
        return (18 if layer < 2 else 6, 16, 16)  # 2 x 3 windows of 4 x 4, then 1 x 2 with padding, in each of 3 images
    if family in STAGED:
        return (3, 96, 24) if layer < 2 else (3, 24, 24)
    if family in ENCODER_DECODERS:
        lengths = {"encoder": (9, 9), "decoder": (7, 7), "cross": (7, 9)}
        return (3, *lengths[layer[0]])
    length = {"deit": 26, "vit": 25, "beit": 25, "dinov2": 25}.get(family, 9)
    return 3, length, length


@pytest.mark.parametrize("family", ATTENDING)
def test_queries_keys_and_values_have_their_shapes(family):
    model, batch = made(family), tiny_inputs(family)
    seen, shape = observe(model, batch, all_of(model)), describe(model)
    size = 4 if family == "mobilebert" else WIDTH // HEADS  # attention in the bottleneck
    for layer in seen.queries:
        rows, queries, keys = tokens_of(family, layer)
        heads = shape.heads_at(layer)
        grouped = heads // 2 if family in ("llama", "mistral", "qwen2", "qwen3") else heads
        assert seen.queries[layer].shape == (rows, heads, queries, size)
        assert seen.keys[layer].shape == (rows, grouped, keys, size)
        assert seen.values[layer].shape == (rows, grouped, keys, size)
    for layer, hidden in seen.hidden.items():
        assert hidden.shape[-1] == shape.width_at(layer)
    if family in IMAGES:
        assert seen.mask is None
    else:
        assert torch.equal(seen.mask, batch["attention_mask"].bool())


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_what_is_seen_of_a_student_carries_gradients(family):
    model = made(family)
    for key, tensor in found(observe(model, tiny_inputs(family), all_of(model))).items():
        assert tensor.requires_grad, key


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_an_exact_copy_knows_exactly_the_same(family):
    teacher, student, batch = made(family), made(family, seed=1), tiny_inputs(family)
    with torch.no_grad():
        theirs, other = (found(observe(model, batch, all_of(model))) for model in (teacher, student))
        student.load_state_dict(teacher.state_dict())
        ours = found(observe(student, batch, all_of(student)))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
        assert not torch.equal(other[key], tensor), key


def own_maps(family, output):
    """The maps that the model itself gives, by layer."""
    if family in ENCODER_DECODERS:
        names = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}
        return {(stack, i): m for stack, name in names.items() for i, m in enumerate(output[name])}
    if family == "swin":  # of each stage's last layer
        return dict(zip((1, 2), output.attentions, strict=True))
    if family == "pvt_v2":
        return dict(enumerate(m for stage in output.attentions for m in stage))
    return dict(enumerate(output.attentions))


def real_queries(family, layer, batch):
    """[B,1,S,1] true at tokens, false at padding: what padding attends to differs between implementations."""
    if family in IMAGES:
        return torch.tensor(True)
    name = "decoder_attention_mask" if stack_of(layer) in ("decoder", "cross") else "attention_mask"
    return batch[name].bool()[:, None, :, None]


def stack_of(layer):
    return layer[0] if isinstance(layer, tuple) else None


@pytest.mark.parametrize("family", ATTENDING)
def test_attention_maps_are_those_of_the_model(family):
    model, batch = made(family, attention="eager"), tiny_inputs(family)
    with torch.no_grad():
        maps = own_maps(family, model(**batch, output_attentions=True))
        seen = observe(model, batch, all_of(model, maps=True)).attention
    assert seen.keys() >= maps.keys()
    for layer, given in maps.items():
        rows, queries, keys = tokens_of(family, layer)
        assert seen[layer].shape == (rows, describe(model).heads_at(layer), queries, keys)
        real = real_queries(family, layer, batch).expand_as(given)
        torch.testing.assert_close(seen[layer][real], given[real], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(given, given.mean(-1, keepdim=True), atol=1e-3)  # no layer looks everywhere alike


@pytest.mark.parametrize("family", ATTENDING)
def test_attention_is_the_softmax_of_the_scores(family):
    model, batch = made(family, attention="eager"), tiny_inputs(family)
    needs = all_of(model, maps=True)
    with torch.no_grad():
        seen = observe(model, batch, needs)
        alone = observe(model, batch, Needs(scores=needs.scores))
        plain = model(**inputs_for(model, batch)).logits
    assert torch.equal(seen.logits, plain)
    assert not alone.attention
    for layer, scores in seen.scores.items():
        assert torch.equal(scores.softmax(-1), seen.attention[layer])
        assert torch.equal(scores, alone.scores[layer])
        if family not in IMAGES:
            name = "decoder_attention_mask" if stack_of(layer) == "decoder" else "attention_mask"
            padded = ~batch[name].bool()[:, None, None, :].expand_as(scores)
            assert (scores[padded] < -1e30).all()


@pytest.mark.parametrize("family", ATTENDING)
def test_recorded_queries_and_keys_make_the_scores(family):
    plain = {"relative_attention": False, "pos_att_type": []} if family == "deberta-v2" else {}
    model, batch = made(family, attention="eager", **plain), tiny_inputs(family)
    with torch.no_grad():
        seen = observe(model, batch, all_of(model, maps=True))
        biases = position_biases(family, model, seen)
    for layer, module in {**layer_modules(model), **cross_attentions(model)}.items():
        query, key = seen.queries[layer], seen.keys[layer]
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scale = 1.0 if family == "t5" else query.shape[-1] ** -0.5
        scores = query @ key.transpose(2, 3) * scale + biases.get(layer, 0.0)
        given = seen.scores[layer]
        if family == "swin":  # across the edge of a shifted window stands -100
            across = given < -50.0
            assert across.any() == (layer == 1)
            scores = scores - 100.0 * across
            torch.testing.assert_close(scores, given, atol=1e-4, rtol=1e-5)
            continue
        visible = allowed(family, layer, module, batch).expand_as(given)
        torch.testing.assert_close(scores[visible], given[visible], atol=1e-5, rtol=1e-5)
        assert (given[~visible] < -1e30).all()


def position_biases(family, model, seen):
    """What a family adds to the products of queries and keys, by layer."""
    if family == "t5":
        biases = {}
        for stack, length in (("encoder", 9), ("decoder", 7)):
            first = getattr(model, stack).block[0].layer[0].SelfAttention
            biases |= {(stack, i): first.compute_bias(length, length) for i in range(LAYERS)}
        assert all(bias.std() > 0.01 for bias in biases.values())
        return biases
    if family == "mpnet":
        return dict.fromkeys(range(LAYERS), model.mpnet.encoder.compute_position_bias(seen.hidden[0]))
    if family == "beit":
        return {layer: m.relative_position_bias((4, 6), dim_size=25) for layer, m in layer_modules(model).items()}
    if family == "swin":
        return {layer: m.attention.relative_position_bias() for layer, m in layer_modules(model).items()}
    return {}


@pytest.mark.parametrize(
    ("family", "modules"),
    [("mpnet", "attention.attn.{0[0]}"), ("deberta-v2", "attention.self.{}_proj"), ("pvt_v2", "attention.{}")],
)
@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_hooked_modules_give_what_their_name_says(family, modules, kind):
    model = made(family)
    module = layers_at(model)[1].get_submodule(modules.format(kind))
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(0.5)
        seen = observe(model, tiny_inputs(family), all_of(model))
    for name, layers in {"query": seen.queries, "key": seen.keys, "value": seen.values}.items():
        assert (layers[1] == 0.5).all() == (name == kind)
        assert not (layers[0] == 0.5).all()


def allowed(family, layer, module, batch):
    """[B,1,S,S] true where a query may look at a key, written down from the families' papers, not from their code."""
    if family in IMAGES:
        return torch.tensor(True)
    stack = stack_of(layer)
    valid = batch["decoder_attention_mask" if stack == "decoder" else "attention_mask"].bool()
    queries = batch["decoder_attention_mask" if stack in ("decoder", "cross") else "attention_mask"].shape[1]
    seen = valid[:, None, None, :].expand(-1, 1, queries, -1)
    here, there = torch.arange(queries)[:, None], torch.arange(valid.shape[1])[None, :]
    if family in DECODERS or stack == "decoder":
        seen = seen & (there <= here)
    if family == "deberta-v2":  # where padding looks is masked too
        seen = seen & valid[:, None, :, None]
    window = next((m.sliding_window for m in module.modules() if getattr(m, "sliding_window", None)), None)
    if family == "modernbert" and window:
        seen = seen & ((here - there).abs() < window)
    return seen


@pytest.mark.parametrize("family", ["bert", "llama", "mpnet", "deberta-v2", "bart", "vit", "swin", "pvt_v2"])
def test_maps_are_recorded_before_dropout(family):
    rates = {"attention_dropout": 0.6} if family in ("llama", "bart") else {"attention_probs_dropout_prob": 0.6}
    others = {"bart": {"dropout": 0.0}, "swin": {"drop_path_rate": 0.0}}.get(family, {})
    model, batch = made(family, attention="eager", **rates, **others), tiny_inputs(family)
    for module in model.modules():  # only attention's own dropout is left, so that the first layer's map is the same
        if isinstance(module, nn.Dropout) and module.p != 0.6:
            module.p = 0.0
    first = next(iter(layer_modules(model)))
    with torch.no_grad():
        quiet = observe(model, batch, Needs(attention=frozenset({first}))).attention[first]
        torch.manual_seed(0)
        plain = model.train()(**inputs_for(model, batch)).logits
        torch.manual_seed(0)
        seen = observe(model, batch, Needs(logits=True, attention=frozenset({first})))
    assert torch.equal(quiet, seen.attention[first])
    assert torch.equal(plain, seen.logits)  # dropout itself still happens, with the same draws
    assert not torch.equal(plain, model.eval()(**batch).logits)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_only_what_was_asked_for_is_kept(family):
    model = made(family)
    everything = all_of(model)
    for kind in LAYERED:
        for layer in getattr(everything, kind):
            seen = observe(model, tiny_inputs(family), Needs(**{kind: frozenset({layer})}))
            assert found(seen).keys() == {(kind, layer)}
            assert seen.logits is None
    with tapped(model, Needs(logits=True)) as kept:
        assert hooks(model) == 0
        model(**tiny_inputs(family))
    assert kept == {}


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


@pytest.mark.parametrize("family", ATTENDING)
def test_taps_come_off_after_an_exception(family):
    model, batch = made(family, attention="eager"), tiny_inputs(family)
    needs, before = all_of(model, maps=True), implementations(model)
    broken = layers_at(model)[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        observe(model, batch, needs)
    broken.remove()
    assert hooks(model) == 0
    assert implementations(model) == before
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
        for layer in getattr(all_of(model, maps=True), kind):
            with pytest.raises(ModelError, match="eager"):
                observe(model, tiny_inputs(family), Needs(**{kind: frozenset({layer})}))
    assert hooks(model) == 0


def test_a_stack_with_a_fused_kernel_of_its_own_is_refused():
    model = made("t5", attention="eager")
    check_needs(model, all_of(model, maps=True))
    model.decoder.config._attn_implementation = "sdpa"
    with pytest.raises(ModelError, match="attn_implementation='sdpa'"):
        check_needs(model, all_of(model, maps=True))


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        ("bert", {"hidden": 7}, r"hidden of BertForSequenceClassification has no layer 7\. Got: 3 layers"),
        ("bert", {"values": EMBEDDINGS}, "values of .* has no layer -1"),
        ("bert", {"hidden": ("encoder", 0)}, "one stack"),
        ("bert", {"features": 0}, "Only models of images"),
        ("vit", {"features": 3}, "features of .* has no layer 3"),
        ("swin", {"features": 2}, "features of .* has no layer 2.*2 layers"),
        (
            "t5",
            {"hidden": 0},
            r"has no layer 0\. .*3 in the stack 'encoder' and 3 in the stack 'decoder'.*\('cross', 0\)",
        ),
        ("bart", {"attention": 1}, r"Name stack and number: \('encoder', 0\), \('decoder', 0\)"),
        ("marian", {"hidden": ("cross", 0)}, r"hidden of .* has no layer \('cross', 0\)"),
        ("marian", {"queries": ("decoder", 3)}, r"queries of .* has no layer \('decoder', 3\)"),
        ("marian", {"queries": ("coder", 0)}, "has no layer"),
        ("resnet", {"hidden": 0}, "neither hidden states nor attention.*hidden of ResNet.*its features"),
        ("resnet", {"attention": 0}, "neither hidden states nor attention.*attention of ResNet"),
        ("mobilenet_v2", {"queries": 0, "features": 0}, "neither hidden states nor attention.*queries of Mobile"),
    ],
)
def test_what_a_model_does_not_have_is_refused(family, asked, message):
    needs = Needs(**{kind: frozenset({layer}) for kind, layer in asked.items()})
    model = made(family)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        check_needs(model, needs)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        observe(model, tiny_inputs(family), needs)
    assert hooks(model) == 0


def test_a_layer_that_gave_nothing_is_an_error():
    model = made("bert")
    model.bert.encoder.layer[1].forward = model.bert.encoder.layer[2].forward  # past its own modules, as a kernel would
    with pytest.raises(ModelError, match=r"gave no values for layers \[1\]"):
        observe(model, tiny_batch(), Needs(values=frozenset({1, 2})))


def test_an_unknown_family_is_refused_by_name():
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4}
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=30, **sizes)).eval()
    with pytest.raises(ModelError, match="albert"):
        observe(model, tiny_batch(), Needs(hidden=frozenset({0})))
    assert observe(model, tiny_batch(), Needs(logits=True)).logits.shape == (3, 2)
    assert describe(model).layers == 1


@pytest.mark.parametrize("family", ["bert", "t5", "swin", "resnet"])
def test_a_model_without_a_head_is_observed_too(family):
    model = made(family).base_model
    if family == "t5":  # its head stands beside the stacks, and none below it
        model = T5Model(model.config).eval()
    needs = all_of(model) | Needs()
    seen = observe(model, tiny_inputs(family), Needs(hidden=needs.hidden, features=needs.features, keys=needs.keys))
    assert len(found(seen)) == len(needs.hidden) + len(needs.features) + len(needs.keys)


def test_half_of_an_encoder_decoder_has_half_of_its_layers():
    model = T5EncoderModel(made("t5").config).eval()
    seen = observe(model, tiny_batch(), Needs(hidden=frozenset({("encoder", 2)}), keys=frozenset({("encoder", 0)})))
    assert set(found(seen)) == {("hidden", ("encoder", 2)), ("keys", ("encoder", 0))}
    assert describe(model).stacks == {"encoder": 3}
    with pytest.raises(ModelError, match=r"3 in the stack 'encoder' layers"):
        check_needs(model, Needs(hidden=frozenset({("decoder", 0)})))


def test_the_decoders_mask_is_what_says_best_which_positions_count():
    batch, model = tiny_inputs("bart"), made("bart")
    ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = torch.tensor([[5, 6, -100]] * 3)
    targets = {"decoder_input_ids": labels.clamp(min=0), "labels": labels}

    def mask(given):
        seen = observe(model, given, Needs(logits=True))
        assert torch.equal(seen.mask, batch["attention_mask"].bool())
        return seen.decoder_mask

    assert torch.equal(mask(batch), batch["decoder_attention_mask"].bool())
    assert torch.equal(mask(batch | {"labels": labels}), batch["decoder_attention_mask"].bool())
    assert torch.equal(mask(ids | targets), labels != -100)
    assert torch.equal(mask(ids | {"decoder_input_ids": targets["decoder_input_ids"]}), torch.ones(3, 3).bool())
    assert torch.equal(mask(ids | {"labels": torch.tensor([0, 1, 0])}), batch["attention_mask"].bool())
    assert torch.equal(mask(ids | {"labels": torch.rand(3, 2)}), batch["attention_mask"].bool())
    assert observe(made("bert"), tiny_batch(), Needs(logits=True)).decoder_mask is None


def test_each_model_gets_its_own_inputs_and_never_the_labels():
    batch = tiny_batch() | {"token_type_ids": torch.ones(3, 9, dtype=torch.long), "labels": torch.zeros(3).long()}
    bert, distil = made("bert"), made("distilbert")
    with torch.no_grad():
        typed = observe(bert, batch, Needs(logits=True)).logits
        batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
        assert not torch.equal(typed, observe(bert, batch, Needs(logits=True)).logits)
        observe(distil, batch, Needs(logits=True))  # takes no token_type_ids, and does not fail


CHECKPOINTED = tuple(family for family in ATTENDING if tiny_model(family, layers=2).supports_gradient_checkpointing)


def test_the_families_that_recompute_are_known():
    assert set(ATTENDING) - set(CHECKPOINTED) == {"mpnet"}


@pytest.mark.parametrize("maps", [False, True], ids=["fused", "eager"])
@pytest.mark.parametrize("family", CHECKPOINTED)
def test_gradient_checkpointing_gives_the_same_knowledge_and_gradients(family, maps):
    runs = []
    for checkpointing in (False, True):
        model = made(family, attention="eager" if maps else None).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        seen = observe(model, tiny_inputs(family), all_of(model, maps=maps))
        tensors = found(seen)
        kept = [tensor.clamp(min=-10.0).square().mean() for tensor in tensors.values()]
        (seen.logits.sum() + sum(kept)).backward()
        runs.append((tensors, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for plain, recomputed in zip(*runs, strict=True):
        assert plain.keys() == recomputed.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(tensor, recomputed[name], msg=str(name))
