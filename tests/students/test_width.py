"""The width cut: what is kept has the weights that it had, what goes is the least important, and all of it fits."""

import pytest
import torch
import transformers
from tiny import IMAGES, tiny_batch, tiny_inputs, tiny_model

from potstill.errors import ModelError
from potstill.knowledge import inputs_for
from potstill.knowledge.architectures import layers_of
from potstill.students import cut_width, sizes_of
from potstill.students.axes import WIDTHS, widths_of
from potstill.students.width import _largest, _place

FAMILIES = tuple(family for family in WIDTHS if family not in IMAGES)
TOKEN = {"architectures": ["DeiTForImageClassificationWithTeacher"]}
OF_IMAGES = [("vit", {}), ("deit", {}), ("deit", TOKEN)]
LLAMAS = ("llama", "mistral", "qwen2", "qwen3")


def logits(model, batch):
    with torch.no_grad():
        return model(**inputs_for(model, batch)).logits


@pytest.mark.parametrize("measured", [True, False], ids=["activations", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_that_removes_nothing_changes_nothing(family, measured):
    model, batch = tiny_model(family, layers=2), tiny_batch()
    old = sizes_of(model)
    sizes = {"hidden": old.hidden, "intermediate": old.intermediate, "heads": old.heads}
    same = cut_width(model, **sizes, batches=[batch] if measured else None)
    assert torch.equal(logits(same, batch), logits(model, batch))
    assert {k: v for k, v in same.config.to_dict().items() if k != "dtype"} == {
        k: v for k, v in model.config.to_dict().items() if k != "dtype"
    }
    assert not {p.data_ptr() for p in same.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kept_number_is_one_of_the_teachers(family, tmp_path):
    """Along each axis, a parameter of the student is the teacher's at ascending places; and a plain folder holds it."""
    model, batch = tiny_model(family, layers=2), tiny_batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    student = cut_width(model, hidden=24, intermediate=20, heads=3 if family not in LLAMAS else 2, batches=[batch])
    table = widths_of(model)
    channels = None
    for name, tensor in student.state_dict().items():
        axes, _ = _place(model, table, name)
        if axes[-1] == "hidden" and before[name].ndim == 2 and axes[0] == "whole":  # a table of rows: words, positions
            whole = before[name]
            found = [(whole == tensor[:, place, None]).all(0).nonzero().flatten().tolist() for place in range(24)]
            places = [hits[0] for hits in found if hits]
            assert len(places) == 24 and places == sorted(places), name
            channels = channels or places
            assert places == channels, f"{name} keeps other channels"
        assert set(tensor.flatten().tolist()) <= set(before[name].flatten().tolist()), name
    assert channels is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    student.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, batch), logits(student, batch))
    new = sizes_of(again)
    assert (new.hidden, new.intermediate, new.head_size) == (24, 20, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_that_never_fire_go_first_and_nothing_changes(family):
    model, batch = tiny_model(family, layers=2), tiny_batch()
    table = widths_of(model)
    first = {"distilbert": "ffn.lin1"}.get(family, "mlp.gate_proj" if family in LLAMAS else "intermediate.dense")
    dead = [(1, 5, 6, 40), (0, 2, 33, 63)]
    with torch.no_grad():
        for layer, places in zip(layers_of(model), dead, strict=True):
            module = layer.get_submodule(first)
            module.weight[list(places)] = 0
            if module.bias is not None:
                module.bias[list(places)] = 0
    student = cut_width(model, intermediate=60, batches=[batch])
    torch.testing.assert_close(logits(student, batch), logits(model, batch))
    for ours, layer, places in zip(layers_of(student), layers_of(model), dead, strict=True):
        kept = [place for place in range(64) if place not in places]
        whole = layer.get_submodule(table.inner).weight
        assert torch.equal(ours.get_submodule(table.inner).weight, whole[:, kept])


@pytest.mark.parametrize("family", LLAMAS)
def test_heads_that_say_nothing_go_first_by_whole_groups(family):
    model, batch = tiny_model(family, layers=2), tiny_batch()
    assert (sizes_of(model).heads, sizes_of(model).groups) == (4, 2)
    with torch.no_grad():
        for number, layer in enumerate(layers_of(model)):  # group 0 in the first layer, group 1 in the second
            value = layer.self_attn.v_proj
            value.weight[8 * number : 8 * number + 8] = 0
            if value.bias is not None:
                value.bias[8 * number : 8 * number + 8] = 0
    student = cut_width(model, heads=2, batches=[batch])
    torch.testing.assert_close(logits(student, batch), logits(model, batch))
    assert student.config.num_key_value_heads == 1 and student.config.head_dim == 8


def test_heads_are_weighed_by_the_norm_of_what_they_give():
    """Two heads give little in the first layer, two others in the second."""
    model, batch = tiny_model("bert", layers=2), tiny_batch()
    with torch.no_grad():
        for layer, heads in zip(layers_of(model), ((0, 2), (1, 3)), strict=True):
            for head in heads:
                value = layer.attention.self.value
                value.weight[8 * head : 8 * head + 8] *= 1e-3
                value.bias[8 * head : 8 * head + 8] *= 1e-3
    student = cut_width(model, hidden=16, heads=2, batches=[batch])
    for ours, layer, heads in zip(layers_of(student), layers_of(model), ((1, 3), (0, 2)), strict=True):
        rows = [8 * head + number for head in heads for number in range(8)]
        assert torch.equal(ours.attention.self.query.bias, layer.attention.self.query.bias[rows])


def test_mpnet_keeps_the_same_heads_in_all_layers_and_their_bias():
    """Heads 1 and 2 say nothing in the first layer, and 0 and 3 a little less than they in the second."""
    model, batch = tiny_model("mpnet", layers=2), tiny_batch()
    with torch.no_grad():
        first, second = (layer.attention.attn.v for layer in layers_of(model))
        for part in (first, second):
            part.weight[:] = part.weight[:8].repeat(4, 1)  # all heads alike
            part.bias[:] = part.bias[:8].repeat(4)
        for part, rows, factor in ((first, slice(8, 24), 1e-3), (second, slice(8, 24), 1.05)):
            part.weight[rows] *= factor
            part.bias[rows] *= factor
        for layer in layers_of(model):
            layer.attention.attn.q.weight.zero_()  # so that all heads look alike, too
            layer.attention.attn.q.bias.copy_(torch.arange(32.0) * 1e-6)
        model.mpnet.encoder.relative_attention_bias.weight.copy_(torch.arange(4.0).mul(1e-6).repeat(32, 1))
    student = cut_width(model, hidden=16, heads=2, batches=[batch])
    bias = model.mpnet.encoder.relative_attention_bias.weight
    assert torch.equal(student.mpnet.encoder.relative_attention_bias.weight, bias[:, [0, 3]])
    rows = [*range(8), *range(24, 32)]
    for ours, theirs in zip(layers_of(student), layers_of(model), strict=True):
        assert torch.equal(ours.attention.attn.q.bias, theirs.attention.attn.q.bias[rows])


def test_channels_are_weighed_by_the_norms_outputs_and_not_by_padding():
    model, batch = tiny_model("bert", layers=2), tiny_batch(rows=3, tokens=9)
    sums = torch.zeros(32)
    with torch.no_grad():
        norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
        seen: list[torch.Tensor] = []
        hooks = [norm.register_forward_hook(lambda _m, _a, out: seen.append(out)) for norm in norms]
        model(**batch)
        for hook in hooks:
            hook.remove()
    assert len(seen) == 5
    for output in seen:
        sums += output[batch["attention_mask"].bool()].abs().mean(0)
    kept = sums.argsort(descending=True)[:16].sort().values
    longer = {name: torch.nn.functional.pad(value, (0, 7)) for name, value in batch.items()}
    for given in (batch, longer):
        student = cut_width(model, hidden=16, heads=2, batches=[given])
        words = model.bert.embeddings.word_embeddings.weight
        assert torch.equal(student.bert.embeddings.word_embeddings.weight, words[:, kept])


def test_without_batches_the_weights_decide():
    model = tiny_model("llama", layers=1)
    with torch.no_grad():
        for module in (model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.gate_proj):
            module.weight[10:20] *= 10
    student = cut_width(model, intermediate=10)
    up = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(student.model.layers[0].mlp.up_proj.weight, up[10:20])


def test_measuring_leaves_the_model_as_it_was():
    model = tiny_model("bert", layers=1).train()
    state = torch.get_rng_state()
    cut_width(model, intermediate=8, batches=[tiny_batch()])
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_electra_whose_embeddings_are_as_wide_as_its_layers():
    model, batch = tiny_model("electra", layers=1, embedding_size=32), tiny_batch()
    student = cut_width(model, hidden=16, heads=2, batches=[batch])
    assert student.config.embedding_size == 16 and logits(student, batch).shape == (3, 2)


def test_qwen2_without_a_size_of_heads_gets_one(tmp_path):
    model = tiny_model("qwen2", layers=1)
    if "head_dim" in model.config.to_dict():
        del model.config.head_dim
    assert sizes_of(model).head_size == 8
    student = cut_width(model, hidden=24, batches=[tiny_batch()])
    student.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, tiny_batch()), logits(student, tiny_batch()))


