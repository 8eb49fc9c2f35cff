"""What a competitor and the driver agree on: settings, rows, orders of batches, the clock, and how they talk.

A competitor is a script run by an interpreter of its own, with a file of settings as its argument. It loads its models,
says so, then answers commands, one line of JSON each, until its input ends. It stays alive between commands, so that
segments of several competitors can be timed in turns, close together in time.

Decisions:
- Nothing here needs more than numpy, torch, safetensors and transformers: it runs in every competitor's environment.
- Every tool is timed by one clock, at the ends of the optimiser's steps. PyTorch calls a hook there, whoever holds the
  optimiser; a step is the time from one end to the next, so data, logging and bookkeeping are all inside.
- Competitors get their rows from memory as lists of ids. Ours reads them through its own data set and collator.
- Losses are given in one convention: the KL of the distributions softened by T, times T², a mean over rows (of language
  models: over tokens). A tool with another convention converts.
- The answers go to the standard output as it was at the start; what libraries print goes to the standard error.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset, Sampler

WARM = 3  # steps of a segment before the clock starts
EVALUATION_ROWS = 64  # of a batch


class LeftOut(Exception):
    """A tool has no such thing; the message says what."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all.

    Args:
        teacher, student: folders of models; the student's weights are those that training starts from.
        rows, validation: files of rows.
        orders: a file of orders of rows, by seed.
        batch_size, learning_rate, weight_decay, warmup, max_grad_norm: of the same work; warm-up is a share of steps.
        temperature: of the same work.
        threads: of PyTorch.
        pad: the id that pads.
        task: classification or language.
        sample: the folder of the encoded rows as a data set, for us.
    """

    teacher: str
    student: str
    rows: str
    validation: str
    orders: str
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float
    max_grad_norm: float
    temperature: float
    threads: int
    pad: int
    task: str = "classification"
    sample: str = ""

    def save(self, path: Path) -> Path:
        """Write the settings, for competitors to read."""
        path.write_text(json.dumps(self.__dict__, indent=1) + "\n", encoding="utf-8")
        return path

    def rate(self, steps: int) -> Callable[[int], float]:
        """The share of the learning rate at each step: a linear rise over the warm-up, then a linear fall to 0."""
        warm = int(np.ceil(self.warmup * steps))
        return lambda step: step / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


class Rows(Dataset[dict[str, Any]]):
    """Rows in memory: ids and a label each."""

    def __init__(self, ids: Sequence[np.ndarray], labels: np.ndarray) -> None:
        self.ids = ids
        self.labels = labels

    @classmethod
    def load(cls, path: str | Path) -> "Rows":
        """Read what `save` wrote."""
        found = load_file(path)
        return cls(np.split(found["ids"], found["ends"][:-1]), found["labels"])

    def save(self, path: Path) -> None:
        """Ids strung together, where each row ends, and labels."""
        ends = np.cumsum([len(row) for row in self.ids]).astype(np.int64)
        save_file({"ids": np.concatenate(self.ids), "ends": ends, "labels": self.labels}, path)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.ids[row], "labels": int(self.labels[row])}


@dataclass(frozen=True)
class Padding:
    """Rows as a batch, padded on the right to the longest or, where given, to a fixed length."""

    pad: int
    length: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Ids and mask [B,S], labels [B]."""
        lengths = np.array([len(row["input_ids"]) for row in rows])
        width = self.length or int(lengths.max())
        ids = np.full((len(rows), width), self.pad, dtype=np.int64)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row["input_ids"])] = row["input_ids"]
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        labels = np.array([row["labels"] for row in rows])
        return {
            name: torch.from_numpy(x) for name, x in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
        }


def whole_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of one length as a batch of a language model; the first token, which nothing predicts, is no label."""
    ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows]).astype(np.int64))
    labels = ids.clone()
    labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class Order(Sampler[int]):
    """Row numbers as they were decided beforehand."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


@dataclass
class Work:
    """One command's data: what a competitor needs beside its models."""

    settings: Settings
    command: dict[str, Any]
    rows: Rows
    losses: list[Tensor] = field(default_factory=list)  # of the steps, in the common convention

    @property
    def bfloat16(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return bool(self.command.get("bfloat16"))

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return int(self.command["steps"])

    @property
    def order(self) -> list[int]:
        """The rows of all steps, one batch after the other."""
        numbers = load_file(self.settings.orders)[str(self.command["seed"])]
        needed = self.steps * self.settings.batch_size
        return [int(number) for number in np.resize(numbers, needed)]

    @property
    def collate(self) -> Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]:
        """Rows -> a batch."""
        return whole_rows if self.settings.task == "language" else Padding(self.settings.pad)

    def record(self, loss: Tensor) -> None:
        """Keep the loss of a step without waiting for it."""
        self.losses.append(loss.detach())


