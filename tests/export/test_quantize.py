"""int8: a quarter of the size, the same answers nearly always, one file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_classifiers import Names, batch, logits, tiny

from potstill.errors import ExportError
from potstill.export import OnnxModel, export_onnx, quantize_onnx, verify


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
