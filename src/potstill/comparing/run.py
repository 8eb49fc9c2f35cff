"""A comparison from start to end, or from where it was stopped: every cell an ordinary run, what is equal done once.

Decided here: the cells lie in ``cells/<name>/``, each a run folder of its own that `potstill report` and the others
take. They are siblings, so the teacher, its predictions and equal students are done once and linked. What belongs to
the comparison (cost, attention) is a stage of its own folder. A cell that is no longer asked for stays, to be used
again; more variants and more seeds use what is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.caching import Shared, require_keepable
from potstill.checks import problem
from potstill.comparing.axes import axes, choices
from potstill.comparing.benches import Benches
from potstill.comparing.cells import Cell, cells
from potstill.comparing.numbers import Finished, results_of
from potstill.errors import PotstillError, RecipeError
from potstill.evaluation.predict import load_predictions
from potstill.knowledge import Needs
from potstill.likeness import attention_pairs, measure_attention, why_no_maps
from potstill.pipeline import RUNS, run
from potstill.preflight import load_teacher, preflight, start_student
from potstill.progress import Progress, Silent, titled
from potstill.recipe import Recipe, load_recipe
from potstill.runs import RunFolder, digest, write_json
from potstill.shipping import measure_cost

CELLS = "cells"
Pairs = tuple[tuple[int, int], ...]
Maps = Pairs | str  # the pairs of layers whose attention maps are compared, or why there are none


@dataclass(frozen=True)
class ComparisonOutcome:
    """What a comparison left: the folder, and every number of its report."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def report(self) -> Path:
        """The report to open."""
        return self.folder / "comparison.html"


def compare(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    vary: Sequence[str] | Mapping[str, Sequence[Any]],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    own_settings: bool = False,
    update: bool = False,
    progress: Progress | None = None,
) -> ComparisonOutcome:
    """Compare variants of a recipe: the same teacher, the same start, the same batches and steps.

    Args:
        recipe: the name of a packaged recipe, a path, or the recipe as data.
        vary: what is varied: ``{"distill": ["pkd_skip", "tinybert"]}``, or strings such as
            ``distill=pkd_skip,tinybert``. For the key ``distill`` a value names a recipe whose method is taken, or
            ``own`` that of the recipe itself; any other key takes values as the recipe does. Several make the product.
        out: the folder; ``runs/compare-<name of the recipe>`` if not given.
        overrides: ``key=value`` strings for the recipe, such as ``evaluate.seeds=3``.
        own_settings: keep the training settings of each method's recipe; the numbers of steps then differ.
        update: take a folder in which another recipe was compared, and redo what the difference concerns.
        progress: told what happens; nothing is said without it.

    Raises:
        PotstillError: something is wrong in any variant; the message has all of it, and nothing was trained yet.
    """
    loaded = load_recipe(recipe, overrides)
    combinations = choices(axes(vary))
    folder = Path(out) if out is not None else RUNS / f"compare-{loaded.name}"
    once = load_recipe(loaded, ["evaluate.seeds=1"])  # more seeds are no other comparison
    with RunFolder(folder, once, update=update).opened() as opened:
        return _Comparison(opened, loaded, progress or Silent()).all(combinations, own_settings)


