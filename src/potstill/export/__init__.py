"""The student as files that ship: a transformers folder with its model card, ONNX, ONNX int8, each measured again.

Decision: the names below are looked up when they are used, so that a process which only runs an exported file
(`potstill.evaluation.peak_memory` starts such processes) never pays for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.export.comparison import Verification, require_near, verify
    from potstill.export.model_card import write_model_card
    from potstill.export.onnx import export_onnx
    from potstill.export.quantize import quantize_onnx
    from potstill.export.runtime import OnnxModel, onnx_workload, require_packages

__all__ = [
    "OnnxModel",
    "Verification",
    "export_onnx",
    "onnx_workload",
    "quantize_onnx",
    "require_near",
    "require_packages",
    "verify",
    "write_model_card",
]

_HOMES = {
    "OnnxModel": "runtime",
    "Verification": "comparison",
    "export_onnx": "onnx",
    "onnx_workload": "runtime",
    "quantize_onnx": "quantize",
    "require_near": "comparison",
    "require_packages": "runtime",
    "verify": "comparison",
    "write_model_card": "model_card",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
