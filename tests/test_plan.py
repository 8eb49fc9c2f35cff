"""The dry run: what it finds is what the run would do, and it leaves nothing behind."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import save_folder, tiny_model
from tiny_runs import SHORT, merged, tiny_recipe

from potstill import plan as planning
from potstill.cli.plan import print_plan
from potstill.errors import DataError, ModelError, RecipeError
from potstill.plan import plan

TERMS = [
    {"knowledge": "labels", "weight": {"schedule": "linear", "from": 1, "to": 0}},
    {"knowledge": "logits", "temperature": 2.0},
    {"knowledge": "hidden"},
    {"knowledge": "values", "layers": "last", "heads": 2},
]
CHANGES = {
    "student": {"from": "config", "layers": None, "config": {"hidden_size": 16, "num_hidden_layers": 2}},
    "distill": [{"terms": TERMS, "train": SHORT}, {"terms": [{"knowledge": "logits"}], "train": {**SHORT, "steps": 7}}],
    "refine": {"train": SHORT},
    "evaluate": {"baseline": True, "seeds": 2},
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> planning.Plan:
    """The plan of a narrower student in two stages."""
    return plan(tiny_recipe(tmp_path_factory.mktemp("plan"), CHANGES))


def test_shapes(planned: planning.Plan) -> None:
    teacher, student = planned.teacher, planned.student
    assert (teacher.family, teacher.layers, teacher.width, teacher.heads) == ("bert", 4, 32, 4)
    assert (student.family, student.layers, student.width, student.heads) == ("bert", 2, 16, 4)
    assert planned.parameters["teacher"] == sum(p.numel() for p in tiny_model().parameters())
    assert planned.parameters["teacher"] > planned.parameters["student"] > 0
    assert planned.rows == {"train": 60, "validation": 30, "test": 30}
    assert list(planned.classes) == ["bad", "good"]


def test_terms_pairs_and_projections(planned: planning.Plan) -> None:
    labels, logits, hidden, values = planned.stages[1].terms
    assert (labels.loss, labels.weight, labels.pairs, labels.projection) == ("cross_entropy", "1 to 0", (), None)
    assert (logits.loss, logits.weight, logits.shape) == ("kl_divergence", "1", "[B,V] with [B,V]")
    assert hidden.pairs == (("embeddings", "embeddings"), ("0", "1"), ("1", "3"))
    assert hidden.shape == "[B,S,16] with [B,S,32]"
    assert hidden.projection == "linear 16 to 32"
    assert (values.pairs, values.shape) == ((("0", "2"), ("1", "3")), "[B,4,S,4] with [B,4,S,8]")


def test_taps(planned: planning.Plan) -> None:
    assert planned.taps == {
        "student": "hidden of embeddings, 0, 1; values of 0, 1",
        "teacher": "hidden of embeddings, 1, 3; values of 2, 3",
    }


def test_stages_and_their_steps(planned: planning.Plan) -> None:
    assert [(stage.title, stage.steps) for stage in planned.stages] == [
        ("teacher", 2),
        ("student: distill 1, 2 times", 2),
        ("baselines: distill 1, 2 times", 2),
        ("student: distill 2, 2 times", 7),
        ("baselines: distill 2, 2 times", 7),
        ("refine, 4 times", 2),
    ]
    assert [stage.learning_rate for stage in planned.stages] == [1e-3] * 5 + [2e-5]  # of a width of 32: at most 1e-3
    assert all(stage.seconds > 0 for stage in planned.stages)
    assert planned.seconds == pytest.approx(sum(stage.seconds for stage in planned.stages))


def test_memory_and_disk(planned: planning.Plan) -> None:
    weights, teacher, activations = planned.memory.values()
    assert weights == 16 * planned.parameters["teacher"], (
        "weight, gradient and two moments, of the largest that is trained"
    )
    assert teacher == 4 * planned.parameters["teacher"]
    assert activations > 0 and planned.disk > 4 * planned.parameters["teacher"]


def test_a_cut_student_has_two_baselines_and_attention_is_said(tmp_path: Path) -> None:
    stage = {"terms": [{"knowledge": "attention"}], "train": SHORT}
    found = plan(tiny_recipe(tmp_path, {"evaluate": {"baseline": True}, "distill": [stage]}))
    assert [stage.title for stage in found.stages] == ["teacher", "student: distill", "baselines: distill, 2 times"]
    assert any("eager" in note for note in found.notes)
    assert found.taps["student"] == "attention of 0, 1" and found.taps["teacher"] == "attention of 1, 3"


def test_nothing_is_trained_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, CHANGES)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    models: list[Any] = []
    whole = planning.preflight

    def spy(*args: Any) -> Any:
        found = whole(*args)
        models.extend(
            (model, {k: v.clone() for k, v in model.state_dict().items()}) for model in (found.teacher, found.student)
        )
        return found

    monkeypatch.setattr(planning, "preflight", spy)
    plan(recipe)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(models) == 2
    for model, state in models:
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"distill": [{"terms": [{"knowledge": "hidden", "layers": {0: 9}}]}]}, RecipeError, "9 "),
        ({"data": {"columns": {"label": "lable"}}}, DataError, "'lable'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(tmp_path: Path, changes: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        plan(tiny_recipe(tmp_path, changes))


def test_a_head_that_nobody_trains_is_refused(tmp_path: Path) -> None:
    save_folder(tiny_model().bert, tmp_path / "headless")
    recipe = merged(tiny_recipe(tmp_path), {"teacher": {"model": str(tmp_path / "headless"), "train": None}})
    with pytest.raises(ModelError, match="newly initialised head"):
        plan(recipe)


def test_print(planned: planning.Plan) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_plan(planned, console)
    text = console.export_text()
    for said in (
        "[B,S,16] with [B,S,32]",
        "linear 16 to 32",
        "embeddings-embeddings, 0-1, 1-3",
        "values of 2, 3",
        "1 to 0",
    ):
        assert said in text, said
    for said in (
        "rows: train 60, validation 30, test 30; classes: bad, good",
        "memory: about",
        "disk: about",
        "[B,V] with labels",
    ):
        assert said in text, said
