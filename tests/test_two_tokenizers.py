"""Two tokenizers: the student's vocabulary is cut, or its checkpoint has one of its own. Each model reads its own ids,
everything that ships has the student's, and without all that nothing is different from before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_folder, tiny_model, tiny_texts, tiny_tokenizer
from tiny_runs import SHORT, Told, merged, tiny_recipe, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from potstill import shipping
from potstill.errors import ModelError
from potstill.evaluation.predict import load_predictions, predict_logits
from potstill.knowledge import TEACHERS, Needs, observe
from potstill.knowledge.observe import Observer, own_columns
from potstill.objective import Objective
from potstill.pipeline import run
from potstill.plan import plan
from potstill.preflight import preflight, start_student, student_notes
from potstill.recipe import load_recipe
from potstill.training import Distiller
from potstill.workbench import Workbench, prepare_workbench

CUT = {"student": {"layers": 2, "vocabulary": "data"}}
TERMS = [{"knowledge": "labels"}, {"knowledge": "logits"}, {"knowledge": "hidden"}, {"knowledge": "values"}]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPELLED = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def bench_of(recipe: dict[str, Any], told: Told | None = None) -> Workbench:
    return prepare_workbench(load_recipe(recipe), (told or Told()).say)


def lacking(folder: Path, changes: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """A tiny recipe whose training rows lack three of the words, two of which the other splits have."""
    made = tiny_recipe(folder, changes, **model)
    texts, labels = tiny_texts(60)
    keep = [(t, n) for t, n in zip(texts, labels, strict=True) if "today" not in t and "dull" not in t]
    columns = {"text": [t for t, _ in keep], "label": [("bad", "good")[n] for _, n in keep]}
    made["data"]["files"]["train"] = write_csv(folder / "lacking.csv", columns)
    return made


def spelling_student(folder: Path, layers: int = 1) -> str:
    """A checkpoint whose tokenizer spells every word."""
    config = tiny_model(layers=layers).config
    config.vocab_size = len(SPELLED)
    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(SPELLED)}, model_max_length=40)
    return str(save_folder(AutoModelForSequenceClassification.from_config(config), folder, tokenizer))


# ---- nothing changes where there is one


def test_rows_and_digest_are_what_they_were_before_there_could_be_two(tmp_path: Path) -> None:
    bench = bench_of(tiny_recipe(tmp_path))
    assert bench.digest == "1437cafc3865e3e0"  # computed when there was one tokenizer and no `student.vocabulary`
    assert bench.for_teacher is bench and bench.teachers is None and bench.teacher_reader is None
    assert set(bench.rows["train"].column_names) == {"labels", "input_ids", "token_type_ids", "length"}
    own = save_folder(tiny_model(layers=1), tmp_path / "same")
    student = {"from": "checkpoint", "layers": None, "model": str(own)}
    assert bench_of(merged(tiny_recipe(tmp_path), {"student": student})).digest == bench.digest


def test_a_folder_of_a_recipe_without_the_new_keys_is_gone_on_with(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    first = run(recipe, tmp_path / "run")
    known = first.folder / "recipe.yaml"
    lines = known.read_text().splitlines()
    older = [line for line in lines if line.strip() not in ("initialise: teacher", "width: null", "vocabulary: null")]
    assert len(older) == len(lines) - 3
    known.write_text("\n".join(older))
    before = {p.name: p.read_text() for p in (first.folder / ".stages").iterdir()}
    run(recipe, tmp_path / "run")
    assert {p.name: p.read_text() for p in (first.folder / ".stages").iterdir()} == before


# ---- a vocabulary cut to the data


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Workbench]:
    folder = tmp_path_factory.mktemp("cut")
    recipe = lacking(folder, {**CUT, "distill": [{"terms": TERMS, "train": SHORT}]})
    return recipe, bench_of(recipe)


def test_rows_hold_both_encodings(cut: tuple[dict[str, Any], Workbench]) -> None:
    _, bench = cut
    teacher = bench.for_teacher
    assert teacher.digest == bench_of(merged(cut[0], {"student": {"vocabulary": None}})).digest != bench.digest
    assert len(bench.reader) == len(teacher.reader) - 3
    for split, rows in bench.rows.items():
        assert rows["teacher_input_ids"][:] == teacher.rows[split]["input_ids"][:]
        assert rows["labels"][:] == teacher.rows[split]["labels"][:]
        for text, ids in zip(bench.raw[split]["text"], rows["input_ids"], strict=True):
            assert ids == bench.reader(text, truncation=True, max_length=32)["input_ids"]
    assert bench.reads("teacher").rows is teacher.rows and bench.reads("baseline") is bench


def test_each_tokenizer_is_cut_to_its_own_length(tmp_path: Path) -> None:
    student = {"from": "checkpoint", "layers": None, "model": spelling_student(tmp_path / "spelled")}
    told = Told()
    bench = bench_of(merged(tiny_recipe(tmp_path), {"student": student, "data": {"max_length": 64}}), told)
    assert (
        max(bench.rows["train"]["length"]) == 40
        and "max_length 64 is cut to 40, the most that the student" in told.text
    )
    assert max(bench.for_teacher.rows["train"]["length"]) < 40
    batch = bench.collate(bench.rows["train"].select(range(6)).to_list())
    assert batch["input_ids"].shape == (6, 40) == batch["attention_mask"].shape
    assert batch["teacher_input_ids"].shape == batch["teacher_attention_mask"].shape
    widths = [len(row) for row in bench.for_teacher.rows["train"].select(range(6))["input_ids"]]
    assert batch["teacher_attention_mask"].sum(1).tolist() == widths and batch["teacher_input_ids"].shape[1] == max(
        widths
    )


def test_the_digest_sees_the_kept_vocabulary(cut: tuple[dict[str, Any], Workbench]) -> None:
    recipe, bench = cut
    assert bench_of(recipe).digest == bench.digest
    assert bench_of(merged(recipe, {"student": {"vocabulary": {"minimum_count": 12}}})).digest != bench.digest


def test_the_cut_student_learns_exactly_what_the_whole_one_learns(cut: tuple[dict[str, Any], Workbench]) -> None:
    recipe, bench = cut
    found = preflight(bench)
    whole = bench_of(merged(recipe, {"student": {"vocabulary": None}}))
    student = preflight(whole).student
    objective = Objective(TERMS)
    totals, gradients = [], []
    for own, model in ((bench, found.student), (whole, student)):
        distiller = Distiller(model, objective, own.task, found.teacher, own_columns=own.teachers is not None)
        parts = distiller(own.collate(own.rows["train"].select(range(8)).to_list()))
        parts.total.backward()
        totals.append(parts)
        gradients.append(dict(model.named_parameters())["bert.encoder.layer.1.output.dense.weight"].grad)
    assert totals[0].terms.keys() == totals[1].terms.keys()
    for name, share in totals[0].terms.items():
        assert torch.equal(share, totals[1].terms[name]), name
    assert torch.equal(*gradients)


def test_a_teacher_reads_its_own_columns_and_pools_by_its_own_mask(tmp_path: Path) -> None:
    student = {"from": "checkpoint", "layers": None, "model": spelling_student(tmp_path / "spelled")}
    terms = [{"knowledge": "hidden", "loss": "rkd_distance", "pool": how, "layers": "last"} for how in ("mean", "last")]
    bench = bench_of(tiny_recipe(tmp_path, {"student": student, "distill": [{"terms": terms, "train": SHORT}]}))
    found = preflight(bench)
    rows = bench.rows["train"].select(range(6))
    batch = bench.collate(rows.to_list())
    own = bench.for_teacher.collate(bench.for_teacher.rows["train"].select(range(6)).to_list())
    needs = Needs(logits=True, hidden=frozenset({3}))
    with torch.no_grad():
        seen, alone = Observer(found.teacher, needs, prefix=TEACHERS)(batch), observe(found.teacher, own, needs)
    assert torch.equal(seen.logits, alone.logits) and torch.equal(seen.hidden[3], alone.hidden[3])
    assert torch.equal(seen.mask, own["attention_mask"].bool())
    assert own_columns(own, TEACHERS) is own and "token_type_ids" in own_columns(batch, TEACHERS)
    distiller = Distiller(found.student, Objective(terms), bench.task, found.teacher, own_columns=True)
    shares = distiller(batch).terms
    more = {k: torch.nn.functional.pad(v, (0, 5)) if k.startswith(TEACHERS) else v for k, v in batch.items()}
    for name, share in distiller(more).terms.items():
        torch.testing.assert_close(share, shares[name])


def test_a_cut_by_count_compares_no_tokens(
    cut: tuple[dict[str, Any], Workbench],
) -> None:
    recipe, bench = cut
    assert bench.reader.tokenize("a dull film") == ["a", "[UNK]", "film"]
    rare = merged(recipe, {"student": {"vocabulary": {"minimum_count": 12}}})
    with pytest.raises(ModelError, match="hidden, values would compare tokens that aren't the same"):
        preflight(bench_of(rare))
    rare["distill"] = [{"terms": TERMS[:2], "train": SHORT}]
    preflight(bench_of(rare))


# ---- a checkpoint with a tokenizer of its own


def test_a_model_of_the_students_kind_must_read_as_it_does(tmp_path: Path) -> None:
    student = {"from": "checkpoint", "layers": None, "model": spelling_student(tmp_path / "spelled")}
    recipe = tiny_recipe(tmp_path, {"student": student})
    with pytest.raises(ModelError, match="A student from: teacher has another tokenizer than the student"):
        preflight(bench_of({**recipe, "assistants": [{"student": {"layers": 3}}]}))
    preflight(
        bench_of({**recipe, "assistants": [{"student": {**student, "model": spelling_student(tmp_path / "b", 2)}}]})
    )


def test_an_assistant_that_reads_as_the_student_may_teach_it_tokens(tmp_path: Path) -> None:
    student = {"from": "checkpoint", "layers": None}
    logits = [{"terms": [{"knowledge": "logits"}], "train": SHORT}]
    assistant = {"student": {**student, "model": spelling_student(tmp_path / "b", 2)}, "distill": logits}
    small = {**student, "model": spelling_student(tmp_path / "spelled")}
    recipe = tiny_recipe(tmp_path, {"student": small, "distill": [{"terms": TERMS, "train": SHORT}]})
    found = preflight(bench_of({**recipe, "assistants": [assistant]}))
    assert [term.name for term in found.stages[0].terms] == ["labels", "logits", "hidden", "values"]
    with pytest.raises(ModelError, match="hidden, values would compare tokens"):
        preflight(bench_of(recipe))


def test_several_teachers_share_one_tokenizer(tmp_path: Path) -> None:
    other = {"name": "second", "model": spelling_student(tmp_path / "spelled"), "train": dict(SHORT)}
    with pytest.raises(ModelError, match="The teacher 'second' has another tokenizer than the teacher"):
        preflight(bench_of(tiny_recipe(tmp_path, {**CUT, "teacher": {"others": [other]}})))


def test_ids_beyond_the_embeddings_are_found_before_training(tmp_path: Path) -> None:
    model = tiny_model(layers=1)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"never{n}" for n in range(30)), "the", "film", "was"]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(words)})
    student = {"from": "checkpoint", "layers": None, "model": str(save_folder(model, tmp_path / "s", tokenizer))}
    with pytest.raises(ModelError, match=r"student's tokenizer has more tokens.*29 rows of embeddings"):
        preflight(bench_of(tiny_recipe(tmp_path, {"student": student})))


# ---- how students start


def test_a_start_is_the_teachers_the_pretrained_or_random(tmp_path: Path) -> None:
    found = {}
    for how in ("teacher", "pretrained", "random"):
        bench = bench_of(tiny_recipe(tmp_path, {"student": {"layers": 2, "initialise": how}}))
        trained = tiny_model(seed=7)
        found[how] = start_student(bench, trained, 1)
        assert torch.equal(next(start_student(bench, trained, 1).parameters()), next(found[how].parameters()))
    weights = {how: dict(model.named_parameters()) for how, model in found.items()}
    name = "bert.encoder.layer.1.output.dense.weight"  # of the teacher's last layer
    assert torch.equal(weights["teacher"][name], tiny_model(seed=7).bert.encoder.layer[3].output.dense.weight)
    assert torch.equal(weights["pretrained"][name], tiny_model(seed=0).bert.encoder.layer[3].output.dense.weight)
    assert not any(torch.equal(weights["random"][name], weights[how][name]) for how in ("teacher", "pretrained"))
    assert weights["random"].keys() == weights["teacher"].keys() and weights["random"][name].std() < 0.03


def test_all_cuts_together_and_what_the_plan_says(tmp_path: Path) -> None:
    width = {"hidden": 16, "heads": 2, "intermediate": 24, "calibration": 16}
    student = {"layers": 2, "width": width, "vocabulary": "data"}
    recipe = lacking(tmp_path, {"student": student, "distill": [{"terms": TERMS[:3], "train": SHORT}]})
    bench = bench_of(recipe)
    found = preflight(bench)
    assert found.student.config.hidden_size == 16 and found.student.config.vocab_size == len(bench.reader)
    words = found.student.get_input_embeddings().weight
    rows = found.teacher.get_input_embeddings().weight[list(bench.vocabulary.kept)]
    assert all(any(torch.equal(words[:, i], rows[:, j]) for j in range(32)) for i in range(16))
    lines = student_notes(bench, found)
    assert lines == [
        "student: layers 0, 3 of 4, with the teacher's weights, as trained here",
        "width: hidden 32 to 16, intermediate 64 to 24, heads 4 to 2, by importance on 16 training rows",
        "vocabulary: 29 to 26 tokens, 0.0 MB of embeddings less",
        "tokenizers: teacher and student have one each, and are compared token by token for hidden: the tokens of "
        "every training row are the same",
    ]
    planned = plan(recipe)
    assert set(lines) <= set(planned.notes) and planned.student.vocabulary == 26
    recipe["student"]["width"]["calibration"] = 0
    assert "by the size of the weights" in "\n".join(student_notes(bench_of(recipe), preflight(bench_of(recipe))))


# ---- whole runs


def test_a_whole_run_with_a_cut_vocabulary(tmp_path: Path) -> None:
    changes = {
        **CUT,
        "distill": [{"terms": TERMS, "train": SHORT}],
        "refine": {"train": SHORT},
        "evaluate": {"baseline": True, "cost": False},
        "export": {"formats": ["onnx"]},
    }
    recipe, told = lacking(tmp_path, changes), Told()
    made = run(recipe, tmp_path / "run", progress=told)
    bench = bench_of(recipe)
    assert "vocabulary: 29 to 26 tokens" in told.text
    for place in ("student", "baseline", "seeds/0/pretrained_baseline"):
        tokenizer = AutoTokenizer.from_pretrained(made.folder / place)
        model = AutoModelForSequenceClassification.from_pretrained(made.folder / place).eval()
        assert tokenizer.get_vocab() == bench.reader.get_vocab() and model.config.vocab_size == 26
    assert len(AutoTokenizer.from_pretrained(made.folder / "teacher")) == 29
    student = AutoModelForSequenceClassification.from_pretrained(made.folder / "student").eval()
    kept = load_predictions(made.folder / "predictions/student-0.parquet")["test"]
    plain = bench.task.collator(bench.reader)
    assert abs(predict_logits(student, bench.rows["test"], plain) - kept).max() < 1e-5
    teacher = AutoModelForSequenceClassification.from_pretrained(made.folder / "teacher").eval()
    reads = bench.for_teacher
    theirs = load_predictions(made.folder / "predictions/teacher-0.parquet")["test"]
    assert abs(predict_logits(teacher, reads.rows["test"], reads.collate) - theirs).max() < 1e-5
    assert made.results["exports"][0]["max_logit_difference"] < 1e-3
    stages = json.loads((made.folder / "run.json").read_text())["digests"]
    whole = run(merged(recipe, {"student": {"vocabulary": None}}), tmp_path / "run", update=True)
    others = json.loads((whole.folder / "run.json").read_text())["digests"]
    same = {name for name in stages if stages[name] == others[name]}
    assert same == {"teacher", "predictions/teacher/0"}  # it reads as it did, and is not trained again


def test_a_whole_run_of_a_checkpoint_that_spells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DistilBERT that spells its words learns from a Llama that reads them whole and pads on the left."""
    monkeypatch.setattr(shipping, "peak_memory", lambda *_: 1)
    config = tiny_model("distilbert", layers=1).config
    config.vocab_size = len(SPELLED)
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(SPELLED)}, model_max_length=64)
    path = str(save_folder(AutoModelForSequenceClassification.from_config(config), tmp_path / "spelled", tokenizer))
    left = save_folder(tiny_model("llama"), tmp_path / "llama", tiny_tokenizer(padding_side="left"))
    changes = {
        "data": {"max_length": 64},
        "teacher": {"model": str(left)},
        "student": {"from": "checkpoint", "layers": None, "model": path},
        "distill": [{"terms": [{"knowledge": "labels"}, {"knowledge": "logits"}], "train": SHORT}],
        "evaluate": {"baseline": True, "cost": True},
    }
    told = Told()
    made = run(tiny_recipe(tmp_path, changes), tmp_path / "run", progress=told)
    assert "compared by row, not by token" in told.text
    assert AutoTokenizer.from_pretrained(made.student).get_vocab() == tokenizer.get_vocab()
    models = {model["key"]: model for model in made.results["models"]}
    assert models["teacher"]["cost"]["macs_at"] != models["student"]["cost"]["macs_at"]  # each by its own tokens
    assert set(models) == {"teacher", "baseline", "student"}


def test_generations_with_a_cut_vocabulary_read_as_the_student(tmp_path: Path) -> None:
    recipe = lacking(tmp_path, {**CUT, "distill": [{"terms": TERMS, "train": SHORT}], "generations": 2})
    made = run(recipe, tmp_path / "run")
    for place in ("student", "seeds/0/assistant-1"):
        assert len(AutoTokenizer.from_pretrained(made.folder / place)) == 26
