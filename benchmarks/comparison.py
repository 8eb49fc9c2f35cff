"""The tables of docs/comparison.md and docs/results.md, out of the results of finished comparisons.

    potstill compare kd --vary distill=own,pkd_skip,tinybert,minilmv2,two_step --seeds 3 --out runs/reviews-half …
    python benchmarks/comparison.py --take reviews-half=runs/reviews-half    # keeps its numbers, and writes the tables
    python benchmarks/comparison.py                                          # writes the tables from the kept numbers

Numbers are kept in benchmarks/results/comparison-<name>.json: what `potstill compare` wrote, less its prose, its paths,
and the times of training, which were taken beside other work and mean nothing. In a page, what stands between
`<!-- tables: NAME -->` and `<!-- end of tables -->` is written anew.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from potstill.report.comparison import attention_table, behaviour_table, cost_table, quality_table
from potstill.report.markdown import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "docs" / name for name in ("comparison.md", "results.md")]
LEFT_OUT = ("command", "recipe", "seconds")
BLOCK = re.compile(r"(<!-- tables: ([\w-]+) -->\n).*?(<!-- end of tables -->)", re.DOTALL)


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """The results of a comparison without what belongs to the machine's folders, or to its other work."""
    made = {**found, "run": {key: value for key, value in found["run"].items() if key not in LEFT_OUT}}
    made["data"] = {key: value for key, value in found["data"].items() if key != "name"}
    for model in (made["teacher"], *made["cells"]):
        if model["training"]:
            model["training"] = {"steps": model["training"]["steps"]}
    return {key: value for key, value in made.items() if key != "how"}


def tables(found: dict[str, Any]) -> str:
    """The tables of one comparison, in Markdown."""
    seeds, words = len(found["run"]["seeds"]), found["verdict"]
    lines = [f"{seeds} seed{'s' * (seeds > 1)}, {found['cells'][0]['training']['steps']:.0f} optimiser steps each.", ""]
    lines += [f"**{words['headline']}** {' '.join(words['sentences'])}", ""]
    costs = cost_table(found) if any(cell["cost"] for cell in found["cells"]) else None
    for made in (quality_table(found), costs, behaviour_table(found), attention_table(found)):
        if made is not None:
            lines += [*markdown_table(made), ""]
    return "\n".join(lines)


def main() -> None:
    """Keep the numbers of the comparisons named, and write the tables of the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", action="append", default=[], metavar="NAME=FOLDER")
    for name, _, folder in (taken.partition("=") for taken in parser.parse_args().take):
        found = json.loads((Path(folder) / "comparison.json").read_text(encoding="utf-8"))
        text = json.dumps(kept(found), indent=1, ensure_ascii=False)
        text = text.replace(f"{Path(folder).resolve().parent}/", "runs/")  # a model may be named by where it lies
        (RESULTS / f"comparison-{name}.json").write_text(text + "\n", encoding="utf-8")

    def written(block: re.Match[str]) -> str:
        file = RESULTS / f"comparison-{block[2]}.json"
        return f"{block[1]}{tables(json.loads(file.read_text(encoding='utf-8')))}{block[3]}"

    for page in PAGES:
        page.write_text(BLOCK.sub(written, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
