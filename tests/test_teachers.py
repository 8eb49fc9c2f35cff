"""Several teachers, chains and students that learn together, through whole runs: who is trained from whom, and what is
refused before anything is."""

from pathlib import Path
from typing import Any

import pytest
from tiny import save_folder, tiny_model, tiny_tokenizer
from tiny_runs import SHORT, tiny_recipe, write_csv

from potstill import school
from potstill.errors import DataError, ModelError, PotstillError, RecipeError
from potstill.likeness import attention_pairs
from potstill.pipeline import run
from potstill.preflight import preflight
from potstill.recipe import load_recipe
from potstill.workbench import prepare_workbench

KL = {"knowledge": "logits"}


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """(folder of the stage, lesson) of every training, as it happens."""
    seen: list[tuple[str, Any]] = []
    whole_train = school.train

    def spy(model: Any, lesson: Any, settings: Any, folder: Path, **options: Any) -> Any:
        seen.append((folder.parent.parent.name, lesson))
        return whole_train(model, lesson, settings, folder, **options)

    monkeypatch.setattr(school, "train", spy)
    return seen


def weight(model: Any) -> Any:
    return next(p for name, p in model.named_parameters() if "layer.0" in name).detach().clone()


def test_a_chain_teaches_link_by_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    chain = {"assistants": [{"student": {"layers": 3}}], "generations": 2}
    outcome = run(tiny_recipe(tmp_path, chain), tmp_path / "run")
    assert [name for name, _ in seen] == [
        "teacher",
        *(f"seeds-0-{r}" for r in ("assistant-1", "assistant-2", "student")),
    ]
    depths = [lesson.teacher["teacher"].config.num_hidden_layers for name, lesson in seen[1:]]
    assert depths == [4, 3, 2]  # the teacher, the assistant, the first generation of the student
    keys = [model["key"] for model in outcome.results["models"]]
    assert keys == ["teacher", "assistant-1", "assistant-2", "student"]


def test_maps_are_held_against_the_teachers_though_an_assistant_taught(tmp_path: Path) -> None:
    terms = {"distill": [{"terms": [{"knowledge": "attention", "layers": {1: 2}}], "train": dict(SHORT)}]}
    pairs = []
    for chain in ({}, {"assistants": [{"student": {"layers": 3}, "distill": [{"terms": [KL]}]}]}):
        found = preflight(prepare_workbench(load_recipe(tiny_recipe(tmp_path, {**terms, **chain})), lambda _: None))
        pairs.append(attention_pairs(found.student, found.teacher, found.stages))
    assert pairs == [
        ((0, 1), (1, 2)),
        ((0, 1), (1, 3)),
    ]  # as the term has it; 2 of three is another layer


def two_teachers(tmp_path: Path, **section: Any) -> dict[str, Any]:
    recipe = tiny_recipe(tmp_path)
    other = {"name": "second", "model": recipe["teacher"]["model"], "train": dict(SHORT), "seed": 3}
    recipe["teacher"] |= {"others": [other], **section}
    return recipe


def test_each_teacher_is_trained_from_its_own_seed_and_both_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    outcome = run(two_teachers(tmp_path, weight=3.0), tmp_path / "run")
    assert [name for name, _ in seen] == ["teacher", "teachers-second", "seeds-0-student"]
    lesson = seen[-1][1]
    assert list(lesson.teacher) == ["teacher", "second"]
    heads = [model.classifier.weight for model in lesson.teacher.values()]
    assert not (heads[0] == heads[1]).all()  # another seed, another new head
    assert lesson.combination.influence({}, {}) == {"teacher": 0.75, "second": 0.25}
    student = next(model for model in outcome.results["models"] if model["key"] == "student")
    assert set(student["curves"][0]["points"][-1]["parts"]) == {"logits from teacher", "logits from second"}
    assert [model["title"] for model in outcome.results["models"]] == ["Teacher", "Teacher: second", "Student"]


