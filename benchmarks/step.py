"""Our training step beside a hand-written PyTorch loop that does the same work: same models, rows, batches, precision.

    python benchmarks/step.py                  # the packaged MiniLM, six layers teaching three
    python benchmarks/step.py --repeats 9

Both run the same batches in turns, segment by segment, on the same machine; what is reported is the median over
segments of the paired ratio. The first steps of each segment are not timed. Writes benchmarks/results/step.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from records import save
from torch.nn import functional
from transformers import TrainerCallback

from potstill.data.samples import fetch_model, load_sample_data
from potstill.objective import Objective
from potstill.students import build_student
from potstill.tasks import TextClassification, load_tokenizer
from potstill.tasks.base import quiet_transformers
from potstill.training import DistillationTrainer, TrainSettings, detect_precision
from potstill.training.sampler import LengthGroupedSampler
from potstill.training.stages import Lesson, training_arguments

WARM = 3
PARTS = ("data", "teacher forward", "student forward", "loss", "student backward", "clip", "optimiser")
TEMPERATURE = 2.0


def setup() -> dict[str, Any]:
    """Teacher, start of the student, rows."""
    path = fetch_model("minilm-l6")
    task, tokenizer = TextClassification(), load_tokenizer(path)
    torch.manual_seed(0)
    teacher = task.load(path).model
    rows = load_sample_data("reviews", {})["train"]
    rows = rows.map(lambda row: {"labels": int(row["label"] == "positive")}).select_columns(["text", "labels"])
    encoded = task.encode(rows, tokenizer, max_length=128)
    return {"task": task, "tokenizer": tokenizer, "teacher": teacher, "rows": encoded}


class StepClock(TrainerCallback):
    """The time between the end of step `WARM` and the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """A step."""
        return (self.ends[-1] - self.ends[WARM - 1]) / (len(self.ends) - WARM)


def ours(made: dict[str, Any], settings: TrainSettings, bfloat16: bool, seed: int) -> float:
    """Seconds a step of `DistillationTrainer`."""
    student = build_student(made["teacher"], layers=3)
    objective = Objective([{"knowledge": "logits", "temperature": TEMPERATURE}])
    lesson = Lesson(made["task"], made["tokenizer"], made["rows"], objective, made["teacher"])
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            student,
            objective,
            made["task"],
            made["tokenizer"],
            made["rows"],
            teacher=made["teacher"],
            args=training_arguments(settings, student, lesson, Path(folder), bfloat16=bfloat16, seed=seed),
            teacher_dtype=torch.bfloat16 if bfloat16 else None,
            callbacks=[clock],
        )
        trainer._save_checkpoint = lambda *_: None  # type: ignore[method-assign]  # the loop beside it saves nothing
        trainer.train()
    return clock.seconds


def by_hand(made: dict[str, Any], settings: TrainSettings, bfloat16: bool, seed: int) -> tuple[float, dict[str, float]]:
    """Seconds a step of a plain loop over the same batches, and where they go."""
    torch.manual_seed(seed)
    student = build_student(made["teacher"], layers=3).train()
    teacher = made["teacher"].eval()
    if bfloat16:
        import copy

        teacher = copy.deepcopy(teacher).bfloat16()
    decay = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.rate(student.config.hidden_size), fused=True)
    steps = int(settings.steps or 0)
    warm = settings.warmup * steps
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(s / warm, (steps - s) / (steps - warm)))
    order = list(LengthGroupedSampler(made["rows"]["length"], settings.batch_size, seed))
    collate, rows = made["task"].collator(made["tokenizer"]), made["rows"]
    parts = dict.fromkeys(PARTS, 0.0)
    started = 0.0
    for step in range(steps):
        if step == WARM:
            parts, started = dict.fromkeys(parts, 0.0), time.perf_counter()
        marks = [time.perf_counter()]
        batch = collate(rows.__getitems__(order[step * settings.batch_size : (step + 1) * settings.batch_size]))
        labels = batch.pop("labels")
        marks.append(time.perf_counter())
        with torch.no_grad():
            target = teacher(**batch).logits.float()
        marks.append(time.perf_counter())
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = student(**batch).logits.float()
        marks.append(time.perf_counter())
        student_log = functional.log_softmax(logits / TEMPERATURE, -1)
        teacher_log = functional.log_softmax(target / TEMPERATURE, -1)
        divergence = functional.kl_div(student_log, teacher_log, log_target=True, reduction="sum")
        loss = TEMPERATURE**2 * divergence / len(labels)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        marks.append(time.perf_counter())
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        marks.append(time.perf_counter())
        for name, begin, end in zip(parts, marks, marks[1:], strict=False):
            parts[name] += end - begin
    total = time.perf_counter() - started
    return total / (steps - WARM), {name: value / total for name, value in parts.items()}


def main() -> None:
    """Run the segments and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="segments of each")
    parser.add_argument("--steps", type=int, default=33, help="steps of a segment, the first 3 not timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    given = parser.parse_args()
    precision = detect_precision()
    settings = TrainSettings(steps=given.steps, batch_size=32)
    with quiet_transformers():
        made = setup()
        pairs, shares = [], []
        for repeat in range(given.repeats):
            first = ours(made, settings, precision.bfloat16, repeat) if repeat % 2 == 0 else None
            hand, share = by_hand(made, settings, precision.bfloat16, repeat)
            mine = first if first is not None else ours(made, settings, precision.bfloat16, repeat)
            pairs.append((mine, hand))
            shares.append(share)
            times = f"ours {mine * 1e3:.1f} ms, by hand {hand * 1e3:.1f} ms"
            print(f"segment {repeat}: {times}, ratio {mine / hand:.3f}", flush=True)
    ratios = [mine / hand for mine, hand in pairs]
    result = {
        "what": "seconds a step of DistillationTrainer over those of a hand-written loop, paired by segment",
        "ratio": {"median": statistics.median(ratios), "all": ratios},
        "seconds": {"ours": [a for a, _ in pairs], "by_hand": [b for _, b in pairs]},
        "shares_of_the_step_by_hand": {name: statistics.median(s[name] for s in shares) for name in shares[0]},
        "setting": {
            "teacher": "minilm-l6, 6 layers",
            "student": "3 of its layers",
            "rows": "reviews, length-grouped",
            "batch": 32,
            "steps": given.steps - WARM,
            "precision": precision.name,
            "threads": torch.get_num_threads(),
        },
    }
    save(given.out, result)
    print(f"ratio {result['ratio']['median']:.3f}")
    for name, value in result["shares_of_the_step_by_hand"].items():
        print(f"  {100 * value:5.1f} %  {name}")


if __name__ == "__main__":
    main()
