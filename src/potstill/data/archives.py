"""Unpacking of zip and tar archives into a folder.

An archive is never trusted with a path: only regular files are written, only below the target, and a name that points
elsewhere stops the whole unpacking before the next file is written.
"""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from potstill.checks import problem
from potstill.errors import SampleError

_LEFT_OUT = ("desktop.ini", ".gitattributes")  # left behind by whoever packed the archive; no model needs them


def safe_path(target: Path, name: str) -> Path:
    """Where a member goes below `target`; `SampleError` if its name points out of it."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name or not inside.parts:
        raise SampleError(
            problem(
                "An archive holds a file whose name points out of its folder",
                given=repr(name),
                follows="Nothing of it was kept",
            )
        )
    return target.joinpath(*inside.parts)


def unzip(archive: Path, folder: str, target: Path) -> None:
    """Write the files that lie in `folder` of a zip archive (a wheel is one) to `target`, subfolders kept."""
    prefix = folder.rstrip("/") + "/"
    found = False
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            name = member.filename.removeprefix(prefix)
            goal = safe_path(target, name)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise SampleError(problem(f"The archive {archive.name} holds a link", given=repr(name)))
            if goal.name in _LEFT_OUT:
                continue
            with opened.open(member) as source:
                _write(source, goal)
            found = True
    if not found:
        raise SampleError(problem(f"The archive {archive.name} holds no folder '{folder}'"))


def untar(archive: Path, wanted: Callable[[str], bool], target: Path) -> list[Path]:
    """Write the regular files of a tar.gz whose name is `wanted` into `target`, without their folders."""
    written = []
    with tarfile.open(archive, mode="r:gz") as opened:
        for member in opened:
            if not member.isfile() or not wanted(member.name):
                continue
            safe_path(target, member.name)
            goal = safe_path(target, PurePosixPath(member.name).name)
            source = opened.extractfile(member)
            if source is not None:
                with source:
                    _write(source, goal)
                written.append(goal)
    return written


def join_parts(archives: Sequence[Path], pattern: str, goal: Path) -> None:
    """Write one file from the parts that several zip archives hold, each the one member that matches `pattern`.

    The parts follow each other in the order of the archives.
    """
    with goal.open("wb") as out:
        for archive in archives:
            with zipfile.ZipFile(archive) as opened:
                members = [one for one in opened.infolist() if PurePosixPath(one.filename).match(pattern)]
                if len(members) != 1:
                    raise SampleError(
                        problem(f"The archive {archive.name} should hold one '{pattern}'", given=f"{len(members)}")
                    )
                with opened.open(members[0]) as source:
                    shutil.copyfileobj(source, out, 1 << 20)


def _write(source: IO[bytes], goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    with goal.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
