"""Workbenches for many recipes that differ in little: rows are read and encoded once for all that read them alike."""

from collections.abc import Callable
from dataclasses import replace

from potstill.progress import Progress
from potstill.recipe import Recipe
from potstill.runs import digest
from potstill.workbench import Workbench, prepare_workbench


def _same(bench: Workbench) -> Workbench:
    return bench


class Benches:
    """The workbench of each recipe.

    Args:
        progress: told of the reading, and what was guessed, once.
        change: what is done to every workbench before it is given out.
    """

    def __init__(self, progress: Progress, change: Callable[[Workbench], Workbench] = _same) -> None:
        self.progress = progress
        self.change = change
        self.made: dict[str, Workbench] = {}

    def of(self, recipe: Recipe) -> Workbench:
        """The workbench of a recipe. Raises what reading its rows raises."""
        data = recipe.as_dict()
        student = {name: data["student"].get(name) for name in ("model", "vocabulary")}  # what decides the reader
        config = recipe.student.config
        student["config"] = config if isinstance(config, str) else (config or {}).get("image_size")
        key = digest({**{name: data[name] for name in ("task", "data", "teacher")}, "student": student})
        if key not in self.made:
            with self.progress.stage("reading the data"):
                self.made[key] = self.change(prepare_workbench(recipe, self.progress.say))
        return replace(self.made[key], recipe=recipe)
