"""An exported file, run by onnxruntime alone.

Decisions held here:

* Nothing here imports torch: what a server needs to run the file is onnxruntime and numpy, and its peak memory is
  measured so.
* Worker threads stop spinning when a call returns. A thread that spins on takes the core from whatever is timed
  next, and the models of one report are timed in turns.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.checks import problem
from potstill.errors import ExportError

INSTALL = "Install the ONNX packages: pip install onnx onnxscript onnxruntime"


def require_packages() -> None:
    """Raise `ExportError` unless the packages that write and run ONNX files are installed; nothing is imported."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(problem("ONNX files can't be made here", given=f"no {', '.join(missing)}", do=INSTALL))


class OnnxModel:
    """An ONNX classifier as a function of a batch: {name: ids [B, S] or pixels [B, 3, H, W]} -> float32 logits [B, V].

    A batch may hold numpy arrays or torch tensors on the CPU, and more inputs than the file takes.
    """

    def __init__(self, path: Path | str, threads: int = 0) -> None:
        """Load `path` to run on the CPU with `threads` threads; 0 leaves the number to onnxruntime."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(problem("ONNX files can't be run here", given=error, do=INSTALL)) from error
        if not Path(path).is_file():
            raise ExportError(problem("There is no ONNX file", given=path, do="Export the student first"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise ExportError(
                problem(f"{Path(path).name} can't be loaded", given=error, do="Delete it and export again")
            ) from error
        given = self._session.get_inputs()
        self.inputs = tuple(value.name for value in given)
        self.takes_any_size = any(len(value.shape) == 4 and isinstance(value.shape[2], str) for value in given)
        self._types = {value.name: np.float32 if value.type == "tensor(float)" else np.int64 for value in given}

    def __call__(self, batch: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """The logits [B, V] of a batch. Raises `ExportError` when the batch lacks an input."""
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise ExportError(
                problem(
                    f"The ONNX file takes {', '.join(self.inputs)}",
                    given=", ".join(batch),
                    do="Encode the row with the tokenizer or image processor that stands beside it",
                )
            )
        feed = {name: np.asarray(batch[name], dtype=self._types[name]) for name in self.inputs}
        logits: npt.NDArray[np.float32] = self._session.run(None, feed)[0]
        return logits


def onnx_workload(path: str, shapes: Mapping[str, Sequence[int]], threads: int = 0) -> Iterator[None]:
    """A workload for `potstill.evaluation.peak_memory`: load the file and run one batch of these shapes, by input.

    An input that no shape is given for is zeros, of the first one's shape.
    """
    import onnxruntime  # noqa: F401

    yield
    model = OnnxModel(path, threads)
    batch = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    model({name: batch.get(name, np.zeros_like(next(iter(batch.values())))) for name in model.inputs})
