"""A student that learns from a cache becomes what it becomes beside the live teacher, in runs and comparisons."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import save_folder, tiny_model, tiny_rows, tiny_tokenizer
from transformers import TrainingArguments

from potstill.cache import CachedTeacher, Identity, Storage, caches, open_cache, write_cache
from potstill.errors import CacheError, RecipeError
from potstill.knowledge import Observer
from potstill.objective import Objective, Term
from potstill.pipeline import cache as keep
from potstill.pipeline import run
from potstill.recipe import load_recipe
from potstill.students import build_student
from potstill.tasks import TextClassification
from potstill.training import DistillationTrainer, Distiller

TASK = TextClassification()
METHODS = {
    "logits": [Term("labels"), Term("logits", temperature=2.0)],
    "hidden": [Term("logits"), Term("hidden", layers="uniform"), Term("hidden", "rkd_angle", layers="last1")],
    "attention": [Term("attention", layers="uniform"), Term("scores", layers="last1")],
    "relations": [Term("queries", options={"heads": 2}), Term("values", options={"heads": 4})],
}


def trained(teacher: Any, source: Any, terms: Any, folder: Path, batch: int = 8, seed: int = 0) -> Any:
    student = build_student(source, layers=2)
    rows = TASK.encode(tiny_rows(48), tiny_tokenizer(), max_length=16)
    args = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=batch,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=seed,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(student, Objective(terms), TASK, tiny_tokenizer(), rows, teacher=teacher, args=args)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in student.parameters()]), trainer


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(layers=4, seed=5, attn_implementation="eager")


def cached(teacher: Any, terms: Any, root: Path, precision: str) -> CachedTeacher:
    needs = Distiller(build_student(teacher, layers=2), Objective(terms), TASK, teacher).asked["teacher"]
    rows = TASK.encode(tiny_rows(48), tiny_tokenizer(), max_length=16)
    identity = Identity("t", "k", needs, 16, storage=Storage(precision))
    return CachedTeacher(write_cache(root, identity, teacher, rows, TASK.collator(tiny_tokenizer())).cache)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-3), ("float16", 0.02), ("int8", 0.2)])
def test_from_a_cache_the_student_is_the_same_within_its_precision(tmp_path, teacher, method, precision, near):
    terms = METHODS[method]
    live, _ = trained(teacher, teacher, terms, tmp_path / "live")
    start = torch.cat([p.detach().flatten() for p in build_student(teacher, layers=2).parameters()])
    source = cached(teacher, terms, tmp_path / "cache", precision)
    kept, trainer = trained(source, teacher, terms, tmp_path / "kept")
    moved = (live - start).norm()
    assert moved > 0.1
    assert (kept - live).norm() / moved < near
    assert trainer.distiller.teachers == {}


def test_another_batch_size_and_seed_read_the_same_cache(tmp_path, teacher):
    terms = METHODS["hidden"]
    source = cached(teacher, terms, tmp_path / "cache", "float32")
    for batch, seed in ((5, 1), (16, 2)):
        live, _ = trained(teacher, teacher, terms, tmp_path / "live", batch, seed)
        kept, _ = trained(source, teacher, terms, tmp_path / "kept", batch, seed)
        torch.testing.assert_close(kept, live, rtol=1e-3, atol=1e-4)


def test_a_cache_that_lacks_what_is_asked_is_refused_before_training(tmp_path, teacher):
    source = cached(teacher, METHODS["logits"], tmp_path / "cache", "float32")
    with pytest.raises(CacheError, match="hidden of layers"):
        trained(source, teacher, METHODS["hidden"], tmp_path / "kept")


# ---- whole runs


def recipe(folder: Path, **more: Any) -> dict[str, Any]:
    rows = {"train": tiny_rows(64), "validation": tiny_rows(24, seed=1), "test": tiny_rows(24, seed=2)}
    for split, part in rows.items():
        part.to_parquet(folder / f"{split}.parquet")
    save_folder(tiny_model(layers=4, seed=5), folder / "teacher", tiny_tokenizer())
    train = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3}
    return {
        "name": "kept",
        "task": "text_classification",
        "data": {"files": {split: str(folder / f"{split}.parquet") for split in rows}, "max_length": 16},
        "teacher": {"model": str(folder / "teacher")},
        "student": {"from": "teacher", "layers": 2},
        "distill": [{"terms": [{"knowledge": "logits"}, {"knowledge": "hidden"}], "train": train}],
        "evaluate": {"baseline": False, "pretrained_baseline": False, "seeds": 2, "cost": False},
        "export": {"formats": []},
        **more,
    }


class Counted:
    """How many rows a teacher saw while students learned or its answers were kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        before = Observer.__call__

        def counting(observer: Observer, batch: Any) -> Any:
            if observer.model.config.num_hidden_layers == 4:
                self.rows += len(batch["input_ids"])
            return before(observer, batch)

        monkeypatch.setattr(Observer, "__call__", counting)


