"""Who is trained, from whom, and in which stages: teachers, the chain of assistants, the student and its baselines.

Each is a stage of the run folder: done once from the same inputs, and gone on with where it was stopped. Where several
processes do the run, each of them trains, and rank 0 saves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from potstill import ranks
from potstill.caching import Caching
from potstill.checks import problem
from potstill.errors import CacheError
from potstill.evaluation.outputs import quick_scores
from potstill.evaluation.predict import fastest_device
from potstill.evaluation.reduced import reduced_fidelity
from potstill.evaluation.results import TRAIN, VALIDATION
from potstill.knowledge import describe
from potstill.metrics import METRICS, primary
from potstill.objective import Objective
from potstill.preflight import load_teacher, start_student
from potstill.progress import Progress
from potstill.runs import RunFolder, Stage
from potstill.sections import AssistantSection, StudentSection
from potstill.shipping import fingerprint, save_model
from potstill.terms import TEACHER
from potstill.training import Precision, TrainSettings, detect_precision
from potstill.training.distiller import Teacher
from potstill.training.precision import AUTO, BFLOAT16, FLOAT32, USUAL, TrialSizes
from potstill.training.stages import Lesson, train
from potstill.workbench import LABELS_ONLY, Workbench, model_path

PEER_SEEDS = 1000  # between students that learn together: alike in weights, they would teach each other nothing
NEW_TEACHER_SEED = 500  # between a teacher of a config and a student of the same: alike in weights, as above
BASELINES = ("baseline", "pretrained_baseline")
LATER = {
    "embeddings": "dense",
    "classifier": None,
    "stage_weights": None,
}  # keys that came later, with what they were before
_NOTHING = object()


@dataclass(frozen=True)
class Lessons:
    """One stage of a model's training: its objective and settings, what is frozen, and who learns along."""

    objective: Objective
    train: TrainSettings
    freeze: Sequence[int | str] = ()
    mutual: Sequence[StudentSection] = ()
    teacher_reader: Any = None  # where its teachers have another than it has
    teacher_precision: str | None = None  # None: as the model trains


