"""An exported file, run by onnxruntime alone.

Decisions held here:

* Nothing here imports torch: what a server needs to run the file is onnxruntime and numpy, and its peak memory is
  measured so.
* Worker threads stop spinning when a call returns. A thread that spins on takes the core from whatever is timed
  next, and the models of one report are timed in turns.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.checks import problem
from potstill.errors import ExportError

INSTALL = "Install the ONNX packages: pip install 'potstill[onnx]'"


def require_packages() -> None:
    """Raise `ExportError` unless the packages that write and run ONNX files are installed; nothing is imported."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(problem("ONNX files can't be made here", given=f"no {', '.join(missing)}", do=INSTALL))


class OnnxModel:
    """An ONNX classifier as a function of one batch: {name: ids [B, S]} -> logits [B, V], float32.

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
        self.inputs = tuple(value.name for value in self._session.get_inputs())

    def __call__(self, batch: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """The logits [B, V] of a batch. Raises `ExportError` when the batch lacks an input."""
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise ExportError(
                problem(
                    f"The ONNX file takes {', '.join(self.inputs)}",
                    given=", ".join(batch),
                    do="Encode the text with the tokenizer that stands beside it",
                )
            )
        feed = {name: np.asarray(batch[name], dtype=np.int64) for name in self.inputs}
        logits: npt.NDArray[np.float32] = self._session.run(None, feed)[0]
        return logits


def onnx_workload(path: str, batch: int, tokens: int, threads: int = 0) -> Iterator[None]:
    """A workload for `potstill.evaluation.peak_memory`: load the file and run one batch of [batch, tokens]."""
    import onnxruntime  # noqa: F401

    yield
    model = OnnxModel(path, threads)
    ids = np.ones((batch, tokens), np.int64)
    model({name: ids if name != "token_type_ids" else np.zeros_like(ids) for name in model.inputs})
