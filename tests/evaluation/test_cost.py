"""Costs against hand counts, and the order in which models are timed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from potstill.errors import DataError, ModelError
from potstill.evaluation.cost import (
    bytes_on_disk,
    macs,
    measure_latency,
    parameters,
    shipped_files,
    torch_runner,
)
from potstill.evaluation.peak_memory import classifier_workload, peak_memory

V, D, F, L, H, P = 100, 32, 48, 2, 4, 64


def tiny_bert(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "max_position_embeddings": P,
        "num_labels": 3,
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(**{**sizes, **changes})).eval()


def inputs(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(rows * tokens).reshape(rows, tokens) % V
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_parameters_by_hand() -> None:
    embeddings = (V + P + 2) * D + 2 * D
    layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 4 * D
    assert parameters(tiny_bert()) == embeddings + L * layer + (D * D + D) + (3 * D + 3)


def test_shared_parameters_count_once() -> None:
    model = tiny_bert()
    whole, layers = parameters(model), model.bert.encoder.layer
    one = parameters(layers[0])
    layers[1] = layers[0]
    assert parameters(model) == whole - one


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 26), (3, 7)])
def test_macs_by_hand(attention: str, rows: int, tokens: int) -> None:
    model = tiny_bert()
    model.set_attn_implementation(attention)
    a_token = 4 * D * D + 2 * D * F + 2 * tokens * D  # projections, feed-forward, scores and their use
    assert macs(model, inputs(rows, tokens)) == rows * (L * tokens * a_token + D * D + 3 * D)


def test_macs_leave_no_trace() -> None:
    model = tiny_bert()
    before = model(**inputs(2, 5)).logits
    macs(model, {**inputs(2, 5), "labels_of_others": torch.ones(2)})
    assert model(**inputs(2, 5)).logits.equal(before)


def test_bytes_of_what_ships_and_nothing_else(tmp_path: Path) -> None:
    sizes = {"model.safetensors": 1000, "config.json": 30, "tokenizer.json": 200, "tokenizer_config.json": 4}
    others = {"README.md": 7, "vocab.txt": 90, "training_args.bin": 50, "optimizer.pt": 5000, "model.onnx": 900}
    for name, size in (sizes | others).items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert {file.name for file in shipped_files(tmp_path)} == set(sizes)
    assert bytes_on_disk(tmp_path) == 1234
    (tmp_path / "tokenizer.json").unlink()
    assert "vocab.txt" in {file.name for file in shipped_files(tmp_path)}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        bytes_on_disk(tmp_path)


def test_weights_are_four_bytes_a_parameter(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    weights = next(file for file in shipped_files(tmp_path) if file.suffix == ".safetensors")
    assert 0 < weights.stat().st_size - 4 * parameters(tiny_bert()) < 10_000
    assert not [file for file in tmp_path.iterdir() if file.suffix in {".bin", ".pt", ".pkl"}]


def test_models_take_turns_on_the_same_batches() -> None:
    calls: list[tuple[str, int]] = []
    runners = {name: lambda batch, name=name: calls.append((name, batch["number"][0])) for name in "abc"}
    measured = measure_latency(runners, {1: [{"number": [0]}, {"number": [1]}]}, rounds=6, warmup=1)
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(rounds) == 7
    assert all({name for name, _ in one} == set("abc") for one in rounds)
    assert all(len({number for _, number in one}) == 1 for one in rounds), "one batch a round"
    assert [one[0][1] for one in rounds] == [1, 0, 1, 0, 1, 0, 1]
    assert [one[0][0] for one in rounds[1:]] == list("abcabc"), "each begins as often as the others"
    assert all(measured[name][1].n == 6 for name in "abc")


def clocked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when a runner moves it."""
    now = [0.0]
    monkeypatch.setattr(sys.modules["potstill.evaluation.cost"].time, "perf_counter", lambda: now[0])
    return now


def test_numbers_of_a_known_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clocked(monkeypatch)

    def run(batch: Any) -> None:
        now[0] += batch["seconds"][0]

    batches = [{"seconds": [seconds] * 32} for seconds in (0.010, 0.020, 0.030, 0.040)]
    latency = measure_latency({"a": run}, {32: batches}, rounds=4, warmup=3, budget_seconds=1e9)["a"][32]
    assert latency.p50_ms == pytest.approx(25.0)
    assert latency.p95_ms == pytest.approx(np.percentile([10, 20, 30, 40], 95))
    assert latency.rows_per_s == pytest.approx(4 * 32 / 0.1)
    assert latency.n == 4


def test_the_budget_ends_a_size_but_not_before_its_third_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clocked(monkeypatch)

    def run(batch: Any) -> None:
        now[0] += batch["seconds"][0]

    sizes = {1: [{"seconds": [1.0]}], 32: [{"seconds": [30.0]}]}
    measured = measure_latency({"a": run, "b": run}, sizes, rounds=100, warmup=1, budget_seconds=40.0)
    assert measured["a"][1].n == measured["b"][1].n == 10
    assert measured["a"][32].n == 3


def test_latency_of_real_models() -> None:
    runners = {"small": torch_runner(tiny_bert()), "large": torch_runner(tiny_bert(num_hidden_layers=24))}
    batches = {1: [inputs(1, 5), inputs(1, 9)], 8: [inputs(8, 30)]}
    measured = measure_latency(runners, batches, rounds=8, budget_seconds=20)
    for sizes in measured.values():
        assert all(0 < latency.p50_ms <= latency.p95_ms for latency in sizes.values())
    assert measured["small"][8].p50_ms < measured["large"][8].p50_ms
    assert measured["small"][8].rows_per_s > measured["large"][8].rows_per_s


def test_no_batches_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        measure_latency({"a": lambda _: None}, {1: []})


def test_runner_takes_numpy_and_more_than_the_model_names() -> None:
    model = tiny_bert()
    batch = {name: value.numpy() for name, value in inputs(2, 5).items()} | {"example_id": np.arange(2)}
    logits = torch_runner(model, "cpu")(batch)
    assert logits.shape == (2, 3) and not logits.requires_grad
    with pytest.raises(ModelError, match="eval mode"):
        torch_runner(model.train())


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="peak memory is known on Linux and macOS only")
def test_peak_memory_grows_with_the_model(tmp_path: Path) -> None:
    found = []
    for name, vocabulary in (("small", 1_000), ("large", 100_000)):
        tiny_bert(vocab_size=vocabulary, hidden_size=128).save_pretrained(tmp_path / name)
        shapes = {"input_ids": [2, 8], "attention_mask": [2, 8]}
        arguments = {"path": str(tmp_path / name), "shapes": shapes, "threads": 1}
        found.append(peak_memory(classifier_workload, arguments))
    small, large = found
    assert small is not None and large is not None
    # The larger table alone is 51 MB more.
    assert small < 40e6 and 40e6 < large - small < 160e6


def test_peak_memory_of_what_fails_is_not_known(tmp_path: Path) -> None:
    assert peak_memory(classifier_workload, {"path": str(tmp_path / "none"), "shapes": {"input_ids": [1, 4]}}) is None
