"""A competitor as the driver sees it: a process of its own that answers commands."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-peers"


@dataclass(frozen=True)
class Tool:
    """One way to train.

    Args:
        title: as the tables call it.
        script: that does it, beside this file.
        environment: whose interpreter runs it; None is the one that runs the driver.
    """

    title: str
    script: str
    environment: str | None = None

    @property
    def python(self) -> Path:
        """The interpreter."""
        if self.environment is None:
            return Path(sys.executable)
        return ENVIRONMENTS / self.environment / "bin" / "python"


TOOLS = {
    "hand": Tool("hand-written loop", "hand_loop.py"),
    "ours": Tool("potstill", "ours.py"),
    "trainer": Tool("`Trainer` subclass", "trainer_subclass.py"),
    "textbrewer": Tool("TextBrewer", "text_brewer.py", "textbrewer"),
    "modelopt": Tool("ModelOpt", "model_optimizer.py", "modelopt"),
    "gkd": Tool("TRL's GKDTrainer", "gkd.py", "trl"),
    "liger": Tool("Liger's loss in a loop", "liger_loss.py", "liger"),
}


class CompetitorError(Exception):
    """A competitor ended without an answer."""


class Competitor:
    """A running one.

    Args:
        name: in `TOOLS`.
        settings: the file of settings.
        log: where what it prints is kept.
        threads: of OpenMP.

    Raises:
        CompetitorError: it can't be started, or ends; the message has the end of its log.
    """

    def __init__(self, name: str, settings: Path, log: Path, threads: int) -> None:
        tool = TOOLS[name]
        self.name, self.log = name, log
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if tool.environment is None and "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [str(tool.python), "-W", "ignore", str(HERE / tool.script), str(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=log.parent,
                env=environment | quiet | {"OMP_NUM_THREADS": str(threads)},
            )
        self.ready = self._answer()

    def __enter__(self) -> "Competitor":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Give a command, and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            end = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise CompetitorError(f"{TOOLS[self.name].title} ended without an answer; its last words:\n{end}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it, by ending its input."""
        with suppress(BrokenPipeError):  # it has ended by itself
            self.process.communicate()


def installed(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the tools that have an interpreter, and why the others are left out."""
    missing = {name: "not installed: `make peers`" for name in names if not TOOLS[name].python.exists()}
    return [name for name in names if name not in missing], missing


def versions_of(running: Mapping[str, Competitor]) -> dict[str, dict[str, str]]:
    """The packages of each."""
    return {name: one.ready["versions"] for name, one in running.items()}
