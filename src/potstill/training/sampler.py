"""Batches of like length, as a pure function of seed and epoch: a resumed run sees the batches it would have seen.

Several ranks share each batch, so that they train on what one process would train on.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

BATCHES_IN_A_POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Row numbers in an order whose consecutive batches hold rows of like length.

    The rows are shuffled, cut into pools of 50 batches, sorted by length within each pool, cut into batches, and the
    batches are shuffled. A batch is thus random in all but length. A last, smaller batch comes last.

    Args:
        lengths: tokens of each row; None gives a plain shuffle.
        batch_size: rows of a batch (of all processes together).
        seed: with the epoch, decides the order.
        rows: how many there are, where their lengths aren't known.
        number_epochs: give row r of epoch e as e * rows + r, so that whoever reads it knows the epoch.
    """

    def __init__(
        self,
        lengths: Sequence[int] | None,
        batch_size: int,
        seed: int,
        *,
        rows: int | None = None,
        number_epochs: bool = False,
    ) -> None:
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.rows = len(lengths) if lengths is not None else int(rows or 0)
        self.batch_size = batch_size
        self.seed = seed
        self.number_epochs = number_epochs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of this epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.rows if self.number_epochs else 0
        return iter((self._order() + first).tolist())

    def _order(self) -> np.ndarray[Any, Any]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self.rows)
        if self.lengths is None:
            return order
        whole = self.rows - self.rows % self.batch_size
        pool = BATCHES_IN_A_POOL * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, whole, pool):
            rows = order[start : min(start + pool, whole)]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        shuffled = [batches[i] for i in random.permutation(len(batches))]
        return np.concatenate([*shuffled, order[whole:]])


class SharedBatches(Sampler[list[int]]):
    """One rank's part of every batch: its rows number `rank`, `rank` + `world_size`, and so on.

    Rows of like length thus come to all ranks, and none waits for another. All ranks have the same number of batches.
    In a last batch with fewer rows than there are ranks, the ranks left over repeat rows of it.

    Args:
        sampler: gives the rows of batch after batch.
        batch_size: rows of a batch of all ranks together.
        rank, world_size: of this process.
    """

    def __init__(self, sampler: LengthGroupedSampler, batch_size: int, rank: int, world_size: int) -> None:
        self.batch_sampler = sampler  # so named, since `Trainer` looks for it there to say which epoch it is
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """The batches of this epoch come next; so it is called where the first of them are skipped."""
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batch_sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.batch_sampler)
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            yield batch[self.rank :: self.world_size] or [batch[self.rank % len(batch)]]
