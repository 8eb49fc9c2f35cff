"""NVIDIA ModelOpt: a converted model in a `Trainer` for classifiers, its `KDTrainer` for language models.

`KDTrainer` shifts labels as language models need it, and so is for them alone.
"""

import tempfile
from typing import Any

import modelopt.torch.distill as mtd
from contract import Order, Work, load, serve, without_dropout
from modelopt.torch.distill.plugins.huggingface import KDTrainer
from torch import nn
from trainer_subclass import same_arguments
from transformers import Trainer, TrainingArguments


class ConvertedTrainer(Trainer):
    """A `Trainer` of a model that `mtd.convert` has put the teacher into: one line of difference, as the guide says."""

    work: Work

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What the converted model finds between its own outputs and the teacher's."""
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = model.compute_kd_loss()
        self.work.record(loss)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Order(self.work.order)


class OrderedKDTrainer(KDTrainer):  # type: ignore[misc]
    """`KDTrainer` over batches that were decided beforehand."""

    work: Work

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As it is, and recorded."""
        found = super().compute_loss(*args, **kwargs)
        self.work.record(found[0] if isinstance(found, tuple) else found)
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Order(self.work.order)


class LogitsLoss(mtd.LogitsDistillationLoss):  # type: ignore[misc]
    """Its loss of logits, on the outputs that transformers gives."""

    def forward(self, student: Any, teacher: Any) -> Any:
        """A mean over rows."""
        return super().forward(student.logits, teacher.logits).mean()


def trainer_of(work: Work, student: nn.Module, teacher: nn.Module, folder: str) -> Trainer:
    """The tool's own way for this kind of model."""
    settings = work.settings
    common = {
        "args": TrainingArguments(**same_arguments(work, folder)),
        "train_dataset": work.rows,
        "data_collator": work.collate,
    }
    if settings.task == "language":
        asked = {"teacher_model": teacher, "temperature": settings.temperature}
        return OrderedKDTrainer(model=student, distill_args=asked, **common)
    loss = LogitsLoss(temperature=settings.temperature, reduction="none")
    config = {"teacher_model": teacher, "criterion": loss}
    return ConvertedTrainer(model=mtd.convert(student, mode=[("kd_loss", config)]), **common)


def segment(work: Work) -> object:
    """The same work."""
    settings = work.settings
    student, teacher = load(settings.student, settings.task), load(settings.teacher, settings.task)
    if not work.command["dropout"]:
        without_dropout(student)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(work, student, teacher, folder)
        trainer.work = work  # type: ignore[attr-defined]
        trainer.train()
    return student


if __name__ == "__main__":
    serve(segment)
