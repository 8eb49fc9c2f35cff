"""Time and memory of each loss beside a naive form of it: forward and backward, float32, a quarter of it padding.

    python benchmarks/losses.py                          # every loss of potstill.losses
    python benchmarks/losses.py --only hidden_cka crd    # some
    python benchmarks/losses.py --table docs/losses-cost.md   # the table anew from the results, nothing is run

Before anything is timed, both forms must agree in value and gradient, or the loss is reported and the exit status is 1.
Then they run in turns; what is reported is the median over repeats of the paired ratio. Memory is the peak of what the
process holds beyond the inputs, on Linux. Writes benchmarks/results/losses.json; with --only, what is there is kept.
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import naive
import torch
from records import save
from torch import Tensor

from potstill import losses
from potstill.reduce import masked_mean

RESULTS = Path(__file__).parent / "results" / "losses.json"
TAPS = RESULTS.with_name("taps.json")
LONG_ENOUGH = 0.02  # seconds that one timing lasts at least, by repetition
Form = Callable[[], Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a loss is called with: the second is the teacher, or the labels; the student's gradient is asked for."""

    student: Tensor
    second: Tensor
    mask: Tensor | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A loss at a shape: what makes the inputs, and the options of both forms."""

    name: str
    shape: str
    make: Callable[[], Inputs]
    options: Mapping[str, Any] = field(default_factory=dict)


def padding(rows: int, length: int) -> Tensor:
    """[rows, length], true from the left over lengths from half to the whole."""
    return torch.arange(length) < torch.linspace(length // 2, length, rows).round().unsqueeze(1)


def some(count: int) -> Tensor:
    """[count], three of four true."""
    return torch.arange(count) % 4 != 3


def near(*shape: int) -> tuple[Tensor, Tensor]:
    """A student that has learnt something, and its teacher."""
    teacher = torch.randn(shape)
    return (teacher + 0.5 * torch.randn(shape)).requires_grad_(), teacher


def logits(positions: int, classes: int) -> Callable[[], Inputs]:
    return lambda: Inputs(*near(positions, classes), some(positions))


def with_labels(positions: int, classes: int) -> Callable[[], Inputs]:
    return lambda: Inputs(*near(positions, classes), some(positions), {"labels": torch.randint(classes, (positions,))})


def classes_as_labels(positions: int, classes: int) -> Callable[[], Inputs]:
    return lambda: Inputs(near(positions, classes)[0], torch.randint(classes, (positions,)), some(positions))


def yes_or_no() -> Inputs:
    return Inputs(near(64, 77)[0], torch.randint(2, (64, 77)).float(), some(64))


def numbers() -> Inputs:
    return Inputs(near(64, 1)[0], torch.randn(64), some(64))


def hidden() -> Inputs:
    return Inputs(*near(64, 64, 384), padding(64, 64))


def two_layers() -> Inputs:
    later = near(64, 64, 384)
    extra = {"student_next": later[0].detach(), "teacher_next": later[1]}
    return Inputs(*near(64, 64, 384), padding(64, 64), extra)


def scores() -> Inputs:
    return Inputs(*near(32, 12, 64, 64), padding(32, 64))


def attention() -> Inputs:
    student, teacher = near(32, 12, 64, 64)
    mask = padding(32, 64)
    maps = [x.detach().masked_fill(~mask[:, None, None, :], -1e9).softmax(-1) for x in (student, teacher)]
    return Inputs(maps[0].requires_grad_(), maps[1], mask)


def relations() -> Inputs:
    return Inputs(*near(32, 12, 64, 32), padding(32, 64))


def rows() -> Inputs:
    return Inputs(*near(64, 384), some(64))


def memory_bank() -> Inputs:
    banks = [torch.nn.functional.normalize(torch.randn(10_000, 128), dim=-1) for _ in range(2)]
    own = torch.arange(64).unsqueeze(1)
    candidates = torch.cat([own, torch.randint(64, 10_000, (64, 1024))], dim=1)
    extra = {"student_bank": banks[0], "teacher_bank": banks[1], "candidates": candidates}
    return Inputs(*near(64, 128), some(64), extra | {"constants": torch.tensor([2e4, 2e4])})


def pixels() -> Inputs:
    return Inputs(*near(4, 19, 64, 64), torch.rand(4, 64, 64) > 0.1)


def channels() -> Inputs:
    return Inputs(*near(4, 19, 64, 64), None)


SOFT = {"temperature": 2.0}
TRIPLES = {"heads": 12, "vertices": 20, "neighbours": 20}
LOGITS: dict[str, Mapping[str, Any]] = {
    "kl_divergence": SOFT,
    "reverse_kl_divergence": SOFT,
    "symmetric_kl_divergence": SOFT,
    "jensen_shannon": SOFT | {"beta": 0.5},
    "skewed_kl_divergence": SOFT | {"alpha": 0.1},
    "skewed_reverse_kl_divergence": SOFT | {"alpha": 0.1},
    "total_variation": {},
    "soft_cross_entropy": SOFT,
    "standardised_kl_divergence": SOFT,
    "logit_mse": {},
    "dist": {"beta": 1.0, "gamma": 1.0},
    "universal_logit_distance": {},
    "pseudo_label_cross_entropy": {},
}
SMALL, LARGE = (64, 77), (2048, 8192)

# One entry for each loss and shape.
CASES = (
    *(Case("cross_entropy", f"{n}x{v}", classes_as_labels(n, v)) for n, v in (SMALL, LARGE)),
    Case("binary_cross_entropy", "64x77", yes_or_no),
    Case("squared_error", "64x1", numbers),
    *(Case(name, f"{n}x{v}", logits(n, v), given) for name, given in LOGITS.items() for n, v in (SMALL, LARGE)),
    Case("binary_kl_divergence", "64x77", logits(*SMALL), SOFT),
    *(
        Case("decoupled_kl_divergence", f"{n}x{v}", with_labels(n, v), SOFT | {"alpha": 1.0, "beta": 8.0})
        for n, v in (SMALL, LARGE)
    ),
    *(
        Case(name, "64x64x384", hidden)
        for name in (
            "hidden_mse",
            "hidden_cosine",
            "hidden_normalised_mse",
            "gram_mse",
            "similarity_mse",
            "neuron_selectivity",
            "attention_transfer",
            "hidden_cka",
        )
    ),
    Case("flow_mse", "64x64x384", two_layers),
    Case("mgskd_tokens", "64x64x384", hidden, TRIPLES),
    Case("mgskd_spans", "64x64x384", hidden, TRIPLES | {"span": 3}),
    Case("score_mse", "32x12x64x64", scores),
    *(Case(name, "32x12x64x64", attention) for name in ("attention_mse", "attention_kl")),
    *(Case(name, "32x12x64x32", relations) for name in ("relation_kl", "relation_mse")),
    *(Case(name, "64x384", rows) for name in ("rkd_distance", "rkd_angle", "similarity_preserving")),
    Case("mgskd_samples", "64x384", rows, {"heads": 12}),
    Case("info_nce", "64x384", rows, {"temperature": 0.5}),
    Case("crd", "64x128, 1024 of 10,000", memory_bank, {"temperature": 0.07}),
    Case("pixel_kl_divergence", "4x19x64x64", pixels, SOFT),
    Case("channel_kl_divergence", "4x19x64x64", channels, SOFT),
    Case("pairwise_affinity_mse", "4x19x64x64", channels, {"patch": 2}),
)


def forms(case: Case, made: Inputs) -> tuple[Form, Form]:
    """Our form and the naive one, ready to be called; each gives the mean over the positions that count."""
    given = {**made.extra, **case.options}
    loss, plain = getattr(losses, case.name), getattr(naive, case.name)

    def ours() -> Tensor:
        values = loss(made.student, made.second, mask=made.mask, **given)
        # One value a row or sequence has a mask of its own: those in which anything counts.
        mask = made.mask if made.mask is None or made.mask.ndim == values.ndim else made.mask.flatten(1).any(1)
        return masked_mean(values, mask)

    return ours, lambda: plain(made.student, made.second, made.mask, **given)


def step(form: Form, student: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward: the value and the student's gradient."""
    value = form()
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def in_double(made: Inputs) -> Inputs:
    """The same inputs in float64, where two forms that are the same agree in all but the last digits."""

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    student = made.student.detach().double().requires_grad_()
    return Inputs(student, double(made.second), made.mask, {key: double(value) for key, value in made.extra.items()})


