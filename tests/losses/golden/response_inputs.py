"""The inputs of the golden values of losses on logits and maps, drawn anew from the seed that stands beside each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Logits (or maps) in float64, and one label, one mask entry and one temperature a position."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    mask: Tensor
    temperatures: Tensor


def drawn(entry: Mapping[str, Any]) -> Inputs:
    """What an entry describes: `seed`, `student` and `teacher` (shapes), `scale` (the logits' standard deviation)."""
    generator = torch.Generator().manual_seed(entry["seed"])
    student, teacher = (
        entry["scale"] * torch.randn(entry[side], generator=generator, dtype=torch.float64)
        for side in ("student", "teacher")
    )
    rows = student.shape[:-1]
    labels = torch.randint(0, student.shape[-1], rows, generator=generator)
    mask = torch.rand(rows, generator=generator) < 0.7
    temperatures = 1 + 3 * torch.rand(rows, generator=generator, dtype=torch.float64)
    return Inputs(student, teacher, labels, mask, temperatures)
