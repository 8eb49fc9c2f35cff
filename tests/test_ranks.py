"""Several processes that do one run: who works, who waits, what is said when one fails, and a run that loses one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_ranks import RANKS, free_port, on_two_ranks
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from potstill import ranks
from potstill.cache import caches, open_cache
from potstill.cli import app
from potstill.errors import ArgumentError, PotstillError, RankError, RunFolderError
from potstill.evaluation.predict import load_predictions
from potstill.recipe import load_recipe
from potstill.runs import RunFolder
from potstill.training import TrainSettings

# ---- one process


def test_one_process_is_alone_and_waits_for_nobody() -> None:
    with ranks.together():
        assert (ranks.rank(), ranks.world_size(), ranks.is_main()) == (0, 1, True)
        assert ranks.on_main(lambda: 3) == ranks.main_first(lambda: 3) == 3
        assert ranks.same(1) and ranks.everyone(True) and not ranks.everyone(False)
        assert [part.tolist() for part in ranks.gathered(torch.arange(3))] == [[0, 1, 2]]
    assert not torch.distributed.is_initialized()


def test_a_launcher_that_started_one_process_instead_of_several_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert ranks.launched() == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RankError, match="torchrun"):
        ranks.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.launched() == 2


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert TrainSettings(batch_size=6).rows_of_one_rank(3) == 2
    with pytest.raises(ArgumentError, match="batch_size=32, 3 processes"):
        TrainSettings(batch_size=32).rows_of_one_rank(3)


@pytest.mark.parametrize("command", ["plan", "compare", "search", "report", "cache info", "cache prune"])
def test_what_one_process_does_is_refused_to_several(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(app, [*command.split(), "kd"])
    assert isinstance(done.exception, RankError) and f"potstill {command}" in str(done.exception)
    assert not done.exception.said


# ---- two processes


def talk() -> dict[str, Any]:
    """What two ranks hear of each other."""
    with ranks.together():
        worked: list[str] = []

        def slowly() -> str:
            assert ranks.on_main(ranks.world_size) == 1, "rank 0 is alone, and a nested call doesn't wait for anybody"
            worked.append("main")
            time.sleep(0.2)
            return f"from {ranks.rank()}"

        with ranks.together():  # the same ranks
            heard = ranks.on_main(slowly)
        started: list[float] = []

        def first() -> int:
            started.append(time.monotonic())
            time.sleep(0.2 * (ranks.rank() == 0))
            return ranks.rank()

        own = ranks.main_first(first)
        mine = torch.arange(ranks.rank() + 1.0).reshape(-1, 1)
        return {
            "heard": heard,
            "worked": worked,
            "own": own,
            "started": started[0],
            "gathered": [part.tolist() for part in ranks.gathered(mine)],
            "same": (ranks.same("x"), ranks.same(ranks.rank())),
            "everyone": (ranks.everyone(True), ranks.everyone(ranks.rank() == 0)),
        }


def test_rank_0_works_and_the_others_hear_of_it(tmp_path: Path) -> None:
    main, other = on_two_ranks(talk, tmp_path)
    assert main["heard"] == other["heard"] == "from 0"
    assert (main["worked"], other["worked"]) == (["main"], [])
    assert (main["own"], other["own"]) == (0, 1) and other["started"] - main["started"] >= 0.2
    for found in (main, other):
        assert found["gathered"] == [[[0.0]], [[0.0], [1.0]]]
        assert found["same"] == (True, False) and found["everyone"] == (True, False)


def fail(where: str) -> None:
    """An error on one rank, while the other waits for it."""
    with ranks.together():
        if where == "alone":
            ranks.on_main(lambda: int("rank 0's own"))
        if where == "everywhere":
            raise ArgumentError("the same on all")
        if where == "rank 1" and ranks.rank() == 1:
            raise ArgumentError("rank 1's own")
        if where == "gone" and ranks.rank() == 1:
            os._exit(9)
        ranks.wait()


@pytest.mark.parametrize(("where", "culprit"), [("alone", 0), ("rank 1", 1)])
def test_an_error_on_one_rank_ends_all_with_its_message(tmp_path: Path, where: str, culprit: int) -> None:
    started = time.monotonic()
    found = on_two_ranks(fail, tmp_path, where)
    assert time.monotonic() - started < 60
    cause, heard = found[culprit], found[1 - culprit]
    assert not isinstance(cause, RankError) and f"rank {culprit}'s own" in str(cause)
    assert isinstance(heard, RankError) and heard.said, "it isn't said twice"
    assert f"rank {culprit}" in str(heard) and str(cause) in str(heard)


def test_an_error_that_all_ranks_see_is_said_once(tmp_path: Path) -> None:
    found = on_two_ranks(fail, tmp_path, "everywhere")
    assert all(isinstance(one, PotstillError) for one in found)
    assert [isinstance(one, RankError) and one.said for one in found].count(True) == 1


def apart(folder: Path) -> None:
    """A run folder that is another one for each rank."""
    recipe = load_recipe("kd")
    with ranks.together(), RunFolder(folder / str(ranks.rank()), recipe).opened():
        raise AssertionError("not reached")


def test_a_run_folder_that_machines_do_not_share_is_refused(tmp_path: Path) -> None:
    found = on_two_ranks(apart, tmp_path, tmp_path)
    assert all(isinstance(one, RunFolderError | RankError) for one in found), found
    assert any("share" in str(one) for one in found)


# ---- whole runs

SHORT = {"steps": 6, "batch_size": 8, "precision": "float32", "learning_rate": 1e-3}
TERMS = [{"knowledge": "labels"}, {"knowledge": "logits"}, {"knowledge": "hidden"}]


def write_recipe(folder: Path, changes: dict[str, Any], **model: Any) -> Path:
    """A recipe as a file."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(folder, changes, **model)), encoding="utf-8")
    return file


