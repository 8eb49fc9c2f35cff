"""The whole run, in the order of the picture: teacher, student, distil, refine, evaluate, export, report.

Each step is a stage of the run folder: done once from the same inputs, and gone on with where it was stopped.

Under a launcher that starts several processes, all of them train together; everything else is done by rank 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill import ranks
from potstill.caching import Caching, Shared, require_keepable
from potstill.checks import problem
from potstill.errors import CacheError, ExportError, ModelError
from potstill.evaluation.outputs import OUTPUTS
from potstill.evaluation.predict import fastest_device, load_predictions, save_predictions
from potstill.evaluation.results import TRAIN, VALIDATION, Contender
from potstill.knowledge import Needs
from potstill.likeness import attention_pairs, measure_attention, why_no_maps
from potstill.metrics import METRICS, of_pixels, primary, score
from potstill.preflight import check_ranks, preflight, require_space, shape_text, student_notes
from potstill.progress import Progress, Silent
from potstill.recipe import Recipe, load_recipe
from potstill.results import assemble, described
from potstill.runs import RunFolder, Stage, copy_folder, write_json
from potstill.school import School
from potstill.segmenting import measure_fidelity, shown_images
from potstill.shipping import FILES, export_student, measure_cost
from potstill.terms import TEACHER
from potstill.training import Precision
from potstill.training.precision import TrialSizes
from potstill.workbench import prepare_workbench

ROLES = {
    "student": "Student",
    "baseline": "Baseline",
    "pretrained_baseline": "Pretrained baseline",
}
RUNS = Path("runs")


@dataclass(frozen=True)
class Outcome:
    """What a run left: the folder, and the numbers of its report."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def student(self) -> Path:
        """The folder of the student that ships."""
        return self.folder / "student"

    @property
    def report(self) -> Path:
        """The report to open."""
        return self.folder / "report.html"


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    update: bool = False,
    siblings: Sequence[Path] = (),
    shared: Shared | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run a recipe from start to end, or from where it was stopped.

    Args:
        recipe: the name of a packaged recipe, a path, or the recipe as data.
        out: the run folder; ``runs/<name of the recipe>`` if not given.
        overrides: ``key=value`` strings, such as ``evaluate.seeds=3``.
        update: take a run folder whose recipe differs, and redo what the difference concerns.
        siblings: folders of other runs; a stage that one of them has done from the same inputs is taken from there.
        shared: with those runs, where the teachers' knowledge is kept, and what all of them ask of it.
        progress: told what happens; nothing is said without it.

    Raises:
        PotstillError: something is wrong; the message says what, and what to do. Before training where that is
    possible.
    """
    loaded = load_recipe(recipe, overrides)
    folder = Path(out) if out is not None else RUNS / loaded.name
    with ranks.together():
        said = progress if progress is not None and ranks.is_main() else Silent()
        with RunFolder(folder, loaded, update=update, siblings=siblings).opened() as opened:
            return _Run(opened, said, shared).all()


def cache(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    update: bool = False,
    part: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Keep on disk what a recipe asks of its teachers, or go on where that was stopped; teachers are trained first.

    Args:
        recipe, out, overrides, update, progress: as in `run`, which then reads from there.
        part: (number, of how many), from 1: the share of the rows that is kept here, where other machines do the rest.

    Returns:
        By teacher, what is kept and how near it comes to what was observed.

    Raises:
        PotstillError: something is wrong; the message says what, and what to do.
    """
    if not 1 <= part[0] <= part[1]:
        raise CacheError(problem("A part is a number from 1 to how many there are", given=f"{part[0]} of {part[1]}"))
    loaded = load_recipe(recipe, overrides)
    folder = Path(out) if out is not None else RUNS / loaded.name
    with ranks.together():
        said = progress if progress is not None and ranks.is_main() else Silent()
        with RunFolder(folder, loaded, update=update).opened() as opened:
            return _Run(opened, said).knowledge((part[0] - 1, part[1]))


