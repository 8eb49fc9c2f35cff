"""Launchers start the command line several times; most commands are none that several processes can do together."""

import os
from collections.abc import Sequence

import typer

from potstill.checks import problem
from potstill.errors import RankError


def require_together(context: typer.Context, together: Sequence[str]) -> None:
    """Raise `RankError` where a launcher started several processes for a command that isn't one of `together`."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or context.invoked_subcommand in together:
        return
    group = context.command_path.partition(" ")[2]
    raise RankError(
        problem(
            f"`potstill {f'{group} {context.invoked_subcommand}'.strip()}` is done by one process",
            given=f"{processes}, started by a launcher",
            do=f"Start it without the launcher; with several processes go: {', '.join(together)}",
        ),
        said=os.environ.get("RANK", "0") != "0",
    )
