"""Models of a configuration: every key is checked, parts too, and the task and the tokenizer fill in what is theirs."""

import re

import pytest
import torch
from tiny import VOCABULARY, save_folder, tiny_model

from potstill.errors import ModelError
from potstill.students import configuration, kept_configuration, stands_alone, with_tokens_of
from potstill.tasks import ImageClassification, TextClassification

SMALL = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}
PYRAMID = {"model_type": "pvt_v2", "depths": [1, 1, 1, 1], "out_features": ["stage1", "stage4"]}


def test_a_config_of_its_own_names_its_model_type():
    assert stands_alone("a/path")
    assert stands_alone({"model_type": "vit"})
    assert not stands_alone({"hidden_size": 8})
    assert not stands_alone(None)


def test_every_key_lands_in_the_configuration():
    found = configuration(SMALL)
    assert type(found).__name__ == "DistilBertConfig"
    assert {key: getattr(found, key) for key in SMALL} == SMALL
    renamed = configuration({"model_type": "distilbert", "hidden_size": 32})  # transformers' common name of `dim`
    assert renamed.dim == 32


def test_parts_are_configurations_too():
    found = configuration({"model_type": "upernet", "backbone_config": PYRAMID})
    assert found.backbone_config.depths == [1, 1, 1, 1]
    assert found.backbone_config.out_features == ["stage1", "stage4"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model_type": "vti"}, "Unknown model_type 'vti'. Did you mean 'vit'?"),
        (
            {"model_type": "vit", "hiden_size": 8},
            "Unknown field of ViTConfig 'hiden_size'. Did you mean 'hidden_size'?",
        ),
        ({"model_type": "vit", "num_labels": 3}, "The task fills in the classes of a configuration. Got: num_labels"),
        ({"model_type": "vit", "hidden_size": "wide"}, "The vit configuration refuses a value"),
        (
            {"model_type": "upernet", "backbone_config": {"model_type": "pvt_v2", "depth": [1]}},
            "Unknown field of PvtV2Config 'depth'. Did you mean 'depths'?",
        ),
        ({"model_type": "swin", "out_featurs": ["stage1"]}, "Did you mean 'out_features'?"),
        ("no/such/place", "The config of 'no/such/place' can't be read"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_said(given, said):
    with pytest.raises(ModelError, match=re.escape(said)):
        configuration(given)


def test_a_path_stands_for_the_architecture_alone(tmp_path):
    trained = tiny_model("bert", layers=2)
    save_folder(trained, tmp_path)
    torch.manual_seed(0)
    made = TextClassification(names=("a", "b", "c")).load(configuration(tmp_path))
    assert type(made.model) is type(trained)
    assert made.new_parameters == ()
    assert made.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert made.model.config.num_hidden_layers == 2
    theirs, ours = dict(trained.named_parameters()), dict(made.model.named_parameters())
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(theirs[name], ours[name])


def test_the_weights_follow_the_seed_and_the_config_stays():
    config = configuration(SMALL)
    before = config.to_dict()
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = TextClassification().load(config, attention="eager").model
        assert model.config._attn_implementation == "eager"
        assert not model.training
        weights.append(model.classifier.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert config.to_dict() == before


def test_what_the_task_has_no_model_for_is_said():
    with pytest.raises(ModelError, match=r"No model of this task can be built from this mobilenet_v2 config"):
        TextClassification().load(configuration({"model_type": "mobilenet_v2"}))
    with pytest.raises(ModelError, match=r"No model of this task.*n_heads 5 must divide"):
        TextClassification().load(configuration(SMALL | {"n_heads": 5}))
    with pytest.raises(ModelError, match=r"No model of this task can be built from this segformer config"):
        ImageClassification().load(
            configuration({"model_type": "segformer", "depths": [1, 1], "hidden_sizes": [8, 16]})
        )


def test_stages_have_a_depth_and_a_width_each():
    with pytest.raises(
        ModelError, match=r"Each stage of a resnet has a depth.*depths \[1, 1, 1\], hidden_sizes \[8, 16\]"
    ):
        configuration({"model_type": "resnet", "depths": [1, 1, 1], "hidden_sizes": [8, 16]})


def test_tokens_are_those_of_the_teacher():
    teacher = tiny_model("bert").config
    found = with_tokens_of(configuration({"model_type": "distilbert"}), teacher)
    assert (found.vocab_size, found.pad_token_id) == (VOCABULARY, 0)
    assert not hasattr(with_tokens_of(configuration({"model_type": "vit"}), teacher), "vocab_size")


def test_a_kept_configuration_is_named_by_its_content(tmp_path):
    first = kept_configuration(configuration(SMALL), tmp_path)
    assert {key: getattr(configuration(first), key) for key in SMALL} == SMALL
    assert not list(first.glob("*.safetensors"))
    assert kept_configuration(configuration(SMALL), tmp_path) == first
    assert kept_configuration(configuration(SMALL | {"dim": 64}), tmp_path) != first
