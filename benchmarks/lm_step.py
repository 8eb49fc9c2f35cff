"""One whole step of distilling a language model, ours beside a naive dense one in plain torch: same models, rows, work.

    python benchmarks/lm_step.py                     # a 32k vocabulary, 8 rows of 512 tokens
    python benchmarks/lm_step.py --repeats 5 --rows 4
    python benchmarks/lm_step.py --vocabularies 1024 4096 8192 16384   # from which size on factored logits pay

A step is the forward passes of teacher and student, forward KL on every token at a temperature, half of the labels'
cross-entropy, the backward pass, clipping and AdamW, in float32 and without dropout. The losses of all forms must
agree. They run in turns; what is reported is the median over repeats of the paired ratio. Memory is the peak of what a
process holds beyond what it held before the steps, on Linux, one process for each form. Writes
benchmarks/results/lm_step.json.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from losses import _kilobytes, return_large_blocks
from records import save
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

from potstill.objective import Objective
from potstill.tasks import CausalLM
from potstill.training import DistillationTrainer, distiller

TEMPERATURE, LABELS = 2.0, 0.5
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
WARM = 1  # steps at the start of a segment that are not timed
RESULTS = Path(__file__).parent / "results" / "lm_step.json"
Form = Callable[[nn.Module, nn.Module, Dataset, int, int], tuple[list[float], float]]


def language_model(layers: int, width: int, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A random language model with heads of 64."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=vocabulary, **sizes)).eval()


def pair(vocabulary: int) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A student and its teacher."""
    return language_model(4, 256, vocabulary, 1), language_model(8, 512, vocabulary, 2)


def blocks(count: int, tokens: int, vocabulary: int) -> Dataset:
    """Full rows of random tokens, as `CausalLM("blocks").encode` gives them."""
    ids = torch.randint(3, vocabulary, (count, tokens), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": ids.tolist(), "length": [tokens] * count})


def empty_tokenizer() -> PreTrainedTokenizerFast:
    """No row is padded and no text is read here: it stands in for the one that made the rows."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[END]": 1}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[END]")


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def ours(student: nn.Module, teacher: nn.Module, rows: Dataset, batch: int, steps: int) -> tuple[list[float], float]:
    """Steps of `DistillationTrainer`; the losses, and the seconds of a step after the first."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=RATE,
            weight_decay=DECAY,
            lr_scheduler_type="constant",
            max_grad_norm=CLIP,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        terms = [{"knowledge": "labels", "weight": LABELS}, {"knowledge": "logits", "temperature": TEMPERATURE}]
        trainer = DistillationTrainer(
            student,  # type: ignore[arg-type]
            Objective(terms),
            CausalLM("blocks"),
            empty_tokenizer(),
            rows,
            teacher=teacher,  # type: ignore[arg-type]
            args=arguments,
            callbacks=[clock],
        )
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)  # type: ignore[assignment, method-assign]
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, seconds_a_step(clock.ends)


def dense(student: nn.Module, teacher: nn.Module, rows: Dataset, batch: int, steps: int) -> tuple[list[float], float]:
    """The same steps by our trainer, with the matrices of logits formed."""
    usual, distiller.LARGE_VOCABULARY = distiller.LARGE_VOCABULARY, sys.maxsize
    try:
        return ours(student, teacher, rows, batch, steps)
    finally:
        distiller.LARGE_VOCABULARY = usual


def naive(student: nn.Module, teacher: nn.Module, rows: Dataset, batch: int, steps: int) -> tuple[list[float], float]:
    """The same steps by hand."""
    student.train()
    groups = [
        {"params": [p for p in student.parameters() if (p.ndim > 1) == decays], "weight_decay": DECAY * decays}
        for decays in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, lr=RATE, fused=True)
    losses, ends = [], []
    for step in range(steps):
        ids = torch.tensor(rows[step * batch : (step + 1) * batch]["input_ids"])
        with torch.no_grad():
            target = teacher(input_ids=ids).logits[:, :-1].flatten(0, 1)
        logits = student(input_ids=ids).logits[:, :-1].flatten(0, 1)
        apart = functional.kl_div(
            functional.log_softmax(logits / TEMPERATURE, -1),
            functional.log_softmax(target / TEMPERATURE, -1),
            log_target=True,
            reduction="batchmean",
        )
        loss = LABELS * functional.cross_entropy(logits, ids[:, 1:].flatten()) + TEMPERATURE**2 * apart
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return losses, seconds_a_step(ends)


