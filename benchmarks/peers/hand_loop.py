"""A training loop written by hand, and one that trains the student alone: what the others are compared with."""

from typing import Any

import torch
from contract import Work, load, loop, serve, without_dropout
from torch import Tensor
from torch.nn import functional


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of rows [N,V], softened, times T², a mean over rows."""
    student_log = functional.log_softmax(student / temperature, -1)
    teacher_log = functional.log_softmax(teacher / temperature, -1)
    found = functional.kl_div(student_log, teacher_log, log_target=True, reduction="sum")
    return temperature**2 * found / len(student)


def flat(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """The rows of logits that are compared: all, or those whose next token is a label."""
    return logits[:, :-1][labels[:, 1:] != -100] if task == "language" else logits


def label_loss(student: Any, batch: dict[str, Tensor], labels: Tensor, work: Work) -> Tensor:
    """The student's own loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=work.bfloat16):
        found: Tensor = student(**batch, labels=labels).loss
    return found


def taught_loss(student: Any, teacher: Any, batch: dict[str, Tensor], labels: Tensor, work: Work) -> Tensor:
    """The divergence from the teacher."""
    task = work.settings.task
    with torch.no_grad():
        target = teacher(**batch).logits.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=work.bfloat16):
        logits = student(**batch).logits.float()
    return divergence(flat(logits, labels, task), flat(target, labels, task), work.settings.temperature)


def segment(work: Work) -> object:
    """The loop."""
    settings = work.settings
    student = load(settings.student, settings.task).train()
    alone = work.command["teacher"] == "none"
    teacher = None if alone else load(settings.teacher, settings.task).eval()
    if teacher is not None and work.bfloat16:
        teacher = teacher.bfloat16()
    if not work.command["dropout"]:
        without_dropout(student)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        labels = batch.pop("labels")
        return label_loss(student, batch, labels, work) if alone else taught_loss(student, teacher, batch, labels, work)

    loop(work, student, loss_of)
    return student


if __name__ == "__main__":
    serve(segment)
