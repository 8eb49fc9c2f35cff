"""What more rows and longer rows cost: encoding, caching, setting up, a training step, and the peak of memory.

    python benchmarks/scaling.py                        # 1 thousand, 10 thousand and 100 thousand rows
    python benchmarks/scaling.py --rows 1000,10000 --steps 6

Each number of rows is a process of its own, so that its peak of memory is its own. Rows are words drawn from
`reviews`, in a parquet file, as a user would bring them; all are cut to the same number of tokens, since otherwise the
peak would be that of the longest batch that happens to be drawn. All rows are encoded, cached (where this version has a
cache) and handed to a trainer. That takes a few steps only, since every further step is like them. A step is the median
of the timed ones, over batches drawn from all rows. Peaks are those of all before the training, and of the training.

Rows of 32 to 128 tokens show the cost of tokens. Writes benchmarks/results/scaling.json.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))

WARM = 3
BATCH = 32
ROW_TOKENS = 16


def write_rows(path: Path, count: int, words: int) -> None:
    """So many rows of that many words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from potstill.data.samples import load_sample_data

    known = load_sample_data("reviews", {})["train"]
    texts, labels = list(known["text"]), [int(label == "positive") for label in known["label"]]
    vocabulary = [word for text in texts for word in text.split()]
    draw = random.Random(0)
    schema = pa.schema([("text", pa.string()), ("labels", pa.int64())])
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            made = [" ".join(draw.choices(vocabulary, k=words)) for _ in numbers]
            file.write_table(pa.table([made, [labels[number % len(texts)] for number in numbers]], schema=schema))


@contextmanager
def timed(found: dict[str, Any], name: str) -> Iterator[None]:
    """Keep the seconds that the block takes."""
    started = time.perf_counter()
    yield
    found[name] = time.perf_counter() - started


def measure(rows_file: Path, folder: Path, steps: int, max_tokens: int) -> dict[str, Any]:
    """Encode, cache, set up, and take a few steps; in this process."""
    import torch
    from contract import StepClock, at_each_step, memory
    from datasets import Dataset
    from ours import HAS_CACHE, cached

    from potstill.data.samples import fetch_model
    from potstill.objective import Objective
    from potstill.students import build_student
    from potstill.tasks import TextClassification, load_tokenizer
    from potstill.training import DistillationTrainer, TrainSettings
    from potstill.training.stages import Lesson, training_arguments

    torch.manual_seed(0)
    path, task, found = fetch_model("minilm-l6"), TextClassification(), {}
    tokenizer = load_tokenizer(path)
    teacher = task.load(path).model
    start = folder / "start"
    student = build_student(teacher, layers=3, rule="uniform")
    teacher.save_pretrained(start)
    teacher = task.load(start).model
    texts = Dataset.from_parquet(str(rows_file), cache_dir=str(folder / "rows"))
    memory("VmHWM", reset=True)
    with timed(found, "encode"):
        rows = task.encode(texts, tokenizer, max_length=max_tokens)
    objective: Any = Objective([{"knowledge": "logits", "temperature": 2.0}])
    source = teacher
    if HAS_CACHE:
        with timed(found, "cache"):
            source = cached(teacher, task, tokenizer, rows, objective, folder / "cache")
        found["cache_bytes"] = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    found["peak_before"] = memory("VmHWM")
    memory("VmHWM", reset=True)
    settings = TrainSettings(steps=steps, batch_size=BATCH)
    arguments = training_arguments(
        settings, student, Lesson(task, tokenizer, rows, objective, teacher), folder, bfloat16=False, seed=0
    )
    clock, begun = StepClock(), time.perf_counter()
    trainer = DistillationTrainer(student, objective, task, tokenizer, rows, teacher=source, args=arguments)
    trainer._save_checkpoint = lambda *_: None  # type: ignore[method-assign]
    with at_each_step(clock):
        trainer.train()
    lengths = [b - a for a, b in zip(clock.ends[WARM - 1 :], clock.ends[WARM:], strict=False)]
    found["step"] = statistics.median(lengths)
    found["set_up"] = clock.ends[0] - begun - found["step"]
    found["peak"] = memory("VmHWM")
    return {"rows": len(rows), **found, "mean_tokens": statistics.mean(rows["length"])}


def in_a_process(rows: int, steps: int, folder: Path, threads: int, tokens: int) -> dict[str, Any]:
    """Write the rows, and measure them in a process of their own."""
    file = folder / "rows.parquet"
    write_rows(file, rows, tokens)
    command = [sys.executable, "-W", "ignore", __file__, "--measure", str(file), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*command, "--tokens", str(tokens)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000,10000,100000", help="numbers of rows, with commas between them")
    parser.add_argument("--tokens", default="32,64,128", help="lengths of rows, for the cost of tokens")
    parser.add_argument("--steps", type=int, default=23, help="training steps, the first 3 not timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scaling.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every number of rows and every length, and write the JSON."""
    given = parsed()
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.measure.parent, given.steps, int(given.tokens))))
        return
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    from records import save

    made: dict[str, Any] = {"rows": [], "tokens": []}
    cases = [("rows", int(rows), ROW_TOKENS) for rows in given.rows.split(",")]
    cases += [("tokens", 1000, int(tokens)) for tokens in given.tokens.split(",")]
    for kind, rows, tokens in cases:
        with tempfile.TemporaryDirectory() as folder:
            found = in_a_process(rows, given.steps, Path(folder), given.threads, tokens)
        made[kind].append(found | {"tokens": tokens})
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in found.items())
        print(shown, flush=True)
    setting = {"models": "minilm-l6: 6 layers teach 3 of them", "batch": BATCH, "steps": given.steps - WARM}
    save(given.out, made | {"setting": setting | {"threads": given.threads}})


if __name__ == "__main__":
    main()
