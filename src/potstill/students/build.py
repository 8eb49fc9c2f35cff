"""`build_student`: one name for the ways to make a student out of a teacher."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.checks import problem, unknown_name
from potstill.errors import ModelError
from potstill.knowledge.architectures import cast, layers_of
from potstill.mappings import selection
from potstill.students.layers import cut_layers

DEFAULT_RULE = "spread"


def build_student(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None = None,
    rule: str = DEFAULT_RULE,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A student of the teacher's kind: fewer of its layers, or its config with other sizes.

    Args:
        teacher: the model to build from; left as it was.
        layers: how many layers to keep, or which (numbers from 0). Embeddings, pooler and head are copied.
        rule: how a count becomes numbers: ``spread`` (first and last kept, the rest even between), ``uniform``,
            ``first`` or ``last``.
        config: fields of the teacher's config to change, such as ``{hidden_size: 256}``; the student is then
            initialised at random from `seed`. Not together with `layers`.
        seed: of the random initialisation.

    Returns:
        A model in eval mode, float32 where the teacher is. With neither `layers` nor `config`, a copy of the teacher.

    Prefer `layers` while half or a third of the depth is small enough: copied layers need a fraction of the training.
    Use `config` for narrower students; they start from nothing, and want much more (unlabelled) data.
    """
    if layers is not None and config is not None:
        raise ModelError(
            problem(
                "A student is built by layers or by config, not both",
                given=f"layers={layers}, config={dict(config)}",
                do="Put num_hidden_layers into config, or leave config out",
            )
        )
    if config is not None:
        return _from_config(teacher, config, seed)
    total = len(layers_of(teacher))
    return cut_layers(teacher, selection(total if layers is None else layers, total, rule=rule))


def _from_config(teacher: PreTrainedModel, changes: Mapping[str, Any], seed: int) -> PreTrainedModel:
    known = set(teacher.config.to_dict()) | set(teacher.config.attribute_map)
    for name in changes:
        if name not in known:
            raise ModelError(unknown_name(f"field of {type(teacher.config).__name__}", name, known))
    if "vocab_size" in changes and changes["vocab_size"] != teacher.config.vocab_size:
        raise ModelError(
            problem(
                "A student shares its teacher's tokenizer, and so its vocabulary",
                given=f"vocab_size {changes['vocab_size']}, teacher {teacher.config.vocab_size}",
                do="Leave vocab_size out",
            )
        )
    config = copy.deepcopy(teacher.config)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            student = cast(type(teacher)(config), teacher.dtype)
        except (ValueError, TypeError) as error:
            follows = str(error)
            raise ModelError(
                problem("A student of this config can't be built", given=changes, follows=follows)
            ) from None
    student.eval()  # type: ignore[no-untyped-call]
    return student
