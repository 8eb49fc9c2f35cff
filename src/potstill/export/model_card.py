"""The card that goes with the student: what it is, its numbers beside the teacher's, and how it was made.

Decisions held here:

* The numbers come as they stand in results.json; the card computes nothing but their form.
* Only what is known is written. A licence is never guessed: without one the card has none, and says so.
* The template is a file, filled in by the standard library: Markdown needs no escaping that a template engine does.
"""

import importlib.metadata
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from potstill.export.onnx import written_beside

TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = {"semantic_segmentation": "image-segmentation"}
"""The task of a recipe -> what model hubs call it, where that isn't its name."""
_OF_PIXELS = (
    "`logits` [B, V, h, w] are those of the classes{classes}, at a size of their own: resize them bilinearly to the "
    "image's, and the largest of a pixel is its class."
)
OUTPUTS = {
    "single_label": "`logits.softmax(-1)` are the probabilities of the classes{classes}.",
    "multi_label": "`logits.sigmoid()` are the probabilities of the classes{classes}, each for itself.",
    "regression": "`logits` is the value itself.",
    **dict.fromkeys(("segmentation", "segmentation_quarter"), _OF_PIXELS),
}


USES = {
    "text_classification": (
        "A sequence classifier",
        """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("$folder")
model = AutoModelForSequenceClassification.from_pretrained("$folder")
batch = tokenizer(["A text to classify."], return_tensors="pt", truncation=True$max_length)
logits = model(**batch).logits""",
    ),
    "image_classification": (
        "An image classifier",
        """from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("$folder")
model = AutoModelForImageClassification.from_pretrained("$folder")
batch = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")
logits = model(**batch).logits""",
    ),
    "semantic_segmentation": (
        "A model for semantic segmentation",
        """from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("$folder")
model = AutoModelForSemanticSegmentation.from_pretrained("$folder")
image = Image.open("image.png").convert("RGB")
logits = model(**processor(image, return_tensors="pt")).logits
classes = interpolate(logits, size=image.size[::-1], mode="bilinear").argmax(1)""",
    ),
}
"""The task of a recipe -> what its student is, and how it is used."""


def write_model_card(
    folder: Path | str,
    results: Mapping[str, Any],
    recipe_yaml: str,
    convention: str,
    *,
    licence: str | None = None,
) -> Path:
    """Write README.md into the student's folder, in the form that model hubs read.

    Args:
        folder: the transformers folder.
        results: results.json, or what there is of it yet: of "run" the "name", "title", "task" and "problem"; "data";
            "metrics"; "primary"; "models"; "exports"; of "verdict" the "headline" and "sentences". Any may be missing.
        recipe_yaml: the recipe as resolved.
        convention: the losses' convention, a sentence or more.
        licence: the model's licence by its hub name ("apache-2.0"), when it is known.

    Returns: the card's path. Written beside and then renamed.
    """
    folder = Path(folder)
    run, data, verdict = (results.get(part) or {} for part in ("run", "data", "verdict"))
    kind, use = _use(results, folder.name)
    title = f"{run.get('title') or run.get('name') or folder.name}: student"
    values = {
        "front": _front_matter(results, licence),
        "title": title,
        "headline": " ".join(filter(None, [verdict.get("headline"), *(verdict.get("sentences") or [])])),
        "version": importlib.metadata.version("potstill"),
        "measured": _measured(data),
        "numbers": _table(results),
        "notes": _notes(results),
        "kind": kind,
        "use": use,
        "outputs": _outputs(run.get("problem"), data.get("classes") or []),
        "recipe": recipe_yaml.strip(),
        "convention": convention.strip(),
        "limits": _limits(data, licence),
    }
    card = folder / "README.md"
    with written_beside(card) as partial:
        filled = string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
        partial.write_text(_without_gaps(filled), encoding="utf-8")
    return card


def _task(results: Mapping[str, Any]) -> str:
    return str((results.get("run") or {}).get("task") or "text_classification")


def _use(results: Mapping[str, Any], folder: str) -> tuple[str, str]:
    """What the student is, and the lines that use it."""
    kind, lines = USES[_task(results)]
    longest = (results.get("data") or {}).get("max_length")
    filled = string.Template(lines).substitute(folder=folder, max_length=f", max_length={longest}" if longest else "")
    return kind, filled


