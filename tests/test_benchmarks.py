"""The benchmark beside other tools: what it tells must follow from what was measured, and all must do the same work."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny import tiny_model

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "peers"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of the benchmark, imported as its scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    return imported


def test_the_tables_are_made_of_the_numbers(part: Any) -> None:
    tables = part("tables")
    found = tables.numbers(ROOT / "benchmarks" / "results" / "peers.json")
    for path in tables.PAGES:
        page = path.read_text(encoding="utf-8")
        assert tables.BLOCK.search(page), path
        assert tables.filled(page, found) == page, f"{path.name}: make bench ARGS=--table"


def test_a_section_is_shown_with_what_was_left_out_and_a_line_that_is_missed_says_so(part: Any) -> None:
    tables = part("tables")
    of = {
        "hand": {"median": 1.0, "all": [1.0], "seconds": [0.2]},
        "ours": {"median": 1.04, "all": [1.04], "seconds": [0.208]},
    }
    work = {"as_configured": {"to": "hand", "of": of}, "without_dropout": {"to": "hand", "of": of}}
    work |= {
        "hardware": {"processor": "a chip", "cores": 2},
        "setting": {"threads": 2},
        "left_out": {"gkd": "no reason"},
    }
    made = tables.filled("<!-- tables: bench-work -->\nold\n<!-- end of tables -->", {"work": work})
    assert "| potstill | 208 ms | 1.04 | 208 ms | 1.04 |" in made
    assert "TRL's GKDTrainer: no reason" in made and "old" not in made
    assert "| 1.04, 1.04 | 1.03 | no |" in tables.lines_table({"work": work})
    of["ours"]["median"] = 1.02
    assert "| 1.02, 1.02 | 1.03 | yes |" in tables.lines_table({"work": work})


def test_rows_come_back_and_are_padded(part: Any, tmp_path: Path) -> None:
    contract = part("contract")
    rows = contract.Rows([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], np.array([1, 0]))
    rows.save(tmp_path / "rows.safetensors")
    back = contract.Rows.load(tmp_path / "rows.safetensors")
    batch = contract.Padding(9)([back[0], back[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert contract.Padding(9, 5)([back[1]])["input_ids"].shape == (1, 5)


def test_without_dropout_a_model_that_trains_is_deterministic(part: Any) -> None:
    contract = part("contract")
    model = tiny_model("bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train()
    ids = torch.arange(8).reshape(1, 8)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    contract.without_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_the_rate_rises_and_falls_as_transformers_has_it(part: Any) -> None:
    from transformers import get_linear_schedule_with_warmup

    contract = part("contract")
    rate = contract.Settings(*[""] * 5, 8, 1e-4, 0.0, 0.1, 1.0, 2.0, 1, 0).rate(33)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule: Any = get_linear_schedule_with_warmup(optimiser, 4, 33).lr_lambdas[0]  # type: ignore[attr-defined]
    assert [rate(step) for step in range(33)] == pytest.approx([schedule(step) for step in range(33)])


def test_the_clock_hears_every_optimiser_and_leaves_the_warm_up_out(part: Any) -> None:
    contract = part("contract")
    clock, weight = contract.StepClock(), torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimiser = torch.optim.AdamW([weight])
    with contract.at_each_step(clock):
        for _ in range(contract.WARM + 2):
            optimiser.step()
    optimiser.step()
    assert len(clock.ends) == contract.WARM + 2
    clock.ends = [0.0, 10.0, 20.0, 21.0, 23.0]
    assert clock.seconds == pytest.approx(1.5)


def test_work_that_differs_is_found(part: Any) -> None:
    peers = part("peers")
    hand = {"losses": [0.5, 0.4], "moved": 1.0}
    same = {"losses": [0.5001, 0.4], "moved": 1.001}
    quarter = {"losses": [0.125, 0.1], "moved": 1.0}  # a T² that is missing
    lazy = {"losses": [0.5, 0.4], "moved": 0.5}
    found = peers.agreement({"hand": hand, "ours": same, "trainer": quarter, "gkd": lazy})
    assert [found[name]["agrees"] for name in ("hand", "ours", "trainer", "gkd")] == [True, True, False, False]


def test_ratios_are_paired_by_round(part: Any) -> None:
    peers = part("peers")
    rounds = {"hand": [{"seconds": 1.0}, {"seconds": 4.0}, {"seconds": 2.0}]}
    rounds["ours"] = [{"seconds": 1.1}, {"seconds": 4.0}, {"seconds": 3.0}]
    made = peers.ratios(rounds, "hand")
    assert made["of"]["ours"]["median"] == pytest.approx(1.1)
    assert made["of"]["hand"]["all"] == [1.0, 1.0, 1.0]


def test_the_time_to_an_accuracy_is_that_of_the_first_point_that_has_it(part: Any) -> None:
    peers = part("peers")

    def curve(*points: tuple[float, float]) -> dict[str, Any]:
        return {"points": [{"seconds": s, "accuracy": a} for s, a in points], "final": points[-1][1]}

    runs = [
        {"ours": curve((1, 0.7), (2, 0.8), (3, 0.75)), "trainer": curve((10, 0.8), (20, 0.7), (30, 0.8))},
        {"ours": curve((1, 0.7), (2, 0.75)), "trainer": curve((10, 0.6), (20, 0.8))},
    ]
    assert peers.time_ratio(runs[:1], "ours", "trainer")["median"] == pytest.approx(0.2)
    never = peers.time_ratio([runs[1]], "ours", "trainer")
    assert never["median"] is None and never["all"] == [None]


def test_a_competitor_answers_and_its_last_words_are_told(part: Any, tmp_path: Path) -> None:
    competitor = part("competitor")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "print(json.dumps({'ready': True, 'versions': {}}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['do'] == 'fail': raise ValueError('no such thing')\n"
        "    print(json.dumps(asked), flush=True)\n"
    )
    (tmp_path / "settings.json").write_text("{}")
    competitor.TOOLS["fake"] = competitor.Tool("a fake", str(script))
    try:
        with competitor.Competitor("fake", tmp_path / "settings.json", tmp_path / "log", 1) as one:
            assert one.ask(do="echo", seed=3) == {"do": "echo", "seed": 3}
            with pytest.raises(competitor.CompetitorError, match="no such thing"):
                one.ask(do="fail")
    finally:
        del competitor.TOOLS["fake"]


def test_every_tool_has_its_script_and_its_versions(part: Any) -> None:
    competitor = part("competitor")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for tool in competitor.TOOLS.values():
        assert (FOLDER / tool.script).is_file()
        if tool.environment is not None:
            pins = (FOLDER / f"requirements-{tool.environment}.txt").read_text(encoding="utf-8").splitlines()
            assert all("==" in line for line in pins if not line.startswith("#"))
            assert f" {tool.environment}" in makefile.split("PEERS :=")[1].splitlines()[0]


def test_an_unknown_section_is_refused() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--only", "work,wrok"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "wrok" in done.stderr


def test_a_curve_is_kept_as_soon_as_it_is_there_and_taken_for_the_same_command_alone(part: Any, tmp_path: Path) -> None:
    peers, asked = part("peers"), []

    class Tool:
        ready: ClassVar[dict[str, Any]] = {"versions": {"torch": "1"}}

        def ask(self, **command: Any) -> dict[str, Any]:
            asked.append(command)
            return {"final": 0.1 * len(asked)}

    file, command = tmp_path / "curves" / "0-ours.json", {"do": "curve", "epochs": 3, "seed": 0}
    first = peers.curve_of(Tool(), file, command)
    assert peers.curve_of(Tool(), file, command) == first == {"final": 0.1} and asked == [command]
    assert peers.curve_of(Tool(), file, command | {"epochs": 2}) == {"final": 0.2}
    Tool.ready = {"versions": {"torch": "2"}}
    assert peers.curve_of(Tool(), file, command | {"epochs": 2})["final"] == pytest.approx(0.3)


def test_results_are_kept_section_by_section(part: Any, tmp_path: Path) -> None:
    peers = part("peers")
    peers.keep(tmp_path / "peers.json", {"work": {"a": 1}, "cache": {"a": 1}})
    peers.keep(tmp_path / "peers.json", {"work": {"b": 2}})
    assert json.loads((tmp_path / "peers.json").read_text()) == {"work": {"b": 2}, "cache": {"a": 1}}
