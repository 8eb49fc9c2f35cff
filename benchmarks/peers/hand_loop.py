"""A training loop written by hand, and one that trains the student alone: what the others are compared with."""

import torch
from contract import Work, load, optimiser_for, serve, without_dropout
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


def segment(work: Work) -> object:
    """The loop."""
    settings = work.settings
    student = load(settings.student, settings.task).train()
    alone = work.command["teacher"] == "none"
    teacher = None if alone else load(settings.teacher, settings.task).eval()
    if not work.command["dropout"]:
        without_dropout(student)
    optimiser = optimiser_for(student, settings)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, settings.rate(work.steps))
    order, size = work.order, settings.batch_size
    for step in range(work.steps):
        batch = work.collate([work.rows[row] for row in order[step * size : (step + 1) * size]])
        labels = batch.pop("labels")
        if teacher is None:
            loss = student(**batch, labels=labels).loss
        else:
            with torch.no_grad():
                target = teacher(**batch).logits
            logits = student(**batch).logits
            loss = divergence(
                flat(logits, labels, settings.task), flat(target, labels, settings.task), settings.temperature
            )
            del logits, target
        work.record(loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
    return student


if __name__ == "__main__":
    serve(segment)
