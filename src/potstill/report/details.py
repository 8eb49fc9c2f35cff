"""The smaller tables and lists: training and overfitting, classes, data, examples, stages and the facts of the run.

Decided here: above twenty classes the page shows the twenty that changed most and keeps the rest folded away; facts are
(name, text) pairs, and a pair without text is left out.
"""

import re
from collections.abc import Mapping
from typing import Any

from potstill.report import formats
from potstill.report.roles import metric_info, model_of, ordered_models, role, title_of
from potstill.report.tables import MOST_CLASSES, Cell, Column, Results, Row, Table, table

Facts = list[tuple[str, str]]
OF_CLASSES = {
    **{"precision": "Precision", "recall": "Recall", "f1": "F1"},
    **{"iou": "IoU", "accuracy": "Accuracy", "boundary_iou": "Boundary IoU"},
}
"""The numbers of a class, with their names; a column that no class has is left out."""


def training_table(results: Results) -> Table | None:
    """How well each model fits what it was trained on, and what its training took."""
    rows, names = [], []
    for model in ordered_models(results):
        fit, took = model.get("overfit") or {}, model.get("training") or {}
        info = metric_info(results, str(fit.get("metric") or results["primary"]))
        cells = (
            Cell(formats.value(fit.get("train"), info)),
            Cell(formats.value(fit.get("validation"), info)),
            Cell(formats.difference(fit.get("gap"), info)),
            Cell(formats.duration(took.get("seconds"))),
            Cell(formats.whole(took.get("steps"))),
            Cell(formats.whole(took.get("rows_seen"))),
        )
        rows.append(Row(str(model["title"]), cells, role=role(model["key"])))
        names.append(str(info["name"]))
    name = " / ".join(dict.fromkeys(names))
    fits = (Column("Train", name), Column("Validation", name), Column("Gap", "train − validation"))
    return table("Overfitting and training", "Model", (*fits, "Training time", "Steps", "Rows seen"), rows)


def class_changes(results: Results) -> list[Mapping[str, Any]]:
    """The per-class changes that are known."""
    return [item for item in results.get("per_class_change") or [] if formats.is_number(item.get("change"))]


def most_changed(results: Results) -> list[Mapping[str, Any]]:
    """The per-class changes: all of them, or the twenty largest where there are more classes."""
    changes = class_changes(results)
    if len(changes) > MOST_CLASSES:
        changes = sorted(changes, key=lambda item: -abs(item["change"]))[:MOST_CLASSES]
    return changes


def class_change_table(results: Results) -> Table | None:
    """F1 (or IoU) of the classes shown in the plot of changes."""
    points = {"percent": True}
    rows = [
        Row(
            formats.tidy(item["class"], 40),
            (
                *(Cell(formats.percent(item.get(key))) for key in ("teacher", "baseline", "student")),
                Cell(formats.difference(item["change"], points)),
            ),
        )
        for item in most_changed(results)
    ]
    score = class_score(results)
    columns = [Column(title_of(results, key), score, role(key)) for key in ("teacher", "baseline", "student")]
    return table(f"{score} per class", "Class", [*columns, Column("Change", "student − baseline")], rows)


def class_table(results: Results, key: str = "student") -> Table | None:
    """What was measured of every class, and its support, for one model."""
    rows = [
        Row(
            formats.tidy(item["class"], 40),
            (*(Cell(formats.percent(item.get(name))) for name in OF_CLASSES), Cell(formats.whole(item.get("support")))),
        )
        for item in model_of(results, key).get("per_class") or []
    ]
    caption = f"{title_of(results, key)}, class by class{_resolution(results)}"
    return table(caption, "Class", (*OF_CLASSES.values(), "Support"), rows)


def class_score(results: Results) -> str:
    """What stands for a class where one number does: F1, or the IoU of its pixels."""
    found = results.get("class_score") or {}
    return f"{found.get('name', 'F1')}{_resolution(results)}"


def _resolution(results: Results) -> str:
    """That numbers are of the quarter protocol, where they are."""
    quarter = str((results.get("run") or {}).get("problem")).endswith("_quarter")
    return " at 1/4 resolution" if quarter else ""