def test_the_largest_of_equals_is_the_first():
    assert _largest(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("bert", {"hidden": 16}, r"hidden: 16, heads: 4\. Take hidden: 16 with heads: 2 or hidden: 32 with heads: 4"),
        ("bert", {"heads": 2}, "Take hidden: 16 with heads: 2 or hidden: 32 with heads: 4"),
        ("bert", {"hidden": 20, "heads": 2}, "hidden: 16 with heads: 2"),
        ("bert", {"intermediate": 65}, "keeps some of the 64 there are. Got: intermediate: 65"),
        ("bert", {"heads": 0}, "heads: 0"),
        ("llama", {"heads": 3}, "2 heads share their keys and values.*Take heads: 2 or 4"),
        ("electra", {"hidden": 16, "heads": 2}, "embedding_size 16"),
        ("modernbert", {"intermediate": 8}, "'modernbert'.*Leave out width"),
        ("gpt2", {"intermediate": 8}, "'gpt2'"),
    ],
)
def test_what_can_not_be_cut_is_said_with_numbers_that_work(family, sizes, message):
    with pytest.raises(ModelError, match=message):
        cut_width(tiny_model(family, layers=1), **sizes)


def test_a_parameter_of_no_row_and_no_batches_are_refused():
    model = tiny_model("bert", layers=1)
    model.classifier = torch.nn.Sequential(model.classifier)
    with pytest.raises(ModelError, match=r"the parameter classifier\.0\.weight"):
        cut_width(model, intermediate=8)
    with pytest.raises(ModelError, match="measured on batches"):
        cut_width(tiny_model("bert", layers=1), intermediate=8, batches=[])


