"""A `Trainer` whose loss asks a teacher, as the Hugging Face guide on distillation for vision has it, for text.

Its defaults are those of the guide where it says something (temperature 5, half of the loss from the labels, saved
after each epoch) and those of `TrainingArguments` elsewhere (batches of 8, a learning rate of 5e-5, AdamW, a linear
schedule). Rows are padded to the longest of their batch, as in the guide on text classification.
"""

import tempfile
from typing import Any

import torch
from contract import Curve, Order, Padding, Rows, Work, at_each_step, load, serve, without_dropout
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

GUIDE_TEMPERATURE = 5.0
GUIDE_LABELS = 0.5  # the guide's lambda


class DistillingTrainer(Trainer):
    """Args:
    teacher: the model to learn from; None trains on the labels alone.
    temperature: of both distributions.
    labels_weight: of the student's own loss; the divergence takes the rest.
    work: where losses are kept, and the order of the rows comes from, if it is decided beforehand.
    """

    def __init__(
        self, *, teacher: nn.Module | None, temperature: float, labels_weight: float, work: Work | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval()
        self.temperature = temperature
        self.labels_weight = labels_weight
        self.work = work

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the label loss and the divergence from the teacher."""
        outputs = model(**inputs)
        loss = outputs.loss
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(**inputs).logits
            divergence = functional.kl_div(
                functional.log_softmax(outputs.logits / self.temperature, dim=-1),
                functional.softmax(target / self.temperature, dim=-1),
                reduction="batchmean",
            )
            divergence = divergence * self.temperature**2
            loss = self.labels_weight * loss + (1.0 - self.labels_weight) * divergence
        if self.work is not None:
            self.work.record(loss)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self.work is None else Order(self.work.order)


def same_arguments(work: Work, folder: str) -> dict[str, Any]:
    """`TrainingArguments` of the work that all do."""
    settings = work.settings
    return {
        "output_dir": folder,
        "max_steps": work.steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": -int(-settings.warmup * work.steps // 1),
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch_fused",
        "use_cpu": True,
        "bf16": work.bfloat16,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": work.command["seed"],
        "dataloader_pin_memory": False,
    }


def segment(work: Work) -> object:
    """The same work."""
    settings = work.settings
    student = load(settings.student, settings.task)
    alone = work.command["teacher"] == "none"
    if not work.command["dropout"]:
        without_dropout(student)
    with tempfile.TemporaryDirectory() as folder:
        DistillingTrainer(
            model=student,
            teacher=None if alone else load(settings.teacher, settings.task),
            temperature=settings.temperature,
            labels_weight=0.0,
            work=work,
            args=TrainingArguments(**same_arguments(work, folder)),
            train_dataset=work.rows,
            data_collator=work.collate,
        ).train()
    return student


def curve(work: Work) -> dict[str, Any]:
    """The guide's defaults, with accuracy taken along the way."""
    settings, command = work.settings, work.command
    student = load(settings.student, settings.task)
    per_epoch = -(-len(work.rows) // 8)
    points = Curve(student, Rows.load(settings.validation), settings.pad, max(1, per_epoch // command["points"]))
    with tempfile.TemporaryDirectory() as folder, at_each_step(points):
        DistillingTrainer(
            model=student,
            teacher=load(settings.teacher, settings.task),
            temperature=GUIDE_TEMPERATURE,
            labels_weight=GUIDE_LABELS,
            work=None,
            args=TrainingArguments(
                folder,
                num_train_epochs=command["epochs"],
                max_steps=command.get("steps") or -1,
                save_strategy="epoch",
                logging_strategy="epoch",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=command["seed"],
                dataloader_pin_memory=False,
            ),
            train_dataset=work.rows,
            data_collator=Padding(settings.pad),
        ).train()
        return points.finish()


if __name__ == "__main__":
    serve(segment, curve)