def launch(
    recipe: Path, out: Path, processes: int, launcher: Sequence[str] = (), command: str = "run"
) -> subprocess.Popen[str]:
    """`potstill run`, or another command, by so many processes."""
    many = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    words = [sys.executable, *(launcher or many if processes > 1 else ()), "-m", "potstill", command]
    source = str(Path(__file__).parents[1] / "src")
    return subprocess.Popen(
        [*words, str(recipe), "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(started: subprocess.Popen[str]) -> str:
    """What a run said, once it has ended well."""
    said = ended(started)
    assert started.returncode == 0, said
    return said


def ended(started: subprocess.Popen[str], seconds: float = 240) -> str:
    """What a launcher said, once it has ended; one that doesn't in time is ended with all that it started."""
    children = []
    try:
        return started.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        children = psutil.Process(started.pid).children(recursive=True)
        raise
    finally:
        for process in (*children, *([started] if children else ())):
            process.kill()


def student(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the student that a run shipped."""
    return load_file(run / "student" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_and_go_on_with_it(tmp_path: Path) -> None:
    """accelerate starts two that do the whole run; it equals one process's, which takes all stages as done."""
    stages = [{"terms": TERMS, "train": SHORT, "freeze": ["embeddings"]}, {"terms": TERMS[1:2], "train": SHORT}]
    changes = {"teacher": {"train": SHORT}, "distill": stages, "refine": {"train": {**SHORT, "evaluations": 2}}}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    recipe = write_recipe(tmp_path, changes, **still)
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    accelerate += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    said = finished(launch(recipe, tmp_path / "two", 2, accelerate))
    assert said.count("student: /") == said.count("text column:") == 1, said
    finished(launch(recipe, tmp_path / "one", 1))
    for name in ("teacher-0", "student-0"):
        ours, theirs = (load_predictions(tmp_path / run / f"predictions/{name}.parquet") for run in ("two", "one"))
        for split, logits in theirs.items():
            assert abs(ours[split] - logits).max() < 1e-3, (name, split)
    before = student(tmp_path / "two")
    finished(launch(recipe, tmp_path / "two", 1))
    assert "train" not in str(list((tmp_path / "two" / "work").glob("*")))
    for name, tensor in student(tmp_path / "two").items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
def test_two_processes_write_and_read_one_cache_and_make_the_student_of_one(tmp_path: Path) -> None:
    """`torchrun -m potstill run` over several epochs: both write their share of what the teacher knows, and read it."""
    train = {"epochs": 3, "batch_size": 8, "precision": "float32", "learning_rate": 1e-3}
    changes = {
        "teacher": {"train": None},
        "distill": [{"terms": TERMS, "train": train}],
        "cache": {"use": "always", "precision": "float32"},
    }
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    recipe = write_recipe(tmp_path, changes, **still)
    said = finished(launch(recipe, tmp_path / "two", RANKS))
    assert said.count("its answers are kept on disk") == 1, said
    finished(launch(recipe, tmp_path / "one", 1))
    kept = {}
    for name in ("two", "one"):
        [folder] = caches(tmp_path / name / "cache")
        kept[name] = open_cache(folder)
        keys = np.concatenate([shard.keys for shard in kept[name].shards])
        assert len(keys) == len(np.unique(keys)) == kept[name].rows, "each row once"
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert results["kept"]["teacher"]["written_rows"] == kept[name].rows
        assert results["kept"]["teacher"]["fidelity"] is not None
    assert kept["two"].identity == kept["one"].identity and kept["two"].rows == kept["one"].rows
    assert (len(kept["two"].shards), len(kept["one"].shards)) == (RANKS, 1), "one shard of each rank"
    ours, theirs = student(tmp_path / "two"), student(tmp_path / "one")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=2e-3, msg=name)


@pytest.mark.slow
def test_two_processes_keep_a_cache_by_command(tmp_path: Path) -> None:
    terms = [{"terms": TERMS, "train": SHORT}]
    recipe = write_recipe(tmp_path, {"teacher": {"train": None}, "distill": terms})
    said = finished(launch(recipe, tmp_path / "out", RANKS, command="cache"))
    [folder] = caches(tmp_path / "out" / "cache")
    kept = open_cache(folder)
    assert len(kept.shards) == RANKS and sum(len(shard.keys) for shard in kept.shards) == kept.rows
    assert said.count(f"teacher: {kept.rows} rows in") == 1, "one speaks, of the rows of both"
    assert "teacher: 0 rows in" in finished(launch(recipe, tmp_path / "out", 1, command="cache"))


def process_of(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank that a launcher started."""
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_run_whose_one_rank_is_killed_ends_and_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Killed after the first checkpoint, in another epoch than the first, with dropout: the same weights bitwise."""
    long = {**SHORT, "steps": 60, "checkpoint_steps": 10}
    changes = {"teacher": {"train": None}, "distill": [{"terms": TERMS, "train": long}]}
    recipe = write_recipe(tmp_path, changes)
    finished(launch(recipe, tmp_path / "whole", RANKS))
    started = launch(recipe, tmp_path / "killed", RANKS)
    ends = time.monotonic() + 120
    while not (found := list((tmp_path / "killed/work").rglob("checkpoint-*/complete"))):
        assert time.monotonic() < ends and started.poll() is None, "no checkpoint was written"
        time.sleep(0.02)
    process_of(started, 1).send_signal(signal.SIGKILL)
    said = ended(started, 120)
    assert started.returncode != 0
    assert not (tmp_path / "killed/results.json").exists(), "it was killed too late to show anything"
    # Either the other rank finds out by itself, or torchrun sees the death first, says so and ends it.
    assert "error: Another process of this run is gone" in said or "SIGKILL" in said, said
    step = max(int(path.parent.name.rpartition("-")[2]) for path in found)
    assert 0 < step < 60
    finished(launch(recipe, tmp_path / "killed", RANKS))
    whole = student(tmp_path / "whole")
    for name, tensor in student(tmp_path / "killed").items():
        assert torch.equal(tensor, whole[name]), name