# ---- images


@pytest.mark.parametrize("measured", [True, False], ids=["activations", "weights"])
@pytest.mark.parametrize(("family", "options"), OF_IMAGES, ids=["vit", "deit", "deit with its token"])
def test_a_cut_of_images_that_removes_nothing_changes_nothing(family, options, measured):
    model, batch = tiny_model(family, layers=2, **options), tiny_inputs(family)
    old = sizes_of(model)
    sizes = {"hidden": old.hidden, "intermediate": old.intermediate, "heads": old.heads}
    same = cut_width(model, **sizes, batches=[batch] if measured else None)
    assert torch.equal(logits(same, batch), logits(model, batch))


@pytest.mark.parametrize(("family", "options"), OF_IMAGES, ids=["vit", "deit", "deit with its token"])
def test_a_cut_of_images_keeps_the_same_channels_everywhere(family, options, tmp_path):
    model, batch = tiny_model(family, layers=2, **options), tiny_inputs(family)
    student = cut_width(model, hidden=24, intermediate=20, heads=3, batches=[batch])
    base = model.base_model_prefix
    kept = []
    for name in (f"{base}.embeddings.cls_token", f"{base}.embeddings.position_embeddings"):
        ours, theirs = (dict(m.named_parameters())[name].flatten(0, 1) for m in (student, model))
        kept.append([int((theirs == ours[:, place, None]).all(0).nonzero()) for place in range(24)])
    assert kept[0] == kept[1] == sorted(kept[0])
    patches = f"{base}.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(student.state_dict()[patches], model.state_dict()[patches][kept[0]])
    student.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert torch.equal(logits(again, batch), logits(student, batch))
    assert again.config.pooler_output_size == 24


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_neurons_that_see_nothing_in_any_patch_go_first(family):
    model, batch = tiny_model(family, layers=2), tiny_inputs(family)
    with torch.no_grad():
        for layer in layers_of(model):
            for place in (1, 5, 40):
                layer.mlp.fc1.weight[place] = 0
                layer.mlp.fc1.bias[place] = 0
    student = cut_width(model, intermediate=61, batches=[batch])
    torch.testing.assert_close(logits(student, batch), logits(model, batch))


def test_the_importance_of_a_neuron_is_its_mean_over_patches():
    from potstill.students.width import _activations

    model, batch = tiny_model("vit", layers=1), tiny_inputs("vit")
    seen = []
    hook = layers_of(model)[0].mlp.fc2.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    logits(model, batch)
    hook.remove()
    found = _activations(model, widths_of(model), sizes_of(model), [batch, batch])
    torch.testing.assert_close(found["intermediate", 0], seen[0].double().abs().mean((0, 1)), rtol=1e-6, atol=0)
