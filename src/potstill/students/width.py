"""A student that is narrower than a model, with the weights of what matters most carried over: structured pruning.

The least important channels of the residual stream, neurons of the feed-forward blocks and heads of the attention are
removed. What is kept has the very weights that it had, in the same order, so that a cut that removes nothing changes
nothing. Decisions held here:

- Channels are the same in all layers, since one residual stream runs through them; neurons and heads are chosen in each
  layer by itself (heads together where all layers share a bias for each, as in MPNet).
- The size of a head stays. Where the config has no field for it, it is hidden / heads, and both are cut by one factor.
- Heads that share keys and values stay together, so whole groups are cut.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge import inputs_for
from potstill.knowledge.architectures import cast, layer_prefix, layers_of
from potstill.students.axes import GROUPS, HEAD, HEADS, HIDDEN, INNER, NORM, WHOLE, Axes, Widths, widths_of

#: (axis, layer) -> a value of each channel, neuron or head; the channels are of no layer.
ByAxis = dict[tuple[str, int | None], Tensor]


@dataclass(frozen=True)
class Sizes:
    """The sizes that a width cut concerns."""

    hidden: int
    intermediate: int
    heads: int
    groups: int
    head_size: int

    @property
    def per_group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.groups


def sizes_of(model: PreTrainedModel) -> Sizes:
    """The sizes of a model. Raises `ModelError` for a family whose width can't be cut."""
    fields, config = widths_of(model).fields, model.config
    hidden, inner, heads = (int(getattr(config, fields[axis])) for axis in (HIDDEN, INNER, HEADS))
    groups = int(getattr(config, fields[GROUPS])) if GROUPS in fields else heads
    return Sizes(hidden, inner, heads, groups, int(getattr(config, "head_dim", None) or hidden // heads))


def cut_width(
    model: PreTrainedModel,
    *,
    hidden: int | None = None,
    intermediate: int | None = None,
    heads: int | None = None,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
) -> PreTrainedModel:
    """A new model of the same class and depth that keeps the most important of its width.

    Args:
        model: the model to cut; left as it was.
        hidden, intermediate, heads: how many channels, feed-forward neurons and heads to keep; None keeps all.
        batches: what importance is measured on: padded batches of token ids [B,S] with their mask, or of images, all of
            whose patches count. None measures it on the weights alone.

    Importance, with x the activation of a token that is not padding, and the mean over all of them:

    - of a channel: the sum over all norms of mean |x|, x the norm's output;
    - of a neuron: mean |x|, x what the second matrix of the feed-forward block reads;
    - of a head: the mean of ||x||_2, x its [D/H] entries of what the output projection reads;
    - without batches, of each: the L2 norm of all weights that belong to it.

    Returns:
        A model in eval mode and in `model`'s precision. Without a number, or with the model's own, a copy of it.

    Raises:
        ModelError: a family that `potstill.students.axes` doesn't know; numbers that are larger than the model's or
            don't go together.

    References: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), 2024,
    https://arxiv.org/abs/2407.14679. Importance is summed over layers and averaged over tokens, as there; the
    aggregation over a batch is the mean, where the paper tries several.

    Prefer `cut_layers` while fewer layers are small enough: whole layers cost less quality for the time that they save.
    Prefer this to a config of other sizes, which starts from nothing.
    """
    table, old = widths_of(model), sizes_of(model)
    new = _wanted(model, table, old, hidden, intermediate, heads)
    importance = _weights(model, table, old) if batches is None else _activations(model, table, old, batches)
    kept = _kept(importance, table, old, new)
    config = copy.deepcopy(model.config)
    for axis, size in ((HIDDEN, new.hidden), (INNER, new.intermediate), (HEADS, new.heads), (GROUPS, new.groups)):
        if axis in table.fields:
            setattr(config, table.fields[axis], size)
    if table.own_head_size and new != old:
        config.head_dim = old.head_size  # else the smaller hidden / heads may be taken for it
    if getattr(config, "embedding_size", None) == old.hidden:
        config.embedding_size = new.hidden  # ELECTRA's, where it has none of its own
    if getattr(config, "pooler_output_size", None) == old.hidden:
        config.pooler_output_size = new.hidden  # ViT's, where it has none of its own
    with torch.random.fork_rng(devices=[]):  # all that is initialised at random here is overwritten
        student = cast(type(model)(config), model.dtype)
    student.load_state_dict({name: _selected(t, kept, *_place(model, table, name)) for name, t in _state(model)})
    student.eval()  # type: ignore[no-untyped-call]
    return student


def _wanted(
    model: PreTrainedModel, table: Widths, old: Sizes, hidden: int | None, intermediate: int | None, heads: int | None
) -> Sizes:
    """The new sizes; raises `ModelError`, with numbers that work, for those that can't be had."""
    asked = {"hidden": hidden, "intermediate": intermediate, "heads": heads}
    for name, number in asked.items():
        if number is not None and not 1 <= number <= getattr(old, name):
            raise ModelError(
                problem(f"A width cut keeps some of the {getattr(old, name)} there are", given=f"{name}: {number}")
            )
    made = {name: getattr(old, name) if number is None else number for name, number in asked.items()}
    if made["heads"] % old.per_group:
        lower = made["heads"] // old.per_group * old.per_group
        raise ModelError(
            problem(
                f"In this model {old.per_group} heads share their keys and values, and stay together",
                given=f"heads: {made['heads']}",
                do=f"Take heads: {' or '.join(str(n) for n in (lower, lower + old.per_group) if n)}",
            )
        )
    if not table.own_head_size and made["hidden"] != made["heads"] * old.head_size:
        nearest = max(1, made["hidden"] // old.head_size)
        pairs = {(nearest * old.head_size, nearest), (made["heads"] * old.head_size, made["heads"])}
        raise ModelError(
            problem(
                f"In {model.config.model_type} a head has hidden / heads entries, {old.head_size} here, and keeps them",
                given=f"hidden: {made['hidden']}, heads: {made['heads']}",
                do=f"Take {' or '.join(f'hidden: {width} with heads: {number}' for width, number in sorted(pairs))}",
            )
        )
    own = getattr(model.config, "embedding_size", old.hidden)
    if own != old.hidden and made["hidden"] == own:
        raise ModelError(
            problem(
                "A hidden size that is the embeddings' own leaves no place for the projection between them",
                given=f"hidden: {own}, embedding_size {own}",
                do="Take another number",
            )
        )
    return Sizes(**made, groups=made["heads"] // old.per_group, head_size=old.head_size)


def _state(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    return model.state_dict().items()


def _place(model: PreTrainedModel, table: Widths, name: str) -> tuple[Axes, int | None]:
    """The axes of a parameter, and the layer that it is in. Raises `ModelError` for a parameter of no row."""
    prefix, layer, rest = layer_prefix(model), None, name
    if name.startswith(prefix):
        number, rest = name[len(prefix) :].split(".", 1)
        layer = int(number)
    elif model.base_model is not model:
        rest = name.removeprefix(f"{model.base_model_prefix}.")
    axes = table.axes(rest, in_layer=layer is not None)
    if axes is None:
        raise ModelError(
            problem(
                f"The width of {type(model).__name__} can't be cut",
                given=f"the parameter {name}",
                follows="Which axes it has is not known",
                do="Leave out width, or add a row to potstill.students.axes",
            )
        )
    return axes, layer


def _selected(tensor: Tensor, kept: Mapping[tuple[str, int | None], Tensor], axes: Axes, layer: int | None) -> Tensor:
    for number, axis in enumerate(axes):
        if axis != WHOLE:
            found = kept.get((axis, layer), kept.get((axis, None)))
            assert found is not None, f"no choice was made for {axis} of layer {layer}"
            tensor = tensor.index_select(number, found.to(tensor.device))
    return tensor


def _kept(importance: ByAxis, table: Widths, old: Sizes, new: Sizes) -> ByAxis:
    """What is kept of each axis, as ascending numbers of the entries of a parameter along it."""
    entries = torch.arange(old.head_size)
    found: ByAxis = {(HIDDEN, None): _largest(importance[HIDDEN, None], new.hidden)}
    by_layer = [value for (axis, _), value in importance.items() if axis == HEADS]
    together = torch.stack(by_layer).sum(0) if by_layer else torch.zeros(old.heads)
    for (axis, layer), value in importance.items():
        if axis == INNER:
            found[INNER, layer] = _largest(value, new.intermediate)
        elif axis == HEADS:
            groups = _largest((together if table.shared_heads else value).view(old.groups, -1).sum(1), new.groups)
            heads = (groups[:, None] * old.per_group + torch.arange(old.per_group)).flatten()
            found[HEADS, layer] = (heads[:, None] * old.head_size + entries).flatten()
            found[GROUPS, layer] = (groups[:, None] * old.head_size + entries).flatten()
            found[HEAD, None] = heads  # read where heads are shared, and then the same in all layers
    return found


def _largest(values: Tensor, number: int) -> Tensor:
    """The numbers of the largest values, ascending; of equals the first."""
    return torch.sort(values, descending=True, stable=True).indices[:number].sort().values


def _weights(model: PreTrainedModel, table: Widths, old: Sizes) -> ByAxis:
    """The L2 norm of all weights that belong to a channel, a neuron or a head."""
    squares: ByAxis = {}

    def add(key: tuple[str, int | None], values: Tensor) -> None:
        squares[key] = squares.get(key, torch.zeros_like(values)) + values

    for name, tensor in _state(model):
        axes, layer = _place(model, table, name)
        for number, axis in enumerate(axes):
            values = tensor.detach().double().cpu().square().movedim(number, 0).reshape(tensor.shape[number], -1).sum(1)
            if axis == HIDDEN:
                add((HIDDEN, None), values)
            elif axis == INNER:
                add((INNER, layer), values)
            elif axis in (HEADS, GROUPS):
                one = values.view(-1, old.head_size).sum(1)
                add((HEADS, layer), one if axis == HEADS else one.repeat_interleave(old.per_group))
    return {key: values.sqrt() for key, values in squares.items()}


def _activations(model: PreTrainedModel, table: Widths, old: Sizes, batches: Iterable[Mapping[str, Tensor]]) -> ByAxis:
    """The mean size of activations over the tokens of all batches that are not padding."""
    found: ByAxis = {}
    tokens, positions = 0.0, 0
    mask: Tensor | None = None

    def add(key: tuple[str, int | None], sizes: Tensor) -> None:
        nonlocal positions
        positions = sizes.shape[:2].numel()
        assert mask is None or mask.shape == sizes.shape[:2], "an activation isn't [B,S,*]"
        values = (sizes.double() if mask is None else sizes.double() * mask[..., None]).sum((0, 1)).cpu()
        found[key] = found.get(key, torch.zeros_like(values)) + values

    def reads(key: tuple[str, int | None], size: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        return lambda _module, args: add(key, size(args[0]))

    def heads(x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x.float().reshape(*x.shape[:-1], old.heads, old.head_size), dim=-1)
        return norm

    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    with ExitStack() as stack, torch.no_grad():
        for module in _norms(model, table):
            hook = module.register_forward_hook(lambda _module, _args, output: add((HIDDEN, None), output.abs()))
            stack.callback(hook.remove)
        for number, layer in enumerate(layers_of(model)):
            for path, key, size in ((table.inner, INNER, torch.abs), (table.output, HEADS, heads)):
                hook = layer.get_submodule(path).register_forward_pre_hook(reads((key, number), size))
                stack.callback(hook.remove)
        for batch in batches:
            on_device: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items()}
            given = on_device.get("attention_mask")
            mask = None if given is None else given.double()
            model(**inputs_for(model, on_device))
            tokens += positions if mask is None else float(mask.sum())
    model.train(was_training)
    if not tokens:
        raise ModelError(problem("Importance is measured on batches", given="none", do="Give some, or batches=None"))
    return {key: values / tokens for key, values in found.items()}


def _norms(model: PreTrainedModel, table: Widths) -> list[nn.Module]:
    """The modules whose outputs are the residual stream, normalised."""
    found = []
    for name, _ in model.named_parameters():
        if name.endswith(".weight") and _place(model, table, name)[0] == NORM:
            found.append(model.get_submodule(name.removesuffix(".weight")))
    return found
