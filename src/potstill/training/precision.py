"""The precision that a run trains in, measured on this machine; and teachers in a precision of their own.

Decided here:

* bfloat16 is taken where a trial step is clearly faster in it, and not by what a processor says of itself: instructions
  may be there and slow, or a layer too small to gain from them. The trial is one encoder layer of the model's width, or
  a convolution of its channels, on a short batch, forward and backward, in turns with float32; it takes a second or two
  at most.
* Emulated bfloat16 is a hundred times slower than float32, so a product that takes milliseconds rules it out first.
* Nothing that is measured may change what is trained in silence: the choice is made once a run, kept in its folder, and
  drawn from no generator that training draws from.
* A teacher's int8 is that of its linear maps alone: weights by output channel, activations by batch as they come.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.knowledge import describe
from potstill.knowledge.architectures import cast
from potstill.training.int8 import int8_copy, is_int8

FASTER = 0.9
"""The share of float32's time that bfloat16 has to stay below: a smaller gain isn't worth 16 bits of mantissa."""
EMULATED = 4.0
"""Times float32's time for one small product: more than that is no instruction of the processor."""
PRODUCT = 128  # rows and columns of that product
PAIRS = 5
SECONDS = 1.0  # after which no further pair is begun
CPU_OPERATIONS = 5e9  # of a trial step on a CPU: tens of milliseconds

AUTO, FLOAT32, BFLOAT16, INT8 = "auto", "float32", "bfloat16", "int8"
DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, INT8: torch.qint8}


@dataclass(frozen=True)
class Precision:
    """A precision, and in a few words why it was chosen."""

    name: str
    why: str

    @property
    def bfloat16(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.name == BFLOAT16


@dataclass(frozen=True)
class TrialSizes:
    """The layer and the batch that are tried: [rows,tokens,width]; without heads a convolution, its tokens a square."""

    width: int = 384
    heads: int = 12
    rows: int = 32
    tokens: int = 64

    @classmethod
    def of(cls, model: PreTrainedModel) -> "TrialSizes":
        """The sizes of a model's layers."""
        shape = describe(model)
        width = max(1, shape.width)
        if not shape.layers:
            return cls(width, heads=0)
        heads = shape.heads if shape.heads > 0 and width % shape.heads == 0 else 1
        return cls(width, heads)

    def layer(self) -> tuple[nn.Module, Tensor]:
        """The layer, and what it is given."""
        if not self.heads:
            side = math.isqrt(self.tokens)
            convolution = nn.Conv2d(self.width, self.width, 3, padding=1, bias=False)
            found = nn.Sequential(convolution, nn.BatchNorm2d(self.width), nn.ReLU())
            return found, torch.randn(self.rows, self.width, side, side)
        attending = nn.TransformerEncoderLayer(
            self.width, self.heads, 4 * self.width, dropout=0.0, activation="gelu", batch_first=True
        )
        return attending, torch.randn(self.rows, self.tokens, self.width)

    @property
    def short(self) -> "TrialSizes":
        """The same layer on so few rows that a processor is done in a moment."""
        a_token = 3 * 24 * self.width**2  # operations of forward and backward
        rows = int(CPU_OPERATIONS // (a_token * self.tokens))
        return TrialSizes(self.width, self.heads, min(self.rows, max(1, rows)), self.tokens)


USUAL = TrialSizes()


def detect_precision(asked: str = AUTO, sizes: TrialSizes = USUAL) -> Precision:
    """The precision that is asked for or, with ``auto``, the one that a trial step is faster in.

    Measured once a process, device and size of layer. Prefer `School.precision` within a run, which keeps the choice.

    Args:
        asked: auto, float32 or bfloat16.
        sizes: of the layer that is tried.
    """
    if asked != AUTO:
        return Precision(asked, "the recipe says so")
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return _measured(device.type, sizes, torch.get_num_threads())


@lru_cache(maxsize=64)
def _measured(device: str, sizes: TrialSizes, _threads: int) -> Precision:
    try:
        slower = product_ratio(torch.device(device))
        if slower > EMULATED:
            return Precision(FLOAT32, f"a small product in bfloat16 took {slower:.0f} times as long: it is emulated")
        ratio = step_ratio(torch.device(device), sizes.short if device == "cpu" else sizes)
    except (RuntimeError, TypeError) as error:  # a backend without bfloat16
        return Precision(FLOAT32, f"bfloat16 can't be used here: {str(error).splitlines()[0]}")
    name = BFLOAT16 if ratio < FASTER else FLOAT32
    return Precision(name, f"a trial step in bfloat16 took {ratio:.2f} of float32's time")


def product_ratio(device: torch.device) -> float:
    """Time of one small matrix product in bfloat16 over that in float32; the best of three of each."""
    plain = torch.ones(PRODUCT, PRODUCT, device=device)
    pair = (plain, plain.bfloat16())
    best = [min(_seconds(lambda x=x: x @ x, device) for _ in range(3)) for x in pair]  # type: ignore[misc]
    return best[1] / max(best[0], 1e-9)


def step_ratio(device: torch.device, sizes: TrialSizes) -> float:
    """Time of a trial step under bfloat16 autocast over that in float32: the median of pairs, each taken in turns."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        layer, given = sizes.layer()
    layer, given = layer.to(device), given.to(device)

    def step(bfloat16: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = layer(given).float().square().mean()
        loss.backward()
        layer.zero_grad(set_to_none=True)

    ratios: list[float] = []
    began = time.perf_counter()
    for pair in range(PAIRS + 1):
        plain, half = (_seconds(lambda b=b: step(b), device) for b in (False, True))  # type: ignore[misc]
        if pair:  # the first warms up
            ratios.append(half / max(plain, 1e-9))
        if len(ratios) > 1 and time.perf_counter() - began > SECONDS:
            break
    return statistics.median(ratios)


def _seconds(work: Callable[[], Tensor | None], device: torch.device) -> float:
    """What some work takes, with the device waited for."""
    started = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def teacher_at(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """A model as a teacher that runs in a precision: itself where it already does, else a copy; never changed.

    Args:
        model: as it was loaded.
        precision: ``float32``, ``bfloat16`` (weights and activations; buffers keep theirs) or ``int8`` (the linear maps
            of a model on a CPU; everything else, hidden states and logits among them, stays float32).

    Raises:
        ModelError: int8 is asked for where PyTorch has no int8 kernels, or of a model without linear maps.
    """
    if precision == INT8:
        return model if is_int8(model) else int8_copy(model)
    dtype = DTYPES[precision]
    return model if model.dtype == dtype else cast(copy.deepcopy(model), dtype)
