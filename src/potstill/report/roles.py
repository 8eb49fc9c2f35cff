"""Who is who: the order, colour and mark of teacher, baselines, student and exports, the same in every table and plot.

Marks differ in shape as well as in colour, so that the report can be read in grey and by the colour-blind; the
colours follow Okabe and Ito. The plots carry a stand-in colour for each CSS variable: the drawing is given the stand-
in, and the finished SVG the variable, so that one drawing serves the light scheme, the dark one and paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_ORDER = ("teacher", "pretrained_baseline", "baseline", "student")

INK, MUTED, RULE, PAPER = "#010101", "#010102", "#010103", "#010104"
PARTS = ("#020201", "#020202", "#020203", "#020204", "#020205", "#020206")
DASHES = ("-", "--", "-.", ":")

STAND_INS: dict[str, str] = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    "#030301": "var(--teacher)",
    "#030302": "var(--pretrained)",
    "#030303": "var(--baseline)",
    "#030304": "var(--student)",
    "#030305": "var(--export)",
    **{part: f"var(--part-{index})" for index, part in enumerate(PARTS)},
}


@dataclass(frozen=True)
class Role:
    """How a row or column is marked: CSS class, sign (a path in a box of 12), and in a plot marker, colour and dash."""

    css: str
    sign: str
    marker: str
    colour: str
    dash: str = "-"
    filled: bool = True


ROLES: dict[str, Role] = {
    "teacher": Role("teacher", "M1.5 1.5h9v9h-9z", "s", "#030301", "--"),
    "pretrained_baseline": Role("pretrained", "M.8 1.8h10.4L6 11z", "v", "#030302", ":"),
    "baseline": Role("baseline", "M6 .3L11.7 6 6 11.7.3 6z", "D", "#030303", "-."),
    "student": Role("student", "M6 1.2a4.8 4.8 0 1 1 0 9.6a4.8 4.8 0 1 1 0-9.6z", "o", "#030304"),
}
_EXPORTS = (
    Role("export", "M6 1.6L10.8 10.4H1.2z", "^", "#030305", filled=False),
    Role("export", "M1.8 1.8h8.4v8.4H1.8z", "s", "#030305", filled=False),
)
_OTHER = Role("other", "M6 1.6a4.4 4.4 0 1 1 0 8.8a4.4 4.4 0 1 1 0-8.8z", "o", MUTED, filled=False)


def role(key: str) -> Role:
    """The role of a model by its key; a key that is not known gets a plain mark."""
    return ROLES.get(key, _OTHER)


def export_role(index: int) -> Role:
    """The role of the export at `index` in the results."""
    return _EXPORTS[index % len(_EXPORTS)]


def ordered_models(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models in the report's order; those with an unknown key last, as they came."""
    rank = {key: position for position, key in enumerate(MODEL_ORDER)}
    return sorted(results.get("models") or [], key=lambda model: rank.get(str(model.get("key")), len(rank)))


def model_of(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The model with this key, or an empty mapping."""
    return next((model for model in results.get("models") or [] if model.get("key") == key), {})


def title_of(results: Mapping[str, Any], key: str) -> str:
    """A model's title by its key; the key itself where there is no such model."""
    return str(model_of(results, key).get("title") or key)


def metric_info(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What the results say of a metric; its key as its name where they say nothing."""
    info: Mapping[str, Any] = (results.get("metrics") or {}).get(key) or {}
    return info if info.get("name") else {**info, "name": key}
