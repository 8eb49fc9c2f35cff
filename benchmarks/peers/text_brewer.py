"""TextBrewer, called as its documentation and its SST-2 notebook have it.

Its defaults: the notebook's (rows padded to 128 tokens, batches of 32, AdamW at 1e-4, a warm-up of a tenth, the first
hidden states and those two thirds up matched) and those of its two configurations (temperature 4, no label loss, a
checkpoint after each epoch, no clipping).

Its loss is the cross-entropy with the teacher's distribution, without T². For the same work it is given the weight T²,
so that gradients are those of all others; the teacher's entropy, which has no gradient, is taken off what is recorded.
"""

import tempfile
from typing import Any

import torch
from contract import (
    Curve,
    LeftOut,
    Order,
    Padding,
    Rows,
    Work,
    at_each_step,
    load,
    optimiser_for,
    serve,
    without_dropout,
)
from textbrewer import BasicDistiller, DistillationConfig, GeneralDistiller, TrainingConfig
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

PADDED = 128
BATCH = 32
LEARNING_RATE = 1e-4
WARMUP = 0.1


def outputs_by_name(batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
    """What TextBrewer calls an adaptor."""
    return {"logits": outputs.logits, "hidden": outputs.hidden_states}


class Recorded(BasicDistiller):  # type: ignore[misc]
    """A `BasicDistiller` that keeps its losses, less the teacher's entropy."""

    work: Work

    def compute_loss(self, results_S: Any, results_T: Any) -> Any:
        """As the distiller has it."""
        total, parts = super().compute_loss(results_S, results_T)
        if self.work.command.get("losses"):
            temperature = self.work.settings.temperature
            soft = functional.log_softmax(results_T["logits"][0] / temperature, -1)
            self.work.record(total + temperature**2 * (soft.exp() * soft).sum(-1).mean())
        return total, parts


def segment(work: Work) -> object:
    """The same work."""
    settings = work.settings
    if work.bfloat16:
        raise LeftOut("it has no bfloat16: mixed precision is Apex's")
    student, teacher = load(settings.student, settings.task), load(settings.teacher, settings.task)
    if not work.command["dropout"]:
        without_dropout(student)
    loader = DataLoader(work.rows, settings.batch_size, sampler=Order(work.order), collate_fn=work.collate)
    with tempfile.TemporaryDirectory() as folder:
        distiller = Recorded(
            TrainingConfig(ckpt_steps=10 * work.steps, output_dir=folder, device="cpu"),
            DistillationConfig(temperature=settings.temperature, kd_loss_weight=settings.temperature**2),
            teacher,
            student,
            outputs_by_name,
            outputs_by_name,
        )
        distiller.work = work
        with distiller:
            distiller.train(
                optimiser_for(student, settings),
                loader,
                num_steps=work.steps,
                scheduler_class=torch.optim.lr_scheduler.LambdaLR,
                scheduler_args={"lr_lambda": settings.rate(work.steps)},
                max_grad_norm=settings.max_grad_norm,
            )
    return student


def curve(work: Work) -> dict[str, Any]:
    """The notebook's defaults, with accuracy taken along the way."""
    settings, command = work.settings, work.command
    student, teacher = load(settings.student, settings.task), load(settings.teacher, settings.task)
    student.config.output_hidden_states = teacher.config.output_hidden_states = True
    loader = DataLoader(work.rows, BATCH, shuffle=True, collate_fn=Padding(settings.pad, PADDED))
    epochs = command["epochs"]
    steps = len(loader) * epochs
    above = 2 * teacher.config.num_hidden_layers // 3  # the notebook takes layer 8 of 12
    points = Curve(student, Rows.load(settings.validation), settings.pad, max(1, len(loader) // command["points"]))
    with tempfile.TemporaryDirectory() as folder, at_each_step(points):
        matches = [
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
            {"layer_T": above, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
        ]
        distiller = GeneralDistiller(
            train_config=TrainingConfig(output_dir=folder, device="cpu", ckpt_steps=10 * steps),
            distill_config=DistillationConfig(intermediate_matches=matches),
            model_T=teacher,
            model_S=student,
            adaptor_T=outputs_by_name,
            adaptor_S=outputs_by_name,
        )
        with distiller:
            distiller.train(
                torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE),
                loader,
                num_epochs=epochs,
                num_steps=command.get("steps"),
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args={"num_warmup_steps": int(WARMUP * steps), "num_training_steps": steps},
                callback=None,
            )
        return points.finish()


if __name__ == "__main__":
    serve(segment, curve)
