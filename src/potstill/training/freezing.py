"""Parts of a student that don't learn for a while: progressive transfer trains one layer after another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import layers_of

EMBEDDINGS, HEAD = "embeddings", "head"


def parts(student: PreTrainedModel, names: Sequence[int | str]) -> list[nn.Parameter]:
    """The parameters of the named parts: layers by number, ``embeddings`` (of the base model, before its layers), or
    ``head`` (what stands outside the base model).

    Raises:
        ModelError: a layer that the student doesn't have, or a part that holds no parameters.
    """
    layers = layers_of(student)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    base = {id(p) for p in student.base_model.parameters()}
    found: list[nn.Parameter] = []
    for name in names:
        if name == EMBEDDINGS:
            base_model = student.base_model
            own = [p for m in base_model.modules() if m is not base_model and _embeds(m) for p in m.parameters()]
            own = [p for p in own if id(p) not in inside]
        elif name == HEAD:
            own = [p for p in student.parameters() if id(p) not in base]
        elif isinstance(name, int) and 0 <= name < len(layers):
            own = list(layers[name].parameters())
        else:
            own = []
        if not own:
            raise ModelError(
                problem(
                    f"There is no part '{name}' of the student to freeze",
                    do=f"Name layers from 0 to {len(layers) - 1}, '{EMBEDDINGS}' or '{HEAD}'",
                )
            )
        found += own
    return found


def _embeds(module: nn.Module) -> bool:
    """Whether a module is an embedding table, or the block that holds tables and their norm."""
    return isinstance(module, nn.Embedding) or any(isinstance(child, nn.Embedding) for child in module.children())


@contextmanager
def frozen(student: PreTrainedModel, names: Sequence[int | str]) -> Iterator[None]:
    """Let the named parts of a student get no gradient inside the context."""
    held = [p for p in parts(student, names) if p.requires_grad] if names else []
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