def student_of(outcome: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(outcome.student / "model.safetensors")


def test_a_run_keeps_answers_by_itself_where_it_pays(tmp_path, monkeypatch):
    made = recipe(tmp_path)
    seen = Counted(monkeypatch)
    lines: list[str] = []
    live = run({**made, "cache": {"use": "never"}}, tmp_path / "live")
    alone, seen.rows = seen.rows, 0
    kept = run(made, tmp_path / "kept", progress=told(lines))
    assert alone > 64 * 4
    assert seen.rows < 64 + 64 + 16  # once, once more for the fidelity, and what is tried before
    assert any("its answers are kept on disk" in line and "4 times" in line for line in lines)
    [folder] = caches(tmp_path / "kept" / "cache")
    assert open_cache(folder).rows == len({str(row["text"]) for row in tiny_rows(64)})
    ours, theirs = student_of(kept), student_of(live)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0.02, atol=5e-3, msg=name)
    record = kept.results["kept"]["teacher"]
    assert record["passes"] == 4
    assert record["fidelity"]["columns"]["logits"]["kl"] < 1e-4
    page = (tmp_path / "kept" / "report.html").read_text(encoding="utf-8")
    assert "kept on disk in float16" in page
    assert "seen once in place of 4 times" in page
    assert live.results["kept"] == {}


def told(lines: list[str]) -> Any:
    from potstill.progress import Silent

    class Told(Silent):
        def say(self, text: str) -> None:
            lines.append(text)

    return Told()


def test_one_epoch_of_one_seed_lets_the_teacher_run_along(tmp_path):
    made = recipe(tmp_path)
    made["distill"][0]["train"]["epochs"] = 1
    made["evaluate"]["seeds"] = 1
    lines: list[str] = []
    run(made, tmp_path / "out", progress=told(lines))
    assert not (tmp_path / "out" / "cache").exists()
    assert any("runs along, since it sees every row once" in line for line in lines)


def test_what_takes_too_much_room_runs_along_and_says_so(tmp_path):
    lines: list[str] = []
    run(recipe(tmp_path, cache={"limit_gb": 1e-6}), tmp_path / "out", progress=told(lines))
    assert not (tmp_path / "out" / "cache").exists()
    assert any("runs along: kept answers would take" in line and "cache.limit_gb" in line for line in lines)


def test_only_reads_what_is_there_and_refuses_the_rest(tmp_path):
    made = recipe(tmp_path, cache={"use": "only", "folder": str(tmp_path / "elsewhere")})
    with pytest.raises(CacheError, match="no cache there"):
        run(made, tmp_path / "out")
    kept = keep({**made, "cache": {**made["cache"], "use": "auto"}}, tmp_path / "writes")
    assert kept["teacher"]["written_rows"] == kept["teacher"]["rows"]
    run(made, tmp_path / "out", update=True)
    other = {**made, "data": {**made["data"], "max_length": 12}}
    with pytest.raises(CacheError, match="max_length: 16 in the cache, 12 here"):
        run(other, tmp_path / "other")


def test_keeping_by_command_then_running_trains_from_there(tmp_path, monkeypatch):
    made = recipe(tmp_path)
    for number in (1, 2):
        keep(made, tmp_path / "out", part=(number, 2))
    again = keep(made, tmp_path / "out")
    assert again["teacher"]["written_rows"] == 0
    seen = Counted(monkeypatch)
    run(made, tmp_path / "out")
    assert seen.rows <= 8  # the preflight's
    with pytest.raises(CacheError, match="3 of 2"):
        keep(made, tmp_path / "out", part=(3, 2))


def test_a_comparison_keeps_what_all_its_variants_ask_at_once(tmp_path, monkeypatch):
    from potstill.comparing import compare

    made = recipe(tmp_path)
    made["evaluate"] |= {"seeds": 1, "attention_similarity": False}
    seen = Counted(monkeypatch)
    compare(made, ["distill.0.terms.1.layers=last1,uniform"], tmp_path / "out")
    [folder] = caches(tmp_path / "out" / "cache")
    assert open_cache(folder).identity.needs.hidden >= {1, 3}
    assert seen.rows < 64 + 64 + 64  # kept, fidelity, and what is tried; more than 256 had it run along


def test_a_recipe_says_what_it_keeps_and_wrong_words_are_refused(tmp_path):
    made = recipe(tmp_path)
    assert load_recipe(made).cache.use == "auto"
    with pytest.raises(RecipeError, match=r"cache\.precision"):
        load_recipe({**made, "cache": {"precision": "float8"}})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    older = json.loads(json.dumps(load_recipe(made).as_dict()))
    older.pop("cache")
    assert load_recipe(older).cache == load_recipe(made).cache
    shutil.rmtree(tmp_path / "teacher")
