"""How much memory a model needs: loading it and one forward pass, measured in a process of its own.

Decisions held here:

* A fresh process for each model. In the process that trained, freed memory is still resident, and a peak can't be told
  from what was there before.
* What is counted is the peak of resident memory while the model loads and runs, less what was resident when all
  libraries had been imported.
* Every weight is read once. transformers maps the file, and of a mapped file only the pages that were touched are
  resident: one batch would leave out most of the embedding table, which use soon touches.
* On Linux the peak is VmHWM of /proc/self/status, set back by writing 5 to /proc/self/clear_refs. `ru_maxrss` won't
  do there: a child inherits its parent's. On macOS it does, and it is used. Elsewhere: None.
* A workload is a generator function, called by name in the new process: what stands before its `yield` is imports, what
  comes after is measured. It may return its own number of bytes, as one on a GPU does.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Workload = Callable[..., Generator[None, None, int | None]]


def peak_memory(workload: Callable[..., Any], arguments: Mapping[str, Any], timeout: float = 120.0) -> int | None:
    """The bytes that a workload needs at its peak beyond its imports; None where that can't be measured.

    Args:
        workload: a function at the top of a module, as `classifier_workload` or `potstill.export.onnx_workload`.
        arguments: what it is called with; only what JSON can hold.
        timeout: seconds until it is given up.
    """
    command = [sys.executable, "-W", "ignore", "-m", "potstill.evaluation.peak_memory"]
    command += [f"{workload.__module__}:{workload.__qualname__}", json.dumps(dict(arguments))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        # Memory is one number of many: a machine that can't tell it must not lose the whole evaluation.
        return None
    return None if measured is None else int(measured)


def classifier_workload(
    path: str,
    shapes: Mapping[str, Sequence[int]],
    device: str = "cpu",
    threads: int = 0,
    auto_class: str = "AutoModelForSequenceClassification",
) -> Generator[None, None, int | None]:
    """Load a transformers folder and run one batch of these shapes, by input, under inference mode, in float32.

    On CUDA the result is what torch allocated at its peak on the device.
    """
    import torch
    import transformers

    from potstill.evaluation.cost import filled

    if threads:
        torch.set_num_threads(threads)
    factory: Any = getattr(transformers, auto_class)
    # Names the class, so that its module is imported before counting begins; so is what a first product sets up.
    _ = factory._model_mapping[type(transformers.AutoConfig.from_pretrained(path))]
    torch.ones(8, 8) @ torch.ones(8, 8)
    yield
    model = factory.from_pretrained(path, dtype=torch.float32).to(device).eval()
    inputs = filled(shapes, device)
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.sum()
        model(**inputs)
    return int(torch.cuda.max_memory_allocated()) if device.startswith("cuda") else None


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else 1024 * int(found)


def _peak(*, reset: bool = False) -> int | None:
    """The most memory that was resident in this process, in bytes; with `reset`, counted from now on."""
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if reset:
        # Where it is refused the old peak stays, and the difference is what exceeds that of the imports.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmHWM")


def _measure(workload: Workload, arguments: Mapping[str, Any]) -> int | None:
    """Run a workload in this process; its own number, or by how much the peak rose after its imports."""
    work = workload(**arguments)
    next(work)
    before = _peak(reset=True)
    own = None
    try:
        next(work)
    except StopIteration as end:
        own = end.value
    after = _peak()
    if own is not None:
        return int(own)
    return None if before is None or after is None else max(0, after - before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the bytes that a workload needs at its peak.")
    parser.add_argument("workload", help="module:function")
    parser.add_argument("arguments", help="its arguments, as JSON")
    given = parser.parse_args()
    module, _, function = given.workload.partition(":")
    print(json.dumps(_measure(getattr(import_module(module), function), json.loads(given.arguments))))
