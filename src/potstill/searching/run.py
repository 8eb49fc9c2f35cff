"""A search from start to end, or from where it was stopped: trials suggested by optuna, scored on validation rows.

Decided here:

* The test rows are taken out of the workbench before the first trial, so no trial can see them, whatever it does. The
  number to report comes from `potstill run` with the best recipe, which evaluates them once.
* A trial is a run folder with its teacher and students as stages; trials are siblings, so the teacher is trained once,
  and a trial that was killed goes on from its last checkpoint. Once it is scored, its students are removed.
* Trial n is suggested by a sampler (TPE) that is seeded by n, so that a search that was stopped makes the same
  suggestions as one that wasn't.
* Another space in the same folder is another study, beside the first; its trials share the teacher.
* Source of the sampler: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from potstill.caching import Caching, Shared, require_keepable
from potstill.checks import problem
from potstill.comparing.axes import override
from potstill.comparing.benches import Benches
from potstill.errors import ArgumentError, MappingError, ModelError, PotstillError, RecipeError, TrainingError
from potstill.evaluation.outputs import OUTPUTS
from potstill.evaluation.predict import fastest_device
from potstill.knowledge import Needs
from potstill.labelled import TEST, VALIDATION
from potstill.metrics import METRICS, primary, score
from potstill.pipeline import RUNS
from potstill.preflight import Preflight, preflight, require_space
from potstill.progress import Progress, Silent, titled
from potstill.recipe import Recipe, load_recipe
from potstill.runs import RunFolder, digest, write_json, write_text
from potstill.school import School
from potstill.searching.space import Choice, Space, as_data, parse_space
from potstill.shipping import hardware, versions
from potstill.training.precision import TrialSizes
from potstill.workbench import Workbench

SCHEMA = 1
UNFIT = (RecipeError, ModelError, MappingError, ArgumentError, TrainingError)  # of one trial; the search goes on
RANDOM_TRIALS = 6  # before the sampler learns from those that were made


@dataclass(frozen=True)
class SearchOutcome:
    """What a search left: the folder, and its trials."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def best(self) -> Path:
        """The best recipe, to be run."""
        return self.folder / "best.yaml"


