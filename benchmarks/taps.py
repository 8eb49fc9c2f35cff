"""What taps cost: a forward and backward pass of a BERT with taps on, beside the same pass without.

    python benchmarks/taps.py                  # 6 layers of width 384, 12 heads, batches of 32 rows of 128 tokens
    python benchmarks/taps.py --repeats 15

Every repeat runs all variants in turns, in an order that rotates, on the same machine; what is reported is the median
over repeats of the ratio to that repeat's plain pass. Queries, keys, values and hidden states are taken beside the
fused kernel. Attention maps need eager attention: their cost is split into that of eager attention, which is the cost
of maps to a model that would run a fused kernel, and that of the tap. Writes benchmarks/results/taps.json.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from records import save
from transformers import BertConfig, BertForSequenceClassification

from potstill.knowledge import Needs, Observer

VOCABULARY = 30_522


@dataclass(frozen=True)
class Variant:
    """One way to run the pass."""

    attention: str
    needs: Needs


def variants(layers: int) -> dict[str, Variant]:
    """By name; ``plain`` is what the others are compared with."""
    every = frozenset(range(layers))
    return {
        "plain": Variant("sdpa", Needs(logits=True)),
        "relations": Variant("sdpa", Needs(logits=True, queries=every, keys=every, values=every)),
        "hidden": Variant("sdpa", Needs(logits=True, hidden=every)),
        "plain, eager": Variant("eager", Needs(logits=True)),
        "attention, eager": Variant("eager", Needs(logits=True, attention=every)),
        "scores, eager": Variant("eager", Needs(logits=True, scores=every)),
    }


def seconds(
    model: BertForSequenceClassification, variant: Variant, batch: dict[str, torch.Tensor], steps: int
) -> float:
    """Seconds a pass, forward and backward, the first of `steps` + 1 not timed."""
    model.set_attn_implementation(variant.attention)
    observe = Observer(model, variant.needs)
    started = 0.0
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        knowledge = observe(batch)
        assert knowledge.logits is not None
        knowledge.logits.square().mean().backward()
        model.zero_grad(set_to_none=True)
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Run the repeats and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of all variants")
    parser.add_argument("--steps", type=int, default=5, help="timed passes of a variant in a round")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "taps.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"hidden_size": given.width, "intermediate_size": 4 * given.width, "num_attention_heads": given.width // 32}
    model = BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=given.layers, vocab_size=VOCABULARY))
    ids = torch.randint(VOCABULARY, (given.rows, given.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][::2, -given.tokens // 4 :] = 0  # half of the rows are padded, as rows are
    made = variants(given.layers)
    names, times = list(made), {name: [0.0] * given.repeats for name in made}
    for repeat in range(given.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            times[name][repeat] = seconds(model.train(), made[name], batch, given.steps)
        shown = ", ".join(f"{name} {times[name][repeat] * 1e3:.1f} ms" for name in names)
        print(f"repeat {repeat}: {shown}", flush=True)

    def ratio(name: str, base: str) -> dict[str, object]:
        found = [a / b for a, b in zip(times[name], times[base], strict=True)]
        return {"median": statistics.median(found), "all": found}

    result = {
        "what": "seconds of a forward and backward pass with taps on over those of the plain pass, paired by repeat",
        "ratio_to_plain": {name: ratio(name, "plain") for name in names[1:]},
        "ratio_to_plain_eager": {name: ratio(name, "plain, eager") for name in names[4:]},
        "seconds": times,
        "setting": {
            "model": f"BERT, {given.layers} layers of width {given.width}, {given.width // 32} heads, float32",
            "batch": f"{given.rows} rows of {given.tokens} tokens",
            "taps": "every layer",
            "steps": given.steps,
            "threads": torch.get_num_threads(),
        },
    }
    save(given.out, result)
    print("medians:")
    for base in ("ratio_to_plain", "ratio_to_plain_eager"):
        for name, value in result[base].items():  # type: ignore[attr-defined]
            print(f"  {value['median']:.3f}  {name}, {base.replace('_', ' ')}")


if __name__ == "__main__":
    main()
