"""`potstill plan`: what a run would do, without training."""

from typing import TYPE_CHECKING

from potstill.cli.run import Overrides, Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.plan import Plan


def plan(recipe: Recipe, overrides: Overrides = None) -> None:
    """A dry run: shapes, layer map, projections, what is tapped, memory and time. Nothing is trained."""
    from rich.console import Console

    from potstill.plan import plan as plan_recipe
    from potstill.progress import Terminal

    console = Console()
    print_plan(plan_recipe(recipe, overrides=overrides or (), progress=Terminal(console)), console)


def print_plan(found: "Plan", console: "Console") -> None:
    """Print a plan as tables."""
    from rich.table import Table

    from potstill.progress import duration

    for note in found.notes:
        console.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"- precision: {found.precision}", highlight=False, markup=False, soft_wrap=True)
    rows = ", ".join(f"{split} {count:,}" for split, count in found.rows.items())
    classes = f"; classes: {', '.join(found.classes)}" if found.classes else ""
    console.print(f"- rows: {rows}{classes}\n", highlight=False, markup=False, soft_wrap=True)

    models = Table("model", "family", "layers", "width", "heads", "parameters", "tapped", box=None, pad_edge=False)
    for name in ("teacher", "student"):
        shape = getattr(found, name)
        sizes = (str(shape.layers), str(shape.width), str(shape.heads), f"{found.parameters[name] / 1e6:.1f} M")
        models.add_row(name, shape.family, *sizes, found.taps[name])
    console.print(models)

    for stage in found.stages:
        time = duration(stage.seconds)
        taken = f"{stage.steps:,} steps at a learning rate of {stage.learning_rate:.2g}"
        console.print(f"\n{stage.title}: {taken}, about {time}", style="bold", highlight=False)
        terms = Table(
            "term", "loss", "weight", "student with teacher", "layers", "projection", box=None, pad_edge=False
        )
        for term in stage.terms:
            pairs = ", ".join(f"{a}-{b}" for a, b in term.pairs)
            terms.add_row(term.name, term.loss, term.weight, term.shape, pairs, term.projection or "")
        console.print(terms, markup=False)

    memory = sum(found.memory.values())
    console.print(f"\nmemory: about {memory / 1e9:.1f} GB", style="bold", highlight=False)
    for name, size in found.memory.items():
        console.print(f"  {size / 1e9:.2f} GB  {name}", highlight=False)
    console.print(f"disk: about {found.disk / 1e9:.1f} GB", style="bold", highlight=False)
    console.print(
        f"training: about {duration(found.seconds)} on this machine; evaluation and export come on top",
        style="bold",
        highlight=False,
    )
