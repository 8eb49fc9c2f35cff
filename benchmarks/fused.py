"""The fused loss beside its four matrix products alone, a naive dense loss, and peers: forward and backward, float32.

    python benchmarks/fused.py              # 4,096 tokens, 32,000 classes
    python benchmarks/peers.py --table      # writes the table of docs/benchmarks.md from the results

Student width 512, teacher width 1,024, all positions counted, T = 1, beta = 0.5. The losses of Liger-Kernel and TRL
stand beside it where `make peers` has set up their environments. All forms run in turns, each in a process of its own
whose peak is read; what is reported is the median over repeats of the ratio to the products that ran in the same turn.
The products are those of student logits, teacher logits, gradient of the states and gradient of the weight, in chunks
of the size that the fused loss takes, into memory that is used again. Before that, gradients must agree with the naive
ones, or the exit status is 1. Writes benchmarks/results/fused.json.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "fused.json"
STUDENT, TEACHER, LIKELIEST = 512, 1024, 64
OURS = ("jensen_shannon", "kl_divergence", "reverse_kl_divergence", "skewed_kl_divergence")
FORMS = (
    "products",
    *(f"fused {name}" for name in OURS),
    "fused kl_divergence, frozen head",
    f"fused kl_divergence, top {LIKELIEST} from a cache",
    "naive jensen_shannon",
    "naive kl_divergence",
)
PEERS = {"liger jensen_shannon": "liger", "trl jensen_shannon": "trl"}
ENVIRONMENTS = Path(__file__).parents[1] / ".venv-peers"


def inputs(tokens: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and head of the student, which want gradients, and of the teacher."""
    torch.manual_seed(0)
    made = [torch.randn(tokens, STUDENT), torch.randn(classes, STUDENT) * STUDENT**-0.5]
    other = [torch.randn(tokens, TEACHER), torch.randn(classes, TEACHER) * TEACHER**-0.5]
    return made[0].requires_grad_(), made[1].requires_grad_(), other[0], other[1]


def products(tokens: int, classes: int) -> Callable[[], Any]:
    from potstill.losses._fused_blocks import chunk_rows

    states, weight, other, head = (one.detach() for one in inputs(tokens, classes))
    chunk = chunk_rows(tokens, classes)

    def step() -> tuple[Tensor, Tensor]:
        logits, target = torch.empty(chunk, classes), torch.empty(chunk, classes)
        of_states, of_weight = torch.empty_like(states), torch.zeros_like(weight)
        for start in range(0, tokens, chunk):
            rows = slice(start, min(start + chunk, tokens))
            own, count = states[rows], rows.stop - rows.start
            torch.mm(own, weight.t(), out=logits[:count])
            torch.mm(other[rows], head.t(), out=target[:count])
            torch.mm(logits[:count], weight, out=of_states[rows])
            of_weight.addmm_(logits[:count].t(), own)
        return of_states, of_weight

    return step


def fused(form: str, tokens: int, classes: int) -> Callable[[], Any]:
    from potstill.losses.fused import FactoredLogits, FusedPart, SparseLogits, fused_loss

    states, weight, other, head = inputs(tokens, classes)
    if "frozen" in form:
        weight.requires_grad_(False)
    teacher: Any = FactoredLogits(other, head)
    if "cache" in form:
        rows = (torch.log_softmax(one @ head.t(), -1).topk(LIKELIEST) for one in other.split(128))
        values, ids = (torch.cat(one) for one in zip(*rows, strict=True))
        teacher = SparseLogits(values, ids, torch.log1p(-values.exp().sum(-1).clamp(max=1 - 1e-6)))
    part = FusedPart(form.split()[1].rstrip(","), torch.full((tokens,), 1 / tokens))

    def step() -> tuple[Tensor, ...]:
        total, _ = fused_loss(FactoredLogits(states, weight), [part], teacher=teacher)
        return torch.autograd.grad(total, [one for one in (states, weight) if one.requires_grad])

    return step


def naive(form: str, tokens: int, classes: int) -> Callable[[], Any]:
    from torch.nn.functional import kl_div

    states, weight, other, head = inputs(tokens, classes)

    def step() -> tuple[Tensor, ...]:
        log_s, log_t = torch.log_softmax(states @ weight.t(), -1), torch.log_softmax(other @ head.t(), -1)
        if "jensen" in form:
            middle = torch.log(0.5 * (log_s.exp() + log_t.exp()))
            total = 0.5 * sum(kl_div(middle, one, log_target=True, reduction="sum") for one in (log_s, log_t))
        else:
            total = kl_div(log_s, log_t, log_target=True, reduction="sum")
        return torch.autograd.grad(total / tokens, (states, weight))

    return step


