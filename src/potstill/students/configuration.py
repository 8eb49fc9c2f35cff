"""Models of a configuration of their own: any model type of transformers, with random weights.

Decisions:
- Every key is checked against the class of its configuration, parts such as a `backbone_config` too: transformers keeps
  what it doesn't know as an attribute that nothing reads, so that a misspelt size would be the usual one in silence.
- What the task settles (the number of classes and their names) isn't written in a configuration.
- A path or a hub id stands for the configuration that lies there, never for the weights.
"""

from collections.abc import Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeGuard

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from potstill.checks import nearest, problem, unknown_name
from potstill.errors import ModelError

MODEL_TYPE = "model_type"
OF_THE_TASK = ("num_labels", "id2label", "label2id", "problem_type")
OF_THE_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


def stands_alone(config: Mapping[str, Any] | str | None) -> TypeGuard[Mapping[str, Any] | str]:
    """Whether a config, as a recipe has it, names a model type, and not just what differs from the teacher's."""
    return isinstance(config, str) or (config is not None and MODEL_TYPE in config)


def configuration(given: Mapping[str, Any] | str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration that a mapping describes, or that lies at a path or hub id.

    Args:
        given: ``{model_type: vit, hidden_size: 192, ...}``, every other key a field of that type's configuration; or a
            path or hub id.
        trust_remote_code: for a path whose configuration is code of its own.

    Raises:
        ModelError: an unknown model type or key (the nearest is named), a value that the configuration refuses, a key
            that the task fills, or a path without a readable configuration.
    """
    if isinstance(given, Mapping):
        return _of_mapping(given)
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(given, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ModelError(problem(f"The config of '{given}' can't be read", given=said)) from error
    return found


def _of_mapping(given: Mapping[str, Any]) -> PreTrainedConfig:
    settled = [key for key in OF_THE_TASK if key in given]
    if settled:
        what = "The task fills in the classes of a configuration"
        raise ModelError(problem(what, given=", ".join(settled), do="Leave these keys out; data.names orders classes"))
    kind = _kind(given)
    _require_known(given, kind)
    try:
        made = kind(**{key: value for key, value in given.items() if key != MODEL_TYPE})
    except Exception as error:  # each kind of configuration raises its own
        what = f"The {given[MODEL_TYPE]} configuration refuses a value"
        raise ModelError(problem(what, given=" ".join(str(error).split()))) from None
    depths, widths = (getattr(made, name, None) for name in ("depths", "hidden_sizes"))
    if isinstance(depths, list | tuple) and isinstance(widths, list | tuple) and len(depths) != len(widths):
        what = f"Each stage of a {given[MODEL_TYPE]} has a depth and a width"
        raise ModelError(problem(what, given=f"depths {list(depths)}, hidden_sizes {list(widths)}"))
    return made


def _kind(given: Mapping[str, Any]) -> type[PreTrainedConfig]:
    name = str(given[MODEL_TYPE])
    if name not in CONFIG_MAPPING:
        close = nearest(name, CONFIG_MAPPING)
        raise ModelError(f"Unknown model_type '{name}'.{close} It is one of transformers', such as vit, deit or bert.")
    return CONFIG_MAPPING[name]


def _require_known(given: Mapping[str, Any], kind: type[PreTrainedConfig]) -> None:
    """Raise `ModelError` for a key that the configuration, or that of one of its parts, doesn't know."""
    known = _names(kind) - {*OF_THE_TASK}
    listed = {name for name in known - _names(PreTrainedConfig) | {MODEL_TYPE} if name[0] != "_"}
    wrong = [unknown_name(f"field of {kind.__name__}", key, listed) for key in given if key not in known]
    if wrong:
        raise ModelError(" ".join(wrong))
    for part in given.values():
        if isinstance(part, Mapping) and MODEL_TYPE in part:
            _require_known(part, _kind(part))


def _names(kind: type[PreTrainedConfig]) -> set[str]:
    """What a configuration may be given: its fields, their common names, and properties that set others."""
    settable = {name for name in dir(kind) if isinstance(found := getattr(kind, name), property) and found.fset}
    return {MODEL_TYPE, *(f.name for f in fields(kind)), *kind.attribute_map, *settable}


def with_tokens_of(config: PreTrainedConfig, source: PreTrainedConfig) -> PreTrainedConfig:
    """`config` itself with the size of the vocabulary and the special tokens of a model that has the same tokenizer;
    what reads no tokens stays."""
    theirs = source.get_text_config()
    for name in OF_THE_TOKENIZER:
        value = getattr(theirs, name, None)
        if value is not None and hasattr(config, name):
            setattr(config, name, value)
    return config


def kept_configuration(config: PreTrainedConfig, root: Path) -> Path:
    """The folder of a model that has a configuration only, below `root`, named by its content."""
    text = config.to_json_string(use_diff=True)
    folder = root / "configs" / sha256(text.encode()).hexdigest()[:16]
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
    return folder