def seconds_a_step(ends: list[float]) -> float:
    """From when each step ended."""
    return (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)


FORMS: dict[str, Form] = {"ours": ours, "dense": dense, "naive": naive}


def segment(name: str, vocabulary: int, batch: int, tokens: int, steps: int) -> tuple[list[float], float]:
    """Fresh models, and some steps of a form."""
    return FORMS[name](*pair(vocabulary), blocks(batch * steps, tokens, vocabulary), batch, steps)


def peak(name: str, vocabulary: int, batch: int, tokens: int, threads: int, into: Any) -> None:
    """Put the most that a process holds in two steps, beyond its models; the second has the optimiser's state."""
    torch.set_num_threads(threads)
    return_large_blocks()
    rows, models = blocks(2 * batch, tokens, vocabulary), pair(vocabulary)
    segment(name, 256, 1, 8, 2)  # what is loaded with the first step
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        into.put(None)
        return
    reset.write_text("5")
    before = _kilobytes(status, "VmRSS")
    FORMS[name](*models, rows, batch, 2)
    into.put(1024 * (_kilobytes(status, "VmHWM") - before))


def peak_bytes(name: str, *sizes: int) -> int | None:
    """`peak` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak, args=(name, *sizes, torch.get_num_threads(), queue))
    process.start()
    found: int | None = queue.get()
    process.join()
    return found


def measured(vocabulary: int, given: argparse.Namespace) -> dict[str, Any]:
    """All forms in turns at one size; raises if they don't compute the same."""
    sizes = (vocabulary, given.rows, given.tokens)
    found: dict[str, list[float]] = {name: [] for name in given.forms}
    first: dict[str, list[float]] = {}
    for repeat in range(given.repeats):
        for name in given.forms if repeat % 2 == 0 else reversed(given.forms):
            losses, seconds = segment(name, *sizes, given.steps)
            first.setdefault(name, losses)
            found[name].append(seconds)
    for name, losses in first.items():
        torch.testing.assert_close(losses, first[given.forms[0]], rtol=1e-3, atol=1e-3, msg=f"{name}: other losses")
    base = given.forms[-1]
    made = {
        name: {
            "seconds": statistics.median(seconds),
            "ratio": statistics.median(a / b for a, b in zip(seconds, found[base], strict=True)),
            "bytes": peak_bytes(name, *sizes) if given.memory else None,
        }
        for name, seconds in found.items()
    }
    for name, one in made.items():
        print(
            f"{vocabulary}: {name} {one['seconds']:.2f} s, ratio {one['ratio']:.2f}, bytes {one['bytes']}", flush=True
        )
    return {"vocabulary": vocabulary, "rows": given.rows, "tokens": given.tokens, "base": base, "forms": made}


def main() -> None:
    """Run the sizes and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["ours", "naive"], help="the last is the base")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--tokens", type=int, default=512, help="of a row")
    parser.add_argument("--steps", type=int, default=3, help="of a segment, the first not timed")
    parser.add_argument("--repeats", type=int, default=3, help="segments of each form")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    result = {
        "what": "seconds of a step and peak bytes beyond the models; ratio is to the base, paired, medians",
        "sizes": [measured(vocabulary, given) for vocabulary in given.vocabularies],
        "repeats": given.repeats,
        "precision": "float32",
        "threads": torch.get_num_threads(),
    }
    save(given.out, result)


if __name__ == "__main__":
    main()