def difference(case: Case) -> dict[str, float]:
    """How far the two forms are from each other, relative to the value and to the largest gradient."""
    made = in_double(case.make())
    (value, gradient), (wanted, reference) = (step(form, made.student) for form in forms(case, made))
    scale = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return {
        "value": float((value - wanted).abs() / wanted.abs().clamp(min=1e-6)),
        "gradient": float((gradient - reference).abs().max() / scale),
    }


def seconds(form: Form, student: Tensor, calls: int) -> float:
    """A call."""
    started = time.perf_counter()
    for _ in range(calls):
        step(form, student)
    return (time.perf_counter() - started) / calls


def peak_bytes(form: Form, student: Tensor) -> int | None:
    """The most that the process held during a call, beyond what it held before; None where that can't be told."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = _kilobytes(status, "VmRSS")
    step(form, student)
    return 1024 * max(_kilobytes(status, "VmHWM") - before, 0)


def _kilobytes(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key + ":"))


def return_large_blocks() -> None:
    """Have what is freed given back to the system at once, or a peak would hide in what an earlier call left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(-3, 64 * 1024)  # M_MMAP_THRESHOLD, which also keeps it from growing


def timed(case: Case, repeats: int) -> dict[str, Any]:
    """Both forms in turns, who is first in turns too."""
    made = case.make()
    both = forms(case, made)
    once = max(seconds(form, made.student, 1) for form in both for _ in range(2))
    calls = max(1, round(LONG_ENOUGH / once))
    pairs = []
    for repeat in range(repeats):
        order = (0, 1) if repeat % 2 == 0 else (1, 0)
        found = {which: seconds(both[which], made.student, calls) for which in order}
        pairs.append((found[0], found[1]))
    ratios = [ours / plain for ours, plain in pairs]
    return {
        "seconds": statistics.median(ours for ours, _ in pairs),
        "naive_seconds": statistics.median(plain for _, plain in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def measured_bytes(case: Case, repeats: int = 3) -> dict[str, int | None]:
    """The median peak of each form."""
    made = case.make()
    found = {}
    for key, form in zip(("bytes", "naive_bytes"), forms(case, made), strict=True):
        step(form, made.student)  # what is made once, by the first call
        peaks = [peak_bytes(form, made.student) for _ in range(repeats)]
        found[key] = None if None in peaks else int(statistics.median(p for p in peaks if p is not None))
    return found


def table(result: Mapping[str, Any]) -> str:
    """The results as a page of markdown."""

    def megabytes(count: int | None) -> str:
        return "" if count is None else f"{count / 2**20:.1f}"

    name = result["hardware"]["processor"]
    lines = [
        "<!-- made by benchmarks/losses.py --table; change that, not this -->",
        "# What each loss costs",
        "",
        "Forward and backward in float32 beside a naive form (a boolean index for the padding, one plain line after",
        f"another), paired, medians of {result['repeats']} repeats; {result['threads']} threads of {name}.",
        "",
        "| loss | shape | ms | naive ms | ratio | MiB | naive MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{one['loss']}` | {one['shape']} | {1e3 * one['seconds']:.2f} | {1e3 * one['naive_seconds']:.2f} "
        f"| {one['ratio']:.2f} | {megabytes(one['bytes'])} | {megabytes(one['naive_bytes'])} |"
        for one in result["losses"]
    ]
    if TAPS.exists():
        lines += taps_table(json.loads(TAPS.read_text(encoding="utf-8")))
    return "\n".join(lines) + "\n"


def taps_table(result: Mapping[str, Any]) -> list[str]:
    """What it costs to observe a model, as lines of markdown, from the results of taps.py."""
    setting = ", ".join(f"{name} {value}" for name, value in result["setting"].items())
    return [
        "",
        "## What observing costs",
        "",
        "A forward and backward pass with what is asked for collected, over the plain pass, paired, medians "
        f"({setting}). Attention maps and scores need eager attention.",
        "",
        "| observed | time over the plain pass |",
        "|---|---:|",
        *(f"| {name} | {one['median']:.2f} |" for name, one in result["ratio_to_plain"].items()),
    ]


def run(cases: list[Case], repeats: int, tolerance: float) -> tuple[list[dict[str, Any]], list[str]]:
    """The measurements, and the losses whose forms don't agree. Time first: memory needs a slower allocator."""
    found, wrong = [], []
    for case in cases:
        torch.manual_seed(0)
        apart = difference(case)
        if max(apart.values()) > tolerance:
            wrong.append(f"{case.name} {case.shape}: {apart}")
        one = {"loss": case.name, "shape": case.shape, "difference": apart, **timed(case, repeats)}
        print(f"{case.name} {case.shape}: {1e3 * one['seconds']:.2f} ms, ratio {one['ratio']:.2f}", flush=True)
        found.append(one)
    return_large_blocks()
    for case, one in zip(cases, found, strict=True):
        torch.manual_seed(0)
        one.update(measured_bytes(case))
    return found, wrong


def main() -> None:
    """Run the cases and write the JSON, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="LOSS", help="these losses alone")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each form")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="relative difference of the two forms allowed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, help="write the results there as markdown, and run nothing")
    given = parser.parse_args()
    if given.table:
        given.table.write_text(table(json.loads(given.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    if missing := set(losses.__all__) ^ {case.name for case in CASES} if not given.only else set():
        sys.exit(f"Losses without a case here, or cases without a loss: {', '.join(sorted(missing))}")
    if unknown := set(given.only or ()) - {case.name for case in CASES}:
        sys.exit(f"No case for: {', '.join(sorted(unknown))}")
    cases = [case for case in CASES if not given.only or case.name in given.only]
    found, wrong = run(cases, given.repeats, given.tolerance)
    earlier = json.loads(given.out.read_text(encoding="utf-8"))["losses"] if given.only and given.out.exists() else []
    known = {(one["loss"], one["shape"]): one for one in (*earlier, *found)}
    result = {
        "what": "seconds and peak bytes of forward and backward, ours and a naive form, paired; ratio is ours to naive",
        "losses": [known[key] for case in CASES if (key := (case.name, case.shape)) in known],
        "repeats": given.repeats,
        "precision": "float32",
        "threads": torch.get_num_threads(),
    }
    save(given.out, result)
    if wrong:
        sys.exit("The two forms of these differ: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
