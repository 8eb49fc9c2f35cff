"""What contrastive distillation (CRD) remembers of every row of the data; it trains beside the student.

Decisions:
- Everything that a resumed run needs is a buffer: both banks, the constants, and how many batches were drawn for. Which
  negatives a batch gets is a function of the seed and that number.
- Negatives are drawn with replacement from the other rows, as the published memory does. Where as many are asked for as
  there are other rows, or more, it is all of them, each once.
- Banks start as random directions, and the constants are set by the first batch of training.
- In evaluation nothing is remembered and nothing is counted.
- How many batches there were is read back from the device in each step: the numbers drawn depend on it.
- Several ranks remember what all of them see, each the same, and draw for the whole batch: row i of it is on rank
  i mod the number of ranks (`potstill.training.sampler.SharedBatches`). So they do what one process would.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill import ranks
from potstill.checks import problem
from potstill.errors import ArgumentError, ShapeError
from potstill.losses.contrastive import bank_logits, log_constants


class ContrastiveMemory(nn.Module):
    """Two embedding heads and the memory of what they gave for each row: makes the arguments of `potstill.losses.crd`.

    Args:
        student_width: width of the student's vectors.
        teacher_width: width of the teacher's vectors.
        rows: how many rows the data has; every row has its own number, from 0.
        width: width of the embeddings.
        negatives: how many other rows each row is told apart from; cut to ``rows - 1``.
        momentum: the share of the old embedding that stays when a row is seen again.
        temperature: the T of the loss; the constants depend on it.
        seed: for the banks at the start and for the negatives.

    Raises:
        ArgumentError: fewer than 2 rows, fewer than 1 negative, or a momentum outside 0 to 1.

    References:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, 2020, https://arxiv.org/abs/1910.10699
    """

    student_bank: Tensor
    teacher_bank: Tensor
    constants: Tensor
    batches: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        rows: int,
        *,
        width: int = 128,
        negatives: int = 16384,
        momentum: float = 0.5,
        temperature: float = 0.07,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rows < 2 or negatives < 1 or not 0 <= momentum <= 1:
            raise ArgumentError(
                problem(
                    "A contrastive memory needs 2 rows or more, 1 negative or more, and a momentum from 0 to 1",
                    given=f"rows {rows}, negatives {negatives}, momentum {momentum}",
                )
            )
        self.rows, self.negatives = rows, min(negatives, rows - 1)
        self.momentum, self.temperature, self.seed = momentum, temperature, seed
        self.student_head = nn.Linear(student_width, width)
        self.teacher_head = nn.Linear(teacher_width, width)
        generator = torch.Generator().manual_seed(seed)
        for name in ("student_bank", "teacher_bank"):
            start = torch.randn(rows, width, generator=generator)
            self.register_buffer(name, nn.functional.normalize(start, dim=-1))
        self.register_buffer("constants", torch.ones(2))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D_t"],
        row_numbers: Int[Tensor, " B"],
    ) -> dict[str, Tensor | float]:
        """The arguments of `crd` for a batch, by name. In training the batch is then remembered.

        Args:
            student: one vector a row, [B, D].
            teacher: one vector a row, [B, D_t].
            row_numbers: which rows of the data these are, [B].

        Raises:
            ShapeError: not one number a row.
        """
        if student.shape[:1] != teacher.shape[:1] or row_numbers.shape != student.shape[:1]:
            raise ShapeError(
                problem(
                    "A contrastive memory takes one vector of each model and one number a row",
                    given=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, "
                    f"row_numbers {tuple(row_numbers.shape)}",
                )
            )
        batch = int(self.batches.item())
        ours, theirs = _embeddings(self.student_head, student), _embeddings(self.teacher_head, teacher)
        candidates, constants, seen = self._candidates(row_numbers, batch), self.constants, None
        if self.training or batch == 0:
            seen = (_of_all_ranks(ours), _of_all_ranks(theirs), _of_all_ranks(row_numbers))
        if seen is not None and batch == 0:
            constants = self._constants(*seen)
        arguments: dict[str, Tensor | float] = {
            "student": ours,
            "teacher": theirs,
            "student_bank": self.student_bank,
            "teacher_bank": self.teacher_bank,
            "candidates": candidates,
            "constants": constants,
            "temperature": self.temperature,
        }
        if seen is not None and self.training:
            self._remember(*seen, constants)
        return arguments

    def _constants(self, student: Tensor, teacher: Tensor, row_numbers: Tensor) -> Tensor:
        """Both constants, [2], from the first batch of all ranks."""
        candidates = self._candidates(row_numbers, 0, whole=True)
        logits = [
            bank_logits(vectors, bank, candidates, self.temperature)
            for vectors, bank in ((student, self.teacher_bank), (teacher, self.student_bank))
        ]
        return log_constants(torch.stack(logits), self.rows).exp().to(self.constants)

    def _candidates(self, row_numbers: Tensor, batch: int, *, whole: bool = False) -> Tensor:
        """Each row's own number and its negatives, [B, 1 + negatives]; a function of seed and batch number.

        `row_numbers` are this rank's, or those of the `whole` batch in its own order.
        """
        if self.negatives == self.rows - 1:
            away = torch.arange(1, self.rows).expand(len(row_numbers), -1)
        else:
            random = np.random.default_rng([self.seed, batch])
            size = 1 if whole else ranks.world_size()
            drawn = random.integers(1, self.rows, (len(row_numbers) * size, self.negatives))
            away = torch.from_numpy(drawn[0 if whole else ranks.rank() :: size])
        own = row_numbers.unsqueeze(1)
        return torch.cat([own, (own + away.to(own.device)) % self.rows], dim=1)

    def _remember(self, student: Tensor, teacher: Tensor, row_numbers: Tensor, constants: Tensor) -> None:
        """Move the rows' entries towards this batch's embeddings, in new tensors: the backward pass needs the old."""
        for name, vectors in (("student_bank", student), ("teacher_bank", teacher)):
            bank = getattr(self, name)
            moved = self.momentum * bank[row_numbers] + (1 - self.momentum) * vectors.to(bank.dtype)
            setattr(self, name, bank.index_copy(0, row_numbers.long(), nn.functional.normalize(moved, dim=-1)))
        self.constants = constants
        self.batches = self.batches + 1


def _of_all_ranks(rows: Tensor) -> Tensor:
    """What all ranks have of the rows of one batch, without gradients, in the batch's own order."""
    parts = ranks.gathered(rows)
    if len(parts) == 1:
        return parts[0]
    order = [(number, part) for number in range(max(map(len, parts))) for part in parts if number < len(part)]
    return torch.stack([part[number] for number, part in order])


def _embeddings(head: nn.Module, vectors: Tensor) -> Tensor:
    """Embeddings of length 1, in float32 at least."""
    found: Tensor = head(vectors)
    return nn.functional.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)
