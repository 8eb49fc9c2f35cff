"""What a model costs to ship and to run: parameters, bytes, multiply-adds, latency.

Decisions held here:

* Models are timed in turns, on the same batches, round by round, each round beginning with another model. A shared
  machine is slow for seconds at a time; in turns that strikes all of them alike.
* The batches are real rows, texts at their real lengths, padded within the batch as in use. Latency is the time of one
  call on encoded inputs, logits back on the CPU side of the clock; tokenizer or image processor is not in it.
* A multiply-add is counted once (torch counts it as two operations), and only in matrix products and convolutions,
  those of attention among them. Norms, softmax and activations are left out, as in the published counts.
* A parameter that two layers share is one parameter.
* Peak memory is measured in a process of its own: see `peak_memory`.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from potstill.checks import problem
from potstill.errors import DataError, ModelError

Batch = Mapping[str, Any]
Runner = Callable[[Batch], Any]

# What `from_pretrained` reads to classify. Weights in safetensors; in the old form only where there are none.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")
CONFIGURATION = ("config.json", "preprocessor_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# The tables that a folder without tokenizer.json needs instead of it.
OLD_TOKENIZER = ("vocab.txt", "vocab.json", "merges.txt", "*.model")


@dataclass(frozen=True)
class Latency:
    """How long one call takes: the median and the 95th percentile in milliseconds, the number of calls that were timed,
    and the rows a second over all of them together."""

    p50_ms: float
    p95_ms: float
    n: int
    rows_per_s: float


def parameters(model: torch.nn.Module) -> int:
    """The number of parameters, trainable or not; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def shipped_files(folder: Path | str) -> list[Path]:
    """The files of a transformers folder that it needs to classify: weights, config, tokenizer or image processor.

    The model card, training state and exports aren't among them. Raises `ModelError` for a folder without weights.
    """
    folder = Path(folder)

    def matching(patterns: Sequence[str]) -> list[Path]:
        return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())

    weights = matching(WEIGHTS) or matching(OLD_WEIGHTS)
    if not weights:
        raise ModelError(
            problem("The folder holds no weights", given=folder, do="Name a folder that save_pretrained wrote")
        )
    tables = [] if (folder / "tokenizer.json").is_file() else matching(OLD_TOKENIZER)
    return [*weights, *matching(CONFIGURATION), *matching(TOKENIZER), *tables]


def bytes_on_disk(folder: Path | str) -> int:
    """The size of `shipped_files` in bytes."""
    return sum(file.stat().st_size for file in shipped_files(folder))


def macs(model: torch.nn.Module, batch: Batch) -> int:
    """The multiply-adds of one forward pass over `batch`: those of matrix products and convolutions.

    Attention is computed by plain matrix products while counting: the CPU's fused kernel is opaque to torch's counter,
    which would count it as nothing. Two matrix products of [S, D/H] and [S, S] a head are what it stands for.
    """
    inputs = _inputs(model, batch)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    return int(counter.get_total_flops()) // 2


def filled(shapes: Mapping[str, Sequence[int]], device: torch.device | str | None = None) -> dict[str, torch.Tensor]:
    """Inputs of these shapes: pixels of zeros, ids and masks of ones."""
    return {
        name: torch.zeros(*shape, device=device)
        if name == "pixel_values"
        else torch.ones(*shape, dtype=torch.long, device=device)
        for name, shape in shapes.items()
    }


def torch_runner(model: torch.nn.Module, device: torch.device | str | None = None) -> Runner:
    """`model` as a function of one batch: {name: ids [B, S]} -> logits [B, V] on `device`, under inference mode.

    A batch may hold tensors or numpy arrays, and more inputs than the model takes. On CUDA each call waits for its own
    end, so that what is timed is the work and not its start. Raises `ModelError` for a model in training mode, whose
    dropout would be timed too. The model is moved to `device`; with none given it stays where it is.
    """
    if model.training:
        raise ModelError(problem("A model is timed in eval mode", given="a model in training mode", do="Call .eval()"))
    at = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(at)

    @torch.inference_mode()
    def run(batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = model(**_inputs(model, batch)).logits
        if at.type == "cuda":
            torch.cuda.synchronize(at)
        return logits

    return run


def measure_latency(
    runners: Mapping[str, Runner],
    batches_by_size: Mapping[int, Sequence[Batch]],
    *,
    rounds: int = 100,
    warmup: int = 2,
    budget_seconds: float = 15.0,
) -> dict[str, dict[int, Latency]]:
    """The time of one call, for each model and batch size: {name: {size: Latency}}.

    In every round each model runs once on the same batch, and the next round takes the next batch and begins with the
    next model.

    Args:
        runners: the models by name, each a function of a batch (`torch_runner`, `potstill.export.OnnxModel`).
        batches_by_size: for each batch size, batches of that many rows; they are taken in turn.
        rounds: timed rounds at most, for each size.
        warmup: rounds before them that aren't timed.
        budget_seconds: for all of it; shared equally by the sizes. A size stops after the round in which its share is
            spent, and never before its third.

    `rows_per_s` at the larger size is the throughput of the report. Raises `DataError` for a size without batches.
    """
    result: dict[str, dict[int, Latency]] = {name: {} for name in runners}
    share = budget_seconds / max(1, len(batches_by_size))
    for size, batches in batches_by_size.items():
        if not batches:
            raise DataError(problem("Latency is measured on at least one batch", given=f"none of {size} rows"))
        for name, seconds in _timed_rounds(runners, batches, rounds, warmup, share).items():
            result[name][size] = _latency(seconds, batches)
    return result


def _timed_rounds(
    runners: Mapping[str, Runner], batches: Sequence[Batch], rounds: int, warmup: int, budget_seconds: float
) -> dict[str, list[float]]:
    """The seconds of each call, by model, in the order of the rounds."""
    names = list(runners)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_seconds
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            runners[name](batches[number % len(batches)])
            if number >= 0:
                seconds[name].append(time.perf_counter() - begin)
        if number >= 2 and time.perf_counter() > end:
            break
    return seconds


def _latency(seconds: list[float], batches: Sequence[Batch]) -> Latency:
    """The summary of one model's calls, which took `batches` in turn."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
    # Counted, since small data may have no batch of the size that was asked for.
    rows = sum(len(next(iter(batches[number % len(batches)].values()))) for number in range(len(seconds)))
    return Latency(float(p50), float(p95), len(seconds), rows / max(sum(seconds), 1e-12))


def _inputs(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Those of a batch's entries that the model's forward names, as tensors on its device; labels, of which it would
    compute a loss, aside."""
    taken = inspect.signature(model.forward).parameters
    device = next(model.parameters()).device
    return {
        name: torch.as_tensor(value, device=device)
        for name, value in batch.items()
        if name in taken and name != "labels"
    }
