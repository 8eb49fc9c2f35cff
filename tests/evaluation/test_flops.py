"""Multiply-adds: the published counts of SegFormer and of TransKD's modules, and what is in neither count."""

import pytest
import torch
from tiny import CONVOLUTIONAL, IMAGES, tiny_inputs, tiny_model
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    MobileNetV2Config,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
)

from potstill.errors import ArgumentError, ModelError
from potstill.evaluation.flops import count, count_training
from potstill.knowledge import describe
from potstill.objective import Objective

CITYSCAPES = (3, 512, 1024)
FEATURES = {"knowledge": "features", "loss": "hcl", "project": "csf"}


def segformer(widths, depths, decoder):
    """A model of the published sizes, of 20 classes, without values."""
    sizes = {"hidden_sizes": widths, "depths": depths, "decoder_hidden_size": decoder}
    with torch.device("meta"):
        return SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=20))


@pytest.fixture(scope="module")
def b0():
    return segformer([32, 64, 160, 256], [2, 2, 2, 2], 256)


@pytest.fixture(scope="module")
def b2():
    return segformer([64, 128, 320, 512], [3, 4, 6, 3], 768)


@pytest.mark.parametrize(("name", "parameters", "multiply_adds"), [("b0", 3.72, 13.67), ("b2", 27.36, 113.84)])
def test_segformer_has_the_published_counts(name, parameters, multiply_adds, request):
    found = count(request.getfixturevalue(name), CITYSCAPES)
    assert found.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert found.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.01)
    assert found.with_attention > 1.1 * found.multiply_adds


@pytest.mark.parametrize(
    ("config", "billions"),
    [(MobileNetV2Config(), 0.300), (ResNetConfig(), 4.09), (ViTConfig(), 17.56)],
    ids=["MobileNetV2", "ResNet-50", "ViT-B"],
)
def test_models_of_images_have_the_counts_that_are_known_of_them(config, billions):
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    assert count(model, (3, 224, 224)).with_attention / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("project", "parameters", "multiply_adds"),
    [("linear", 4.56, 16.47), ("gl_mixer", 5.22, 16.80), ("embedding_assistant", 5.53, 17.84)],
)
def test_training_transkd_has_the_published_counts(project, parameters, multiply_adds, b0, b2):
    terms = [FEATURES, {"knowledge": "patches", "project": project}]
    objective = Objective(terms).bind(describe(b0), describe(b2))
    found = count(b0, CITYSCAPES) + count_training(b0, objective, CITYSCAPES)
    assert found.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert found.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.01)


def test_attention_is_counted_by_its_two_products():
    model = tiny_model("vit", layers=2, width=16)
    tokens, width, patches = 25, 16, 24
    blocks = 2 * tokens * (4 * width * width + 2 * width * 2 * width)
    ends = patches * width * 3 * 8 * 8 + width * 2
    found = count(model, (3, 32, 48))
    assert found.multiply_adds == blocks + ends
    assert found.with_attention == found.multiply_adds + 2 * 2 * tokens * tokens * width


@pytest.mark.parametrize("family", IMAGES)
def test_every_family_is_counted_and_left_as_it_was(family):
    model = tiny_model(family, layers=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = count(model, (3, 32, 48))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert 0 < found.multiply_adds <= found.with_attention
    assert (found.multiply_adds == found.with_attention) == (family in CONVOLUTIONAL)
    assert model.training
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.eval()(**tiny_inputs(family)).logits.isfinite().all()


def test_a_transposed_convolution_is_counted_by_what_goes_in():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 5, kernel_size=2, stride=2, bias=False)

        def forward(self, pixel_values):
            return self.up(pixel_values)

    assert count(Up(), (3, 4, 6)).multiply_adds == 4 * 6 * 3 * 5 * 4


def test_projections_of_pairs_are_counted_too():
    student, teacher = tiny_model("segformer", layers=3, width=16), tiny_model("segformer", layers=3)
    terms = [{"knowledge": "features"}, {"knowledge": "patches", "project": "orthogonal"}, {"knowledge": "labels"}]
    objective = Objective(terms).bind(describe(student), describe(teacher))
    found = count_training(student, objective, (3, 32, 48))
    each = 96 * 8 * 16 + 24 * 16 * 32
    assert found.multiply_adds == 2 * each


def test_a_projection_that_is_shared_has_its_parameters_once():
    student, teacher = tiny_model("vit", layers=3, width=16), tiny_model("vit", layers=3)
    for term, parameters in (
        ({"project": "linear", "share": True}, 16 * 32 + 32),
        ({"project": "orthogonal", "share": True}, 16 * 32),
        ({"project": "linear"}, 3 * (16 * 32 + 32)),
    ):
        layers = {"layers": {0: 0, 1: 1, 2: 2}, "embeddings": False}
        objective = Objective([{"knowledge": "hidden", **layers, **term}]).bind(describe(student), describe(teacher))
        found = count_training(student, objective, (3, 32, 48))
        assert found.parameters == parameters and found.multiply_adds == 3 * 16 * 32 * (24 + 1)


def test_what_can_not_be_counted_is_said():
    model = tiny_model("vit")
    with pytest.raises(ArgumentError, match="channels, height and width"):
        count(model, (32, 48))
    with pytest.raises(ModelError, match="can't be counted"):
        count(model, (3, 40, 48))
