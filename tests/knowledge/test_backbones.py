"""A model with a backbone of another family: layers are the backbone's, and maps what its head is given."""

import pytest
import torch
from tiny import BACKBONES, IMAGE, tiny_upernet

from potstill.errors import ModelError
from potstill.knowledge import Needs, describe, observe
from potstill.knowledge.architectures import encoder_of, layer_modules, layers_of
from potstill.students import build_student

ATTENDING = ("swin", "pvt_v2")
WIDTHS = {"swin": (8, 16, 32, 64)}


def pixels(rows=2):
    return {"pixel_values": torch.randn(rows, 3, *IMAGE, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shape_is_the_backbones(backbone):
    model = tiny_upernet(backbone)
    shape = describe(model)
    widths = WIDTHS.get(backbone, (8, 16, 24, 32))
    assert (shape.family, shape.channels, shape.vocabulary) == ("upernet", widths, None)
    assert shape.layers == (5 if backbone in ATTENDING else 0)
    assert list(layer_modules(model)) == list(range(shape.layers))
    if backbone in ATTENDING:
        assert shape.layer_widths == (widths[0], widths[1], widths[1], widths[2], widths[3])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maps_are_those_that_the_head_reads(backbone):
    model, inputs = tiny_upernet(backbone), pixels()
    with torch.no_grad():
        given = model.backbone(**inputs).feature_maps
        seen = observe(model, inputs, Needs(logits=True, features=frozenset((1, 3))))
    assert set(seen.features) == {1, 3}
    for stage, found in seen.features.items():
        assert torch.equal(found, given[stage])
    assert seen.logits.shape == (2, 3, *IMAGE)
    assert not model.decode_head._forward_pre_hooks


@pytest.mark.parametrize("backbone", ATTENDING)
def test_hidden_states_and_attention_are_the_backbones(backbone):
    model, inputs = tiny_upernet(backbone), pixels()
    model.set_attn_implementation("eager")
    model.backbone.set_attn_implementation("eager")
    needs = Needs(hidden=frozenset((0, 4)), attention=frozenset((4,)), queries=frozenset((2,)))
    with torch.no_grad():
        logits = model(**inputs).logits
        seen = observe(model, inputs, Needs(logits=True) | needs)
        hidden = observe(model.backbone, inputs, needs).hidden
    assert torch.equal(seen.logits, logits)
    assert all(torch.equal(seen.hidden[layer], hidden[layer]) for layer in (0, 4))
    torch.testing.assert_close(seen.attention[4].sum(-1), torch.ones(seen.attention[4].shape[:-1]))
    assert seen.queries[2].shape[1] == 2


@pytest.mark.parametrize("backbone", ATTENDING)
def test_patch_embeddings_are_the_backbones(backbone):
    model, inputs = tiny_upernet(backbone), pixels()
    needs = Needs(patches=frozenset((0, 2)))
    with torch.no_grad():
        seen, inner = observe(model, inputs, needs).patches, observe(model.backbone, inputs, needs).patches
    assert describe(model).patches == WIDTHS.get(backbone, (8, 16, 24, 32))
    assert set(seen) == {0, 2}
    assert all(torch.equal(seen[stage], inner[stage]) for stage in seen)


def test_gradients_reach_the_backbone():
    model = tiny_upernet("pvt_v2")
    seen = observe(model, pixels(), Needs(features=frozenset((2,))))
    seen.features[2][:, 0].sum().backward()
    assert layer_modules(model)[3].attention.value.weight.grad.abs().sum() > 0


def test_what_a_backbone_can_not_give_is_said():
    inputs = pixels()
    with pytest.raises(ModelError, match="convolutional network has neither hidden states"):
        observe(tiny_upernet("convnext"), inputs, Needs(hidden=frozenset((0,))))
    with pytest.raises(ModelError, match="has no layer 4"):
        observe(tiny_upernet("convnext"), inputs, Needs(features=frozenset((4,))))
    model = tiny_upernet("swin")
    assert model.backbone.config._attn_implementation == "sdpa"
    with pytest.raises(ModelError, match="Attention maps can be observed in eager attention only"):
        observe(model, inputs, Needs(attention=frozenset((0,))))


def test_a_model_is_its_own_encoder_and_a_composed_one_is_not_cut():
    model = tiny_upernet("swin")
    assert encoder_of(model) is model.backbone
    assert encoder_of(model.backbone) is model.backbone
    with pytest.raises(ModelError, match=r"layers of UperNet.*are its backbone's.*swin.*student.config"):
        build_student(model, layers=1)
    with pytest.raises(ModelError, match="stages of different widths"):
        layers_of(model)
