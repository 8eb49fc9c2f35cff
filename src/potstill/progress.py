"""What a run says while it works: bars on a terminal, one line a stage in a pipe, nothing where nobody asked."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Step = Callable[[int, int, float | None], None]


class Progress(Protocol):
    """Told what happens."""

    def say(self, text: str) -> None:
        """A line of information."""

    def stage(self, title: str) -> AbstractContextManager[Step]:
        """A context for a piece of work; gives a function to call with (step, of how many, loss or None)."""


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Step]:
        """Nothing."""
        yield lambda _step, _steps, _loss: None


class _Titled:
    """Tells of pieces of work behind a title, and says nothing else."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress = progress
        self.title = title

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Step]:
        """The piece of work behind the title."""
        with self.progress.stage(f"{self.title}: {title}") as step:
            yield step


def titled(progress: Progress, title: str) -> Progress:
    """The progress of one run among many: its pieces of work behind a title. What it says is left out, since all of
    them would say the same."""
    return _Titled(progress, title)


class Terminal:
    """Bars on a terminal; in a pipe a line when a piece of work that took longer than a second is done."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[Step]:
        """Show a bar while the work goes on, and a line with its time when it is done."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self._bars() as bars:
                task = bars.add_task(title, total=None, loss="")

                def step(done: int, total: int, loss: float | None) -> None:
                    bars.update(task, completed=done, total=total, loss="" if loss is None else f"loss {loss:.3f}")

                yield step
        else:
            yield lambda _step, _steps, _loss: None
        seconds = time.monotonic() - started
        if seconds >= 1:
            self.say(f"{title}: {duration(seconds)}")

    def _bars(self) -> Bars:
        return Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