def peer(form: str, tokens: int, classes: int) -> Callable[[], Any]:
    states, weight, other, head = inputs(tokens, classes)
    if form.startswith("liger"):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
        labels = torch.zeros(tokens, dtype=torch.long)
        return lambda: torch.autograd.grad(loss(states, weight, other, head, labels), (states, weight))
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        from trl import GKDTrainer

    def step() -> tuple[Tensor, ...]:
        logits, target = (states @ weight.t()).unsqueeze(0), (other @ head.t()).unsqueeze(0)
        total = GKDTrainer.generalized_jsd_loss(logits, target, beta=0.5, reduction="batchmean")
        return torch.autograd.grad(total, (states, weight))

    return step


def made(form: str, tokens: int, classes: int) -> Callable[[], Any]:
    if form == "products":
        return products(tokens, classes)
    kind = form.split()[0]
    return {"fused": fused, "naive": naive}.get(kind, peer)(form, tokens, classes)


def serve(form: str, tokens: int, classes: int) -> None:
    """In the process of one form: a line in, a step's seconds and peak bytes out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(-3, 64 * 1024)  # what is freed goes back at once, or a peak would hide in it
    step = made(form, tokens, classes)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key + ":"))

    for _ in sys.stdin:
        before = 0
        if reset.exists():
            reset.write_text("5")
            before = kilobytes("VmRSS")
        started = time.perf_counter()
        found = step()
        seconds = time.perf_counter() - started
        peak = 1024 * (kilobytes("VmHWM") - before) if reset.exists() else None
        del found
        print(json.dumps({"seconds": seconds, "bytes": peak}), flush=True)


def difference(tokens: int, classes: int) -> dict[str, float]:
    """The largest difference of our gradients from the naive ones, relative to the largest of those, in float64: in
    float32 two forms that are the same are apart by what either rounds."""
    found = {}
    torch.set_default_dtype(torch.float64)
    for name in ("jensen_shannon", "kl_divergence"):
        pairs = zip(fused(f"fused {name}", tokens, classes)(), naive(name, tokens, classes)(), strict=True)
        found[name] = max(float((ours - plain).abs().max() / plain.abs().max()) for ours, plain in pairs)
    torch.set_default_dtype(torch.float32)
    return found


def measured(forms: dict[str, str], tokens: int, classes: int, repeats: int) -> list[dict[str, Any]]:
    """Every form in turns; the first turn, which also makes what is made once, is not counted."""
    asked = ["--tokens", str(tokens), "--classes", str(classes)]
    running = {
        form: subprocess.Popen(
            [python, __file__, "--serve", form, *asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for form, python in forms.items()
    }
    turns: list[dict[str, Any]] = []
    for turn in range(repeats + 1):
        found = {}
        for form, process in running.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found[form] = json.loads(process.stdout.readline() or "null")
        if turn:
            turns.append(found)
    for process in running.values():
        process.communicate()
    rows = []
    for form in forms:
        if any(turn[form] is None for turn in turns):
            print(f"{form}: left out, since it failed")
            continue
        ratios = [turn[form]["seconds"] / turn["products"]["seconds"] for turn in turns]
        row: dict[str, Any] = {"form": form, "ratio": statistics.median(ratios), "ratios": ratios}
        for key in ("seconds", "bytes"):
            known = [turn[form][key] for turn in turns]
            row[key] = None if None in known else statistics.median(known)
        rows.append(row)
        size = "" if row["bytes"] is None else f", {row['bytes'] / 1e6:.0f} MB"
        print(f"{form}: {row['seconds']:.2f} s{size}, {row['ratio']:.3f} of the products", flush=True)
    return rows


def main() -> None:
    """Run the forms and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=5, help="turns that are counted")
    parser.add_argument("--only", nargs="+", metavar="FORM", help="these beside the products")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="relative difference of gradients allowed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.tokens, given.classes)
    from records import save

    apart = difference(min(given.tokens, 512), given.classes)
    forms = dict.fromkeys(FORMS, sys.executable)
    for form, peer in PEERS.items():
        if (python := ENVIRONMENTS / peer / "bin" / "python").exists():
            forms[form] = str(python)
        else:
            print(f"{form}: left out, since there is no {python}: run `make peers`")
    if given.only:
        forms = {form: python for form, python in forms.items() if form in ("products", *given.only)}
    result = {
        "what": "seconds and peak bytes of forward and backward; ratio is to the four matrix products of the same turn",
        "forms": measured(forms, given.tokens, given.classes, given.repeats),
        "difference_of_gradients": apart,
        "tokens": given.tokens,
        "classes": given.classes,
        "widths": {"student": STUDENT, "teacher": TEACHER},
        "repeats": given.repeats,
        "precision": "float32",
        "threads": torch.get_num_threads(),
    }
    save(given.out, result)
    print(f"gradients differ by {apart}")
    if max(apart.values()) > given.tolerance:
        sys.exit("The gradients differ from the naive ones by more than is allowed")


if __name__ == "__main__":
    main()
