"""Students: the right tensors are copied, the teacher is left as it was, and what can't be built is said."""

import pytest
import torch
from tiny import CONVOLUTIONAL, ENCODER_DECODERS, FAMILIES, PATCHES, STAGED, tiny_batch, tiny_inputs, tiny_model

from potstill.errors import MappingError, ModelError
from potstill.knowledge import describe
from potstill.knowledge.architectures import layer_prefix, layers_of
from potstill.students import build_student

CUT = (*FAMILIES, *PATCHES)


@pytest.mark.parametrize("family", CUT)
def test_the_right_layers_and_everything_else_are_copied(family):
    teacher = tiny_model(family, layers=4)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = teacher.config.to_dict()
    student = build_student(teacher, layers=[0, 2, 3])
    prefix, found = layer_prefix(teacher), student.state_dict()
    assert describe(student).layers == len(layers_of(student)) == 3
    for place, layer in enumerate((0, 2, 3)):
        named = f"{prefix}{layer}."
        ours = {name[len(named) :]: tensor for name, tensor in before.items() if name.startswith(named)}
        assert ours
        for name, tensor in ours.items():
            assert torch.equal(found[f"{prefix}{place}.{name}"], tensor), name
    others = [name for name in before if not name.startswith(prefix)]
    assert others == [name for name in found if not name.startswith(prefix)]
    assert all(torch.equal(found[name], before[name]) for name in others)
    assert teacher.config.to_dict() == config
    assert len(layers_of(teacher)) == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("family", CUT)
def test_a_student_shares_no_memory_with_its_teacher_and_works(family):
    teacher = tiny_model(family, layers=4)
    student = build_student(teacher, layers=2)
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in student.parameters()}
    assert type(student) is type(teacher)
    assert not student.training
    assert student(**tiny_inputs(family)).logits.shape == (3, 2)


@pytest.mark.parametrize("family", CUT)
def test_a_cut_student_computes_what_the_kept_layers_compute(family):
    teacher = tiny_model(family, layers=4)
    batch = tiny_inputs(family)
    kept = [0, 1] if family == "modernbert" else [0, 2]  # there, a layer's place decides how far it looks
    student = build_student(teacher, layers=kept)
    layers = layers_of(teacher)
    dropped = [layers[number] for number in range(4) if number not in kept]
    for layer in dropped:
        layer.forward = through_with_maps if family in ("mpnet", "deberta-v2") else through
    with torch.no_grad():
        torch.testing.assert_close(student(**batch).logits, teacher(**batch).logits)


def through_with_maps(hidden_states, *_args, **_kwargs):
    return hidden_states, None


def through(hidden_states, *_args, **_kwargs):
    return hidden_states


def test_with_nothing_asked_a_student_is_a_copy():
    teacher = tiny_model()
    student, batch = build_student(teacher), tiny_batch()
    with torch.no_grad():
        assert torch.equal(student(**batch).logits, teacher(**batch).logits)
        next(student.parameters()).add_(1.0)
        assert not torch.equal(next(student.parameters()), next(teacher.parameters()))


def test_lists_of_one_entry_a_layer_are_cut_with_the_layers():
    modern = tiny_model("modernbert", layers=4)
    assert modern.config.layer_types == ["full_attention", "sliding_attention"] * 2
    student = build_student(modern, layers=[0, 2, 3])
    assert student.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    looking = [layer.attention_type for layer in layers_of(student)]
    assert looking == student.config.layer_types
    assert len(modern.config.layer_types) == 4
    qwen = build_student(tiny_model("qwen3", layers=4), layers=2)
    assert len(qwen.config.layer_types) == 2


@pytest.mark.parametrize(
    ("rule", "kept"), [("spread", (0, 3)), ("uniform", (1, 3)), ("first", (0, 1)), ("last", (2, 3))]
)
def test_a_count_becomes_layers_by_the_rule(rule, kept):
    teacher = tiny_model(layers=4)
    student = build_student(teacher, layers=2, rule=rule)
    for place, layer in enumerate(kept):
        ours, theirs = layers_of(student)[place], layers_of(teacher)[layer]
        assert torch.equal(ours.attention.self.query.weight, theirs.attention.self.query.weight)


def test_labels_attention_and_precision_go_along():
    teacher = tiny_model("llama", labels=3).to(torch.bfloat16)
    teacher.config.id2label = {0: "a", 1: "b", 2: "c"}
    teacher.config.label2id = {"a": 0, "b": 1, "c": 2}
    teacher.set_attn_implementation("eager")
    student = build_student(teacher, layers=2)
    assert student.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert student.config._attn_implementation == "eager"
    assert student.dtype == torch.bfloat16
    frequencies = dict(student.named_buffers())["model.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float32  # rounded, they would turn far positions by another angle


@pytest.mark.parametrize("layers", [0, 5, [], [0, 7], [2, 1], [1, 1]])
def test_layers_that_do_not_fit_are_refused(layers):
    with pytest.raises(MappingError):
        build_student(tiny_model(layers=4), layers=layers)


def test_modernberts_first_layer_must_stay_first():
    with pytest.raises(ModelError, match="Keep layer 0"):
        build_student(tiny_model("modernbert", layers=4), layers=[1, 3])


def test_another_config_makes_a_new_model_from_the_seed():
    teacher = tiny_model(width=32)
    state = torch.get_rng_state()
    first = build_student(teacher, config={"hidden_size": 16, "num_hidden_layers": 2}, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    again = build_student(teacher, config={"hidden_size": 16, "num_hidden_layers": 2}, seed=1)
    other = build_student(teacher, config={"hidden_size": 16, "num_hidden_layers": 2}, seed=2)
    assert describe(first).width == 16
    assert teacher.config.hidden_size == 32
    ours = [dict(model.named_parameters())["classifier.weight"] for model in (first, again, other)]
    assert torch.equal(ours[0], ours[1])
    assert not torch.equal(ours[0], ours[2])


def test_cutting_layers_draws_no_random_numbers():
    teacher = tiny_model()
    state = torch.get_rng_state()
    build_student(teacher, layers=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 2, "config": {"hidden_size": 16}}, "not both"),
        ({"config": {"hiden_size": 16}}, "Did you mean 'hidden_size'"),
        ({"config": {"vocab_size": 7}}, "vocabulary"),
        ({"config": {"hidden_size": 30}}, "can't be built"),
    ],
)
def test_what_can_not_be_built_is_said(options, message):
    with pytest.raises(ModelError, match=message):
        build_student(tiny_model(), **options)


def test_a_family_whose_layers_are_unknown_is_refused():
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4}
    with pytest.raises(ModelError, match="albert"):
        build_student(AlbertForSequenceClassification(AlbertConfig(vocab_size=30, **sizes)), layers=1)


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, *STAGED, *CONVOLUTIONAL])
def test_layers_in_stacks_and_stages_are_not_cut(family):
    with pytest.raises(ModelError, match=r"in stacks|no list of layers"):
        build_student(tiny_model(family), layers=1)


@pytest.mark.parametrize("family", PATCHES)
def test_a_cut_student_of_images_is_saved_and_loaded(family, tmp_path):
    student = build_student(tiny_model(family, layers=4), layers=2)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert describe(loaded).layers == 2
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_inputs(family)).logits, student(**tiny_inputs(family)).logits)