def split_table(results: Results) -> Table | None:
    """Rows in each split, the one that the numbers come from marked."""
    data = results.get("data") or {}
    evaluated = data.get("evaluated_on")
    rows = [
        Row(str(name), (Cell(formats.whole(rows)),), "every number comes from here" if name == evaluated else "")
        for name, rows in (data.get("splits") or {}).items()
    ]
    return table("Splits", "Split", ("Rows",), rows)


def data_facts(results: Results) -> Facts:
    """What the data is."""
    data = results.get("data") or {}
    tokens = data.get("tokens") or {}
    lengths = [
        f"{name} {formats.label_number(tokens[key])}"
        for key, name in (("mean", "mean"), ("p95", "95th percentile"), ("max", "longest"))
        if formats.is_number(tokens.get(key))
    ]
    classes = [formats.tidy(name, 40) for name in data.get("classes") or []]
    more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    names = f"{len(classes)}: {', '.join(classes[:MOST_CLASSES])}{more}" if classes else ""
    return _present(
        ("Name", data.get("name")),
        ("Licence", data.get("licence")),
        ("Classes", names),
        ("Images are read at", formats.pixels(data.get("image_size"))),
        ("Tokens a row", ", ".join(lengths)),
        ("Cut at", f"{formats.whole(data.get('max_length'))} tokens" if data.get("max_length") else ""),
        ("Evaluated on", data.get("evaluated_on")),
    )


def _kept(name: str, record: Mapping[str, Any]) -> str:
    """``teacher: kept on disk in float16, 12.3 MB, 14.2 bytes a token; …``."""
    found = record.get("fidelity") or {}
    size = f"{formats.whole(record['bytes'] / 1e6)} MB" if record["bytes"] > 1e7 else f"{record['bytes'] / 1e6:.2f} MB"
    each = f", {record['bytes'] / record['tokens']:.1f} bytes a token" if record.get("tokens") else ""
    logits = (found.get("columns") or {}).get("logits") or {}
    near = f"; KL to the live answers {logits['kl']:.1g} nats" if "kl" in logits else ""
    took = f"; written in {formats.duration(record['written_seconds'])}" if record.get("written_rows") else ""
    once = f"seen once in place of {formats.label_number(record['passes'])} times"
    return f"{name}: kept on disk in {found.get('precision', 'float16')}, {size}{each}{near}; {once}{took}"


def _present(*facts: tuple[str, Any]) -> Facts:
    return [(name, formats.label(text)) for name, text in facts if text not in (None, "", [])]


def _gone(prediction: Mapping[str, Any] | None) -> str:
    if not prediction:
        return ""
    text = formats.label(prediction.get("prediction"))
    sure = formats.percent(prediction.get("probability"), 0)
    return f"{text}, {sure}" if sure else text


def examples(results: Results) -> list[dict[str, Any]]:
    """Two lists of sentences on which teacher and student part ways; a list without any is left out."""
    kinds = (
        ("teacher_right", "teacher_only", "The teacher is right, the student is wrong"),
        ("student_right", "student_only", "The student is right, the teacher is wrong"),
    )
    if (results.get("run") or {}).get("problem") == "regression":
        kinds = (
            ("teacher_right", "teacher_only", "The teacher is closer to the truth"),
            ("student_right", "student_only", "The student is closer to the truth"),
        )
    given = results.get("examples") or {}
    lists = []
    for key, count, heading in kinds:
        items = [
            {
                "text": str(item["text"]),
                "pair": str(item.get("text_pair") or ""),
                "image": _image(item.get("image")),
                "label": formats.label(item.get("label")),
                "answers": [
                    (model, title_of(results, model), _gone(item.get(model))) for model in ("teacher", "student")
                ],
            }
            for item in given.get(key) or []
        ]
        if items:
            number = (given.get("counts") or {}).get(count)
            total = formats.whole(number)
            shown = len(items) if number != len(items) else 0
            pictured = any(item["image"] for item in items)
            lists.append({"heading": heading, "shown": shown, "of": total, "items": items, "pictured": pictured})
    return lists


