"""Rows of which every epoch shows another view."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from potstill.augment.image import VIEW
from potstill.tasks.base import Rows


class FreshViews(Dataset[dict[str, Any]]):
    """The rows of a data set, with a column ``view`` that says what each shows.

    Row r of epoch e has the number e * len(rows) + r, as `LengthGroupedSampler` gives it. So what a row shows depends
    on neither the process that reads it nor how far ahead it does.

    Args:
        rows: encoded rows.
        seed: of the training; with epoch and row, it decides the view.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows = rows
        self.seed = seed

    @property
    def column_names(self) -> list[str]:
        """The columns of the rows, and ``view``."""
        return [*self.rows.column_names, VIEW]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int | str) -> Any:
        if isinstance(number, str):
            return self.rows[number]
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch."""
        places = [divmod(number, len(self.rows)) for number in numbers]
        found = self.rows.__getitems__([row for _, row in places])
        return [{**one, VIEW: [self.seed, epoch, row]} for one, (epoch, row) in zip(found, places, strict=True)]
