"""Several teachers have influences that sum to 1 on every row; rows go to the surest, or where a column says."""

import pytest
import torch

from potstill.knowledge import Knowledge
from potstill.training.combination import Combination

WEIGHTS = {"teacher": 1.0, "second": 3.0}
SURE, UNSURE = [4.0, -4.0], [0.1, 0.0]
TAUGHT = {
    "teacher": Knowledge(logits=torch.tensor([SURE, UNSURE, UNSURE])),
    "second": Knowledge(logits=torch.tensor([UNSURE, SURE, [0.2, 0.0]])),
}


def test_weights_are_shares():
    assert Combination(WEIGHTS).influence(TAUGHT, {}) == {"teacher": 0.25, "second": 0.75}


def test_the_surest_teaches_the_row():
    found = Combination(WEIGHTS, "confident").influence(TAUGHT, {})
    assert found["teacher"].tolist() == [1.0, 0.0, 0.0]
    assert found["second"].tolist() == [0.0, 1.0, 1.0]


def test_a_column_says_who_teaches_the_row():
    found = Combination(WEIGHTS, "who").influence(TAUGHT, {"teacher": torch.tensor([1, 0, 1])})
    assert found["teacher"].tolist() == [0.0, 1.0, 0.0]
    assert sum(found.values()).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("taught", [{}, {"teacher": TAUGHT["teacher"]}])
def test_a_stage_that_asks_not_all_of_them_routes_nothing(taught):
    assert Combination(WEIGHTS, "confident").influence(taught, {}) == {}
