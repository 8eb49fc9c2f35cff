"""The exception tree. Everything that potstill raises on purpose stands here.

PotstillError
├── RecipeError         the recipe is wrong: unknown key, value out of range; carries every problem at once
├── DataError           a file, column, label or row is wrong
├── SampleError         a packaged sample can't be had: no network, a checksum that differs
├── ModelError          teacher, student or tokenizer don't fit each other or the task
├── ArgumentError       a number or setting outside its range: a temperature of 0 (also a ValueError)
├── MappingError        a layer map that doesn't fit the layers (also a ValueError)
├── ShapeError          tensors whose shapes don't fit (also a ValueError)
├── TrainingError       training can't go on: a loss that is not a number
├── CacheError          a teacher's cache is of other knowledge, damaged, or has no room
├── RunFolderError      the run folder belongs to another recipe, or can't be written
├── RankError           another process of a run on several devices failed, or is gone
└── ExportError         an exported file can't be made, or differs from the student

A message says what is wrong, what was given, what follows and what to do; `potstill.checks.problem` puts it together.
"""


class PotstillError(Exception):
    """Base of every error that potstill raises on purpose; the command line shows its message without a traceback."""


class RecipeError(PotstillError):
    """The recipe is wrong. The message lists every problem found, one a line."""


class DataError(PotstillError):
    """A file, column, label or row of the data is wrong."""


class SampleError(PotstillError):
    """A packaged sample can't be fetched or verified."""


class ModelError(PotstillError):
    """Teacher, student or tokenizer don't fit each other or the task."""


class ArgumentError(PotstillError, ValueError):
    """A number or setting of a function is outside its range, or of the wrong kind."""


class MappingError(PotstillError, ValueError):
    """A layer map doesn't fit the number of layers."""


class ShapeError(PotstillError, ValueError):
    """Tensors whose shapes don't fit each other."""


class TrainingError(PotstillError):
    """Training can't go on, for instance since a loss is not a number."""


class CacheError(PotstillError):
    """A teacher's cache is of other knowledge than is asked for, lacks rows, is damaged, or has no room."""


class RunFolderError(PotstillError):
    """The run folder belongs to another recipe, or can't be written."""


class RankError(PotstillError):
    """Another process of a run on several devices failed, or is gone.

    Args:
        said: the process that failed says the message itself.
    """

    def __init__(self, message: str, *, said: bool = False) -> None:
        super().__init__(message)
        self.said = said


class ExportError(PotstillError):
    """An exported file can't be made, or differs from the student by more than it may."""
