"""How a student's table of word embeddings learns: dense, sparse, or not at all.

In a small encoder the table is half of the parameters, and a batch meets a few hundred of its rows. A dense gradient is
as large as the table all the same: it is filled with zeros, clipped, and moves every row's moments in every step.

Decided here: ``sparse`` gives the optimiser the rows that were in the batch. Each row then has an AdamW of its own,
whose steps are the batches that it was in: moments, bias correction and weight decay go on there alone. A row that is
in every batch learns exactly as with AdamW. A rarer one differs: dense AdamW would go on moving it by its fading
momentum, and decaying it, while it is away. Position and type tables are small, and stay dense.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError, TrainingError
from potstill.training.freezing import EMBEDDINGS, parts
from potstill.training.settings import TrainSettings

DENSE, SPARSE, FROZEN = "dense", "sparse", "frozen"


class LazyAdamW(torch.optim.AdamW):
    """AdamW that moves, of a parameter with a sparse gradient, only the rows in it, each by the count of its own steps.

    For a row with gradient g in its n-th step:
    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    w = (1 - lr wd) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps).

    Parameters with dense gradients are AdamW's, fused where it is. `torch.optim.SparseAdam` is no substitute: it
    corrects by the steps of the whole table, so that a row seen late starts with three times the learning rate, and it
    knows no weight decay.

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, https://arxiv.org/abs/1412.6980.
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, https://arxiv.org/abs/1711.05101.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; the gradients stay as they were."""
        held = [
            (parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        sparse = {id(parameter) for parameter, _ in held}
        for group in self.param_groups:
            for parameter in group["params"]:
                if id(parameter) in sparse:
                    self._step_rows(group, parameter)
                    parameter.grad = None  # AdamW refuses it
        try:
            return super().step(closure)
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient

    def _step_rows(self, group: dict[str, Any], parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[parameter]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.zeros(len(parameter), device=parameter.device)
        first, second = group["betas"]
        steps = state["step"][rows] + 1
        mean = state["exp_avg"][rows].lerp_(values, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(values, values, value=1 - second)
        for name, moved in (("step", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
            state[name].index_copy_(0, rows, moved)
        steps = steps.view(-1, *[1] * (parameter.ndim - 1))
        scale = (square / (1 - second**steps)).sqrt_().add_(group["eps"])
        moved = parameter[rows].mul_(1 - group["lr"] * group["weight_decay"])
        moved -= group["lr"] * (mean / (1 - first**steps)) / scale
        parameter.index_copy_(0, rows, moved)


def clipped_norm(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale gradients, sparse ones among them, to a norm of at most `most`; gives the norm before.

    The same as `torch.nn.utils.clip_grad_norm_`, which knows no sparse gradients: rows that occur twice in a batch are
    added up first. ``inf`` scales nothing.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm: Tensor = torch.nn.utils.get_total_norm(gradients)
    if gradients and most < float("inf"):
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


@contextmanager
def sparse_table(student: PreTrainedModel) -> Iterator[None]:
    """Let the table of word embeddings give sparse gradients inside the context.

    Raises:
        ModelError: the table is another layer's weight too (a tied head), or no `nn.Embedding`.
    """
    try:
        table = student.get_input_embeddings()
    except NotImplementedError:  # of images
        table = None
    if not isinstance(table, nn.Embedding):
        raise ModelError(
            problem(
                f"The embeddings of {type(student).__name__} can't learn sparsely",
                given="no table of words" if table is None else type(table).__name__,
                do="Set train.embeddings=dense",
            )
        )
    names = [name for name, p in student.named_parameters(remove_duplicate=False) if p is table.weight]
    if len(names) > 1:
        raise ModelError(
            problem(
                "Tied embeddings can't learn sparsely",
                given=" is ".join(names),
                follows="The other layer gives every row a gradient in every step",
                do="Set train.embeddings=dense",
            )
        )
    before = table.sparse
    table.sparse = True
    try:
        yield
    finally:
        table.sparse = before


def require_embeddings(model: PreTrainedModel, settings: TrainSettings | None) -> None:
    """Raise `ModelError`, before a model is trained, where its embeddings can't learn as the settings have it."""
    if settings is None:
        return
    if settings.embeddings == FROZEN:
        parts(model, [EMBEDDINGS])
    elif settings.embeddings == SPARSE:
        with sparse_table(model):
            pass


def require_unsharded(sharded: bool) -> None:
    """Refuse sparse gradients where they can't be exchanged: sharded parameters, and NCCL.

    Raises:
        TrainingError: FSDP or DeepSpeed is in use, or several processes that don't talk by gloo.
    """
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    backend = torch.distributed.get_backend() if several else "gloo"
    if sharded or "gloo" not in backend:
        raise TrainingError(
            problem(
                "Sparse embeddings train on one device, or by DDP over gloo",
                given="sharded parameters (FSDP or DeepSpeed)" if sharded else f"backend {backend}",
                do="Set train.embeddings=dense or frozen",
            )
        )
