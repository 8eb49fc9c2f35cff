"""The settings of one stage of training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class TrainSettings:
    """One stage of training.

    Args:
        epochs: passes over the training rows; ignored where `steps` is given.
        steps: optimiser steps.
        batch_size: rows of one optimiser step on one device, before `accumulation`.
        accumulation: micro-batches of one optimiser step; `batch_size` is that of a micro-batch.
        learning_rate, weight_decay, warmup, schedule: of AdamW; warmup is a share of the steps; schedule a name of
            transformers' schedulers.
        max_grad_norm: gradients are clipped to this norm; 0 clips nothing.
        precision: auto, bfloat16 or float32; auto is settled by a trial, see `potstill.training.precision`.
        keep: ``last`` keeps the weights after the last step, ``best`` those with the best validation score.
        early_stopping: stop after so many evaluations without a better score; needs keep: best.
        evaluations: how often to evaluate within the stage, spread evenly; None: after each epoch.
        checkpoint_steps: how many optimiser steps an interruption may cost.
        group_by_length: put rows of like length into one batch, so that little is padded.
        embeddings: how the table of word embeddings learns: by AdamW (dense); sparse, only the rows that were in the
            batch, see `potstill.training.embeddings`; frozen, with all that stands before the layers, not at all.
    """

    epochs: Annotated[float, Gt(0)] = 3.0
    steps: Count | None = None
    batch_size: Count = 32
    accumulation: Count = 1
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    weight_decay: Annotated[float, Ge(0)] = 0.01
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    keep: Literal["last", "best"] = "last"
    early_stopping: Count | None = None
    evaluations: Count | None = None
    checkpoint_steps: Count = 200
    group_by_length: bool = True
    embeddings: Literal["dense", "sparse", "frozen"] = "dense"

    def __post_init__(self) -> None:
        if self.early_stopping is not None and self.keep != "best":
            raise ValueError("early_stopping looks for the best score, so it needs keep: best")


@dataclass(frozen=True)
class RefineSettings(TrainSettings):
    """The usual settings of a refining stage: gentle, stopped early, and the best checkpoint kept."""

    epochs: Annotated[float, Gt(0)] = 2.0
    learning_rate: Annotated[float, Gt(0)] = 2e-5
    keep: Literal["last", "best"] = "best"
    early_stopping: Count | None = 2
    evaluations: Count | None = 4
