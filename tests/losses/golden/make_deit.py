"""Makes deit.json: what DeiT's published loss says of fixed logits of both classifiers and of a teacher.

    python tests/losses/golden/make_deit.py --source FOLDER

FOLDER is a git checkout of facebookresearch/deit. Its `losses.py` is run as it is; none of it is in this repository.
"""

import argparse
import json
import runpy
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn

SHAPE = (6, 10)
CASES = [("hard", 0.5, 1.0), ("soft", 0.1, 3.0), ("soft", 0.5, 1.0)]


def computed(loss: Any, commit: str, seed: int, kind: str, alpha: float, tau: float) -> dict[str, Any]:
    """One entry; draws in the order class, distillation, teacher, labels."""
    drawn = torch.Generator().manual_seed(seed)
    ours, beside, theirs = (2 * torch.randn(SHAPE, generator=drawn, dtype=torch.float64) for _ in range(3))
    labels = torch.randint(0, SHAPE[1], SHAPE[:1], generator=drawn)
    made = loss(nn.CrossEntropyLoss(), lambda _inputs: theirs, kind, alpha, tau)
    return {
        "source": f"facebookresearch/deit losses.py @ {commit}",
        "type": kind,
        "alpha": alpha,
        "tau": tau,
        "seed": seed,
        "shape": list(SHAPE),
        "first": ours[0, 0].item(),
        "published": float(made(None, (ours, beside), labels)),
        "note": "The code divides the soft part by rows times classes; ours is a mean over rows."
        if kind == "soft"
        else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a checkout of facebookresearch/deit")
    source = parser.parse_args().source
    told = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    loss = runpy.run_path(str(source / "losses.py"))["DistillationLoss"]
    entries = [computed(loss, told.stdout.strip(), seed, *case) for seed, case in enumerate(CASES)]
    target = Path(__file__).with_name("deit.json")
    target.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"{len(entries)} values in {target}")


if __name__ == "__main__":
    main()
