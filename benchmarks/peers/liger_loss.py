"""Liger's fused linear JSD in a hand-written loop: head and divergence in chunks of tokens.

Of its two forms this is the one in plain PyTorch (`liger_kernel.chunked_loss`), not compiled: the other one is a Triton
kernel, which needs a GPU. With beta 0 and no hard loss it is the forward KL.
"""

from typing import Any

import torch
from contract import LeftOut, Work, load, loop, serve
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss


def before_the_head(model: Any, batch: dict[str, Any]) -> Any:
    """What the head is applied to, for each token but the last, [N,D]."""
    states = model.base_model(**batch).last_hidden_state
    return states[:, :-1].reshape(-1, states.shape[-1])


def segment(work: Work) -> object:
    """The same work."""
    settings = work.settings
    if settings.task != "language" or work.bfloat16:
        raise LeftOut("it is measured on the head of a language model, in float32")
    student, teacher = load(settings.student, settings.task).train(), load(settings.teacher, settings.task).eval()
    loss_of_heads = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, temperature=settings.temperature, compiled=False
    )
    heads = student.get_output_embeddings().weight, teacher.get_output_embeddings().weight

    def loss_of(batch: dict[str, Any]) -> Any:
        labels = batch.pop("labels")[:, 1:].reshape(-1)
        with torch.no_grad():
            target = before_the_head(teacher, batch)
        found = loss_of_heads(before_the_head(student, batch), heads[0], target, heads[1], labels)
        return settings.temperature**2 * found

    loop(work, student, loss_of)
    return student


if __name__ == "__main__":
    serve(segment)
