"""FSDP: models that are spread over the ranks, since they don't fit one device.

accelerate shards what trains (`Distiller`); the teachers stand outside of it and are sharded here, layer by layer, so
that no device ever holds more than its share and one layer. Everything here is done by all ranks together.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import TrainingError
from potstill.objective import BoundObjective


def require_shardable(objective: BoundObjective, version: int) -> None:
    """Refuse what FSDP of a version can't train.

    Raises:
        TrainingError: its version 1, which has other modules; a term that keeps a memory, which no rank holds whole.
    """
    if version != 2:
        do = "Set fsdp_version: 2 in accelerate's configuration, or train without FSDP"
        raise TrainingError(problem("Only FSDP's version 2 shards students and teachers", given=version, do=do))
    if objective.needs_rows:
        names = ", ".join(term.name for term in objective.terms if term.memory is not None)
        do = "Train without FSDP, or leave the term out"
        raise TrainingError(problem("Under FSDP no term can keep a memory of the rows", given=names, do=do))


def shard(model: PreTrainedModel, **options: Any) -> None:
    """Spread a model over the ranks, in place: each of its layers by itself, then what is left.

    Args:
        model: one that isn't trained; its weights are the same on all ranks.
        options: of `fully_shard`, such as the ``mesh``.
    """
    if isinstance(model, FSDPModule):
        return
    model.requires_grad_(False)  # so that parts of several precisions may share a group
    names = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, **options)
    fully_shard(model, reshard_after_forward=True, **options)  # a root would stay gathered, for a backward pass


@contextmanager
def root_gathered(module: nn.Module) -> Iterator[None]:
    """Let parts of a sharded module be called by themselves: what belongs to the whole of it is gathered for a while.

    Layers gather their own weights; embeddings and head belong to the whole, whose forward would gather them.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with every sharded tensor put together, one after another, on the CPU."""
    return {name: _whole(tensor) for name, tensor in module.state_dict().items()}


def _whole(tensor: Tensor) -> Tensor:
    found = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
    return found.detach()


def like(tensor: Tensor, place: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, sharded as `place` is; as it is where `place` isn't sharded."""
    if not isinstance(place, DTensor):
        return tensor
    moved = tensor.to(device=place.device, dtype=place.dtype)
    return distribute_tensor(moved, place.device_mesh, place.placements, src_data_rank=None)


def sharded_like(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Whole tensors by name, each sharded as the module's own of that name is."""
    own = module.state_dict()
    return {name: like(tensor, own[name]) if name in own else tensor for name, tensor in tensors.items()}


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_finite(module: nn.Module) -> bool:
    """Whether every parameter of this rank's part is finite."""
    return all(bool(torch.isfinite(local(parameter)).all()) for parameter in module.parameters())
