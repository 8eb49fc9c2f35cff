"""The memory of contrastive distillation: what it draws, what it remembers, and that a resumed run goes on exactly."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.contrast import ContrastiveMemory
from potstill.errors import ArgumentError, ShapeError
from potstill.losses import crd


def memory(**options: int | float) -> ContrastiveMemory:
    torch.manual_seed(0)
    return ContrastiveMemory(6, 8, rows=30, **{"width": 5, "negatives": 7} | options)  # type: ignore[arg-type]


def batch(number: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    rows = torch.randperm(30, generator=generator)[:4]
    return torch.randn(4, 6, generator=generator), torch.randn(4, 8, generator=generator), rows


def train(own: ContrastiveMemory, numbers: range) -> list[float]:
    """A few steps of gradient descent; their losses."""
    optimiser = torch.optim.SGD(own.parameters(), lr=0.01)
    found = []
    for number in numbers:
        optimiser.zero_grad()
        loss = crd(**own(*batch(number))).mean()  # type: ignore[arg-type]
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def test_candidates_are_the_own_row_first_and_never_again() -> None:
    rows = batch(0)[2]
    candidates = memory()(*batch(0))["candidates"]
    assert isinstance(candidates, Tensor)
    assert candidates.shape == (4, 8)
    assert torch.equal(candidates[:, 0], rows)
    assert (candidates[:, 1:] != rows.unsqueeze(1)).all()
    assert ((candidates >= 0) & (candidates < 30)).all()


def test_as_many_negatives_as_other_rows_are_all_of_them_once() -> None:
    own = memory(negatives=16384)
    assert own.negatives == 29
    candidates = own(*batch(0))["candidates"]
    assert isinstance(candidates, Tensor)
    assert candidates.sort(dim=1).values.tolist() == [list(range(30))] * 4


def test_it_draws_anew_for_every_batch_of_training_and_by_seed() -> None:
    own = memory()
    first, second = own(*batch(0))["candidates"], own(*batch(0))["candidates"]
    other = memory(seed=1)(*batch(0))["candidates"]
    assert not torch.equal(first, second)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]


def test_training_remembers_those_rows_with_momentum() -> None:
    own = memory(momentum=0.25)
    before = own.student_bank.clone()
    student, teacher, rows = batch(0)
    arguments = own(student, teacher, rows)
    assert torch.equal(arguments["student_bank"], before)  # type: ignore[arg-type]  # the loss sees what was there
    moved = 0.25 * before[rows] + 0.75 * arguments["student"].detach()  # type: ignore[union-attr]
    torch.testing.assert_close(own.student_bank[rows], moved / moved.norm(dim=-1, keepdim=True))
    others = torch.ones(30, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(own.student_bank[others], before[others])
    assert not own.student_bank.requires_grad


def test_evaluation_remembers_and_counts_nothing() -> None:
    own = memory().eval()
    before = copy.deepcopy(own.state_dict())
    crd(**own(*batch(0)))  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_constants_are_those_of_the_first_batch_of_training() -> None:
    own = memory()
    arguments = own(*batch(0))
    without = {name: value for name, value in arguments.items() if name != "constants"}
    torch.testing.assert_close(crd(**arguments), crd(**without))  # type: ignore[arg-type]
    first = arguments["constants"]
    assert (first != 1).all()  # type: ignore[union-attr]
    for number in (1, 2):
        assert torch.equal(own(*batch(number))["constants"], first)  # type: ignore[arg-type]


def test_both_heads_learn() -> None:
    own = memory()
    crd(**own(*batch(0))).sum().backward()  # type: ignore[arg-type]
    for head in (own.student_head, own.teacher_head):
        assert head.weight.grad is not None
        assert head.weight.grad.abs().max() > 0


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    whole = memory()
    losses = train(whole, range(6))
    first = memory()
    train(first, range(3))
    save_file(first.state_dict(), tmp_path / "memory.safetensors")
    resumed = memory(seed=0)
    resumed.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    assert train(resumed, range(3, 6)) == losses[3:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_it_refuses() -> None:
    for wrong in ({"rows": 1}, {"negatives": 0}, {"momentum": 1.5}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            ContrastiveMemory(6, 8, **{"rows": 30} | wrong)  # type: ignore[arg-type]
    student, teacher, rows = batch(0)
    with pytest.raises(ShapeError, match=r"student \(4, 6\), teacher \(4, 8\), row_numbers \(3,\)"):
        memory()(student, teacher, rows[:3])
