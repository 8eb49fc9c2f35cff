"""How much each pair of layers counts, when every student layer may learn from every teacher layer.

Decisions:
- The flow is solved exactly, as a linear programme of S * T numbers, on the host in float64: layers are few, and an
  approximation would need a number that decides how near it comes.
- It carries no gradient: the loss is the flow times the costs, and its gradient goes through the costs alone.
- Nothing is remembered here. Layer weights go in and come out; whoever trains keeps them, and checkpoints them.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from potstill.checks import problem
from potstill.errors import ArgumentError, ShapeError

Matrix = npt.NDArray[np.float64]

# A layer that costs nothing would weigh infinitely; it counts as if it cost this share of the average.
_LEAST_SHARE = 1e-6


def earth_movers_flow(
    costs: Float[Tensor, "S T"],
    student_weights: Float[Tensor, " S_w"] | None = None,
    teacher_weights: Float[Tensor, " T_w"] | None = None,
) -> Float[Tensor, "S T"]:
    """The cheapest way to move the teacher's layer weights to the student's: how much each pair of layers counts.

    flow = argmin over F of sum of F * costs, with F >= 0, the sum of F over T = student_weights, the sum of F over S =
    teacher_weights. The loss is then the sum of flow * costs.

    Args:
        costs: the loss of each pair of a student and a teacher layer, [S, T]; finite. Detached here.
        student_weights: [S], 0 or more, divided by their sum here; None is 1 / S each.
        teacher_weights: [T], likewise; None is 1 / T each.

    Returns:
        [S, T], 0 or more, summing to 1, without a gradient, on the device of the costs; at least float32. It is one
        optimum where there are several.

    Raises:
        ShapeError: costs that are not a matrix, or weights of another length than theirs.
        ArgumentError: costs that are not finite, or weights that are negative, not finite, or all 0.

    References:
        Li, Liu, Zhao, Xu, Yang, Jin: BERT-EMD: Many-to-Many Layer Mapping for BERT Compression with Earth Mover's
        Distance, 2020, https://arxiv.org/abs/2010.06133. It also learns the layer weights: `cost_attention`.

    Prefer a layer map that is known to fit: this compares S * T pairs a step, and waits for the device to do so.
    """
    values = _matrix(costs, "costs")
    students, teachers = values.shape
    student = _shares(student_weights, students, "student_weights")
    teacher = _shares(teacher_weights, teachers, "teacher_weights")
    rows = np.kron(np.eye(students), np.ones((1, teachers)))
    columns = np.kron(np.ones((1, students)), np.eye(teachers))
    # One constraint follows from the others, and would contradict them by a rounding error.
    constraints, sums = np.vstack([rows, columns])[:-1], np.concatenate([student, teacher])[:-1]
    # The optimum doesn't depend on the unit of the costs; the solver's tolerances do.
    scale = np.abs(values).max() or 1.0
    solved = linprog(values.ravel() / scale, A_eq=constraints, b_eq=sums, bounds=(0, None), method="highs")
    if not solved.success:
        raise ArgumentError(problem("No flow between these layers was found", given=solved.message))
    return _tensor(solved.x.reshape(values.shape).clip(min=0.0), costs)


def cost_attention(
    costs: Float[Tensor, "S T"], flow: Float[Tensor, "S_f T_f"], temperature: float | None = 1.0
) -> tuple[Float[Tensor, " S"], Float[Tensor, " T"]]:
    """New layer weights from what each layer's transport cost: the cheaper a layer, the more it weighs next.

    u_i = sum over T of flow * costs / sum over T of flow,  a_i = sum of u / u_i,  weight = softmax(a / temperature)

    for the student's layers, and the same over S for the teacher's. u is a layer's cost a unit of weight.

    The publication has the softmax and its temperature [recalled]; the code released with it divides a by its sum
    instead, which is temperature None here. a is about the number of layers where costs are alike, so that temperatures
    of that size are mild, and far smaller ones leave one layer alone. Two edges are ours: a layer without weight costs
    what its cheapest pair does, and no layer counts as cheaper than a millionth of the average.

    Args:
        costs: the loss of each pair, [S, T]; 0 or more, finite. Detached here.
        flow: what `earth_movers_flow` gave for them, [S, T].
        temperature: above 0, or None for plain shares.

    Returns:
        The student's weights [S] and the teacher's [T], each summing to 1, without a gradient, for the next
        `earth_movers_flow`.

    Raises:
        ShapeError: not two matrices of one shape.
        ArgumentError: negative costs or flow, numbers that are not finite, or a temperature that is not above 0.

    References:
        Li et al.: BERT-EMD, 2020, https://arxiv.org/abs/2010.06133 (cost attention)

    Prefer equal weights, which need no state, unless some layers are known to matter little.
    """
    values, moved = _matrix(costs, "costs"), _matrix(flow, "flow")
    if values.shape != moved.shape:
        raise ShapeError(
            problem(
                "cost_attention takes a flow of the shape of its costs",
                given=f"costs {tuple(costs.shape)}, flow {tuple(flow.shape)}",
            )
        )
    for name, numbers in (("costs", values), ("flow", moved)):
        if (numbers < 0).any():
            raise ArgumentError(problem(f"The {name} of cost_attention are 0 or more", given=f"least {numbers.min()}"))
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise ArgumentError(problem("The temperature of cost_attention is a finite number above 0", given=temperature))
    student = _attention(values, moved, temperature)
    teacher = _attention(values.T, moved.T, temperature)
    return _tensor(student, costs), _tensor(teacher, costs)


def _attention(costs: Matrix, flow: Matrix, temperature: float | None) -> Matrix:
    """The weights of the layers that stand in the rows."""
    weight = flow.sum(1)
    unit = np.where(weight > 0, (flow * costs).sum(1) / np.where(weight > 0, weight, 1.0), costs.min(1))
    average = unit.mean()
    if average == 0.0:  # all cost nothing, so none is cheaper
        return np.full(len(unit), 1.0 / len(unit))
    attention = unit.sum() / np.maximum(unit, _LEAST_SHARE * average)
    raised = attention if temperature is None else np.exp((attention - attention.max()) / temperature)
    shares: Matrix = raised / raised.sum()
    return shares


def _matrix(tensor: Tensor, name: str) -> Matrix:
    if tensor.ndim != 2 or not tensor.numel():
        raise ShapeError(
            problem(
                f"The {name} of layer pairs have the shape student layers x teacher layers", given=tuple(tensor.shape)
            )
        )
    values: Matrix = tensor.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all():
        raise ArgumentError(problem(f"The {name} of layer pairs are finite numbers", given=values.tolist()))
    return values


def _shares(weights: Tensor | None, layers: int, name: str) -> Matrix:
    if weights is None:
        return np.full(layers, 1.0 / layers)
    if weights.shape != (layers,):
        raise ShapeError(
            problem(
                f"The {name} are one number for each layer", given=tuple(weights.shape), do=f"Give {layers} numbers"
            )
        )
    values: Matrix = weights.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ArgumentError(problem(f"The {name} are 0 or more, and not all 0", given=values.tolist()))
    shares: Matrix = values / values.sum()
    return shares


def _tensor(values: Matrix, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, torch.promote_types(like.dtype, torch.float32))
