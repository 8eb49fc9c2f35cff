"""int8: a quarter of the size, the same answers nearly always, one file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny import IMAGE, tiny_model
from tiny_classifiers import Names, batch, logits, tiny

from potstill.errors import ExportError
from potstill.export import OnnxModel, export_onnx, quantize_onnx, verify
from potstill.export.quantize import share_of_convolutions


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_int8_agrees_and_is_a_quarter(family: str, tmp_path: Path) -> None:
    # Wide enough that weights, not the graph, are what the file holds.
    model = tiny(family, hidden_size=256, intermediate_size=1024, vocab_size=4000)
    whole = export_onnx(model, Names(family), tmp_path / "model.onnx")
    small = quantize_onnx(whole, tmp_path / "int8" / "model-int8.onnx")
    assert [file.name for file in small.parent.iterdir()] == ["model-int8.onnx"]
    assert small.stat().st_size < 0.28 * whole.stat().st_size
    run = OnnxModel(small, threads=1)
    # Random weights amplify rounding more than trained ones: 7 to 11 % of the logits' spread, 94 % of predictions.
    for rows, tokens in ((64, 3), (64, 17)):
        inputs = batch(family, rows, tokens)
        expected, found = logits(model, inputs), run(inputs)
        assert np.abs(found - expected).mean() < 0.2 * expected.std(axis=0).mean(), tokens
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.85, tokens


def test_int8_holds_standard_operators_and_int8_embeddings(bert_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(quantize_onnx(bert_file, tmp_path / "int8.onnx"))
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    table = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [200, 32])
    assert table.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def test_the_export_that_is_quantised_stays_as_it_is(bert_file: Path, tmp_path: Path) -> None:
    before = bert_file.read_bytes()
    quantize_onnx(bert_file, tmp_path / "int8.onnx")
    assert bert_file.read_bytes() == before


def test_nothing_is_printed(bert_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantize_onnx(bert_file, tmp_path / "int8.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Export the student first"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "int8.onnx")


def test_a_broken_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"model\.onnx can't be quantised"):
        quantize_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_verify_compares_rows_in_order(bert_file: Path) -> None:
    model = tiny("bert")
    batches = [batch("bert", 4, 6, seed=1), batch("bert", 2, 13, seed=2)]
    student = np.concatenate([logits(model, inputs) for inputs in batches])
    run = OnnxModel(bert_file, threads=1)
    found = verify(run, batches, student, problem="single_label", tolerance=1e-3)
    assert found.max_logit_difference < 1e-4
    assert found.mean_logit_difference <= found.max_logit_difference
    assert found.agreement == 1.0
    assert found.logits.shape == (6, 3)
    assert verify(run, batches, student, problem="regression").agreement is None
    with pytest.raises(ExportError, match="not the student"):
        verify(run, batches, student[::-1], problem="single_label", tolerance=1e-3)
    with pytest.raises(ExportError, match="not the student"):
        verify(lambda _: student * np.nan, batches[:1], student, problem="single_label")


def test_convolutions_are_quantised_by_the_ranges_of_rows(tmp_path: Path) -> None:
    model = tiny_model("resnet", width=64)
    random = torch.Generator().manual_seed(0)
    pixels = (
        torch.randn(96, 3, *IMAGE, generator=random)
        * torch.linspace(0, 2, 96)[torch.randperm(96, generator=random), None, None, None]
    )
    seen, fresh = ({"pixel_values": part} for part in pixels.split(48))
    whole = export_onnx(model, seen, tmp_path / "model.onnx")
    assert share_of_convolutions(whole) > 0.5
    small = quantize_onnx(whole, tmp_path / "model-int8.onnx", [seen])
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    faint = quantize_onnx(whole, tmp_path / "faint.onnx", [{"pixel_values": seen["pixel_values"] / 20}])
    expected, found, cut = (OnnxModel(file, threads=1)(fresh) for file in (whole, small, faint))
    assert 0 < np.abs(found - expected).mean() < 0.2 * expected.std(axis=0).mean()
    assert np.abs(cut - expected).mean() > 2 * np.abs(found - expected).mean(), "ranges that are too narrow cut off"
    operators = {node.op_type for node in onnx.load(small).graph.node}
    assert "QuantizeLinear" in operators
    with pytest.raises(ExportError, match="ranges that are seen on images, and none are given"):
        quantize_onnx(whole, tmp_path / "none.onnx")


def test_a_vision_transformer_is_quantised_as_texts_are(tmp_path: Path) -> None:
    model = tiny_model("vit")
    pixels = torch.randn(5, 3, *IMAGE, generator=torch.Generator().manual_seed(0))
    whole = export_onnx(model, {"pixel_values": pixels}, tmp_path / "model.onnx")
    assert share_of_convolutions(whole) < 0.5
    for rows in (1, 5):
        with torch.no_grad():
            expected = model(pixels[:rows]).logits.numpy()
        np.testing.assert_allclose(OnnxModel(whole, threads=1)({"pixel_values": pixels[:rows]}), expected, atol=1e-4)
    small = quantize_onnx(whole, tmp_path / "model-int8.onnx")
    assert OnnxModel(small, threads=1)({"pixel_values": pixels}).shape == (5, 2)


def test_a_transformer_with_convolutions_has_them_static_and_all_else_dynamic(tmp_path: Path) -> None:
    model = tiny_model("segformer", width=64)
    pixels = torch.randn(24, 3, *IMAGE, generator=torch.Generator().manual_seed(0))
    seen, fresh = ({"pixel_values": part} for part in pixels.split(12))
    whole = export_onnx(model, seen, tmp_path / "model.onnx")
    assert 0.1 < share_of_convolutions(whole) < 0.5
    both = quantize_onnx(whole, tmp_path / "both.onnx", [seen])
    linear = quantize_onnx(whole, tmp_path / "linear.onnx")  # no rows, no ranges: convolutions stay as they are
    assert both.stat().st_size < linear.stat().st_size < whole.stat().st_size
    kinds = [{node.op_type for node in onnx.load(file).graph.node} for file in (both, linear)]
    assert all("MatMulInteger" in found and "DynamicQuantizeLinear" in found for found in kinds)
    assert ["QuantizeLinear" in found for found in kinds] == [True, False]
    expected, found = (OnnxModel(file, threads=1)(fresh) for file in (whole, both))
    assert 0 < np.abs(found - expected).mean() < 0.2 * expected.std()