class _Comparison:
    """The steps of one comparison."""

    def __init__(self, folder: RunFolder, recipe: Recipe, progress: Progress) -> None:
        self.folder = folder
        self.path = folder.path
        self.recipe = recipe
        self.progress = progress
        self.benches = Benches(progress)
        self.asked: dict[str, tuple[str, Mapping[str, Needs]]] = {}  # cell -> its teachers, and what it asks of them

    def all(self, combinations: Sequence[Mapping[str, Any]], own_settings: bool) -> ComparisonOutcome:
        found = cells(self.recipe, combinations, lambda r: len(self.benches.of(r).transfer), own_settings=own_settings)
        ready = self.check(found)
        for number, cell in enumerate(found, 1):
            self.run(cell, f"{number}/{len(found)} {cell.title}")
        finished = [self.finished(cell) for cell in found]
        costs = self.costs(finished)
        attention = self.attention(finished, ready)
        results = results_of(self.folder, self.recipe, finished, costs, attention, own_settings)
        return self.report(results)

    def check(self, found: Sequence[Cell]) -> dict[str, Maps]:
        """Load and bind every variant, so that whatever doesn't fit in any of them is said before one is trained.

        Of each there is kept what attention maps there are to compare, and no model: there may be many variants.
        """
        ready: dict[str, Maps] = {}
        problems: list[str] = []
        with self.progress.stage("checking every variant") as step:
            for number, cell in enumerate(found):
                step(number, len(found), None)
                try:
                    ready[cell.key] = self.maps(cell)
                    self.same_rows(cell, found[0])
                except PotstillError as error:
                    problems += [f"{cell.title}: {line}" for line in str(error).splitlines()]
        if problems:
            raise RecipeError("\n".join(problems))
        for cell in found:
            self.progress.say(f"{cell.title}: {cell.steps:,} optimiser steps a seed")
        return ready

    def maps(self, cell: Cell) -> Maps:
        """Check a variant; gives its pairs of layers whose attention maps are compared, or why there are none."""
        bench = self.benches.of(cell.recipe)
        checked = preflight(bench)
        require_keepable(bench, checked)
        self.asked[cell.key] = (digest([cell.recipe.as_dict()["teacher"], bench.for_teacher.digest]), checked.asked)
        return why_no_maps(bench, checked) or attention_pairs(checked.student, checked.teacher, checked.stages)

    def same_rows(self, cell: Cell, first: Cell) -> None:
        """Refuse a variant that is evaluated on other rows than the first, since no difference would be paired."""
        ours, theirs = (self.benches.of(one.recipe) for one in (cell, first))
        split = ours.evaluated_on
        if split != theirs.evaluated_on or not _equal_rows(ours.raw[split], theirs.raw[split]):
            raise RecipeError(
                problem(
                    "The variant is evaluated on other rows than the first one",
                    follows="Differences are paired row by row, and these couldn't be",
                    do="Vary what is learnt from alone, such as data.limit, or make two comparisons",
                )
            )

    def run(self, cell: Cell, title: str) -> None:
        """One cell as an ordinary run, with all others as siblings."""
        home = self.path / CELLS
        siblings = [folder for folder in sorted(home.glob("*")) if folder.is_dir() and folder.name != cell.key]
        said = titled(self.progress, title)
        run(cell.recipe, home / cell.key, update=True, siblings=siblings, shared=self.shared(cell), progress=said)

    def shared(self, cell: Cell) -> Shared:
        """Where the teachers' knowledge is kept for all cells, and what those ask together that have one teacher."""
        alike = [asked for key, asked in self.asked.values() if key == self.asked[cell.key][0] and asked]
        together: dict[str, Needs] = {}
        for asked in alike:
            together |= {name: needs | together.get(name, needs) for name, needs in asked.items()}
        return Shared(self.path / "cache", len(alike), together)

    def finished(self, cell: Cell) -> Finished:
        """What a cell left."""
        import json

        folder = self.path / CELLS / cell.key
        bench = self.benches.of(cell.recipe)
        seeds = [cell.recipe.seed + number for number in range(cell.recipe.evaluate.seeds)]
        return Finished(
            cell=cell,
            folder=folder,
            results=json.loads((folder / "results.json").read_text(encoding="utf-8")),
            digests=json.loads((folder / "run.json").read_text(encoding="utf-8"))["digests"],
            seeds=seeds,
            logits=[
                load_predictions(folder / "predictions" / f"student-{seed}.parquet")[bench.evaluated_on]
                for seed in seeds
            ],
            labels=bench.labels(bench.evaluated_on),
        )

    def costs(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """What teacher and student cost to run: once for all variants of one architecture, by its digest."""
        if not self.recipe.evaluate.cost:
            return {}
        found: dict[str, Any] = {}
        for one in finished:
            if one.architecture in found:
                continue

            def work(_folder: Path, one: Finished = one) -> dict[str, Any]:
                models = {"teacher": self.teacher(one), "student": one.student(one.seeds[0])}
                with self.progress.stage(f"measuring the cost of {one.cell.title}") as step:
                    return measure_cost(self.benches.of(one.cell.recipe), models, {}, step)

            made_from = {"architecture": one.architecture, "teacher": one.digests["teacher"]}
            found[one.architecture] = self.folder.stage(f"cost/{one.architecture}", made_from, work).value
        return found

    def teacher(self, one: Finished) -> Path:
        """Where a cell's teacher is."""
        trained = one.folder / "teacher"
        return trained if trained.exists() else Path(self.benches.of(one.cell.recipe).teacher_path)

    def attention(self, finished: Sequence[Finished], ready: Mapping[str, Maps]) -> dict[str, Any]:
        """The likeness of attention maps, of every seed of every cell, and of the students before their training.

        It is measured unless the recipe says no in so many words, or the models have no maps that can be compared.
        """
        asked = self.recipe.evaluate
        if not asked.attention_similarity and "attention_similarity" in asked.model_fields_set:
            return {}
        found: dict[str, Any] = {}
        if why := next((ready[one.cell.key] for one in finished if isinstance(ready[one.cell.key], str)), None):
            self.progress.say(f"attention maps are not compared: {why}")
            return {}
        for one in finished:
            pairs = ready[one.cell.key]
            assert not isinstance(pairs, str)
            if one.cell.plain is None:
                found[f"{one.cell.key} at the start"] = self.likeness(one, pairs, None)
            found[one.cell.key] = [self.likeness(one, pairs, seed) for seed in one.seeds]
        return found

    def likeness(self, one: Finished, pairs: Pairs, seed: int | None) -> dict[str, Any]:
        """The likeness of a trained student of one seed; without a seed, of the student before its training."""
        bench = self.benches.of(one.cell.recipe)
        student = one.digests[f"seeds/{seed}/student"] if seed is not None else bench.recipe.as_dict()["student"]
        made_from = {"teacher": one.digests["teacher"], "rows": bench.digest, "pairs": pairs, "student": student}

        def work(_folder: Path) -> dict[str, Any]:
            teacher = self.teacher(one)
            what = f"{one.cell.title}, before training" if seed is None else one.cell.title
            with self.progress.stage(f"attention maps of {what}") as step:
                if seed is not None:
                    return measure_attention(bench, one.student(seed), teacher, pairs, step)
                start = start_student(bench, load_teacher(bench, teacher), one.seeds[0])
                return measure_attention(bench, start, teacher, pairs, step)

        name = "start" if seed is None else str(seed)
        return self.folder.stage(f"attention/{one.cell.key}/{name}", made_from, work).value

    def report(self, results: dict[str, Any]) -> ComparisonOutcome:
        """comparison.json, and the report made from it."""
        from potstill.report import write_comparison

        with self.progress.stage("report"):
            write_json(self.path / "comparison.json", results)
            write_comparison(results, self.path)
        return ComparisonOutcome(self.path, results)


def _equal_rows(ours: Any, theirs: Any) -> bool:
    """Whether two tables of texts and labels hold the same rows in the same order."""
    if ours is theirs:
        return True
    return bool(ours.column_names == theirs.column_names and ours[:] == theirs[:])
