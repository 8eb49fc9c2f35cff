"""The run folder: what stages have left, and what they left it from.

Each stage writes a marker when it is done, with a digest of everything that it was made from. A run that finds the
marker with the same digest takes the stage as done; one that finds another does the stage again, and with it all that
follow, since a stage's digest is part of the next one's. Files are written beside and then renamed, so that a stopped
run leaves no half of one.

Runs that stand beside each other share what is equal: a stage that a sibling has done from the same inputs is taken
from there. Its files are hard links where the disk has them, which is safe since nothing here is ever changed in place.

Several processes that do one run together share the folder: rank 0 holds the lock, decides what is done, and writes the
markers. A stage is its work too, unless all do it together.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from potstill import ranks
from potstill.checks import problem
from potstill.errors import RunFolderError
from potstill.recipe import Recipe

MARKERS = ".stages"
WORK = "work"


def digest(value: Any) -> str:
    """A short, stable digest of plain data."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, beside and then renamed. NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def replace_folder(made: Path, place: Path) -> None:
    """Put a finished folder where an older one may stand."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    made.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, place: Path) -> None:
    """A file or folder once more, put in place at once: hard links where the file system has them, else copies."""
    beside = place.with_name(f".{place.name}.new")
    beside.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(source, beside, copy_function=_link)
        replace_folder(beside, place)
    else:
        beside.unlink(missing_ok=True)
        _link(source, beside)
        beside.replace(place)


def _link(source: str | Path, place: str | Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, place)


def copy_folder(source: Path, place: Path) -> None:
    """A copy of a folder, put in place at once."""
    beside = place.with_name(f".{place.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    replace_folder(beside, place)


@dataclass(frozen=True)
class Stage:
    """A stage that is done: what it gave, and the digest of what it was made from."""

    name: str
    value: dict[str, Any]
    digest: str
    seconds: float
    reused: bool


class RunFolder:
    """A folder of one recipe's run.

    Args:
        path: the folder; made where it isn't there.
        recipe: what is run.
        update: take a folder of a recipe that differs, and redo the stages that the difference concerns.
        siblings: folders of other runs, from which stages are taken that were done from the same inputs.
    """

    def __init__(self, path: Path, recipe: Recipe, *, update: bool = False, siblings: Sequence[Path] = ()) -> None:
        self.path = path
        self.recipe = recipe
        self.update = update
        self.siblings = tuple(siblings)
        self.stages: list[Stage] = []

    @contextmanager
    def opened(self) -> Iterator["RunFolder"]:
        """Check, lock and prepare the folder; a full disk inside becomes a `RunFolderError`."""
        with ExitStack() as stack:
            ranks.on_main(lambda: self._hold(stack))
            if not ranks.same(self._opened_at()):
                raise RunFolderError(
                    problem(
                        f"The run folder {self.path} is not the same folder for all processes of this run",
                        follows="Some would find neither checkpoints nor models",
                        do="Give a folder that all machines share with --out",
                    )
                )
            stack.enter_context(_full_disk_explained(self.path))
            yield self

    def _opened_at(self) -> int | None:
        """When rank 0 opened the folder, as this machine sees it: its copy of the recipe is written each time."""
        recipe = self.path / "recipe.yaml"
        return recipe.stat().st_mtime_ns if recipe.exists() else None

    def _hold(self, stack: ExitStack) -> None:
        """Make, lock and claim the folder, for as long as the stack is open."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(problem(f"The run folder {self.path} can't be made", given=error)) from None
        stack.enter_context(_locked(self.path))
        with _full_disk_explained(self.path):
            self._claim()

    def _claim(self) -> None:
        known, markers = self.path / "recipe.yaml", self.path / MARKERS
        if known.exists() and markers.exists() and not self.update:
            differing = list(differences(_resolved(known), self.recipe.as_dict()))
            if differing:
                raise RunFolderError(
                    problem(
                        f"The folder {self.path} holds the run of another recipe",
                        given="; ".join(differing[:8]),
                        follows="Going on would replace what these keys concern",
                        do="Give another folder with --out, or --update to redo the stages concerned and keep the rest",
                    )
                )
        elif not markers.exists():  # what makes a folder a run's; a recipe may stand in any folder
            strangers = sorted(p.name for p in self.path.iterdir() if p.name != LOCK)
            if strangers:
                raise RunFolderError(
                    problem(
                        f"The folder {self.path} isn't empty, and holds no run",
                        given=", ".join(strangers[:5]),
                        do="Give an empty or new folder with --out",
                    )
                )
        markers.mkdir(exist_ok=True)
        write_text(known, self.recipe.as_yaml())

    def done(self, name: str, made_from: Any, leaves: Sequence[str] = ()) -> Stage | None:
        """The stage, if it was done from the same inputs and what it left is still there."""
        found = self._found(self.path, name, made_from, leaves)
        if found is None:
            return None
        return Stage(name, found["value"], found["digest"], found["seconds"], reused=True)

    def _found(self, home: Path, name: str, made_from: Any, leaves: Sequence[str]) -> dict[str, Any] | None:
        """What the marker of a stage says in this folder or in a sibling, if it is of the same inputs and all there."""
        marker = home / MARKERS / self._marker(name).name
        if not marker.exists():
            return None
        found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        if found["digest"] != digest(made_from) or not all((home / place).exists() for place in leaves):
            return None
        return found

    def _taken(self, name: str, made_from: Any, leaves: Sequence[str]) -> Stage | None:
        """The stage as a sibling has done it, its files linked or copied into this folder; None where none has."""
        for home in self.siblings:
            found = self._found(home, name, made_from, leaves)
            if found is not None:
                self._marker(name).unlink(missing_ok=True)
                for place in leaves:
                    link_or_copy(home / place, self.path / place)
                write_text(self._marker(name), json.dumps(found, indent=1, default=str))
                shutil.rmtree(self.path / WORK / name.replace("/", "-"), ignore_errors=True)
                return Stage(name, found["value"], found["digest"], found["seconds"], reused=True)
        return None

    def stage(
        self,
        name: str,
        made_from: Any,
        work: Callable[[Path], dict[str, Any]],
        leaves: Sequence[str] = (),
        *,
        together: bool = False,
    ) -> Stage:
        """Do a stage, unless it was done from the same inputs, here or in a sibling.

        Args:
            name: of the stage, such as ``seeds/0/student``.
            made_from: plain data; everything that decides what the stage gives.
            work: does it, in a working folder of its own that survives an interruption; returns plain data.
            leaves: files and folders that it leaves in the run folder; where one was removed, the stage is done again.
            together: all ranks do the work, and what it returns on rank 0 counts; else rank 0 does it alone.
        """
        stage = ranks.on_main(lambda: self.done(name, made_from, leaves) or self._taken(name, made_from, leaves))
        if stage is None:
            folder = ranks.on_main(lambda: self._begun(name, digest(made_from)))
            started = time.monotonic()
            value = work(folder) if together else ranks.on_main(lambda: work(folder))
            seconds = time.monotonic() - started
            stage = ranks.on_main(lambda: self._ended(name, made_from, value, seconds))
        self.stages.append(stage)
        return stage

    def _begun(self, name: str, made_from: str) -> Path:
        """The working folder of a stage that is to be done; its marker is gone from here on."""
        self._marker(name).unlink(missing_ok=True)
        return self._work_folder(name, made_from)

    def _ended(self, name: str, made_from: Any, value: dict[str, Any], seconds: float) -> Stage:
        """The stage with its marker written and its working folder removed."""
        stage = Stage(name, value, digest(made_from), seconds, reused=False)
        entry = {"digest": stage.digest, "seconds": seconds, "value": value, "made_from": made_from}
        write_text(self._marker(name), json.dumps(entry, indent=1, default=str))
        shutil.rmtree(self.path / WORK / name.replace("/", "-"), ignore_errors=True)
        return stage

    def _marker(self, name: str) -> Path:
        return self.path / MARKERS / f"{name.replace('/', '-')}.json"

    def _work_folder(self, name: str, made_from: str) -> Path:
        """A folder for the stage's checkpoints; those of other inputs are removed."""
        home = self.path / WORK / name.replace("/", "-")
        for other in home.glob("*") if home.exists() else ():
            if other.name != made_from:
                shutil.rmtree(other, ignore_errors=True)
        folder = home / made_from
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _resolved(file: Path) -> Any:
    """A recipe that a run left, with the keys that recipes got since then at their usual values."""
    left = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        return Recipe.model_validate(left).as_dict()
    except ValidationError:
        return left


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """``key: old -> new`` for everything that differs between two recipes, names apart."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*new, *(n for n in old if n not in new)]:
            if key or name != "name":
                yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{key}.{number}")
    elif old != new:
        yield f"{key}: {old} -> {new}"


LOCK = ".lock"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time in one folder, where the system has file locks; a killed run leaves no lock behind."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        file = (folder / LOCK).open("w")
    except OSError as error:
        do = "Make it writable, free some space, or give another folder with --out"
        raise RunFolderError(problem(f"Nothing can be written to {folder}", given=error, do=do)) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFolderError(
                problem(f"Another run is at work in {folder}", do="Wait for it, or give another folder with --out")
            ) from None
        yield


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise RunFolderError(
                problem(
                    f"The disk of {folder} is full",
                    follows="The last whole checkpoint is kept",
                    do="Free some space and run the same command again: it goes on from there",
                )
            ) from error
        raise
