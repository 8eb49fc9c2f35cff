"""One exported file for all tests that only read it."""

from pathlib import Path

import pytest
from tiny_classifiers import Names, tiny


@pytest.fixture(scope="session")
def bert_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as ONNX."""
    from potstill.export import export_onnx

    return export_onnx(tiny("bert"), Names("bert"), tmp_path_factory.mktemp("bert") / "model.onnx")
