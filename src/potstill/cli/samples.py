"""`potstill samples`: the models and data that packages carry."""

from rich.console import Console
from rich.table import Table

from potstill.data.samples import SAMPLES, cache_folder, is_here


def samples() -> None:
    """List the packaged models and data: size of the download, licence, and whether they are here already."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("download", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("what it is")
    for name, one in SAMPLES.items():
        needs = f"; needs {', '.join(one.requires)}" if one.requires else ""
        size = f"{one.size_bytes / 1e6:.1f} MB" if one.packages else "none"
        here = "yes" if is_here(name) else "no"
        table.add_row(name, one.kind, size, one.licence, here, f"{one.title}; {one.contents}{needs}")
    console = Console()
    console.print(table)
    console.print(f"\nKept in {cache_folder()} (POTSTILL_CACHE sets another folder).", highlight=False, soft_wrap=True)