def routed_rows(tmp_path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Two teachers, with a column in the training rows that routes them."""
    recipe = two_teachers(tmp_path, route="who")
    for path in map(Path, recipe["data"]["files"].values()):
        lines = [line.rsplit(",", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        columns = {"text": [text for text, _ in lines], "label": [label for _, label in lines]}
        write_csv(path, {**columns, "who": [names[number % len(names)] for number in range(len(lines))]})
    recipe["data"]["columns"] = {"text": "text", "label": "label"}
    return recipe


def test_rows_go_where_a_column_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    run(routed_rows(tmp_path, ("teacher", "second", "second")), tmp_path / "run")
    assert seen[-1][1].rows["teacher"][:4] == [0, 1, 1, 0]
    assert seen[-1][1].combination.route == "who"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"route": "nowhere"}, DataError, "no column 'nowhere'"),
        ({"others": [{"name": "teacher", "model": "x"}]}, RecipeError, "a name of its own"),
        ({"others": [{"name": "student", "model": "x"}]}, RecipeError, "a name of its own"),
        ({"others": [{"name": n, "model": "x", "train": {}} for n in "ab"]}, RecipeError, "would be the same"),
        ({"others": [], "route": "confident"}, RecipeError, "there are no 'others'"),
        ({"others": [], "weight": 2.0}, RecipeError, "there are no 'others'"),
        ({"others": [{"name": "second", "model": "OTHER"}]}, ModelError, "'second' has another tokenizer"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], error: type[PotstillError], message: str
) -> None:
    monkeypatch.setattr(school, "train", lambda *_, **__: pytest.fail("it trained"))
    recipe = two_teachers(tmp_path)
    for other in change.get("others", ()):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["more"])
        other["model"] = str(save_folder(tiny_model(layers=1), tmp_path / "other", tokenizer))
    recipe["teacher"] |= change
    with pytest.raises(error) as raised:
        run(recipe, tmp_path / "run")
    assert message in str(raised.value)


def test_rows_that_are_routed_otherwise_are_other_rows(tmp_path: Path) -> None:
    digests = set()
    for names in (("teacher", "second"), ("second", "teacher")):
        recipe = load_recipe(routed_rows(tmp_path, names))
        digests.add(prepare_workbench(recipe, lambda _: None).digest)
    assert len(digests) == 2


def test_no_teacher_is_surest_where_there_are_no_classes(tmp_path: Path) -> None:
    recipe = two_teachers(tmp_path, route="confident")
    for path in map(Path, recipe["data"]["files"].values()):
        path.write_text(path.read_text(encoding="utf-8").replace(",good", ",0.5").replace(",bad", ",-1.5"))
    recipe["data"]["problem"] = "regression"
    with pytest.raises(RecipeError, match="problem regression"):
        prepare_workbench(load_recipe(recipe), lambda _: None)


def test_a_column_that_names_strangers_is_refused_with_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'third' \(20 rows\)"):
        run(routed_rows(tmp_path, ("teacher", "third", "second")), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill": [{"terms": [{**KL, "teacher": "secnd"}]}]}, "Unknown teacher 'secnd'"),
        ({"distill": [{"terms": [KL], "mutual": [{"layers": 1}]}]}, "a term with teacher: peers"),
        ({"distill": [{"terms": [{**KL, "teacher": "peers"}]}]}, "Unknown teacher 'peers'"),
        ({"distill": [{"terms": [KL], "freeze": ["tail"]}]}, "freeze"),
        ({"distill": [{"terms": [KL], "freeze": [7]}]}, "Name layers from 0 to 1"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(school, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(PotstillError) as raised:
        run(tiny_recipe(tmp_path, change), tmp_path / "run")
    assert message in str(raised.value)


def test_frozen_parts_stay_and_what_learns_along_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    together = {"terms": [{"knowledge": "labels"}, {**KL, "teacher": "peers"}], "mutual": [{"layers": [0, 3]}]}
    frozen = {"terms": [KL], "freeze": ["embeddings", 0], "train": dict(SHORT)}
    outcome = run(tiny_recipe(tmp_path, {"distill": [frozen, {**together, "train": dict(SHORT)}]}), tmp_path / "run")
    first, second = (lesson for name, lesson in seen if name == "seeds-0-student")
    assert first.freeze == ["embeddings", 0] and not second.freeze
    assert len(second.peers) == 1 and not first.peers
    shipped = sorted(path.name for path in outcome.student.iterdir())
    assert "model.safetensors" in shipped and not any("peers" in name for name in shipped)


def test_students_that_learn_along_start_apart_and_go_on_from_stage_to_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    small = {"layers": 2, "initialise": "random"}
    terms = [{"knowledge": "labels"}, {**KL, "teacher": "peers"}]
    together = {"terms": terms, "mutual": [small, small], "train": dict(SHORT)}
    fewer = {**together, "mutual": [small]}
    run(tiny_recipe(tmp_path, {"student": small, "distill": [together, fewer]}), tmp_path / "run")
    first, second = (lesson for name, lesson in seen if name == "seeds-0-student")
    starts = [weight(peer) for peer in first.peers]
    assert not (starts[0] == starts[1]).all()
    assert second.peers == first.peers[:1]


def test_a_student_that_learns_along_is_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(school, "train", lambda *_, **__: pytest.fail("it trained"))
    terms = [{"knowledge": "hidden", "layers": {1: 3}}, {**KL, "teacher": "peers"}]
    with pytest.raises(PotstillError, match="1 is no layer of the student"):
        run(tiny_recipe(tmp_path, {"distill": [{"terms": terms, "mutual": [{"layers": 1}]}]}), tmp_path / "run")


def test_a_short_student_that_learns_along_is_refused(tmp_path: Path) -> None:
    short = save_folder(tiny_model(layers=1, max_position_embeddings=5), tmp_path / "short")
    along = {"terms": [{**KL, "teacher": "peers"}], "mutual": [{"from": "checkpoint", "model": str(short)}]}
    with pytest.raises(ModelError, match="learns along has positions for 5 tokens"):
        preflight(prepare_workbench(load_recipe(tiny_recipe(tmp_path, {"distill": [along]})), lambda _: None))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({**KL, "loss": "skewed_kl_divergence", "alpha": 2}, "alpha"),
        ({**KL, "temperature": 0}, "temperature"),
        ({**KL, "temperature": {"schedule": "linear", "from": 1, "to": 0}}, "temperature"),
        ({"knowledge": "attention", "reduce_heads": "avg"}, "reduce_heads"),
        ({"knowledge": "values", "heads": "four"}, "heads"),
        ({"knowledge": "hidden", "loss": "crd", "layers": "last1", "negatives": 0}, "1 negative or more"),
    ],
)
def test_arguments_that_a_loss_refuses_are_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(school, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(PotstillError) as raised:
        run(tiny_recipe(tmp_path, {"distill": [{"terms": [term]}]}), tmp_path / "run")
    assert message in str(raised.value)
