"""Knowledge distillation for transformers: from a teacher to a small model that ships, with the evidence.

    import potstill
    outcome = potstill.run("reviews")

The names below are looked up when they are first used, so that importing potstill costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill import losses
    from potstill.comparing import ComparisonOutcome, compare
    from potstill.errors import PotstillError
    from potstill.objective import Objective, Term
    from potstill.pipeline import Outcome, run
    from potstill.recipe import Recipe, load_recipe
    from potstill.searching import SearchOutcome, search
    from potstill.students import build_student
    from potstill.tasks import TextClassification
    from potstill.training import DistillationTrainer

__version__ = "0.1.0"
__all__ = [
    "ComparisonOutcome",
    "DistillationTrainer",
    "Objective",
    "Outcome",
    "PotstillError",
    "Recipe",
    "SearchOutcome",
    "Term",
    "TextClassification",
    "build_student",
    "compare",
    "load_recipe",
    "losses",
    "run",
    "search",
]

_HOMES = {
    "ComparisonOutcome": "comparing",
    "DistillationTrainer": "training",
    "Objective": "objective",
    "Outcome": "pipeline",
    "PotstillError": "errors",
    "Recipe": "recipe",
    "SearchOutcome": "searching",
    "Term": "objective",
    "TextClassification": "tasks",
    "build_student": "students",
    "compare": "comparing",
    "load_recipe": "recipe",
    "run": "pipeline",
    "search": "searching",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("potstill.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'potstill' has no attribute '{name}'")
    return getattr(import_module(f"potstill.{_HOMES[name]}"), name)
