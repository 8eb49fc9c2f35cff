"""potstill beside its peers: the same work, epochs from the cache, defaults to the same accuracy, language models.

    python benchmarks/peers.py                          # everything; `make peers` sets up the peers' environments
    python benchmarks/peers.py --only work,cache        # some sections; the others keep the numbers that they have
    python benchmarks/peers.py --table                  # nothing is measured: the tables of the docs and the README

Each competitor is a process with an interpreter of its own (benchmarks/peers/contract.py says what they agree on) that
stays alive. Segments run in turns, in an order that rotates, and what is reported is the median over repeats of the
ratio to the same repeat's segment of whoever a section compares with. Before anything is timed, all take a few steps
without dropout: their losses and how far their weights moved must agree, or the run ends with status 1.

Writes benchmarks/results/peers.json, a section at a time.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from competitor import TOOLS, Competitor, installed, versions_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
SECTIONS = ("work", "cache", "accuracy", "language")
CLASSIFIERS = ["hand", "ours", "trainer", "textbrewer", "modelopt"]
LANGUAGE = ["hand", "ours", "trainer", "gkd", "modelopt", "liger"]
CHECK_STEPS = 5
LOSS_TOLERANCE, MOVED_TOLERANCE = 2e-3, 2e-2  # relative; of sums in another order, after AdamW has divided by them
NO_CAUSAL_SHIFT = {"trainer"}  # its loss, as the guide has it, is of rows; over the tokens of a text it is another one


@contextmanager
def running(names: Sequence[str], settings: Path, threads: int) -> Iterator[dict[str, Competitor]]:
    """These competitors, started one after the other."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Competitor(name, settings, settings.with_suffix(f".{name}.log"), threads))
            for name in names
        }


