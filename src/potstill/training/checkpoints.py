"""Checkpoints that can be trusted: a marker is written last, and only marked ones are resumed from.

`Trainer` writes a checkpoint in place, so a killed run leaves half of one. Old ones are removed only once a newer one
is whole. The student's weights stand in a plain safetensors file, the projections in another; the optimiser, scheduler
and generator states beside them are the Trainer's own.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from potstill import ranks
from potstill.checks import problem
from potstill.errors import ModelError
from potstill.training.distiller import Distiller
from potstill.training.sharding import local, sharded_like, whole_state

MARKER = "complete"
STUDENT, PROJECTORS, PEERS = "student.safetensors", "projectors.safetensors", "peers.safetensors"


def save_weights(distiller: Distiller, folder: Path) -> None:
    """Write the weights of the student, of what trains beside it, and of its peers; shared tensors once.

    Of several ranks all call it, and rank 0 writes.
    """
    parts = ((distiller.student, STUDENT), (distiller.projectors, PROJECTORS), (distiller.peers, PEERS))
    for module, name in parts:
        state = whole_state(module)  # of a sharded module, put together by all ranks
        if state:
            ranks.on_main(partial(_save, state, folder / name))


def load_weights(distiller: Distiller, folder: Path) -> None:
    """Read back what `save_weights` wrote."""
    _load(distiller.student, folder / STUDENT)
    if len(distiller.projectors):
        _load(distiller.projectors, folder / PROJECTORS)
    if len(distiller.peers):
        _load(distiller.peers, folder / PEERS)


def load_members(folder: Path, student: nn.Module, peers: Sequence[nn.Module]) -> None:
    """Read the students out of what `save_weights` wrote, into plain models."""
    _load(student, folder / STUDENT)
    together = load_file(folder / PEERS) if peers else {}
    for number, peer in enumerate(peers):
        prefix = f"{number}.student."
        peer.load_state_dict(
            {name.removeprefix(prefix): t for name, t in together.items() if name.startswith(prefix)}, strict=False
        )


def take_projections(distiller: Distiller, folder: Path) -> None:
    """Give a new stage's projections the weights that those of the same name and shape had in an earlier stage."""
    path = folder / PROJECTORS
    if path.exists():
        own = distiller.projectors.state_dict()
        known = {name: t for name, t in load_file(path).items() if name in own and own[name].shape == t.shape}
        distiller.projectors.load_state_dict({**own, **known})


def mark_complete(folder: Path) -> None:
    """Say that a checkpoint is whole, after its files have reached the disk."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    (folder / MARKER).touch()


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a training folder."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / MARKER).exists()]
    return max(whole, key=_step, default=None)


def is_last(checkpoint: Path) -> bool:
    """Whether training had ended when a checkpoint was written: after its last step, or by early stopping."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return bool(state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def prune(folder: Path, keep: set[Path]) -> None:
    """Remove checkpoints other than `keep`, half-written ones too."""
    for path in folder.glob("checkpoint-*"):
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            tensors[name] = tensor.contiguous()
            seen.add(tensor.data_ptr())
    save_file(tensors, path)


def _load(module: nn.Module, path: Path) -> None:
    """Load what `_save` wrote; a parameter may be missing only if it shares its memory with one that is there."""
    tensors = load_file(path)
    missing, unknown = module.load_state_dict(sharded_like(tensors, module), strict=False)
    state = {name: local(tensor) for name, tensor in module.state_dict().items()}
    loaded = {state[name].data_ptr() for name in tensors if name in state}
    lost = [name for name in missing if state[name].data_ptr() not in loaded]
    if unknown or lost:
        raise ModelError(
            problem(f"The checkpoint {path} is of another model", given=f"unknown {unknown[:3]}, missing {lost[:3]}")
        )