def search(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    space: Sequence[str] | Mapping[str, str],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trials: int = 20,
    hours: float | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> SearchOutcome:
    """Search a recipe's values within a budget. Only validation rows are scored; the test rows are never seen.

    Args:
        recipe: the name of a packaged recipe, a path, or the recipe as data; `evaluate.seeds` runs make one trial.
        space: what may be chosen, such as ``{"distill.0.terms.0.temperature": "1..8:log"}``.
        out: the folder; ``runs/search-<name of the recipe>`` if not given.
        overrides: ``key=value`` strings for the recipe.
        trials: how many there are to be in the end, those of an earlier call among them.
        hours: begin no further trial once so many have gone into them.
        update: take a folder in which another recipe was searched.
        progress: told what happens; nothing is said without it.

    Raises:
        PotstillError: something is wrong; what can be found before training is found then, all at once. A trial whose
    values don't fit the models, or whose loss is no number, has failed, and the search goes on.
    """
    _require_optuna()
    loaded = load_recipe(recipe, overrides)
    once = {"baseline": False, "pretrained_baseline": False, "cost": False, "attention_similarity": False}
    data = loaded.model_dump(mode="json", by_alias=True, exclude_unset=True)
    bare = load_recipe(
        {**data, "evaluate": {**data.get("evaluate", {}), **once}, "export": {"formats": []}, "name": loaded.name}
    )
    folder = Path(out) if out is not None else RUNS / f"search-{loaded.name}"
    with RunFolder(folder, bare, update=update).opened() as opened:
        return _Search(opened, loaded, parse_space(space), progress or Silent()).all(trials, hours)


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError:
        raise PotstillError(
            problem("The search needs the package optuna", do="Install it: pip install optuna")
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Search:
    """The trials of one study."""

    def __init__(self, folder: RunFolder, recipe: Recipe, space: Space, progress: Progress) -> None:
        self.path = folder.path
        self.base = folder.recipe
        self.recipe = recipe
        self.space = space
        self.progress = progress
        self.name = digest(as_data(space))[:6]

    def all(self, trials: int, hours: float | None) -> SearchOutcome:
        self.benches = Benches(self.progress, without_test)
        self.budget = trials
        self.bench = self.benches.of(self.base)
        self.metric = METRICS[primary(self.bench.task.problem)]
        self.check()
        study = self.study()
        left = [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
        for trial in left:  # killed in the middle
            if set(trial.params) == set(self.space):
                self.trial(study, trial, trials)
            else:
                self.tell(study, trial.number, None)
        while (number := len(study.get_trials(deepcopy=False))) < trials and not self.spent(study, hours):
            study.sampler = self.sampler(number)
            self.trial(study, study.ask(self.distributions()), trials)
        return self.outcome(study, trials)

    def check(self) -> None:
        """Try every value of a list and both ends of a range, one key at a time, before anything is trained."""
        problems: list[str] = []
        _fitting(self.bench)
        for key, one in self.space.items():
            for value in one.ends:
                try:
                    recipe = load_recipe(self.base, [override(key, value)])
                    found = _fitting(self.benches.of(recipe))
                except PotstillError as error:
                    problems += [f"{key} {value}: {line}" for line in str(error).splitlines()]
                else:
                    require_space(self.path, found, recipe)
        if problems:
            raise RecipeError("\n".join(dict.fromkeys(problems)))

    # ---- optuna

    def study(self) -> Any:
        """The study of this space, as far as it has come."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.path / "study.journal"))),
            study_name=self.name,
            direction="maximize" if self.metric.higher_is_better else "minimize",
            load_if_exists=True,
        )

    def sampler(self, number: int) -> Any:
        """The sampler of one trial, which depends on its number and on the trials before it alone."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=100_003 * (self.base.seed + 1) + number, n_startup_trials=RANDOM_TRIALS)

    def distributions(self) -> dict[str, Any]:
        """The space as optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, Any] = {}
        for key, one in self.space.items():
            if isinstance(one, Choice):
                found[key] = CategoricalDistribution(one.values)
            elif one.whole:
                found[key] = IntDistribution(int(one.low), int(one.high), log=one.log)
            else:
                found[key] = FloatDistribution(one.low, one.high, log=one.log)
        return found

    def tell(self, study: Any, number: int, value: float | None) -> None:
        """A trial's score, or that it has failed."""
        from optuna.trial import TrialState

        study.tell(number, value, state=TrialState.FAIL if value is None else None)

    def spent(self, study: Any, hours: float | None) -> bool:
        """Whether the hours have gone into the trials made so far."""
        seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in study.get_trials(deepcopy=False))
        return hours is not None and seconds >= 3600 * hours

    # ---- trials

    def chosen(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a trial, read."""
        return {
            key: yaml.safe_load(params[key]) if isinstance(one, Choice) else params[key]
            for key, one in self.space.items()
        }

    def trial(self, study: Any, trial: Any, trials: int) -> None:
        """One trial from start to end: its seeds trained and scored, or what was wrong with it."""
        from optuna.trial import Trial

        chosen = self.chosen(trial.params)
        asked = trial if isinstance(trial, Trial) else Trial(study, trial._trial_id)
        title = f"trial {trial.number + 1}/{trials}"
        said = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in chosen.items())
        started = time.monotonic()
        values: list[float] = []
        try:
            recipe = load_recipe(self.base, [override(key, value) for key, value in chosen.items()])
            values = self.scores(recipe, f"{self.name}-{trial.number:03d}", title)
        except UNFIT as error:
            asked.set_user_attr("problem", str(error))
        asked.set_user_attr("per_seed", values)
        asked.set_user_attr("seconds", time.monotonic() - started)
        self.tell(study, trial.number, float(np.mean(values)) if values else None)
        self.progress.say(f"{title}: {said}: {_short(float(np.mean(values))) if values else 'failed'}")

    def scores(self, recipe: Recipe, name: str, title: str) -> list[float]:
        """The primary metric on the validation rows, one value a seed."""
        home = self.path / "trials"
        siblings = [folder for folder in sorted(home.glob("*")) if folder.is_dir() and folder.name != name]
        bench = self.benches.of(recipe)
        with RunFolder(home / name, recipe, update=True, siblings=siblings).opened() as folder:
            trial, asked = _checked(bench)
            shared = Shared(self.path / "cache", self.budget)
            caching = Caching(bench, asked, folder.path, self.progress, shared)
            school = School(folder, bench, titled(self.progress, title), trial, caching)
            teachers = school.teachers()
            seeds = [recipe.seed + number for number in range(recipe.evaluate.seeds)]
            found = []
            for seed in seeds:
                student = school.students(seed, teachers)["student", seed]
                found.append(self.score(bench, school.model(student)))
        shutil.rmtree(home / name / "seeds", ignore_errors=True)
        return found

    def score(self, bench: Workbench, student: Path) -> float:
        """The primary metric of one student on the validation rows."""
        model = bench.load(student).model
        model.to(fastest_device())  # type: ignore[arg-type]
        logits = OUTPUTS[bench.task.problem](model, bench.rows[VALIDATION], bench.collate)
        return score(self.metric.key, bench.task.problem, logits, bench.labels(VALIDATION))

    def outcome(self, study: Any, trials: int) -> SearchOutcome:
        """search.json, and best.yaml where any trial has a score."""
        made = [self.entry(trial) for trial in study.get_trials(deepcopy=False)]
        scored = [entry for entry in made if entry["value"] is not None]
        sign = 1 if self.metric.higher_is_better else -1
        best = max(scored, key=lambda entry: sign * entry["value"], default=None)
        if best is None:
            raise TrainingError(
                problem("No trial of the search has a score", given=next((e["problem"] for e in made), None))
            )
        found = load_recipe(self.recipe, [override(k, v) for k, v in best["chosen"].items()])
        data = found.model_dump(mode="json", by_alias=True, exclude_unset=True)
        named = {**data, "name": f"{self.recipe.name}-best"}
        write_text(self.path / "best.yaml", yaml.safe_dump(named, sort_keys=False, allow_unicode=True))
        results = {
            "schema": SCHEMA,
            "name": self.recipe.name,
            "metric": {**vars(self.metric)},
            "scored_on": VALIDATION,
            "rows": len(self.bench.rows[VALIDATION]),
            "seeds": self.base.evaluate.seeds,
            "space": as_data(self.space),
            "trials": made,
            "best": best["number"],
            "asked_for": trials,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_json(self.path / "search.json", results)
        return SearchOutcome(self.path, results)

    def entry(self, trial: Any) -> dict[str, Any]:
        """One trial as plain data."""
        return {
            "number": trial.number,
            "value": trial.value,
            "per_seed": trial.user_attrs.get("per_seed", []),
            "chosen": self.chosen(trial.params) if set(trial.params) == set(self.space) else {},
            "seconds": trial.user_attrs.get("seconds"),
            "problem": trial.user_attrs.get("problem"),
        }


def without_test(bench: Workbench) -> Workbench:
    """A workbench whose test rows are gone, with a digest of its own: nothing made from it is taken for a whole one."""

    def kept(rows: Mapping[str, Any]) -> dict[str, Any]:
        return {split: part for split, part in rows.items() if split != TEST}

    def marked(name: str) -> str:
        return digest({"without test": name})

    own = bench.teachers
    teachers = None if own is None else replace(own, rows=kept(own.rows), digest=marked(own.digest))
    rows, raw = kept(bench.rows), kept(bench.raw)
    return replace(bench, teachers=teachers, rows=rows, raw=raw, digest=marked(bench.digest))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fitting(bench: Workbench) -> Preflight:
    """The models of a recipe, checked before anything is trained."""
    found = preflight(bench)
    require_keepable(bench, found)
    return found


def _checked(bench: Workbench) -> tuple[TrialSizes, Mapping[str, Needs]]:
    """The student's sizes, and what is asked of each teacher; the models that were made for it are let go."""
    found = _fitting(bench)
    return TrialSizes.of(found.student), found.asked
