"""`build_student`: one name for the ways to make a student out of a teacher."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.checks import problem, unknown_name
from potstill.errors import ModelError
from potstill.knowledge.architectures import cast, encoder_of, layers_of
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
    Use `cut_width` for narrower students, and `config` for those of other sizes altogether: they start from nothing,
    and want much more (unlabelled) data.
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
    if encoder_of(teacher) is not teacher:
        what = f"The layers of {type(teacher).__name__} are its backbone's, and not cut"
        given = f"a {encoder_of(teacher).config.model_type}"
        raise ModelError(problem(what, given=given, do="Take a student of a config: student.config, with its depths"))
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
                do="Leave vocab_size out; a smaller vocabulary is made by cut_tokenizer and cut_vocabulary",
            )
        )
    config = copy.deepcopy(teacher.config)
    for name, value in changes.items():
        setattr(config, name, value)
    try:
        return _random(type(teacher), config, teacher.dtype, seed)
    except (ValueError, TypeError) as error:
        raise ModelError(
            problem("A student of this config can't be built", given=changes, follows=str(error))
        ) from None


def reinitialised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the very shape of `model`, whose weights are initialised at random from `seed`; for comparison: what a
    student that starts from nothing makes of the same lessons."""
    return _random(type(model), copy.deepcopy(model.config), model.dtype, seed)


def _random(kind: type[PreTrainedModel], config: Any, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = cast(kind(config), dtype)
    student.eval()  # type: ignore[no-untyped-call]
    return student