def load(folder: str, task: str) -> Any:
    """A model in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM if task == "language" else AutoModelForSequenceClassification
    return kind.from_pretrained(folder, dtype=torch.float32)


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off, in modules and in attention, so that all tools must find the same losses."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0


def optimiser_for(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW as transformers sets it up: fused, with no decay of biases and norms."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def loop(work: Work, student: nn.Module, loss_of: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """A training loop as one writes it by hand: the loss of each batch, its gradients clipped, a step."""
    settings = work.settings
    optimiser = optimiser_for(student, settings)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, settings.rate(work.steps))
    order, size = work.order, settings.batch_size
    for step in range(work.steps):
        loss = loss_of(work.collate([work.rows[row] for row in order[step * size : (step + 1) * size]]))
        work.record(loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()


@contextmanager
def at_each_step(call: Callable[[], None]) -> Iterator[None]:
    """Call after every step of any optimiser."""
    handle = register_optimizer_step_post_hook(lambda *_: call())
    try:
        yield
    finally:
        handle.remove()


class StepClock:
    """When the steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self) -> None:
        """A step has ended."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """A step, those of the warm-up left out."""
        return (self.ends[-1] - self.ends[WARM - 1]) / (len(self.ends) - WARM)


class Curve:
    """Accuracy against time: the clock stands still while it is taken.

    Args:
        model: that is trained.
        validation: rows that the accuracy is taken on.
        pad: the id that pads.
        every: so many steps between two points.
    """

    def __init__(self, model: Any, validation: Rows, pad: int, every: int) -> None:
        self.model, self.validation, self.pad, self.every = model, validation, pad, every
        self.steps = 0
        self.points: list[dict[str, float]] = []
        self.stood = 0.0
        self.started = time.perf_counter()

    def __call__(self) -> None:
        """A step has ended."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.take()

    def take(self) -> None:
        """A point at the present step."""
        now = time.perf_counter()
        point = {"step": self.steps, "seconds": now - self.started - self.stood}
        self.points.append(point | {"accuracy": accuracy(self.model, self.validation, self.pad)})
        self.stood += time.perf_counter() - now

    def finish(self) -> dict[str, Any]:
        """The curve; its last point is the end of training."""
        seconds = time.perf_counter() - self.started - self.stood
        if not self.points or self.points[-1]["step"] != self.steps:
            self.take()
        return {"points": self.points, "seconds": seconds, "steps": self.steps, "final": self.points[-1]["accuracy"]}


def accuracy(model: Any, rows: Rows, pad: int) -> float:
    """The share of rows that a classifier gets right, in large batches of like length; the model goes on as it was."""
    training, right = model.training, 0
    model.eval()
    order = sorted(range(len(rows)), key=lambda row: len(rows.ids[row]))
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_ROWS):
            batch = Padding(pad)([rows[row] for row in order[start : start + EVALUATION_ROWS]])
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    model.train(training)
    return right / len(rows)


def return_memory() -> None:
    """Give back what earlier segments freed and the C library kept, or the next one's rise would look smaller."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def memory(name: str, *, reset: bool = False) -> int | None:
    """Bytes of VmRSS (now) or VmHWM (the peak since it was last reset) of this process; None where Linux isn't."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


Answer = Callable[[Work], Any]


def no_curve(work: Work) -> dict[str, Any]:
    """What a tool answers that has no defaults."""
    raise LeftOut("it has no defaults of its own")


def measured(work: Work, train: Answer) -> dict[str, Any]:
    """Train for a segment: seconds a step, the peak of memory, losses, and how far the weights have moved."""
    return_memory()
    clock, before = StepClock(), memory("VmRSS")
    memory("VmHWM", reset=True)
    with at_each_step(clock):
        model = train(work)
    peak = memory("VmHWM")
    start = load(work.settings.student, work.settings.task).state_dict()
    found = model.state_dict()
    moved = torch.stack([(found[name] - start[name]).float().norm() for name in start if name in found]).norm().item()
    return {
        "seconds": clock.seconds if len(clock.ends) > WARM else None,
        "steps": len(clock.ends),
        "peak": peak,
        "rise": None if peak is None or before is None else peak - before,
        "losses": [float(loss) for loss in work.losses],
        "moved": moved,
    }


def serve(segment: Answer, curve: Answer = no_curve) -> None:
    """Answer commands until the input ends.

    Args:
        segment: trains for some steps and gives the student.
        curve: trains with the tool's defaults, and gives `Curve.finish`.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    torch.set_num_threads(settings.threads)
    rows = Rows.load(settings.rows)
    out.write(json.dumps({"ready": True, "versions": versions(), "threads": torch.get_num_threads()}) + "\n")
    out.flush()
    for line in sys.stdin:
        work = Work(settings, json.loads(line), rows)
        torch.manual_seed(work.command["seed"])
        try:
            found = measured(work, segment) if work.command["do"] == "segment" else curve(work)
        except LeftOut as reason:
            found = {"left_out": str(reason)}
        out.write(json.dumps(found) + "\n")
        out.flush()


def versions() -> dict[str, str]:
    """Of the packages that make the numbers, in this interpreter."""
    from importlib.metadata import distributions

    named = {"accelerate", "liger-kernel", "nvidia-modelopt", "potstill", "textbrewer", "torch", "transformers", "trl"}
    found = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions()}
    return {"python": sys.version.split()[0]} | {name: found[name] for name in sorted(named & set(found))}
