"""What was measured goes into a file with the machine and the versions that it was measured with."""

import json
from pathlib import Path
from typing import Any

from potstill.shipping import hardware, versions


def save(path: Path, measured: dict[str, Any]) -> None:
    """Write a benchmark's numbers as JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = measured | {"hardware": hardware(), "versions": versions()}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