def _front_matter(results: Mapping[str, Any], licence: str | None) -> str:
    """The YAML head that model hubs read."""
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": TAGS.get(_task(results), _task(results).replace("_", "-")),
        "tags": ["distillation", "potstill"],
    }
    if licence:
        head["license"] = licence
    if metrics := list(results.get("metrics") or {}):
        head["metrics"] = metrics
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _measured(data: Mapping[str, Any]) -> str:
    """On what the numbers were measured."""
    if not data:
        return ""
    split = data.get("evaluated_on", "test")
    rows = (data.get("splits") or {}).get(split)
    of = "" if rows is None else f" ({rows:,} rows)"
    return f"Measured on the {split} split{of} of {data.get('name', 'the data')}."


def _table(results: Mapping[str, Any]) -> str:
    """Teacher, baselines, student and exports, one a row; a column where any of them has a number."""
    metrics: Mapping[str, Any] = results.get("metrics") or {}
    models = [*(results.get("models") or []), *(results.get("exports") or [])]
    header = ["", *(shown["name"] for shown in metrics.values()), "Retained", "Parameters", "Size", "Batch 1, p50"]
    rows = []
    for model in models:
        # An export's costs stand in its own entry, a model's in "cost".
        cost = model.get("cost") or model
        given = model.get("metrics") or {}
        retained = (model.get("retained") or {}).get("mean")
        p50 = ((cost.get("latency") or {}).get("1") or {}).get("p50_ms")
        rows.append(
            [
                model.get("title") or model["key"],
                *(_metric(given.get(name), shown) for name, shown in metrics.items()),
                "" if retained is None else f"{100 * retained:.1f} %",
                "" if cost.get("parameters") is None else f"{cost['parameters'] / 1e6:.1f} M",
                "" if cost.get("bytes") is None else f"{cost['bytes'] / 1e6:.1f} MB",
                "" if p50 is None else f"{p50:.1f} ms",
            ]
        )
    kept = [column for column in range(len(header)) if column == 0 or any(row[column] for row in rows)]
    if not rows or len(kept) == 1:
        return "No numbers were measured."
    lines = [[row[column] for column in kept] for row in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(kept) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metric(value: Any, shown: Mapping[str, Any]) -> str:
    """A metric as it is read: 0.8734 as 87.3 where it is a percentage, with its spread over seeds where there is one.

    An export carries the bare number, a model its mean and the rest.
    """
    if value is None:
        return ""
    mean, spread = (value["mean"], value.get("std")) if isinstance(value, Mapping) else (value, None)
    factor, digits, unit = (100, 1, " %") if shown.get("percent") else (1, 3, "")
    more = "" if spread is None else f" ± {factor * spread:.{digits}f}"
    return f"{factor * mean:.{digits}f}{more}{unit}"


def _notes(results: Mapping[str, Any]) -> str:
    """What the columns mean, where they are not plain."""
    notes = []
    if any((model.get("retained") or {}).get("mean") is not None for model in results.get("models") or []):
        name = (results.get("metrics") or {}).get(results.get("primary"), {}).get("name", "primary metric")
        notes.append(f"Retained is the share of the teacher's {name[0].lower()}{name[1:]}.")
    models: Sequence[Mapping[str, Any]] = results.get("models") or []
    seeds = next((model.get("seeds") or [] for model in models if model.get("key") == "student"), [])
    if len(seeds) > 1:
        notes.append(f"The student's numbers are means over {len(seeds)} seeds; the weights here are of one of them.")
    return " ".join(notes)


def _outputs(problem: str | None, classes: Sequence[str]) -> str:
    """How the logits are read."""
    named = f" ({', '.join(classes)}, in this order)" if classes else ""
    return OUTPUTS.get(problem or "", "").replace("{classes}", named)


def _limits(data: Mapping[str, Any], licence: str | None) -> str:
    """What the numbers don't say, one a line."""
    split, name = data.get("evaluated_on", "test"), data.get("name")
    of = f" of {name}" if name else ""
    shown = "images" if data.get("image_size") else "texts"
    lines = [f"The numbers hold for the {split} split{of} and for {shown} like it; nothing else was measured."]
    lines.append("It learned from its teacher, and takes over the teacher's errors and biases.")
    if data.get("max_length"):
        lines.append(f"Texts of more than {data['max_length']} tokens are cut; what stands behind is not read.")
    lines.append("Latency depends on the machine; it was measured for all rows of the table in turns on one.")
    if not licence:
        lines.append("No licence is stated: those of the teacher and of the data apply, so read them before use.")
    if data.get("licence"):
        lines.append(f"The data's licence: {data['licence']}.")
    return "\n".join(f"- {line}" for line in lines)


def _without_gaps(text: str) -> str:
    """The text with runs of blank lines, left by empty parts, made one. Code blocks are left alone."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line or fenced or not lines or lines[-1]:
            lines.append(line)
    return "\n".join(lines) + "\n"