def agreement(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether all did what the hand-written loop did: losses of the first steps, and how far the weights moved."""
    hand, checked = found["hand"], {}
    for name, one in found.items():
        losses = max(abs(a / b - 1) for a, b in zip(one["losses"], hand["losses"], strict=True))
        moved = abs(one["moved"] / hand["moved"] - 1)
        checked[name] = {
            "losses": one["losses"],
            "loss_difference": losses,
            "moved_difference": moved,
            "agrees": losses < LOSS_TOLERANCE and moved < MOVED_TOLERANCE,
        }
    return checked


def check(competitors: dict[str, Competitor], command: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(how each agrees, why some are left out); ends the run where one does something else."""
    asked = command | {"do": "segment", "seed": 0, "steps": CHECK_STEPS, "dropout": False, "losses": True}
    found = {name: one.ask(**asked) for name, one in competitors.items()}
    left = {name: one["left_out"] for name, one in found.items() if "left_out" in one}
    checked = agreement({name: one for name, one in found.items() if name not in left})
    for name, one in checked.items():
        moved = f"weights' way by {one['moved_difference']:.1e}"
        print(f"  {TOOLS[name].title}: losses differ by {one['loss_difference']:.1e}, the {moved}", flush=True)
    if not all(one["agrees"] for one in checked.values()):
        print(json.dumps(checked, indent=1))
        print("Not all do the same work, so nothing is timed.", file=sys.stderr)
        raise SystemExit(1)
    return checked, left


def in_turns(
    variants: dict[str, tuple[Competitor, dict[str, Any]]], repeats: int, steps: int
) -> dict[str, list[dict[str, Any]]]:
    """Segments of all variants, round by round, each round beginning with another one."""
    names = list(variants)
    found: dict[str, list[dict[str, Any]]] = {name: [{}] * repeats for name in names}
    for repeat in range(repeats):
        start = repeat % len(names)
        for name in names[start:] + names[:start]:
            competitor, command = variants[name]
            found[name][repeat] = competitor.ask(do="segment", seed=repeat, steps=steps, **command)
        shown = ", ".join(f"{name} {found[name][repeat]['seconds'] * 1e3:.0f} ms" for name in names)
        print(f"  round {repeat}: {shown}", flush=True)
    return found


def ratios(found: dict[str, list[dict[str, Any]]], base: str, what: str = "seconds") -> dict[str, Any]:
    """The paired ratios of each to one of them, and the numbers that they are made of."""
    made = {}
    for name, rounds in found.items():
        pairs = [one[what] / other[what] for one, other in zip(rounds, found[base], strict=True)]
        values = [one[what] for one in rounds]
        made[name] = {"median": statistics.median(pairs), "all": pairs, what: values}
    return {"to": base, "of": made}


def same_work(given: argparse.Namespace, settings: Path, threads: int, bfloat16: bool = False) -> dict[str, Any]:
    """Line 1: what each adds to the work itself, with dropout as the models have it, and without."""
    names, left = installed(CLASSIFIERS)
    command = {"teacher": "live", "bfloat16": bfloat16}
    with running(names, settings, threads) as competitors:
        made: dict[str, Any] = {"versions": versions_of(competitors)}
        if bfloat16:
            asked = command | {"do": "segment", "seed": 0, "steps": 1, "dropout": False}
            tried = {name: one.ask(**asked) for name, one in competitors.items()}
            left |= {name: one["left_out"] for name, one in tried.items() if "left_out" in one}
        else:
            made["check"], reasons = check(competitors, command)
            left |= reasons
        for title, dropout in (("as_configured", True), ("without_dropout", False)):
            rest = {name: one for name, one in competitors.items() if name not in left}
            variants = {name: (one, command | {"dropout": dropout}) for name, one in rest.items()}
            made[title] = ratios(in_turns(variants, given.repeats, given.steps), "hand")
    return made | {"left_out": left}


def from_the_cache(given: argparse.Namespace, settings: Path, threads: int) -> dict[str, Any]:
    """Line 2: a step from the cache beside a step of the student alone, by us and by hand."""
    with running(["hand", "ours"], settings, threads) as competitors:
        kinds = {"cached": ("ours", "cached"), "live": ("ours", "live"), "alone": ("ours", "none")}
        kinds["alone_by_hand"] = ("hand", "none")
        tried = competitors["ours"].ask(do="segment", seed=0, steps=1, teacher="cached", dropout=True)
        if "left_out" in tried:
            return {"left_out": {"ours": tried["left_out"]}}
        variants = {
            name: (competitors[tool], {"teacher": teacher, "dropout": True}) for name, (tool, teacher) in kinds.items()
        }
        found = in_turns(variants, given.repeats, given.steps)
        return {
            "versions": versions_of(competitors),
            "to_ours_alone": ratios(found, "alone"),
            "to_alone_by_hand": ratios(found, "alone_by_hand"),
        }


def to_accuracy(given: argparse.Namespace, settings: Path, threads: int) -> dict[str, Any]:
    """Line 3: how long our defaults take to the accuracy that a peer's defaults end with."""
    names, left = installed(["ours", "trainer", "textbrewer"])
    with running(names, settings, threads) as competitors:
        tried = competitors["ours"].ask(do="segment", seed=0, steps=1, teacher="cached", dropout=True)
        teacher = "live" if "left_out" in tried else "cached"
        asked = {"do": "curve", "epochs": 3, "points": given.points, "teacher": teacher, "steps": given.curve_steps}
        kinds = {name: (name, asked) for name in names} | {"ours_recipe": ("ours", asked | {"recipe": True})}
        made = {"versions": versions_of(competitors), "our_teacher": teacher, "left_out": left}
        runs = earlier_runs(given, list(kinds))
        for run in range(len(runs), given.runs):
            curves = {
                name: curve_of(
                    competitors[tool], given.folder / "curves" / f"{run}-{name}.json", {**command, "seed": run}
                )
                for name, (tool, command) in kinds.items()
            }
            runs.append(curves)
            shown = [f"{name} {one['final']:.3f} after {one['seconds']:.0f} s" for name, one in runs[-1].items()]
            print(f"  run {run}: {', '.join(shown)}", flush=True)
            done = argparse.Namespace(**vars(given) | {"runs": len(runs)})
            keep_section(done, "accuracy", made | {"runs": runs, "ratio": time_ratios(runs, names)})
    return made | {"runs": runs, "ratio": time_ratios(runs, names)}


def curve_of(competitor: Competitor, file: Path, command: dict[str, Any]) -> dict[str, Any]:
    """A tool's curve of one run, kept as soon as it is there; one that was kept for the same command is taken."""
    asked = command | {"versions": competitor.ready["versions"]}
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if kept.get("asked") != asked:
        kept = {"asked": asked, "curve": competitor.ask(**command)}
        keep(file, kept)
    curve: dict[str, Any] = kept["curve"]
    return curve


def earlier_runs(given: argparse.Namespace, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of the same setting that the file holds: each takes an hour, so more are added to them."""
    import prepare

    found = json.loads(given.out.read_text(encoding="utf-8")).get("accuracy") if given.out.exists() else None
    if found is None or found["setting"] | {"runs": given.runs} != prepare.described("accuracy", given):
        return []
    return [run for run in found["runs"] if set(run) == set(kinds)][: given.runs]


def time_ratios(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each of ours to each peer, over the runs."""
    peers = [name for name in names if name != "ours"]
    ours = [name for name in runs[0] if name.startswith("ours")]
    return {kind: {peer: time_ratio(runs, kind, peer) for peer in peers} for kind in ours}


def reached(curve: dict[str, Any], target: float) -> float | None:
    """When a curve first reaches an accuracy; None where it never does."""
    return next((point["seconds"] for point in curve["points"] if point["accuracy"] >= target), None)


def time_ratio(runs: Sequence[dict[str, Any]], ours: str, peer: str) -> dict[str, Any]:
    """In each run: our time to the accuracy that a peer ends with, over the peer's time to the same.

    A run in which we never reach it counts as infinite, and so the median over runs may be None.
    """
    targets = [run[peer]["final"] for run in runs]
    pairs = [(reached(run[ours], at), reached(run[peer], at)) for run, at in zip(runs, targets, strict=True)]
    found = [float("inf") if mine is None else mine / float(theirs or 0) for mine, theirs in pairs]
    middle = statistics.median(found)
    return {
        "median": None if middle == float("inf") else middle,
        "all": [None if one == float("inf") else one for one in found],
        "targets": targets,
        "seconds": [{"ours": mine, "peer": theirs} for mine, theirs in pairs],
    }


def language_step(given: argparse.Namespace, settings: Path, threads: int) -> dict[str, Any]:
    """Line 4: a step of a language model, its time and its peak of memory."""
    names, left = installed([name for name in LANGUAGE if name not in NO_CAUSAL_SHIFT])
    command = {"teacher": "live"}
    with running(names, settings, threads) as competitors:
        checked, reasons = check(competitors, command)
        left |= reasons
        rest = {name: one for name, one in competitors.items() if name not in left}
        variants = {name: (one, command | {"dropout": True}) for name, one in rest.items()}
        found = in_turns(variants, given.language_repeats, given.language_steps)
        base = "gkd" if "gkd" in rest else "hand"
        made = {what: ratios(found, base, what) for what in ("seconds", "peak", "rise") if found[base][0][what]}
        return made | {"check": checked, "versions": versions_of(competitors), "left_out": left}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--repeats", type=int, default=7, help="segments of each")
    parser.add_argument("--steps", type=int, default=33, help="steps of a segment, the first 3 not timed")
    parser.add_argument("--language-repeats", type=int, default=5, help="the same, for language models")
    parser.add_argument("--language-steps", type=int, default=6, help="the same, for language models")
    parser.add_argument("--runs", type=int, default=3, help="runs to the same accuracy")
    parser.add_argument("--points", type=int, default=10, help="points of a curve in each epoch")
    parser.add_argument("--curve-steps", type=int, help="stop the curves after so many steps: a trial")
    parser.add_argument("--teacher-steps", type=int, help="train the teacher for so many steps: a trial")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench", help="models and rows are kept there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the tables from the numbers, and measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measure the sections that are asked for, or write the tables."""
    given = parsed()
    if given.table:
        from tables import write_tables

        write_tables(given.out)
        return
    asked = given.only.split(",")
    if unknown := set(asked) - set(SECTIONS):
        raise SystemExit(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    measure(given, asked)


def measure(given: argparse.Namespace, asked: Sequence[str]) -> None:
    """Run the sections, and keep each as soon as it is there."""
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # before PyTorch is imported
    import prepare

    from potstill.shipping import hardware
    from potstill.training import detect_precision

    given.machine = hardware()
    folder: Path = given.folder.resolve()
    settings = folder / "classification.json"
    if set(asked) - {"language"}:
        made = prepare.classification(folder / "classification", given.threads, steps=given.teacher_steps)
        made.save(settings)
    precision = detect_precision()
    sections: dict[str, Any] = {
        "work": lambda: same_work(given, settings, given.threads),
        "cache": lambda: from_the_cache(given, settings, given.threads),
        "accuracy": lambda: to_accuracy(given, settings, given.threads),
        "language": lambda: language_step(given, folder / "language.json", given.threads),
    }
    if "language" in asked:
        prepare.language(folder / "language", given.threads).save(folder / "language.json")
    if "work" in asked and precision.bfloat16:
        asked = [*asked, "work_bfloat16"]
        sections["work_bfloat16"] = lambda: same_work(given, settings, given.threads, bfloat16=True)
    for name in asked:
        print(name, flush=True)
        keep_section(given, name, sections[name]())
        keep(given.out, {"bfloat16": precision.why})
        print(f"  written to {given.out}", flush=True)


def keep_section(given: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    """Put a section into the file of results, with what it was measured on."""
    import prepare

    keep(given.out, {name: found | {"setting": prepare.described(name, given), "hardware": given.machine}})


def keep(path: Path, found: dict[str, Any]) -> None:
    """Put sections into the file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
