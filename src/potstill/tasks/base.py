"""What every task provides: the loading of its models, batches, and the meaning of labels and outputs."""

import copy
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import datasets
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.augment.image import Augmentation
from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge import Knowledge
from potstill.objective import Defaults

Batch = dict[str, Tensor]
Rows: TypeAlias = Dataset
"""Encoded rows: what `Task.encode` gives, with random access."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, and which of its parameters were newly initialised since its checkpoint doesn't hold them."""

    model: PreTrainedModel
    new_parameters: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """How a report speaks of rows, and of what is done to them."""

    row: str  # one of them
    rows: str  # many of them, where they are counted by the second
    files: str  # what a server needs
    batched: str  # what a call that is timed begins with
    sized: str  # at what size multiply-adds are counted
    long: str  # at what size memory is measured


@dataclass(frozen=True)
class Sample:
    """The size of a batch that stands for many: the shape of each input, and what a reader is told of it."""

    shapes: Mapping[str, tuple[int, ...]]
    text: str


class Reader(Protocol):
    """What turns rows into a model's inputs, and is saved beside it: a tokenizer of texts, an `ImageReader` of images.

    Only the task that loaded it looks inside.
    """

    def save_pretrained(self, save_directory: Any, /) -> Any:
        """Write it into a model's folder."""


class Task(Protocol):
    """The one form of a task. What the pipeline, the trainer and the evaluation ask of it stands here.

    How rows are read is one half of it, shared by all tasks over texts (`ReadsTokens`) or over images (`ReadsImages`);
    what labels and outputs mean is the other.
    """

    @property
    def problem(self) -> str:
        """What the labels are: single_label, multi_label, regression, segmentation or segmentation_quarter. Metrics and
        predictions go by it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the logits."""

    @property
    def of_tokens(self) -> bool:
        """Whether there is an output for every token, over the vocabulary, and not one for the whole row."""

    @property
    def words(self) -> Words:
        """How a report speaks of its rows."""

    @property
    def auto_class(self) -> Any:
        """The class of transformers that loads models of this task."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of encoded rows that a model's input is made of."""

    @property
    def augmentation(self) -> Augmentation | None:
        """How training rows are changed before a model sees them; None: not at all."""

    @property
    def reader_columns(self) -> tuple[str, ...]:
        """Those of them that a reader made when rows were encoded, so that another reader makes other ones."""

    def load(
        self,
        path: str | Path | PreTrainedConfig,
        *,
        attention: str | None = None,
        trust_remote_code: bool = False,
        reader: Any = None,
    ) -> LoadedModel:
        """Load a model of this task in float32, with this task's number and names of classes, set up for a reader.

        A config in place of a path gives a model with random weights.
        """

    def load_reader(self, path: str | Path, *, trust_remote_code: bool = False, size: Any = None) -> Any:
        """The reader that lies beside a model; `size` is that of images, where a recipe asks for another."""

    def same(self, reader: Any, other: Any) -> bool:
        """Whether two readers read every row alike."""

    def require_same(self, reader: Any, other: Any, whose: str, kind: str) -> None:
        """Raise `ModelError` where `reader` reads rows otherwise than `other`, the one that they are read with.

        `whose` and `kind` say in the message whose reader it is, and whose the other.
        """

    def shown(self, rows: Dataset) -> list[Any]:
        """What stands for each row in a report: its text, its two texts, or the name of its image."""

    def pictured(self, row: Mapping[str, Any]) -> str | None:
        """A small picture of a row for a report, as a ``data:`` address; None where rows show none."""

    def limit(self, reader: Any, asked: int, model: PreTrainedModel | None = None) -> int | None:
        """To how many tokens rows are cut, where `asked` are wanted, for a model if it is given; None: nothing is."""

    def encode(self, rows: Dataset, reader: Any, *, max_length: int) -> Dataset:
        """Rows as the collator takes them, one for one; keeps ``labels``, adds ``length``, the work that a row is."""

    def sample(self, reader: Any, rows: Rows, count: int, *, long: bool = False) -> Sample:
        """A batch of `count` rows of the mean size of `rows`; with `long`, of one that few rows exceed."""

    def made_up(self, reader: Any, model: PreTrainedModel) -> list[Batch]:
        """Batches of made-up rows of several sizes, that a model can be tried on; always the same."""

    def digest(self, reader: Any) -> str:
        """What decides a model's input beside the encoded rows; empty where they hold all of it."""

    def collator(self, reader: Any, teachers: Any = None) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """A function that makes a batch of encoded rows; with the teachers' reader, the columns ``teacher_*`` too."""

    def check_rows(self, name: str, model: PreTrainedModel, reader: Any, rows: Mapping[str, Rows]) -> None:
        """Raise `ModelError` where a model can't take what the rows become; `name` is what it is called."""

    def unaligned(self, rows: Rows, reader: Any, teachers: Any) -> str | None:
        """The first row whose positions mean something else to the teachers, in words; None where all are the same."""

    def two_readers(self, reader: Any, teachers: Any, terms: Sequence[str]) -> str:
        """What to say where the teachers have a reader of their own, and these terms compare position by position."""

    def compared(self, known: Knowledge, batch: Mapping[str, Tensor]) -> Knowledge:
        """What was observed, with logits at the positions of `targets`: those of maps are resized."""

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The labels of a batch, with harmless values where a row has none."""

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``labels``, ``outputs`` and ``tokens``: the positions that each kind of term is a mean over.

        Where outputs are more than one a row, also ``rows``, for terms that compare whole rows. Images have no
        ``tokens``: nothing in them is padding, and each counts as the mean of its places.
        """

    def defaults(self) -> Defaults:
        """The losses that labels and logits take when a term names none, and those that make no sense here."""

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise `ModelError` where a model can't read this task's batches as they are meant; asked before training."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the loading bars and reports of transformers: what they say is checked and said by potstill itself."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """Let datasets show its bars on a terminal, and be quiet in a pipe."""
    disabled = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def load_pretrained(
    auto_class: Any,
    path: str | Path | PreTrainedConfig,
    *,
    attention: str | None,
    trust_remote_code: bool,
    **config: Any,
) -> LoadedModel:
    """`auto_class.from_pretrained` in float32 and eval mode, with errors in the house's form.

    A config in place of a path gives a model with random weights, none of which count as new.
    """
    if attention is not None:
        config["attn_implementation"] = attention
    if isinstance(path, PreTrainedConfig):
        return LoadedModel(_random(auto_class, path, trust_remote_code, config), ())
    try:
        with quiet_transformers():
            model, info = auto_class.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code, **config
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(
            problem(
                f"The model '{path}' can't be loaded",
                given=str(error).strip().splitlines()[0],
                do="Give a packaged sample (`potstill samples` lists them), a local folder, or a hub id within reach",
            )
        ) from error
    # Each of these is a name with the two shapes beside it, or the name alone.
    mismatched = [key if isinstance(key, str) else str(key[0]) for key in info.get("mismatched_keys", ())]
    return LoadedModel(model.eval(), tuple(sorted({*info["missing_keys"], *mismatched})))


