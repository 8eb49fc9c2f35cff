"""The precision is measured, cheaply, without touching the generators; teachers run in one of their own."""

import warnings

import pytest
import torch
from tiny import IMAGE, tiny_batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.errors import ModelError
from potstill.knowledge import inputs_for
from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training import Distiller, Precision, detect_precision, teacher_at
from potstill.training import precision as measuring
from potstill.training.int8 import Int8Linear, is_int8
from potstill.training.precision import TrialSizes

SMALL = TrialSizes(width=16, heads=2, rows=2, tokens=4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    measuring._measured.cache_clear()
    yield
    measuring._measured.cache_clear()


@pytest.mark.parametrize(
    ("product", "step", "name", "said"),
    [
        (1.0, 0.45, "bfloat16", "took 0.45 of float32's time"),
        (1.0, 0.95, "float32", "took 0.95 of float32's time"),  # faster, but not clearly
        (3.0, 0.5, "bfloat16", "0.50"),  # a small product may be slow where a step is not
        (40.0, 0.1, "float32", "emulated"),
    ],
)
def test_bfloat16_where_a_trial_step_is_clearly_faster(monkeypatch, product, step, name, said):
    monkeypatch.setattr(measuring, "product_ratio", lambda _: product)
    monkeypatch.setattr(measuring, "step_ratio", lambda *_: step)
    found = detect_precision()
    assert (found.name, found.bfloat16) == (name, name == "bfloat16")
    assert said in found.why
    assert detect_precision("float32") == Precision("float32", "the recipe says so")


def test_emulation_is_ruled_out_before_anything_long(monkeypatch):
    monkeypatch.setattr(measuring, "product_ratio", lambda _: 40.0)
    monkeypatch.setattr(measuring, "step_ratio", lambda *_: pytest.fail("a step of minutes"))
    assert not detect_precision().bfloat16


def test_measured_once_a_size(monkeypatch):
    tried = []
    monkeypatch.setattr(measuring, "product_ratio", lambda _: 1.0)
    monkeypatch.setattr(measuring, "step_ratio", lambda _, sizes: tried.append(sizes) or 0.5)
    for sizes in (SMALL, SMALL, TrialSizes(32, 4)):
        detect_precision(sizes=sizes)
    assert len(tried) == 2


def test_a_backend_without_bfloat16_trains_in_float32(monkeypatch):
    def refuse(_device):
        raise RuntimeError("no kernel for BFloat16\nat line 3")

    monkeypatch.setattr(measuring, "product_ratio", refuse)
    assert detect_precision() == Precision("float32", "bfloat16 can't be used here: no kernel for BFloat16")


def test_the_trial_draws_from_no_generator_that_training_draws_from():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert measuring.step_ratio(CPU, SMALL) > 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sizes", [SMALL, TrialSizes(width=16, heads=0, rows=2, tokens=16)])
def test_the_trial_holds_bfloat16_against_float32(monkeypatch, sizes):
    """With a clock that says ten where a step makes anything in bfloat16, and one elsewhere, the ratio is ten."""

    class Seen(TorchDispatchMode):
        half = False

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            self.half |= isinstance(found, torch.Tensor) and found.dtype == torch.bfloat16
            return found

    def seconds(work, _device):
        with Seen() as seen:
            work()
        return 10.0 if seen.half else 1.0

    monkeypatch.setattr(measuring, "_seconds", seconds)
    assert measuring.step_ratio(CPU, sizes) == 10.0


def test_a_long_trial_ends_after_its_second_pair(monkeypatch):
    made = []
    monkeypatch.setattr(measuring, "_seconds", lambda *_: made.append(1) or 1.0)
    monkeypatch.setattr(measuring, "SECONDS", -1.0)
    measuring.step_ratio(CPU, SMALL)
    assert len(made) == 2 * 3  # one pair to warm up


def test_the_trial_is_of_the_models_layers_and_short_on_a_processor():
    sizes = TrialSizes.of(tiny_model(width=32, heads=4))
    assert (sizes.width, sizes.heads) == (32, 4)
    assert sizes.short == sizes
    assert TrialSizes(width=768).short.rows < 4
    assert TrialSizes(width=8192).short.rows == 1


def test_the_trial_of_a_convolutional_network_is_a_convolution():
    model = tiny_model("mobilenet_v2")
    layer, given = TrialSizes.of(model).layer()
    assert isinstance(layer[0], torch.nn.Conv2d) and given.shape[1] == layer[0].in_channels
    assert layer(given[:2]).shape == given[:2].shape
    assert not isinstance(TrialSizes.of(tiny_model("segformer")).layer()[0], torch.nn.Sequential)


# ---- teachers


def with_logits(model):
    batch = tiny_batch()
    with torch.no_grad():
        return model(**batch).logits


def test_a_teacher_in_its_own_precision_is_itself():
    model = tiny_model()
    assert teacher_at(model, "float32") is model
    half = teacher_at(model, "bfloat16")
    assert half.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert teacher_at(half, "bfloat16") is half


@pytest.mark.parametrize("family", ["vit", "segformer", "mobilenet_v2", "resnet", "convnext", "swin", "pvt_v2", "beit"])
def test_a_teacher_of_images_answers_in_bfloat16_nearly_as_in_float32(family):
    """Convolutions take pixels in their own precision alone, batch norms weights in that of their statistics."""
    model, batch = tiny_model(family), {"pixel_values": torch.randn(2, 3, *IMAGE)}
    half = teacher_at(model, "bfloat16")
    with torch.no_grad():
        exact, found = (one(**inputs_for(one, batch)).logits for one in (model, half))
        again = (back := teacher_at(half, "float32"))(**inputs_for(back, batch)).logits
    assert found.dtype == torch.bfloat16
    scale = exact.abs().max()
    assert 0 < (found - exact).abs().max() < 0.05 * scale and (again - exact).abs().max() < 0.02 * scale
    norms = [one for one in half.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert all(one.weight.dtype == one.running_mean.dtype == torch.float32 for one in norms)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_int8_answers_as_float32_does_nearly(family):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = teacher_at(model, "int8")
    assert is_int8(made) and not is_int8(model) and teacher_at(made, "int8") is made
    assert not any(type(module) is torch.nn.Linear for module in made.modules())
    exact, found = with_logits(model), with_logits(made)
    assert found.dtype == torch.float32
    assert not torch.equal(exact, found)
    assert (exact - found).abs().max() < 0.5 * exact.std()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_an_int8_map_is_its_float32_map_to_its_rounding():
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 48)
    given = torch.randn(5, 7, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Int8Linear(plain)
    found, exact = made(given), plain(given)
    assert found.shape == exact.shape
    steps = given.abs().max() * 2 / 127 * plain.weight.norm(dim=1)  # of 7 bits, added up as noise
    assert ((found - exact).abs() < 2 * steps).all()
    zero = torch.nn.Linear(4, 3, bias=False)
    torch.nn.init.zeros_(zero.weight)
    assert not Int8Linear(zero)(torch.randn(2, 4)).any()


def test_taps_see_an_int8_teacher():
    teacher = tiny_model(layers=4, width=64, seed=2)
    terms = [Term("logits"), Term("hidden"), Term("values", options={"heads": 4})]
    distiller = Distiller(
        tiny_model(layers=2, seed=1), Objective(terms), TextClassification(), teacher, teacher_dtype=torch.qint8
    )
    assert is_int8(distiller.teacher) and not is_int8(teacher)
    parts = distiller(tiny_batch())
    assert parts.total.isfinite() and set(parts.terms) == {"logits", "hidden", "values"}


def test_int8_is_refused_where_it_can_not_run(monkeypatch):
    with pytest.raises(ModelError, match="no plain linear maps"):
        teacher_at(torch.nn.Sequential(torch.nn.ReLU()), "int8")
    with monkeypatch.context() as patched:
        patched.delattr(torch, "quantize_per_channel")
        with pytest.raises(ModelError, match="no int8 kernels"):
            teacher_at(tiny_model(), "int8")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    with pytest.raises(ModelError, match="on a CPU only"):
        teacher_at(tiny_model(), "int8")
