"""Shapes and lists of layers: what is one stack, what is several, and what has none."""

import dataclasses
import json

import pytest
from tiny import ALL_FAMILIES, CONVOLUTIONAL, ENCODER_DECODERS, FAMILIES, IMAGES, PATCHES, STAGED, tiny_model

from potstill.errors import ModelError
from potstill.knowledge import ModelShape, describe
from potstill.knowledge.architectures import cross_attentions, layer_modules, layer_prefix, layers_of
from potstill.mappings import EMBEDDINGS


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_shapes_are_those_of_the_config_and_can_be_written(family):
    shape = describe(tiny_model(family, layers=3, width=32, heads=4))
    layers = {**dict.fromkeys(ENCODER_DECODERS, 6), **dict.fromkeys(CONVOLUTIONAL, 0)}.get(family, 3)
    assert (shape.family, shape.layers) == (family, layers)
    assert (shape.vocabulary is None) == (family in IMAGES)
    assert shape.heads == (0 if family in CONVOLUTIONAL else 4)
    assert shape.width == (80 if family == "mobilenet_v2" else 32)
    assert shape.stacks == ({"encoder": 3, "decoder": 3} if family in ENCODER_DECODERS else {})
    assert bool(shape.channels) == (family in IMAGES)
    assert json.loads(json.dumps(dataclasses.asdict(shape)))["layers"] == layers


def test_layers_of_stages_differ():
    shape = describe(tiny_model("segformer", layers=3))
    assert [shape.width_at(layer) for layer in (EMBEDDINGS, 0, 1, 2)] == [16, 16, 16, 32]
    assert [shape.heads_at(layer) for layer in (0, 1, 2)] == [2, 2, 4]


def test_stacks_may_differ_in_depth_and_heads():
    shape = describe(tiny_model("bart", decoder_layers=2, decoder_attention_heads=8))
    assert shape.stacks == {"encoder": 4, "decoder": 2}
    layers = [("encoder", EMBEDDINGS), ("encoder", 3), ("decoder", 0), ("decoder", 1), ("cross", 1)]
    assert [shape.heads_at(layer) for layer in layers] == [4, 4, 8, 8, 8]
    assert [shape.width_at(layer) for layer in layers] == [32] * 5
    assert shape.layers == 6
    t5 = describe(tiny_model("t5", num_decoder_layers=2))
    assert t5.stacks == {"encoder": 4, "decoder": 2}


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        (ModelShape("bert", 3, 64, 4, 100), 3),
        (ModelShape("bert", 3, 64, 4, 100), -2),
        (ModelShape("bert", 3, 64, 4, 100), ("encoder", 0)),
        (ModelShape("t5", 4, 64, 4, 100, {"encoder": 2, "decoder": 2}), 0),
        (ModelShape("t5", 4, 64, 4, 100, {"encoder": 2, "decoder": 2}), ("encoder", 2)),
        (ModelShape("t5", 4, 64, 4, 100, {"encoder": 2, "decoder": 2}), ("middle", 0)),
        (ModelShape("swin", 3, 64, 4, None, {}, (32, 32, 64), (2, 2, 4)), 3),
    ],
)
def test_layers_that_a_shape_does_not_have_are_refused(shape, layer):
    for look_up in (shape.width_at, shape.heads_at):
        with pytest.raises(ModelError, match=f"{shape.family} has no layer"):
            look_up(layer)


@pytest.mark.parametrize("family", [*FAMILIES, *PATCHES])
def test_one_stack_is_one_list(family):
    model = tiny_model(family, layers=3)
    assert list(layers_of(model)) == list(layer_modules(model).values())
    assert list(layer_modules(model)) == [0, 1, 2]
    assert any(name.startswith(f"{layer_prefix(model)}2.") for name in model.state_dict())
    with pytest.raises(ModelError, match=r"one stack of layers.*'encoder'"):
        layers_of(model, "encoder")


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_encoder_decoders_have_two_lists_and_cross_attention(family):
    model = tiny_model(family, layers=3)
    for look_up in (layers_of, layer_prefix):
        with pytest.raises(ModelError, match=r"no stack.*Name 'encoder' or 'decoder'"):
            look_up(model)
    for stack in ("encoder", "decoder"):
        theirs = [module for layer, module in layer_modules(model).items() if layer[0] == stack]
        assert list(layers_of(model, stack)) == theirs
        assert len(theirs) == 3
    assert list(cross_attentions(model)) == [("cross", 0), ("cross", 1), ("cross", 2)]
    inside = [set(layer.modules()) for layer in layers_of(model, "decoder")]
    assert all(module in inside[layer[1]] for layer, module in cross_attentions(model).items())


@pytest.mark.parametrize("family", [*STAGED, *CONVOLUTIONAL])
def test_stages_are_no_list_of_layers_of_one_kind(family):
    given = "stages of different widths" if family in STAGED else "convolutional network"
    for look_up in (layers_of, layer_prefix):
        with pytest.raises(ModelError, match=f"no list of layers of one kind.*{given}"):
            look_up(tiny_model(family))
