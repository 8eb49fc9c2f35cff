"""Feature maps are those that the models' own heads read, the right way up, also of images that aren't square."""

import pytest
import torch
from tiny import CONVOLUTIONAL, IMAGES, PATCHES, tiny_inputs, tiny_model
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerModel, SwinBackbone

from potstill.errors import ModelError
from potstill.knowledge import Needs, describe, observe
from potstill.knowledge.architectures import stage_modules
from potstill.knowledge.features import as_map


def features_of(model, inputs):
    stages = frozenset(range(len(describe(model).channels)))
    with torch.no_grad():
        return observe(model, inputs, Needs(features=stages)).features


@pytest.mark.parametrize("family", IMAGES)
def test_maps_have_the_channels_of_the_shape_and_the_proportions_of_the_image(family):
    model, inputs = tiny_model(family, layers=3), tiny_inputs(family)
    seen, shape = features_of(model, inputs), describe(model)
    assert list(seen) == list(range(len(shape.channels)))
    for stage, features in seen.items():
        rows, columns = (4, 6) if family in PATCHES else (32 // 2 ** (stage + 2), -(-48 // 2 ** (stage + 2)))
        assert features.shape == (3, shape.channels[stage], rows, columns)


@pytest.mark.parametrize("family", [*CONVOLUTIONAL, "segformer", "pvt_v2"])
def test_maps_are_the_hidden_states_that_the_model_gives_itself(family):
    model, inputs = tiny_model(family, layers=3), tiny_inputs(family)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    if family in ("resnet", "convnext"):
        states = states[1:]  # the first is what enters the first stage
    if family == "mobilenet_v2":  # the last of each resolution
        states = [states[i] for i in range(16) if i == 15 or states[i].shape[2:] != states[i + 1].shape[2:]]
    seen = features_of(model, inputs)
    assert len(seen) == len(states) == (4 if family == "mobilenet_v2" else 2)
    for stage, state in enumerate(states):
        assert torch.equal(seen[stage], state)


def test_maps_of_swin_are_those_before_patches_are_merged():
    model, inputs = tiny_model("swin", layers=3), tiny_inputs("swin")
    model.config.out_features = ["stage1", "stage2"]
    backbone = SwinBackbone(model.config).eval()
    backbone.swin.load_state_dict(model.swin.state_dict())
    for norm in backbone.hidden_states_norms.values():  # its norms come after the stage
        norm.forward = lambda states: states
    with torch.no_grad():
        maps = backbone(**inputs).feature_maps
    seen = features_of(model, inputs)
    for stage in (0, 1):
        assert torch.equal(seen[stage], maps[stage])


@pytest.mark.parametrize(("family", "prefix"), [("vit", 1), ("deit", 2), ("dinov2", 1)])
def test_patches_stand_where_they_are_in_the_image(family, prefix):
    model, inputs = tiny_model(family, layers=3), tiny_inputs(family)
    with torch.no_grad():
        seen = observe(model, inputs, Needs(hidden=frozenset({1}), features=frozenset({1})))
        projected = model.base_model.embeddings.patch_embeddings.projection(inputs["pixel_values"])
    for row in range(4):
        for column in range(6):
            patch = seen.hidden[1][:, prefix + 6 * row + column]
            assert torch.equal(seen.features[1][:, :, row, column], patch)
    tokens = model.base_model.embeddings.patch_embeddings(inputs["pixel_values"])
    assert torch.equal(as_map(tokens, (4, 6)), projected)


def test_a_last_stage_of_tokens_is_a_map_too():
    config = tiny_model("segformer").config.to_dict() | {"reshape_last_stage": False}
    model, inputs = SegformerModel(SegformerConfig(**config)).eval(), tiny_inputs("segformer")
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    assert tokens.ndim == 3
    assert torch.equal(features_of(model, inputs)[1].flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("family", ["segformer", "mobilenet_v2"])
def test_models_of_segmentation_have_the_same_maps(family):
    classifier, inputs = tiny_model(family, layers=3), tiny_inputs(family)
    model = AutoModelForSemanticSegmentation.from_config(classifier.config).eval()
    model.base_model.load_state_dict(classifier.base_model.state_dict())
    ours, theirs = features_of(model, inputs), features_of(classifier, inputs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[stage], theirs[stage]) for stage in ours)


def test_a_resolution_of_mobilenet_ends_where_a_stride_begins():
    strides = [block.conv_3x3.convolution.stride[0] for block in tiny_model("mobilenet_v2").base_model.layer]
    ends = [number for number in range(16) if number == 15 or strides[number + 1] == 2]
    model = tiny_model("mobilenet_v2").base_model
    assert stage_modules(model) == [model.layer[number] for number in ends]


def test_tokens_that_cover_no_grid_are_refused():
    assert as_map(torch.zeros(1, 6, 5), (5, 3)).shape == (1, 5, 3, 2)  # merged once, rounding up
    with pytest.raises(ModelError, match=r"7 tokens, grid \(5, 3\)"):
        as_map(torch.zeros(1, 7, 5), (5, 3))


def patches_of(model, inputs):
    stages = frozenset(range(len(describe(model).patches)))
    with torch.no_grad():
        return observe(model, inputs, Needs(patches=stages)).patches


@pytest.mark.parametrize("family", ["segformer", "pvt_v2"])
def test_patches_are_embedded_before_the_blocks_of_their_stage(family):
    model, inputs = tiny_model(family, layers=3), tiny_inputs(family)
    entering = [inputs["pixel_values"], features_of(model, inputs)[0]]
    stages = model.base_model.stages if family == "segformer" else model.base_model.encoder.layers
    embed = "patch_embeddings" if family == "segformer" else "patch_embedding"
    seen = patches_of(model, inputs)
    assert [value.shape[2] for value in seen.values()] == list(describe(model).patches) == [16, 32]
    with torch.no_grad():
        for stage, source in enumerate(entering):
            torch.testing.assert_close(seen[stage], getattr(stages[stage], embed)(source)[0])


def test_patches_of_swin_are_merged_before_each_stage_but_the_first():
    model, inputs = tiny_model("swin", layers=3), tiny_inputs("swin")
    with torch.no_grad():
        embedded, grid = model.swin.embeddings(inputs["pixel_values"])
        seen = patches_of(model, inputs)
        merged = model.swin.encoder.layers[0].downsample
        before = observe(model, inputs, Needs(hidden=frozenset({1}))).hidden[1]
        assert torch.equal(seen[1], merged(before, grid))
    assert torch.equal(seen[0], embedded)


@pytest.mark.parametrize(("family", "prefix"), [("vit", 1), ("deit", 2), ("dinov2", 1)])
def test_patches_of_one_resolution_have_their_positions_and_no_token_before_them(family, prefix):
    model, inputs = tiny_model(family, layers=3), tiny_inputs(family)
    with torch.no_grad():
        embedded = model.base_model.embeddings(inputs["pixel_values"])
    seen = patches_of(model, inputs)
    assert list(seen) == [0]
    assert torch.equal(seen[0], embedded[:, prefix:])


def test_patches_that_are_not_there_are_refused():
    for family, stage, said in (
        ("resnet", 0, "Only vision transformers have patch embeddings"),
        ("vit", 1, "patches of ViT.* has no layer 1"),
        ("bert", 0, "Only vision transformers"),
    ):
        model = tiny_model(family)
        with pytest.raises(ModelError, match=said):
            observe(model, tiny_inputs(family), Needs(patches=frozenset({stage})))
