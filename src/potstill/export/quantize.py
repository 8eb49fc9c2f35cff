"""From an ONNX file to one of about a quarter of its size, which runs faster on a CPU.

Decisions held here, measured on a sentiment classifier (MiniLM, 6 layers, 22.7 M parameters; 2,000 sentences; 2
threads of a CPU with VNNI; the share of predictions equal to float32's, and times at 26 tokens):

* Dynamic: weights are int8 in the file, activations become uint8 while it runs. No calibration data is needed.
* A scale for each output channel: 98 % of predictions agree. One scale for a whole matrix: 97 %, at the same speed.
* 7 bits of the 8 (`reduce_range`). On a CPU without VNNI the 16-bit sums of 8-bit products saturate, and the logits
  then differ from machine to machine. It costs nothing that could be measured: 98.2 % against 98.2 %.
* The embedding table is quantised too: half of a small encoder is this table. 23.5 MB against 59.3 MB, of 91.5 MB;
  98.2 % against 98.5 %.
* Only MatMuls by a weight: the products inside attention are of two activations, and gain nothing.
* Weights alone in blocks (MatMulNBits, 8 bits) agree better, 99.5 %, but take 1.4 times as long at batch 32 and
  need an operator that only onnxruntime has. The int8 file here holds standard ONNX operators.

Convolutions can't be quantised so: onnxruntime has no fast kernel for one whose input range is found while it runs.
Where they hold a tenth of the weights or more, they are quantised before it runs, by ranges that are seen on
calibration rows (static): weights int8 with a scale for each channel, activations uint8 between the smallest and the
largest value that was seen. Depthwise convolutions (MobileNet) lose more by this than any other layer. All else stays
dynamic: measured on a SegFormer of 0.2 M parameters (37 images of 240 x 176, 1 thread; the share of pixels that agree,
and the size), static everywhere 78.2 % and 364 kB, static convolutions and the rest dynamic 97.1 % and 353 kB, the rest
alone 99.7 % and 629 kB, of 885 kB in float32.

int8 is not the student any more: the report gives it a metric, an agreement and a latency of its own.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.checks import problem
from potstill.errors import ExportError
from potstill.export.onnx import quiet, written_beside
from potstill.export.runtime import INSTALL, OnnxModel

CONVOLUTIONS = ["Conv"]
FEW = 0.1  # of the weights: convolutions that hold less stay as they are
QUANTISED = ["MatMul", "Gemm", "Gather"]


def quantize_onnx(path: Path | str, out: Path | str, calibration: Iterable[Mapping[str, Any]] | None = None) -> Path:
    """Write the ONNX file `path` to `out` with int8 weights; same inputs, same output. See this file's head for how.

    Args:
        path: the float32 file.
        out: the file to write, beside and then renamed.
        calibration: batches of rows as the model takes them; needed for networks of convolutions. Without it, the few
            convolutions of a transformer stay as they are.

    Returns: `out`.
    Raises `ExportError` when onnxruntime is missing, when it can't quantise the file, and when rows for calibration
    are needed and missing.
    """
    path, out = Path(path), Path(out)
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise ExportError(problem("ONNX can't be quantised here", given=error, do=INSTALL)) from error
    if not path.is_file():
        raise ExportError(problem("There is no ONNX file to quantise", given=path, do="Export the student first"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(out) as partial:
        try:
            with quiet():
                share = share_of_convolutions(path)
                if share > 0.5 or (share >= FEW and calibration is not None):
                    _static(path, partial, calibration)
                    path = partial
                if share < 1:
                    _dynamic(path, partial)
        except ExportError:
            raise
        except Exception as error:  # onnxruntime raises its own types, and onnx's
            raise ExportError(problem(f"{path.name} can't be quantised", given=error)) from error
    return out


def _dynamic(path: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        path,
        out,
        op_types_to_quantize=QUANTISED,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def _static(path: Path, out: Path, calibration: Iterable[Mapping[str, Any]] | None) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if calibration is None:
        raise ExportError(
            problem(
                "A network of convolutions becomes int8 by ranges that are seen on images, and none are given",
                follows="Ranges that were guessed would make another network of it",
                do="Name images (`potstill export … --data FOLDER`), or leave out onnx-int8",
            )
        )
    quantize_static(
        path,
        out,
        _Rows(calibration, OnnxModel(path).inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=CONVOLUTIONS,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def share_of_convolutions(path: Path) -> float:
    """How many of the weights of an ONNX file are those of convolutions, from 0 to 1."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {value.name: math.prod(value.dims) for value in graph.initializer}
    weights: Counter[bool] = Counter()
    for node in graph.node:
        if node.op_type in (*CONVOLUTIONS, *QUANTISED):
            weights[node.op_type in CONVOLUTIONS] += max((sizes.get(name, 0) for name in node.input), default=0)
    return weights[True] / max(1, weights.total())


class _Rows:
    """Batches as onnxruntime asks for them, one after the other."""

    def __init__(self, batches: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
        self.batches = iter(batches)
        self.names = names

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None when there is none left."""
        batch = next(self.batches, None)
        return None if batch is None else {name: np.asarray(batch[name]) for name in self.names}
