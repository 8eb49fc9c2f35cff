"""The exported file is the student: for every family, batch and length, with and without padding."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_classifiers import CONFIGS, Names, batch, logits, tiny

from potstill.errors import ExportError
from potstill.export import OnnxModel, export_onnx

SHAPES = ((1, 2), (1, 7), (2, 5), (3, 11), (5, 33), (1, 62))


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_the_models_for_every_batch_and_length(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    run = OnnxModel(export_onnx(model, Names(family), tmp_path / "model.onnx"), threads=1)
    assert run.inputs == tuple(
        name for name in ("input_ids", "attention_mask", "token_type_ids") if name in Names(family).model_input_names
    )
    for rows, tokens in SHAPES:
        inputs = batch(family, rows, tokens)
        np.testing.assert_allclose(run(inputs), logits(model, inputs), atol=1e-4, err_msg=f"{rows} x {tokens}")


def test_padding_changes_nothing(bert_file: Path) -> None:
    run, inputs = OnnxModel(bert_file, threads=1), batch("bert", 3, 9)
    padded = {name: np.pad(value.numpy(), ((0, 0), (0, 13))) for name, value in inputs.items()}
    np.testing.assert_allclose(run(padded), run(inputs), atol=1e-5)


def test_rows_of_a_batch_dont_see_each_other(bert_file: Path) -> None:
    run, inputs = OnnxModel(bert_file, threads=1), batch("bert", 4, 9)
    alone = np.concatenate([run({name: value[row : row + 1] for name, value in inputs.items()}) for row in range(4)])
    np.testing.assert_allclose(run(inputs), alone, atol=1e-5)


def test_the_file_is_one_with_named_axes_and_standard_operators(bert_file: Path) -> None:
    assert [file.name for file in bert_file.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(bert_file, load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert axes.pop("logits") == ["batch", 3]
    assert axes == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")}


def test_the_file_tells_nothing_of_the_machine(bert_file: Path) -> None:
    assert b"site-packages" not in bert_file.read_bytes()
    assert str(Path.home()).encode() not in bert_file.read_bytes()


def test_the_callers_model_is_left_alone(tmp_path: Path) -> None:
    model = tiny("bert", use_cache=True).to(torch.float64)
    model.set_attn_implementation("eager")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, batch("bert", 2, 4), tmp_path / "deep" / "model.onnx")
    assert model.training and model.config._attn_implementation == "eager"
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(value.dtype == torch.float64 and value.equal(before[name]) for name, value in model.state_dict().items())


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(tiny("distilbert"), Names("distilbert"), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_file_of_more_than_2_gb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["potstill.export.onnx"], "LARGEST_FILE", 1000)
    with pytest.raises(ExportError, match="Ship the transformers folder"):
        export_onnx(tiny("bert"), Names("bert"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cant_be_traced_leaves_no_file(tmp_path: Path) -> None:
    model = tiny("bert")
    model.classifier.forward = lambda hidden: torch.full((1, 3), float(hidden.sum().item()))
    with pytest.raises(ExportError, match="BertForSequenceClassification can't be traced"):
        export_onnx(model, Names("bert"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match="pip install onnx onnxscript onnxruntime"):
        export_onnx(tiny("bert"), Names("bert"), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="pip install onnx onnxscript onnxruntime"):
        OnnxModel(tmp_path / "model.onnx")


def test_inputs_without_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="input_ids"):
        export_onnx(tiny("bert"), {"pixel_values": torch.zeros(1)}, tmp_path / "model.onnx")


def test_a_batch_that_lacks_an_input_is_refused(bert_file: Path) -> None:
    with pytest.raises(ExportError, match="token_type_ids"):
        OnnxModel(bert_file)({"input_ids": np.ones((1, 4)), "attention_mask": np.ones((1, 4))})


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="can't be loaded"):
        OnnxModel(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="no ONNX file"):
        OnnxModel(tmp_path / "other.onnx")