def _random(
    auto_class: Any, config: PreTrainedConfig, trust_remote_code: bool, changes: Mapping[str, Any]
) -> PreTrainedModel:
    """A model of a config with random weights, by the state of PyTorch's generator."""
    made, built_with = copy.deepcopy(config), dict(changes)
    attention = built_with.pop("attn_implementation", None)
    built_with.pop("ignore_mismatched_sizes", None)
    for name, value in built_with.items():
        setattr(made, name, value)
    fitting = auto_class._model_mapping.get(type(made), None)
    if made.architectures is None and isinstance(fitting, tuple):  # DeiT's: else transformers fails to choose
        made.architectures = [fitting[0].__name__]
    try:
        with quiet_transformers():
            model: PreTrainedModel = auto_class.from_config(
                made,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                **({} if attention is None else {"attn_implementation": attention}),
            )
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, LookupError, ImportError) as error:
        raise ModelError(
            problem(
                f"No model of this task can be built from this {made.model_type} config",
                given=str(error).strip().splitlines()[0],
                do="Change what it says, or take a model type that transformers has for this task",
            )
        ) from error
    model.eval()  # type: ignore[no-untyped-call]
    return model


def load_classes(
    auto_class: Any,
    path: str | Path | PreTrainedConfig,
    names: Sequence[str],
    *,
    attention: str | None,
    trust_remote_code: bool,
) -> LoadedModel:
    """A model with these classes. A head that the checkpoint doesn't hold is new, and listed as such."""
    loaded = load_pretrained(
        auto_class,
        path,
        attention=attention,
        trust_remote_code=trust_remote_code,
        num_labels=len(names),
        ignore_mismatched_sizes=True,
    )
    loaded.model.config.id2label = dict(enumerate(names))
    loaded.model.config.label2id = {name: number for number, name in enumerate(names)}
    return loaded
