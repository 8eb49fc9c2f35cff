"""The tables of docs/benchmarks.md and of the README, out of peers.json, scaling.json and fused.json in
benchmarks/results.

What stands between `<!-- tables: NAME -->` and `<!-- end of tables -->` is written anew; a section that has not been
measured says so.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from competitor import TOOLS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
BLOCK = re.compile(r"(<!-- tables: bench-([\w-]+) -->\n).*?(<!-- end of tables -->)", re.DOTALL)
NOT_YET = "Not measured yet.\n"
LIMITS = {"work": 1.03, "cache": 1.05, "accuracy": 0.2, "time": 0.6, "memory": 0.45}
FUSED_TIME, FUSED_MEGABYTES = 1.15, 200
FLAT, LINEAR = 1.1, 1.1  # how much the memory of the most rows may exceed that of the fewest, and the time of a row


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def milliseconds(seconds: Sequence[float]) -> str:
    """The median of some times."""
    return f"{statistics.median(seconds) * 1e3:.0f} ms"


def ratio(value: float | None) -> str:
    """A ratio, or a dash; what is far from 1 has no decimals."""
    return "—" if value is None else f"{value:.{0 if value > 20 else 2}f}"


def where(section: dict[str, Any]) -> str:
    """On what a section was measured, in a line."""
    machine, setting = section["hardware"], section["setting"]
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items() if value is not None)
    left = "; ".join(f"{TOOLS[name].title}: {reason}" for name, reason in section.get("left_out", {}).items())
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    return f"\n{machine['processor']}, {cores}; {said}.{f' Left out: {left}.' if left else ''}\n"


def work_table(found: dict[str, Any], section: str = "work") -> str:
    """The same work, with dropout and without."""
    made = found[section]
    rows = []
    for name in made["as_configured"]["of"]:
        cells = [TOOLS[name].title]
        for kind in ("as_configured", "without_dropout"):
            one = made[kind]["of"][name]
            cells += [milliseconds(one["seconds"]), ratio(one["median"])]
        rows.append(cells)
    return table(["", "a step", "to the loop", "a step, no dropout", "to the loop"], rows) + where(made)


def cache_table(found: dict[str, Any]) -> str:
    """From the cache, live, and the student alone."""
    made = found["cache"]
    if "to_ours_alone" not in made:
        return f"Not measured: {made['left_out']['ours']}.\n"
    titles = {
        "cached": "from the cache",
        "live": "with the teacher live",
        "alone": "the student alone, by us",
        "alone_by_hand": "the student alone, by hand",
    }
    ours, hand = made["to_ours_alone"]["of"], made["to_alone_by_hand"]["of"]
    rows = [
        [title, milliseconds(ours[name]["seconds"]), ratio(ours[name]["median"]), ratio(hand[name]["median"])]
        for name, title in titles.items()
    ]
    return table(["", "a step", "to alone, by us", "to alone, by hand"], rows) + where(made)


def accuracy_table(found: dict[str, Any]) -> str:
    """Defaults to the same accuracy."""
    made = found["accuracy"]
    titles = {"ours": "default settings", "ours_recipe": "the recipe as shipped"}
    rows = []
    for kind, peers in made["ratio"].items():
        for peer, one in peers.items():
            targets = " ".join(f"{100 * target:.1f}" for target in one["targets"])
            theirs, mine = ([pair[side] for pair in one["seconds"]] for side in ("peer", "ours"))
            whole = [run[peer]["seconds"] for run in made["runs"]]
            of_whole = [math.inf if a is None else a / b for a, b in zip(mine, whole, strict=True)]
            middle = statistics.median(of_whole)
            times = [" ".join("—" if one is None else f"{one:.0f}" for one in side) for side in (theirs, whole, mine)]
            ratios = [ratio(one["median"]), ratio(None if math.isinf(middle) else middle)]
            rows.append([f"{TOOLS[peer].title}; ours: {titles[kind]}", targets, *times, *ratios])
    head = ["peer", "it ends with (% in each run)", "it reaches that after (s)", "its three epochs (s)"]
    head += ["we reach that after (s)", "ratio, median", "to its three epochs"]
    note = f"\nOur teacher: {made['our_teacher']}.\n"
    return table(head, rows) + note + where(made)


def language_table(found: dict[str, Any]) -> str:
    """A step of a language model."""
    made = found["language"]
    rows = []
    for name, one in made["seconds"]["of"].items():
        cells = [TOOLS[name].title, milliseconds(one["seconds"]), ratio(one["median"])]
        for what in ("peak", "rise"):
            if what in made:
                of = made[what]["of"][name]
                cells += [f"{statistics.median(of[what]) / 2**20:,.0f} MB", ratio(of["median"])]
        rows.append(cells)
    base = TOOLS[made["seconds"]["to"]].title
    head = ["", "a step", f"to {base}", "peak memory", f"to {base}", "of it, while training", f"to {base}"]
    return table(head[: len(rows[0])], rows) + where(made)


def scaling_table(found: dict[str, Any]) -> str:
    """Rows and tokens."""
    made = found["scaling"]
    rows = [
        [
            f"{one['rows']:,}",
            *[f"{one[part] / one['rows'] * 1e3:.2f} ms" if part in one else "—" for part in ("encode", "cache")],
            f"{one['set_up']:.1f} s",
            f"{one['step'] * 1e3:.0f} ms",
            *[f"{one[part] / 2**20:,.0f} MB" for part in ("peak_before", "peak")],
        ]
        for one in made["rows"]
    ]
    memory = ["peak memory, before the training", "while training"]
    head = ["rows", "encoding, a row", "writing the cache, a row", "set-up", "a step", *memory]
    tokens = [[f"{one['tokens']}", f"{one['step'] * 1e3:.0f} ms"] for one in made["tokens"]]
    return table(head, rows) + "\n" + table(["tokens in a row", "a step"], tokens) + where(made)


def fused_table(found: dict[str, Any]) -> str:
    """The fused loss, and what it stands beside."""
    made = found["fused"]
    rows = [
        [
            one["form"].replace("_", " "),
            f"{one['seconds']:.2f} s",
            ratio(one["ratio"]),
            "—" if one["bytes"] is None else f"{one['bytes'] / 1e6:,.0f} MB",
        ]
        for one in made["forms"]
    ]
    apart = ", ".join(
        f"{name.replace('_', ' ')} {value:.0e}" for name, value in made["difference_of_gradients"].items()
    )
    note = f"\nLargest relative difference of gradients from naive ones, in float64: {apart}.\n"
    setting = {name: made[name] for name in ("tokens", "classes", "repeats", "precision", "threads")}
    return table(["", "time", "to the products", "peak memory"], rows) + note + where(made | {"setting": setting})


def lines_table(found: dict[str, Any]) -> str:
    """What was aimed at, and what came out."""
    rows = []
    for title, limit, values in lines(found):
        known = [value for value in values if value is not None]
        met = "not measured yet" if not known else "yes" if len(known) == len(values) and max(known) <= limit else "no"
        rows.append([title, ", ".join(ratio(value) for value in known) or "—", f"{limit}", met])
    return table(["", "measured", "at most", "reached"], rows)


def lines(found: dict[str, Any]) -> list[tuple[str, float, list[float | None]]]:
    """(title, limit, the ratios that it limits)."""

    def value(*path: str) -> float | None:
        at: Any = found
        for key in path:
            at = at.get(key) if isinstance(at, dict) else None
        return None if at is None else float(at)

    work = [value("work", kind, "of", "ours", "median") for kind in ("as_configured", "without_dropout")]
    cache = [value("cache", "to_ours_alone", "of", "cached", "median")]
    accuracy = [value("accuracy", "ratio", "ours", peer, "median") for peer in ("trainer", "textbrewer")]
    made = [
        ("A step of the same work, to a hand-written loop (with dropout, without)", LIMITS["work"], work),
        ("A step from the cache, to training the student alone", LIMITS["cache"], cache),
        ("Defaults to the same accuracy, to a `Trainer` subclass and to TextBrewer", LIMITS["accuracy"], accuracy),
    ]
    for title, part, what in (("time", "seconds", "time"), ("memory", "peak", "memory")):
        ours = [value("language", part, "of", "ours", "median")]
        made.append((f"A step of a language model, to TRL's GKDTrainer: {title}", LIMITS[what], ours))
    fused = [one for one in found.get("fused", {}).get("forms", ()) if one["form"].startswith("fused ")]
    made.append(("The fused loss, to its matrix products: the slowest form", FUSED_TIME, most(fused, "ratio", 1)))
    made.append(("The fused loss: peak memory in MB, the largest form", FUSED_MEGABYTES, most(fused, "bytes", 1e6)))
    sizes = found.get("scaling", {}).get("rows", [])
    flat = [grown(sizes, lambda one, part=part: one[part]) for part in ("peak_before", "peak")]
    # In steps of the same process, since a machine that others use too is not as fast in one minute as in another.
    row = grown(sizes, lambda one: (one["encode"] + one["cache"]) / one["rows"] / one["step"])
    made.append(("A hundred times the rows: time of a row, encoded and cached, in training steps", LINEAR, [row]))
    made.append(("A hundred times the rows: peak memory before the training; while training", FLAT, flat))
    return made


def most(forms: Sequence[dict[str, Any]], what: str, unit: float) -> list[float | None]:
    """The most that any of some forms takes."""
    known = [one[what] / unit for one in forms if one[what] is not None]
    return [max(known) if known else None]


def grown(sizes: Sequence[dict[str, Any]], what: Callable[[dict[str, Any]], float]) -> float | None:
    """The most that a quantity has grown by, from the fewest rows to any others."""
    return max(what(one) for one in sizes[1:]) / what(sizes[0]) if len(sizes) > 1 else None


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "lines": ("", lines_table),
    "work": ("work", work_table),
    "work_bfloat16": ("work_bfloat16", lambda found: work_table(found, "work_bfloat16")),
    "cache": ("cache", cache_table),
    "accuracy": ("accuracy", accuracy_table),
    "language": ("language", language_table),
    "fused": ("fused", fused_table),
    "scaling": ("scaling", scaling_table),
}


def numbers(results: Path) -> dict[str, Any]:
    """All sections that have been measured."""
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    for name in ("scaling", "fused"):
        other = results.with_name(f"{name}.json")
        if other.exists():
            found[name] = json.loads(other.read_text(encoding="utf-8"))
    return found


def filled(page: str, found: dict[str, Any]) -> str:
    """A page with its tables."""

    def written(block: re.Match[str]) -> str:
        section, make = TABLES[block[2]]
        there = not section or section in found
        words = make(found) if there else NOT_YET
        if block[2] == "work_bfloat16" and not there and "bfloat16" in found:
            words = f"Not measured: {found['bfloat16']}.\n"
        return f"{block[1]}{words}{block[3]}"

    return BLOCK.sub(written, page)


def write_tables(results: Path) -> None:
    """Write the tables of both pages."""
    found = numbers(results)
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        path.write_text(filled(before, found), encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")