def _image(address: Any) -> str:
    """The address of a picture that lies in the results themselves; any other is left out."""
    text = str(address or "")
    return text if re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*", text) else ""


def sheet(results: Results) -> dict[str, Any] | None:
    """Images of a segmentation, each a row: image, truth and what each model sees; None where there are none."""
    given = results.get("segmentation") or {}
    titles = {model["key"]: str(model["title"]) for model in results["models"]}
    rows = [
        {
            "which": str(group["key"]).capitalize(),
            "name": formats.tidy(item["name"], 40),
            "pictures": [
                ("image", item["image"], ""),
                ("truth", item["truth"], ""),
                *((titles[key], one["map"], formats.percent(one["iou"])) for key, one in item["models"].items()),
            ],
        }
        for group in given.get("groups") or []
        for item in group["items"]
    ]
    if not rows:
        return None
    models = given["groups"][0]["items"][0]["models"]
    void = [{"name": "void", "colour": given["void"]}] if given.get("void") else []
    coloured = [*(given.get("legend") or []), *void]
    legend = [{"name": one["name"], "colour": "#" + bytes(one["colour"]).hex()} for one in coloured]
    return {
        "columns": [(role(key), title_of(results, key)) for key in models],
        "rows": rows,
        "legend": legend,
        "of": formats.whole(given.get("of")),
        "score": f"mean IoU{_resolution(results)}",
    }


def agreement_counts(results: Results) -> Facts:
    """On how many rows both, one or none of teacher and student are right."""
    counts = (results.get("examples") or {}).get("counts") or {}
    names = {
        "both_right": "both right",
        "teacher_only": "only the teacher right",
        "student_only": "only the student right",
        "both_wrong": "both wrong",
    }
    return [(name, formats.whole(counts[key])) for key, name in names.items() if formats.is_number(counts.get(key))]


def run_facts(results: Results) -> Facts:
    """Where, with what and how the run was made."""
    run = results.get("run") or {}
    machine, precision = run.get("hardware") or {}, run.get("precision") or {}
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    memory = f", {formats.size(machine['memory_bytes'])} memory" if machine.get("memory_bytes") else ""
    hardware = f"{machine.get('processor') or 'processor unknown'}{cores}{memory}" if machine else ""
    reason = f": {precision['why']}" if precision.get("why") else ""
    teachers = "; ".join(
        f"{name} {one['precision'] if one['allowed'] else 'float32'}, since in {one['precision']}: {one['why']}"
        for name, one in (precision.get("teachers") or {}).items()
    )
    return _present(
        ("Command", run.get("command")),
        ("Hardware", hardware),
        ("Accelerator", machine.get("accelerator") or ("none" if machine else "")),
        ("Precision", f"{precision['training']}{reason}" if precision.get("training") else ""),
        ("Precision of teachers", teachers),
        ("Answers of teachers", "; ".join(_kept(name, one) for name, one in (results.get("kept") or {}).items())),
        ("Seeds", ", ".join(str(seed) for seed in run.get("seeds") or [])),
        ("Loss convention", run.get("convention")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())),
        ("Made", run.get("created")),
    )


def stage_table(results: Results) -> Table | None:
    """The seconds that each stage took."""
    stages = (results.get("run") or {}).get("stages") or []
    rows = [
        Row(
            formats.tidy(stage.get("name") or ""),
            (Cell(formats.duration(stage.get("seconds")), "taken over from before" if stage.get("reused") else ""),),
        )
        for stage in stages
    ]
    return table("Stages", "Stage", ("Time",), rows)


def how(results: Results) -> Facts:
    """How every number was made, as the run wrote it."""
    return _present(*((str(item["number"]), item.get("made")) for item in results.get("how") or []))


def headline_facts(results: Results) -> list[str]:
    """Under the title: task, problem, seeds, time and date, each where it is known."""
    run = results.get("run") or {}
    seeds = run.get("seeds") or []
    facts = [
        str(run.get("task") or "").replace("_", " "),
        str(run.get("problem") or "").replace("_", " "),
        "" if not seeds else "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds",
        formats.duration(run.get("seconds")),
        str(run.get("created") or "")[:10],
    ]
    return [fact for fact in facts if fact]
