"""A stage that is stopped anywhere and started again ends exactly where an unbroken one ends."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from potstill.knowledge import describe
from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training import Precision, TrainSettings, stages
from potstill.training.checkpoints import latest
from potstill.training.settings import RefineSettings
from potstill.training.stages import Lesson, rate_of, total_steps, train
from potstill.training.trainer import DistillationTrainer

TASK = TextClassification()
TERMS = (Term("labels", weight=0.5), Term("logits", temperature=2.0), Term("hidden"), Term("values"))
EXACT = Precision("float32", "the test says so")
#: 22 rows in batches of 4: six steps an epoch, the last of a smaller batch.
SETTINGS = {"epochs": 2.0, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_steps": 4}


class Stopped(Exception):
    """Stands for Ctrl-C."""


class Run:
    """One student, one folder; `go` may be called again and again, as a user would."""

    def __init__(self, folder, script=None, **settings):
        self.folder = folder
        self.settings = TrainSettings(**SETTINGS | settings)
        self.script = script
        self.steps = []
        self.asked = []
        self.seen = {}

    def go(self, stop_at=None, precision=EXACT):
        student = tiny_model(layers=2, width=32, heads=4, seed=1)
        teacher = tiny_model(layers=4, width=64, heads=4, seed=2)
        torch.manual_seed(len(self.steps))  # nothing may depend on what happened before
        self.steps.append([])

        def progress(step, _of, _loss):
            self.steps[-1].append(step)
            if step == stop_at:
                raise Stopped

        def evaluator(model):
            model.eval()
            step = self.steps[-1][-1]
            self.asked.append(step)
            self.seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            torch.rand(3)  # an evaluation may draw random numbers
            return {"accuracy": self.script(step)}

        lesson = Lesson(
            task=TASK,
            reader=tiny_tokenizer(),
            rows=TASK.encode(tiny_rows(22), tiny_tokenizer(), max_length=32),
            objective=Objective(TERMS),
            teacher=teacher,
            evaluator=evaluator if self.script else None,
        )
        record = train(student, lesson, self.settings, self.folder, precision=precision, seed=3, progress=progress)
        return student, record


def same(first, second):
    weights = first[0].state_dict(), second[0].state_dict()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    ours, theirs = (run[1].as_dict() for run in (first, second))
    for one in (ours, theirs):
        assert one.pop("seconds") > 0
    assert ours == theirs


@pytest.mark.parametrize("stop_at", [2, 4, 7, 9, 12])
def test_a_stopped_stage_ends_where_an_unbroken_one_ends(tmp_path, stop_at):
    whole = Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken")
    with pytest.raises(Stopped):
        broken.go(stop_at)
    resumed = broken.go()
    same(whole, resumed)
    assert broken.steps[1][0] == (stop_at - 1) // 4 * 4 + 1  # at most one interval is lost
    assert len(whole[1].points) == 12
    assert not resumed[0].training


def test_what_trains_beside_the_student_goes_on_too(tmp_path):
    """A peer of another depth, a memory, shared projections, and parts that are frozen."""
    rows = TASK.encode(tiny_rows(22), tiny_tokenizer(), max_length=32)
    crd = Term("hidden", loss="crd", layers="last1", options={"negatives": 8, "width": 8})
    terms = [Term("labels"), Term("logits", teacher="peers"), Term("hidden", share=True), crd]
    teacher = tiny_model(layers=4, width=64, seed=2)

    def go(folder, stop_at=None):
        def progress(step, _of, _loss):
            if step == stop_at:
                raise Stopped

        torch.manual_seed(stop_at or 0)
        student, peer = (tiny_model(layers=n, seed=n) for n in (2, 3))
        lesson = Lesson(TASK, tiny_tokenizer(), rows, Objective(terms), teacher, peers=[peer], freeze=["embeddings", 0])
        train(student, lesson, TrainSettings(**SETTINGS), folder, precision=EXACT, seed=3, progress=progress)
        return {path.name: load_file(path) for path in (folder / "final").glob("*.safetensors")}

    whole = go(tmp_path / "whole")
    with pytest.raises(Stopped):
        go(tmp_path / "broken", stop_at=6)
    resumed = go(tmp_path / "broken")
    assert set(whole) == {"student.safetensors", "projectors.safetensors", "peers.safetensors"}
    for file, tensors in whole.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, resumed[file][name]), f"{file}: {name}"
    start = tiny_model(layers=2, seed=2).state_dict()
    kept = {name for name, tensor in whole["student.safetensors"].items() if torch.equal(tensor, start[name])}
    assert {name for name in start if "embeddings" in name or "layer.0." in name} <= kept
    assert not {name for name in kept if "layer.1." in name}


def test_stopped_many_times(tmp_path):
    whole = Run(tmp_path / "whole", checkpoint_steps=2, accumulation=2).go()
    broken = Run(tmp_path / "broken", checkpoint_steps=2, accumulation=2)
    for stop_at in (1, 3, 3, 5, 6):
        with pytest.raises(Stopped):
            broken.go(stop_at)
    same(whole, broken.go())
    assert whole[1].steps == 6


def test_stopped_at_the_border_of_an_epoch(tmp_path):
    whole = Run(tmp_path / "whole", checkpoint_steps=6).go()
    broken = Run(tmp_path / "broken", checkpoint_steps=6)
    with pytest.raises(Stopped):
        broken.go(7)
    assert latest(tmp_path / "broken").name == "checkpoint-6"
    same(whole, broken.go())


def test_a_learning_curve_of_few_points_is_the_same_after_resuming(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "LOGS", 2)  # a point every 6 steps, a checkpoint every 4
    whole = Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken")
    with pytest.raises(Stopped):
        broken.go(5)
    same(whole, broken.go())
    assert [point["step"] for point in whole[1].points] == [4, 6, 8, 12]


def test_resuming_is_exact_in_bfloat16(tmp_path):
    precision = Precision("bfloat16", "the test says so")
    whole = Run(tmp_path / "whole", steps=7).go(precision=precision)
    broken = Run(tmp_path / "broken", steps=7)
    with pytest.raises(Stopped):
        broken.go(6, precision=precision)
    same(whole, broken.go(precision=precision))


def test_projections_come_back(tmp_path, monkeypatch):
    kept = []
    saved = stages.save_weights
    monkeypatch.setattr(
        stages, "save_weights", lambda d, folder: (kept.append(d.projectors.state_dict()), saved(d, folder))[1]
    )
    Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken")
    with pytest.raises(Stopped):
        broken.go(6)
    broken.go()
    assert len(kept) == 2
    assert len(kept[0]) == 6  # weight and bias of embeddings and two layers
    for name, tensor in kept[0].items():
        assert torch.equal(tensor, kept[1][name]), name


# ---- the end


@pytest.mark.parametrize("steps", [12, 10])
def test_killed_after_the_last_step(tmp_path, monkeypatch, steps):
    whole = Run(tmp_path / "whole", steps=steps).go()
    broken = Run(tmp_path / "broken", steps=steps)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "save_weights", killed)
        with pytest.raises(Stopped):
            broken.go()
    same(whole, broken.go())
    assert broken.steps[1] == []  # not one step more


def killed(*_args, **_kwargs):
    raise Stopped


def test_a_finished_stage_is_not_trained_again(tmp_path):
    run = Run(tmp_path)
    first = run.go()
    again = run.go()
    assert run.steps[1] == []
    assert first[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), again[0].parameters(), strict=True))
    assert not list(tmp_path.glob("checkpoint-*"))
    assert json.loads((tmp_path / "finished.json").read_text())["steps"] == 12


def test_a_half_written_checkpoint_is_passed_over(tmp_path, monkeypatch):
    whole = Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken")
    calls = []
    original = DistillationTrainer._save_optimizer_and_scheduler

    def second_fails(self, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise Stopped
        original(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", second_fails)
        with pytest.raises(Stopped):
            broken.go()
    names = {path.name for path in (tmp_path / "broken").glob("checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-8"}
    assert latest(tmp_path / "broken").name == "checkpoint-4"
    (tmp_path / "broken" / "checkpoint-8" / "student.safetensors").write_bytes(b"half")
    same(whole, broken.go())


def test_one_whole_checkpoint_is_there_after_the_first_whatever_happens(tmp_path):
    run = Run(tmp_path, checkpoint_steps=2, script=lambda step: -step, keep="best", evaluations=3)
    for stop_at in (3, 4, 5, 7, 11):
        with pytest.raises(Stopped):
            run.go(stop_at)
        kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
        assert latest(tmp_path) is not None
        assert len(kept) <= 2  # the newest and the best


# ---- the best, and stopping early

SCORES = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.9, 12: 0.1}


@pytest.mark.parametrize("stop_at", [None, 3, 5, 8, 11])
def test_the_best_weights_are_given_back(tmp_path, stop_at):
    settings = {"keep": "best", "evaluations": 6, "script": SCORES.__getitem__}
    run = Run(tmp_path / "run", **settings)
    if stop_at:
        with pytest.raises(Stopped):
            run.go(stop_at)
    student, record = run.go()
    assert record.best_step == 10
    assert [(e["step"], e["accuracy"]) for e in record.evaluations] == list(SCORES.items())
    assert record.steps == 12
    assert all(torch.equal(tensor, run.seen[10][name]) for name, tensor in student.state_dict().items())
    same(Run(tmp_path / "whole", **settings).go(), (student, record))


def test_the_last_weights_are_kept_where_the_best_are_not_asked_for(tmp_path):
    run = Run(tmp_path, evaluations=6, script=SCORES.__getitem__)
    student, record = run.go()
    assert record.best_step is None
    assert all(torch.equal(tensor, run.seen[12][name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("stop_at", [None, 5, 7, 8])
def test_training_stops_early(tmp_path, stop_at):
    settings = {"keep": "best", "evaluations": 6, "early_stopping": 2, "script": SCORES.__getitem__}
    run = Run(tmp_path / "run", **settings)
    if stop_at:
        with pytest.raises(Stopped):
            run.go(stop_at)
    student, record = run.go()
    assert record.best_step == 4
    assert record.steps == 8  # 6 is worse, 8 no better
    assert all(torch.equal(tensor, run.seen[4][name]) for name, tensor in student.state_dict().items())
    same(Run(tmp_path / "whole", **settings).go(), (student, record))


def test_killed_after_stopping_early(tmp_path, monkeypatch):
    settings = {"keep": "best", "evaluations": 6, "early_stopping": 2, "script": SCORES.__getitem__}
    whole = Run(tmp_path / "whole", **settings).go()
    broken = Run(tmp_path / "broken", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "save_weights", killed)
        with pytest.raises(Stopped):
            broken.go()
    same(whole, broken.go())
    assert broken.steps[1] == []


def test_lower_may_be_better(tmp_path):
    run = Run(tmp_path, keep="best", evaluations=6, script=SCORES.__getitem__)
    original = stages.Lesson
    try:
        globals()["Lesson"] = lambda **options: original(**options, higher_is_better=False)
        assert run.go()[1].best_step == 12
    finally:
        globals()["Lesson"] = original


# ---- counts


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 2.0, "batch_size": 4}, (12, 6)),
        ({"epochs": 0.5, "batch_size": 4}, (3, 6)),
        ({"epochs": 0.01, "batch_size": 4}, (1, 6)),
        ({"epochs": 1.0, "batch_size": 4, "accumulation": 4}, (2, 2)),
        ({"steps": 5, "batch_size": 4}, (5, 6)),
        ({"epochs": 3.0, "batch_size": 32}, (3, 1)),
    ],
)
def test_steps_are_counted_as_they_are_made(settings, expected):
    assert total_steps(TrainSettings(**settings), 22) == expected


def test_a_record_counts_the_rows_it_saw(tmp_path):
    record = Run(tmp_path).go()[1]
    assert record.steps == 12
    assert record.rows_seen == 2 * 22  # the last batch of an epoch is smaller


@pytest.mark.parametrize(("width", "rate"), [(768, 1e-4), (384, 2e-4), (1024, 7.5e-5), (32, 1e-3), (0, 1e-4)])
def test_the_learning_rate_follows_the_width_unless_it_is_given(width, rate):
    assert TrainSettings().rate(width) == pytest.approx(rate)
    assert TrainSettings(learning_rate=3e-5).rate(width) == RefineSettings(learning_rate=3e-5).rate(width) == 3e-5
    assert RefineSettings().rate(width) == 2e-5


def test_a_model_is_trained_at_the_rate_of_its_width(tmp_path):
    student, rows = tiny_model(layers=1, width=96), TASK.encode(tiny_rows(8), tiny_tokenizer(), max_length=16)
    lesson = Lesson(TASK, tiny_tokenizer(), rows, Objective([Term("labels")]))
    settings = TrainSettings(steps=2, batch_size=4, warmup=0.0, schedule="constant")
    record = train(student, lesson, settings, tmp_path, precision=EXACT)
    assert [point["learning_rate"] for point in record.points] == pytest.approx([8e-4, 8e-4])
    assert rate_of(settings, describe(tiny_model("mobilenet_v2"))) == 1e-4  # convolutions have no width to go by
