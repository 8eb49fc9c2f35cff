"""What the word embeddings cost in a step: trained densely, sparsely, or not at all.

    python benchmarks/optimiser.py

The packaged MiniLM of six layers teaches three of its own on reviews; half of the student's parameters are its table of
words. Segments of each kind are taken in turns on the same batches; what is reported is the median over segments of the
ratio to the dense one beside it, and where a step of a hand-written dense loop goes. Writes results/optimiser.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from records import save
from step import WARM, StepClock, by_hand, setup

from potstill.objective import Objective
from potstill.students import build_student
from potstill.tasks.base import quiet_transformers
from potstill.training import Precision, TrainSettings
from potstill.training.stages import Lesson, train
from potstill.training.trainer import DistillationTrainer

KINDS = ("dense", "sparse", "frozen")


def seconds(made: dict[str, Any], kind: str, steps: int, seed: int) -> float:
    """Seconds a step of a stage with one kind of embeddings."""
    student = build_student(made["teacher"], layers=3)
    objective = Objective([{"knowledge": "logits", "temperature": 2.0}])
    lesson = Lesson(made["task"], made["tokenizer"], made["rows"], objective, made["teacher"])
    settings = TrainSettings(steps=steps, batch_size=32, embeddings=kind)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        train(
            student,
            lesson,
            settings,
            Path(folder),
            precision=Precision("float32", "the benchmark says so"),
            seed=seed,
            progress=lambda *_: clock.on_step_end(None, None, None),
        )
    return clock.seconds


def main() -> None:
    """Run the segments and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="segments of each")
    parser.add_argument("--steps", type=int, default=23, help="steps of a segment, the first 3 not timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "optimiser.json")
    given = parser.parse_args()
    DistillationTrainer._save_checkpoint = lambda *_: None  # type: ignore[method-assign]  # nothing is saved
    with quiet_transformers():
        made = setup()
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for repeat in range(given.repeats):
            for kind in KINDS if repeat % 2 == 0 else KINDS[::-1]:
                found[kind].append(seconds(made, kind, given.steps, repeat))
            print(", ".join(f"{kind} {found[kind][-1] * 1e3:.1f} ms" for kind in KINDS), flush=True)
        _, shares = by_hand(made, TrainSettings(steps=given.steps, batch_size=32), False, 0)
    pairs = {kind: [a / b for a, b in zip(found[kind], found["dense"], strict=True)] for kind in KINDS[1:]}
    student = build_student(made["teacher"], layers=3)
    total = sum(p.numel() for p in student.parameters())
    result = {
        "what": "seconds a step with sparse and with frozen embeddings over those with dense ones, paired by segment",
        "ratio": {kind: {"median": statistics.median(ratios), "all": ratios} for kind, ratios in pairs.items()},
        "seconds": found,
        "shares_of_the_dense_step_by_hand": shares,
        "setting": {
            "teacher": "minilm-l6, 6 layers",
            "student": "3 of its layers",
            "share_of_parameters_in_the_table": student.get_input_embeddings().weight.numel() / total,
            "rows": "reviews, length-grouped",
            "batch": 32,
            "steps": given.steps - WARM,
            "precision": "float32",
            "threads": torch.get_num_threads(),
        },
    }
    save(given.out, result)
    for kind, ratio in result["ratio"].items():
        print(f"{kind}: {ratio['median']:.3f} of dense")
    for name, value in shares.items():
        print(f"  {100 * value:5.1f} %  {name}")


if __name__ == "__main__":
    main()
