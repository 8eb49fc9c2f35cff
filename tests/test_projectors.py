"""Projections: their equations, where they start, and that they come back from a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potstill.errors import ArgumentError
from potstill.projectors import LINEAR, PROJECTIONS, projector
from potstill.training.checkpoints import _load, _save

WIDTHS = [(6, 10), (8, 8), (10, 6)]


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor]:
    linear = module[0] if isinstance(module, nn.Sequential) else module
    return linear.weight, linear.bias


def is_orthogonal(weight: Tensor, tolerance: float = 1e-5) -> bool:
    product = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    return bool((product - torch.eye(len(product))).abs().max() < tolerance)


def moved(kind: str, student: int, teacher: int, steps: int = 3) -> nn.Module:
    """A projection after some steps towards random targets."""
    torch.manual_seed(0)
    module = projector(kind, student, teacher)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.05)
    for _ in range(steps):
        loss = (module(torch.randn(7, student)) - torch.randn(7, teacher)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return module


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_shapes_and_gradients(kind: str, widths: tuple[int, int]) -> None:
    module = projector(kind, *widths)
    hidden = torch.randn(2, 3, widths[0], requires_grad=True)
    projected = module(hidden)
    assert projected.shape == (2, 3, widths[1])
    projected.square().sum().backward()
    for tensor in (hidden, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "bent"), [("linear", lambda x: x), ("relu", lambda x: x.clamp(min=0)), ("tanh", torch.tanh)]
)
def test_equations(kind: str, bent: object) -> None:
    module = moved(kind, 6, 10)
    weight, bias = weight_and_bias(module)
    hidden = torch.randn(4, 6)
    torch.testing.assert_close(module(hidden), bent(hidden @ weight.T + bias))  # type: ignore[operator]


@pytest.mark.parametrize("widths", WIDTHS)
def test_free_maps_start_orthogonal_and_may_leave(widths: tuple[int, int]) -> None:
    for kind in ("linear", "relu", "tanh"):
        weight, bias = weight_and_bias(projector(kind, *widths))
        assert is_orthogonal(weight.detach())
        assert not bias.any()
        assert not is_orthogonal(weight_and_bias(moved(kind, *widths))[0].detach(), tolerance=1e-2)


def matrix(module: nn.Module, student: int) -> Tensor:
    """W, by what it makes of the unit vectors."""
    with torch.no_grad():
        return module(torch.eye(student)).T


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("steps", [0, 1, 20])
def test_an_orthogonal_map_stays_one(widths: tuple[int, int], steps: int) -> None:
    module = moved("orthogonal", *widths, steps=steps)  # with weight decay, which shrinks other weights
    assert is_orthogonal(matrix(module, widths[0]))
    if steps:
        assert (matrix(module, widths[0]) - matrix(moved("orthogonal", *widths, steps=0), widths[0])).abs().max() > 0.01
    if widths[1] >= widths[0]:  # lengths and angles are kept
        hidden = torch.randn(9, widths[0])
        torch.testing.assert_close(module(hidden) @ module(hidden).T, hidden @ hidden.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_projection_comes_back_from_a_checkpoint(tmp_path: Path, kind: str, widths: tuple[int, int]) -> None:
    # As checkpoints.py writes them: in a ModuleDict, a safetensors file, tensors that share memory once.
    saved = nn.ModuleDict({"hidden_0_to_1": moved(kind, *widths), "hidden_1_to_3": projector(kind, *widths)})
    _save(saved.state_dict(), tmp_path / "projectors.safetensors")
    torch.manual_seed(5)
    fresh = nn.ModuleDict({name: projector(kind, *widths) for name in saved})
    hidden = torch.randn(4, widths[0])
    assert not torch.equal(fresh["hidden_0_to_1"](hidden), saved["hidden_0_to_1"](hidden))
    _load(fresh, tmp_path / "projectors.safetensors")
    for name in saved:
        assert torch.equal(fresh[name](hidden), saved[name](hidden))


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_under_autocast(kind: str, widths: tuple[int, int]) -> None:
    module = moved(kind, *widths)
    hidden = torch.randn(4, widths[0])
    plain = module(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        projected = module(hidden)
        projected.float().square().sum().backward()
    torch.testing.assert_close(projected.float(), plain, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("widths", WIDTHS)
def test_an_orthogonal_map_is_made_in_float32_under_autocast(widths: tuple[int, int]) -> None:
    module = moved("orthogonal", *widths)
    with torch.autocast("cpu", torch.bfloat16):
        # The unit vectors give W rounded once; made in bfloat16 it would be rounded many times.
        under = matrix(module, widths[0])
    assert torch.equal(under, matrix(module, widths[0]).bfloat16())


def test_an_unknown_kind_is_refused() -> None:
    assert PROJECTIONS[0] == LINEAR
    with pytest.raises(ArgumentError, match=r"'tahn'.*Did you mean 'tanh'.*linear, orthogonal, relu, tanh"):
        projector("tahn", 4, 4)