class School:
    """Trains everyone of a run, each once."""

    def __init__(
        self,
        folder: RunFolder,
        bench: Workbench,
        progress: Progress,
        trial: TrialSizes = USUAL,
        caching: Caching | None = None,
    ) -> None:
        self.folder = folder
        self.path = folder.path
        self.bench = bench
        self.recipe = bench.recipe
        self.progress = progress
        self.trial = trial
        self.caching = caching

    def precision(self, asked: str) -> Precision:
        """The precision to train in. With ``auto`` it is measured once, and kept: a run that goes on takes the one that
        it began in, and runs that stand beside each other take one together."""
        if asked != AUTO:
            return detect_precision(asked)
        found = self._once("precision", {"asked": asked}, lambda _: asdict(detect_precision(asked, self.trial)))
        return Precision(**found.value)

    def _once(self, name: str, made_from: Any, work: Callable[[Path], dict[str, Any]]) -> Stage:
        """A stage that several models ask for, entered once in the record of the run."""
        known = {stage.name: stage for stage in self.folder.stages}
        return known[name] if name in known else self.folder.stage(name, made_from, work)

    def teachers(self) -> dict[str, Stage]:
        """Train each teacher, or take it as it is; the first one is called ``teacher``."""
        first = self.recipe.teacher
        found = {TEACHER: self._teacher(TEACHER, first.train, self.recipe.seed)}
        for other in first.others:
            found[other.name] = self._teacher(other.name, other.train, self.recipe.seed + other.seed)
        return found

    def _teacher(self, name: str, settings: TrainSettings | None, seed: int) -> Stage:
        path = self._given(name)
        place = name if name == TEACHER else f"teachers/{name}"
        bench = self.bench.for_teacher
        made_from = {"model": fingerprint(path), "rows": bench.digest, "train": _plain(settings)}
        new = name == TEACHER and self.recipe.teacher.config is not None
        if new:
            made_from["weights"] = "random"

        def work(folder: Path) -> dict[str, Any]:
            if settings is None:
                return {"path": path, "training": None, "curves": []}
            set_seed(seed + NEW_TEACHER_SEED * new)  # for the new head, or for all weights
            loaded = bench.load(bench.untrained_teacher if name == TEACHER else path).model
            value = self._train(loaded, [Lessons(LABELS_ONLY, settings)], folder, seed, {}, place)
            ranks.on_main(lambda: save_model(loaded, bench.reader, bench.task, self.path / place))
            return {"path": place, **value}

        leaves: list[str] = [place] if settings is not None else []
        return self.folder.stage(place, {**made_from, "seed": seed}, work, leaves, together=True)

    def students(self, seed: int, teachers: Mapping[str, Stage]) -> dict[tuple[str, int], Stage]:
        """All that is trained with one seed: the chain of assistants, the student, and its baselines."""
        found: dict[tuple[str, int], Stage] = {}
        learns_from = teachers
        for number, one in enumerate(self.recipe.chain, 1):
            role = f"assistant-{number}"
            found[role, seed] = self._student(role, seed, teachers[TEACHER], learns_from, one)
            learns_from = {TEACHER: found[role, seed]}
        for role in self.recipe.roles:
            found[role, seed] = self._student(role, seed, teachers[TEACHER], learns_from)
        return found

    def _student(
        self,
        role: str,
        seed: int,
        teacher: Stage,
        learns_from: Mapping[str, Stage],
        assistant: AssistantSection | None = None,
    ) -> Stage:
        """Train the student, an assistant, or a baseline: the same start, batches and steps, with labels only."""
        section = self.recipe.student if assistant is None else assistant.student
        distill = self.recipe.distill if assistant is None or assistant.distill is None else assistant.distill
        taught = role not in BASELINES
        reads = self.bench.teacher_reader if teacher in learns_from.values() else None  # assistants read as we do
        lessons = [Lessons(stage.objective(), stage.train, stage.freeze, stage.mutual, reads) for stage in distill]
        if self.recipe.refine is not None:
            lessons.append(Lessons(LABELS_ONLY, self.recipe.refine.train, teacher_reader=reads))
        if not taught:
            lessons = [Lessons(LABELS_ONLY, lesson.train) for lesson in lessons]
        made_from = {
            "teacher": teacher.digest,
            "rows": self.bench.digest,
            "student": section.inputs(),
            "terms": [_plain(stage) for stage in distill] if taught else [],
            "train": [_plain(lesson.train) for lesson in lessons],
            "seed": seed,
        }
        if taught:
            lessons, reduced = self._with_teachers_precision(lessons, learns_from)
            made_from |= {} if reduced is None else {"teacher_precision": reduced}
            made_from["learns_from"] = {name: stage.digest for name, stage in learns_from.items()}
            made_from["combination"] = _plain(self.recipe.combination)
        if section.path is not None:  # its name says nothing of what is in it
            made_from["checkpoint"] = fingerprint(model_path(section.path))
        along = [peer.path for lesson in lessons for peer in lesson.mutual if peer.path is not None]
        if along:
            made_from["mutual"] = [fingerprint(model_path(name)) for name in along]
        place = f"seeds/{seed}/{role}"

        def work(folder: Path) -> dict[str, Any]:
            source = load_teacher(self.bench, self.model(teacher))
            teachers = {
                name: self._remembered(stage, source if stage is teacher else self._loaded(stage), lessons)
                for name, stage in (learns_from if taught else {}).items()
            }
            if role == "pretrained_baseline":
                set_seed(seed)  # for the new head
                source = self.bench.for_teacher.load(self.bench.teacher_path).model
            model = start_student(self.bench, source, seed, section)
            title = role.replace("_", " ").replace("-", " ")
            if self.recipe.evaluate.seeds > 1:
                title = f"{title}, seed {seed}"
            value = self._train(model, lessons, folder, seed, teachers, title, source)
            ranks.on_main(lambda: save_model(model, self.bench.reader, self.bench.task, self.path / place))
            kept = self.caching.records if taught and self.caching is not None else {}
            return {"path": place, **value, **({"cache": kept} if kept else {})}

        return self.folder.stage(place, made_from, work, [place], together=True)

    def _loaded(self, stage: Stage) -> PreTrainedModel:
        """A model that teaches: a teacher, or one of the chain."""
        return load_teacher(self.bench, self.model(stage))

    def _remembered(self, stage: Stage, teacher: PreTrainedModel, lessons: Sequence[Lessons]) -> Teacher:
        """One of the recipe's teachers with its answers on disk where that pays; else the model, which runs along."""
        name = stage.name.removeprefix("teachers/")
        if self.caching is None or name not in self.caching.asked:
            return teacher
        runs_in, passes = self._reading(lessons)
        if runs_in is None:
            return teacher
        found = self.caching.of(name, teacher, passes, runs_in)
        return teacher if found is None else found

    def _reading(self, lessons: Sequence[Lessons]) -> tuple[str | None, float]:
        """The precision that teachers run in (None: another in each stage), and the passes of all seeds."""
        taught = [lesson for lesson in lessons if lesson.objective is not LABELS_ONLY]
        runs_in = {lesson.teacher_precision or self.precision(lesson.train.precision).name for lesson in taught}
        assert self.caching is not None
        passes = self.caching.passes([lesson.train for lesson in taught])
        return (runs_in.pop() if len(runs_in) == 1 else None), passes

    def keep(self, teacher: Stage, part: tuple[int, int]) -> None:
        """Have one part of what a teacher knows on disk, whether it pays or not."""
        assert self.caching is not None
        name = teacher.name.removeprefix("teachers/")
        lessons = [Lessons(stage.objective(), stage.train) for stage in self.recipe.taught_first]
        lessons, _ = self._with_teachers_precision(lessons, {name: teacher})
        runs_in, passes = self._reading(lessons)
        if runs_in is None:
            what = "The stages train in several precisions, so that the teacher runs in several"
            raise CacheError(problem(what, do="Give all of them one train.precision, or set teacher.precision"))
        self.caching.keep(name, self._loaded(teacher), self.caching.asked[name], runs_in, passes, part)

    def _train(
        self,
        model: PreTrainedModel,
        lessons: Sequence[Lessons],
        folder: Path,
        seed: int,
        teachers: Mapping[str, Teacher],
        title: str,
        source: PreTrainedModel | None = None,
    ) -> dict[str, Any]:
        """All stages in a row; what they took together, and a curve of each."""
        curves, totals = [], {"seconds": 0.0, "steps": 0, "rows_seen": 0}
        along: list[tuple[StudentSection, PreTrainedModel]] = []  # who learned along so far: they go on
        bench = self.bench.for_teacher if title.startswith(TEACHER) else self.bench
        key = primary(bench.task.problem)
        for number, one in enumerate(lessons):
            settings = one.train
            name = self._stage_name(number, len(lessons), title)
            rows = bench.transfer if name.startswith("distill") else bench.shown(bench.rows[TRAIN])
            precision = self.precision(settings.precision)
            if source is not None:
                along = self._along(one.mutual, along, source, seed)
            lesson = Lesson(
                bench.task,
                bench.reader,
                rows,
                one.objective,
                teachers,
                evaluator=partial(_validation_scores, bench, bfloat16=precision.bfloat16),
                metric=key,
                higher_is_better=METRICS[key].higher_is_better,
                peers=[peer for _, peer in along],
                combination=self.recipe.combination if len(teachers) > 1 else None,
                freeze=one.freeze,
                teacher_reader=one.teacher_reader if teachers else None,
                teacher_precision=one.teacher_precision,
            )
            with self.progress.stage(title if len(lessons) == 1 else f"{title}: {name}") as step:
                record = train(
                    model,
                    lesson,
                    settings,
                    folder / str(number),
                    precision=precision,
                    seed=1000 * seed + number,
                    progress=step,
                    earlier=folder / str(number - 1) if number else None,
                )
            for part in totals:
                totals[part] += getattr(record, part)
            evaluations = [{"step": e["step"], "value": e[key]} for e in record.evaluations]
            curves.append({"seed": seed, "stage": name, "points": record.points, "evaluations": evaluations})
        return {"training": totals, "curves": curves, "shape": asdict(describe(model))}

    def _with_teachers_precision(
        self, lessons: Sequence[Lessons], learns_from: Mapping[str, Stage]
    ) -> tuple[list[Lessons], str | None]:
        """The lessons with what their teachers run in; None where that follows from what the student trains in."""
        asked: str = self.recipe.teacher.precision
        wanted = asked
        if asked == AUTO:
            if not any(self.precision(lesson.train.precision).bfloat16 for lesson in lessons):
                return list(lessons), None
            wanted = BFLOAT16
        enough = wanted == FLOAT32 or all([self._reduced(stage, wanted) for stage in learns_from.values()])
        if asked == AUTO and enough:
            return list(lessons), None
        taken = wanted if enough else FLOAT32
        return [replace(lesson, teacher_precision=taken) for lesson in lessons], taken

    def _reduced(self, teacher: Stage, precision: str) -> bool:
        """Whether a teacher's answers in a lower precision are near enough to its own; said, and kept."""
        bench = self.bench.for_teacher if teacher.name.startswith(TEACHER) else self.bench

        def work(_folder: Path) -> dict[str, Any]:
            model = load_teacher(self.bench, self.model(teacher))
            model.to(fastest_device())  # type: ignore[arg-type]
            rows = bench.sample_of_train
            found = reduced_fidelity(model, precision, rows, bench.collate, bench.task.problem)
            self.progress.say(
                f"{teacher.name} in {precision}: {found.why}{'' if found.allowed else '; it teaches in float32'}"
            )
            return found.as_dict()

        made_from = {"teacher": teacher.digest, "precision": precision, "rows": bench.digest}
        return bool(self._once(f"precision/{precision}/{teacher.name}", made_from, work).value["allowed"])

    def _along(
        self,
        sections: Sequence[StudentSection],
        earlier: Sequence[tuple[StudentSection, PreTrainedModel]],
        source: PreTrainedModel,
        seed: int,
    ) -> list[tuple[StudentSection, PreTrainedModel]]:
        """Who learns along in a stage: those of the stage before go on; others start, each from a seed of its own."""
        known = dict(enumerate(earlier, 1))
        return [
            known[number]
            if number in known and known[number][0] == section
            else (section, start_student(self.bench, source, seed + PEER_SEEDS * number, section))
            for number, section in enumerate(sections, 1)
        ]

    def _stage_name(self, number: int, count: int, title: str) -> str:
        if title.startswith(TEACHER):
            return "teacher"
        if self.recipe.refine is not None and number == count - 1:
            return "refine"
        return "distill" if count - (self.recipe.refine is not None) == 1 else f"distill {number + 1}"

    def model(self, stage: Stage) -> Path:
        """Where a stage left its model; a teacher taken as it is stays where the recipe has it."""
        if stage.value["training"] is None:
            return Path(self._given(stage.name.removeprefix("teachers/")))
        return self.path / str(stage.value["path"])

    def _given(self, name: str) -> str:
        """The model that a teacher is, or starts from."""
        if name == TEACHER:
            return self.bench.teacher_path
        return model_path(next(other.model for other in self.recipe.teacher.others if other.name == name))


def _validation_scores(bench: Workbench, student: PreTrainedModel, bfloat16: bool) -> dict[str, float]:
    rows, labels = bench.rows[VALIDATION], bench.labels(VALIDATION)
    return quick_scores(bench.task.problem, student, rows, bench.collate, labels, bfloat16=bfloat16)


def _plain(settings: Any) -> Any:
    """A section or settings as plain data. Keys that came later are left out where they change nothing, so that the
    stages of older run folders stand."""
    if settings is None:
        return None
    return _without_later(settings.model_dump(mode="json") if hasattr(settings, "model_dump") else asdict(settings))


def _without_later(plain: Any) -> Any:
    if isinstance(plain, dict):
        kept = {name: value for name, value in plain.items() if LATER.get(name, _NOTHING) != value}
        return {name: _without_later(value) for name, value in kept.items()}
    return [_without_later(value) for value in plain] if isinstance(plain, list) else plain
