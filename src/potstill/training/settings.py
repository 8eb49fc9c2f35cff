"""The settings of one stage of training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from potstill.checks import problem
from potstill.errors import ArgumentError

Count = Annotated[int, Ge(1)]
USUAL_RATE, USUAL_WIDTH = 1e-4, 768
MOST_RATE = 1e-3


@dataclass(frozen=True)
class TrainSettings:
    """One stage of training.

    Args:
        epochs: passes over the training rows; ignored where `steps` is given.
        steps: optimiser steps.
        batch_size: rows of a batch, over all devices together, so that a recipe means the same on any number of them.
        accumulation: batches of one optimiser step.
        learning_rate: of AdamW; None: as `rate` has it for the width of what is trained.
        weight_decay, warmup, schedule: of AdamW; warmup is a share of the steps; schedule a name of transformers'
            schedulers.
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
    learning_rate: Annotated[float, Gt(0)] | None = None
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

    def rate(self, width: int) -> float:
        """The learning rate for a transformer of a width: what is given, else 1e-4 * 768 / width, at most 1e-3.

        Adam moves each weight by about the rate whatever the gradient, so that the change of what a layer gives grows
        with how many weights it sums over. 1e-4 is usual for students of width 768. Where there is no width (0, a
        network of convolutions), it is 1e-4.

        References:
            Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer", 2022,
            https://arxiv.org/abs/2203.03466, table 8: hidden weights under Adam.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return min(MOST_RATE, USUAL_RATE * USUAL_WIDTH / width) if width > 0 else USUAL_RATE

    def rows_of_one_rank(self, world_size: int) -> int:
        """The rows of a batch that each of so many processes gets; `ArgumentError` where they can't be shared."""
        if self.batch_size % world_size:
            raise ArgumentError(
                problem(
                    "A batch can't be shared evenly among the processes of this run",
                    given=f"train.batch_size={self.batch_size}, {world_size} processes",
                    do=f"Set train.batch_size to a multiple of {world_size}, or start another number of processes",
                )
            )
        return self.batch_size // world_size


@dataclass(frozen=True)
class RefineSettings(TrainSettings):
    """The usual settings of a refining stage: gentle, stopped early, and the best checkpoint kept."""

    epochs: Annotated[float, Gt(0)] = 2.0
    learning_rate: Annotated[float, Gt(0)] | None = 2e-5
    keep: Literal["last", "best"] = "best"
    early_stopping: Count | None = 2
    evaluations: Count | None = 4