class _Run:
    """The stages of one run. Each method is one, and reads what the ones before it left."""

    def __init__(self, folder: RunFolder, progress: Progress, shared: Shared | None = None) -> None:
        self.folder = folder
        self.shared = shared
        self.path = folder.path
        self.recipe = folder.recipe
        self.progress = progress
        self.failed_export: ExportError | None = None

    def all(self) -> Outcome:
        self._prepare()
        teachers = self.school.teachers()
        students = {key: stage for seed in self.seeds for key, stage in self.school.students(seed, teachers).items()}
        return ranks.on_main(lambda: self._measured(teachers, students))

    def _prepare(self, kept: bool = False) -> None:
        """Rows read, models checked, precision settled: what comes before anything is trained. `kept`: no student is,
        and the teachers' answers are kept whatever the recipe says."""
        with self.progress.stage("reading the data"):
            self.bench = ranks.main_first(lambda: prepare_workbench(self.recipe, self.progress.say))
        check_ranks(self.bench, trains=not kept)
        trial, asked = ranks.on_main(lambda: self._check(kept))
        self.caching = Caching(self.bench, asked, self.path, self.progress, self.shared)
        self.school = School(self.folder, self.bench, self.progress, trial, self.caching)
        self.precision: Precision = self.school.precision(self.recipe.distill[0].train.precision)
        self.progress.say(f"precision: {self.precision.name}, since {self.precision.why}")

    def knowledge(self, part: tuple[int, int]) -> dict[str, Any]:
        """Keep one part of what is asked of each teacher."""
        self._prepare(kept=True)
        for stage in self.school.teachers().values():
            name = stage.name.removeprefix("teachers/")
            if name in self.caching.asked:
                self.school.keep(stage, part)
        return self.caching.records

    def _measured(self, teachers: Mapping[str, Stage], students: Mapping[tuple[str, int], Stage]) -> Outcome:
        """What is made of the models once they are trained: predictions, exports, costs and the report."""
        teacher = teachers[TEACHER]
        models = {(name, self.recipe.seed): stage for name, stage in teachers.items()} | dict(students)
        predictions = {key: self.predictions(*key, stage) for key, stage in models.items()}
        chosen = self.choose(predictions)
        exports = self.exports(chosen, students["student", chosen], predictions["student", chosen])
        costs = self.costs(teacher, students["student", chosen], exports)
        near = {key: self.fidelity(*key, stage, teacher) for key, stage in models.items() if stage is not teacher}
        results = {
            **assemble(
                self.folder,
                self.bench,
                self.precision,
                self.contenders(teachers, students, predictions, costs, near),
                [{**entry, **costs.get(entry["key"], {})} for entry in exports],
                chosen,
            ),
            "attention": self.attention(chosen, teacher, students),
            "segmentation": self.images(chosen, models, predictions),
            "kept": students["student", chosen].value.get("cache", {}),
        }
        outcome = self.report(results)
        if self.failed_export is not None:
            raise self.failed_export
        return outcome

    @property
    def seeds(self) -> list[int]:
        return [self.recipe.seed + number for number in range(self.recipe.evaluate.seeds)]

    def _check(self, kept: bool) -> tuple[TrialSizes, Mapping[str, Needs]]:
        """Everything that can be wrong with the models, before anything is trained; gives the student's sizes, and what
        is asked of each teacher."""
        found = preflight(self.bench)
        require_space(self.path, found, self.recipe)
        require_keepable(self.bench, found, kept=kept)
        if self.recipe.evaluate.attention_similarity:
            if why := why_no_maps(self.bench, found):
                do = "Set evaluate.attention_similarity=false"
                raise ModelError(problem("Attention maps can't be compared here", given=why, do=do))
            self.pairs = attention_pairs(found.student, found.teacher, found.stages)
        self.progress.say(f"teacher: {shape_text(found.teacher)}; student: {shape_text(found.student)}")
        for note in student_notes(self.bench, found):
            self.progress.say(note)
        if self.bench.attention:
            self.progress.say("attention maps are asked for, so both models run eager attention, which is slower")
        return TrialSizes.of(found.student), found.asked

    # ---- evaluation

    def predictions(self, role: str, seed: int, model: Stage) -> dict[str, Any]:
        """The logits on every split that is evaluated, in float32."""
        file = self.path / "predictions" / f"{role}-{seed}.parquet"
        bench = self.bench.reads(role)
        predict = OUTPUTS[bench.task.problem]

        def work(_folder: Path) -> dict[str, Any]:
            loaded = bench.load(self.school.model(model)).model
            loaded.to(fastest_device())  # type: ignore[arg-type]
            found = {}
            for split in dict.fromkeys([TRAIN, VALIDATION, bench.evaluated_on]):
                rows = bench.sample_of_train if split == TRAIN else bench.rows[split]
                with self.progress.stage(f"{role.replace('_', ' ')} on {split}") as step:
                    found[split] = predict(loaded, rows, bench.collate, progress=step)
            save_predictions(file, found)
            return {"file": file.name}

        made_from = {"model": model.digest, "rows": bench.digest}
        self.folder.stage(f"predictions/{role}/{seed}", made_from, work, [f"predictions/{file.name}"])
        return load_predictions(file)

    def choose(self, predictions: Mapping[tuple[str, int], Mapping[str, Any]]) -> int:
        """The seed whose student ships: the best on validation. No final number is made from that, where there is a
        test split."""
        key = primary(self.bench.task.problem)
        labels = self.bench.labels(VALIDATION)

        def value(seed: int) -> float:
            found = score(key, self.bench.task.problem, predictions["student", seed][VALIDATION], labels)
            return found if METRICS[key].higher_is_better else -found

        return max(self.seeds, key=value)

    def exports(self, seed: int, student: Stage, predictions: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Ship the student's folder, and write and verify the exported files."""
        for role in self.recipe.roles[:2]:
            copy_folder(self.path / f"seeds/{seed}/{role}", self.path / role)
        formats = self.recipe.export.formats
        if not formats:
            return []

        def work(_folder: Path) -> dict[str, Any]:
            with self.progress.stage("export") as step:
                logits = predictions[self.bench.evaluated_on]
                found = export_student(
                    self.bench, self.school.model(student), logits, self.path / "export", formats, step
                )
            return {"exports": found}

        made_from = {"student": student.digest, "formats": formats, "rows": self.bench.digest}
        leaves = [f"export/{FILES[name][1]}" for name in formats]
        try:
            found: list[dict[str, Any]] = self.folder.stage("export", made_from, work, leaves).value["exports"]
        except ExportError as error:  # what was trained and measured is reported all the same, and then this is raised
            self.failed_export = error
            return []
        return found

    def costs(self, teacher: Stage, student: Stage, exports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What each model and file costs to run, measured in turns. The baselines are the student's twins."""
        if not self.recipe.evaluate.cost:
            return {}

        def work(_folder: Path) -> dict[str, Any]:
            models = {"teacher": self.school.model(teacher), "student": self.school.model(student)}
            files = {str(entry["key"]): self.path / str(entry["file"]) for entry in exports}
            with self.progress.stage("measuring cost") as step:
                return measure_cost(self.bench, models, files, step)

        made_from = {
            "models": [teacher.digest, student.digest],
            "files": [entry.get("sha256", entry["key"]) for entry in exports],
        }
        return self.folder.stage("cost", {**made_from, "rows": self.bench.digest}, work).value

    def attention(self, seed: int, teacher: Stage, students: Mapping[tuple[str, int], Stage]) -> list[dict[str, Any]]:
        """How alike the attention maps of the student that ships are to the teacher's, and those of its baselines."""
        if not self.recipe.evaluate.attention_similarity:
            return []
        found = []
        for role in reversed(self.recipe.roles):
            model = students[role, seed]

            def work(_folder: Path, role: str = role, model: Stage = model) -> dict[str, Any]:
                places = self.school.model(model), self.school.model(teacher)
                with self.progress.stage(f"attention maps of the {role.replace('_', ' ')}") as step:
                    return measure_attention(self.bench, *places, self.pairs, step)

            made_from = {"models": [teacher.digest, model.digest], "rows": self.bench.digest, "pairs": self.pairs}
            value = self.folder.stage(f"attention/{role}/{seed}", made_from, work).value
            found.append({"key": role, "title": ROLES[role], **value})
        return found

    def fidelity(self, role: str, seed: int, model: Stage, teacher: Stage) -> list[dict[str, float]]:
        """How near a segmentation model is to the teacher, which can't be told from what is kept of its outputs."""
        bench = self.bench.reads(role)
        if not of_pixels(bench.task.problem):
            return []

        def work(_folder: Path) -> dict[str, Any]:
            with self.progress.stage(f"{role.replace('_', ' ')} beside the teacher") as step:
                return measure_fidelity(bench, self.school.model(model), self.school.model(teacher), step)

        made_from = {"models": [teacher.digest, model.digest], "rows": bench.digest}
        return [self.folder.stage(f"fidelity/{role}/{seed}", made_from, work).value]

    def images(
        self,
        seed: int,
        models: Mapping[tuple[str, int], Stage],
        predictions: Mapping[tuple[str, int], Mapping[str, np.ndarray[Any, Any]]],
    ) -> dict[str, Any] | None:
        """What the models see in some of the evaluated images; None where the task is no segmentation."""
        if not of_pixels(self.bench.task.problem):
            return None
        keys = {TEACHER: (TEACHER, self.recipe.seed), **{role: (role, seed) for role in reversed(self.recipe.roles)}}
        counts = {role: predictions[key][self.bench.evaluated_on] for role, key in keys.items()}
        with self.progress.stage("images of the report") as step:
            return shown_images(self.bench, {r: self.school.model(models[k]) for r, k in keys.items()}, counts, step)

    def contenders(
        self,
        teachers: Mapping[str, Stage],
        students: Mapping[tuple[str, int], Stage],
        predictions: Mapping[tuple[str, int], Mapping[str, np.ndarray[Any, Any]]],
        costs: Mapping[str, Any],
        near: Mapping[tuple[str, int], Sequence[Mapping[str, float]]],
    ) -> list[Contender]:
        """Teachers, baselines and student, with what was measured of each."""
        found = [
            Contender(
                name,
                "Teacher" if name == TEACHER else f"Teacher: {name}",
                described(self.recipe, name),
                [self.recipe.seed],
                [predictions[name, self.recipe.seed]],
                costs.get(name),
                [teacher.value["training"]] if teacher.value["training"] else [],
                teacher.value["curves"],
                near.get((name, self.recipe.seed), ()),
            )
            for name, teacher in teachers.items()
        ]
        assistants = [f"assistant-{number}" for number in range(1, 1 + len(self.recipe.chain))]
        for role in [*assistants, *reversed(self.recipe.roles)]:
            runs = [students[role, seed] for seed in self.seeds]
            found.append(
                Contender(
                    role,
                    ROLES.get(role) or role.replace("-", " ").capitalize(),
                    described(self.recipe, role),
                    self.seeds,
                    [predictions[role, seed] for seed in self.seeds],
                    None if role in assistants else costs.get("student"),
                    [one.value["training"] for one in runs],
                    [curve for one in runs for curve in one.value["curves"]],
                    [found for seed in self.seeds for found in near[role, seed]],
                )
            )
        return found

    def report(self, results: dict[str, Any]) -> Outcome:
        """results.json, and the report and model card made from it."""
        from potstill.export import write_model_card
        from potstill.report import write_report

        with self.progress.stage("report"):
            write_json(self.path / "results.json", results)
            digests = {stage.name: stage.digest for stage in self.folder.stages}
            write_json(self.path / "run.json", {**results["run"], "digests": digests})
            write_report(results, self.path)
            write_model_card(self.path / "student", results, self.recipe.as_yaml(), results["run"]["convention"])
        return Outcome(self.path, results)
