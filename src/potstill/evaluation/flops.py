"""How many multiply-adds a forward pass takes, counted without computing it.

Decisions:
- Two counts, and both are given, since publications differ in which they mean. `multiply_adds` is the published
  convention: convolutions and linear maps, attention's products left out, as counters that hook modules see them.
  `with_attention` has the products of queries with keys and of probabilities with values too.
- A multiply-add is one operation. Norms, activations, softmax, resizing and additions are in neither count, bias
  neither.
- What is counted is a copy on the meta device, whose tensors have shapes and no values: it costs neither memory nor
  arithmetic, whatever the image size.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ArgumentError, ModelError
from potstill.knowledge.observe import Observer
from potstill.objective import BoundObjective
from potstill.projectors import projector

META = torch.device("meta")
COUNTED = (nn.Linear, nn.modules.conv._ConvNd)
#: What takes as much: an orthogonal map's weight is made anew from as many parameters, which is not counted.
AS_MUCH = {"orthogonal": "linear", "conv_orthogonal": "conv"}


@dataclass(frozen=True)
class Flops:
    """The multiply-adds of one forward pass of one image.

    Args:
        multiply_adds: of convolutions and linear maps.
        with_attention: of these and of attention's two products.
        parameters: how many there are.
    """

    multiply_adds: int
    with_attention: int
    parameters: int

    def __add__(self, other: "Flops") -> "Flops":
        """Of two models together."""
        return Flops(
            self.multiply_adds + other.multiply_adds,
            self.with_attention + other.with_attention,
            self.parameters + other.parameters,
        )

    def __sub__(self, other: "Flops") -> "Flops":
        """What the one takes more than the other."""
        return Flops(
            self.multiply_adds - other.multiply_adds,
            self.with_attention - other.with_attention,
            self.parameters - other.parameters,
        )


def count(model: nn.Module, pixel_shape: Sequence[int]) -> Flops:
    """The multiply-adds of a model of images for one image.

    Args:
        model: any model that takes ``pixel_values``; left as it is.
        pixel_shape: channels, height and width of the image, as the model gets it.

    Raises:
        ArgumentError: a shape that isn't three positive numbers.
        ModelError: the model can't read such an image.

    References:
        Liu et al.: TransKD, 2022, https://arxiv.org/abs/2202.13393: 13.67 G and 3.72 M parameters for SegFormer-B0 at
        512x1024, in the convention of `multiply_adds`
    """
    pixels = _pixels(pixel_shape)
    return _counted(_on_meta(model), pixel_values=pixels)


def count_training(student: PreTrainedModel, objective: BoundObjective, pixel_shape: Sequence[int]) -> Flops:
    """The multiply-adds of what only trains: the projections of an objective, beside its student, for one image.

    Args:
        student: the model that the objective is bound to; left as it is.
        objective: its terms and projections.
        pixel_shape: channels, height and width of the image, as the student gets it.

    Raises:
        ArgumentError, ModelError: as `count`.
    """
    pixels = _pixels(pixel_shape)
    copy: Any = _on_meta(student)
    with torch.no_grad():
        known = Observer(copy, objective.needs("student"))({"pixel_values": pixels})
    total = Flops(0, 0, 0)
    for term in objective.terms:
        if term.joint:
            module = objective.joint_projections()[term.joint_name].build()
            total += _counted(_on_meta(module), known, pixels)
            continue
        seen: set[str] = set()  # a projection that is shared is called for each pair, and has its parameters once
        for pair in term.pairs if term.project else ():
            name, tensor = term.module_name(pair), getattr(known, term.kind)[pair[0]]
            kind, *widths = objective.projections()[name]
            called = _counted(_on_meta(projector(AS_MUCH.get(kind, kind), *widths)), tensor)
            own = 0 if name in seen else _parameters(projector(kind, *widths))
            total += replace(called, parameters=own)
            seen.add(name)
    return total


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _pixels(shape: Sequence[int]) -> Tensor:
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ArgumentError(problem("An image has channels, height and width", given=list(shape)))
    return torch.empty(1, *shape, device=META)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without values, in eval mode. Its parameters are never copied: deepcopy finds them moved already."""
    moved: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device=META)
        moved[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(model, moved).eval()


def _counted(model: nn.Module, *args: Any, **kwargs: Any) -> Flops:
    """Run a model on meta, counting the modules that are convolutions and linear maps, and all products."""
    linear = 0

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal linear
        linear += _multiply_adds(module, args[0], output)

    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, COUNTED)]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(*args, **kwargs)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            problem(
                f"The operations of {type(model).__name__} can't be counted for this image",
                given=str(error).strip().splitlines()[0],
                do="Give the size that the model reads; a model that looks at values has no count",
            )
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Flops(linear, counter.get_total_flops() // 2, _parameters(model))


def _multiply_adds(module: Any, given: Tensor, output: Tensor) -> int:
    """Of one call of a convolution or linear map: for each number that comes out, or goes into a transposed one."""
    each = int(module.weight[0].numel())
    return each * (given if getattr(module, "transposed", False) else output).numel()
