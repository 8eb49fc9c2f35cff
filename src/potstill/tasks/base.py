"""What every task provides: the loading of its models, batches, and the meaning of labels and outputs."""

import copy
import logging
import os
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
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.objective import Defaults

Batch = dict[str, Tensor]
ROWS_OF_A_PROCESS = 5000  # fewer aren't worth starting one
Rows: TypeAlias = Dataset
"""Encoded rows: what `Task.encode` gives, with random access."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, and which of its parameters were newly initialised since its checkpoint doesn't hold them."""

    model: PreTrainedModel
    new_parameters: tuple[str, ...]


class Task(Protocol):
    """The one form of a task. What the pipeline, the trainer and the evaluation ask of it stands here."""

    @property
    def problem(self) -> str:
        """What the labels are: single_label, multi_label or regression."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the logits."""

    @property
    def of_tokens(self) -> bool:
        """Whether there is an output for every token, over the vocabulary, and not one for the whole row."""

    def load(
        self, path: str | Path | PreTrainedConfig, *, attention: str | None = None, trust_remote_code: bool = False
    ) -> LoadedModel:
        """Load a model of this task in float32, with this task's number and names of classes; a config gives one with
        random weights."""

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """Rows as token ids; keeps ``labels``, adds ``length``."""

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, teachers: PreTrainedTokenizerBase | None = None
    ) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """A function that pads encoded rows to a batch; with the teachers' tokenizer, the columns ``teacher_*`` too."""

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The labels of a batch, with harmless values where a row has none."""

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``labels``, ``outputs`` and ``tokens``: the positions that each kind of term is a mean over.

        Where outputs are of tokens, also ``rows``, for terms that compare whole rows.
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
    except (OSError, ValueError, RuntimeError, KeyError) as error:
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
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(
            problem(
                f"No model of this task can be built from this {made.model_type} config",
                given=str(error).strip().splitlines()[0],
                do="Change what it says, or take a model type that transformers has for this task",
            )
        ) from error
    model.eval()  # type: ignore[no-untyped-call]
    return model


def processes(tokenizer: PreTrainedTokenizerBase, rows: int) -> int | None:
    """In how many processes to encode; None for this one alone, as a fast tokenizer has threads of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    several = min(cores, rows // ROWS_OF_A_PROCESS)
    return None if tokenizer.is_fast or several < 2 else several


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token (the end-of-text token where it has none of its own)."""
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            problem(
                f"No tokenizer can be loaded from '{path}'",
                given=str(error).strip().splitlines()[0],
                do="Put the tokenizer's files into the model's folder, as save_pretrained writes them; for a hub id, "
                "check the name and the network, or give the folder of a model that was downloaded before",
            )
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
