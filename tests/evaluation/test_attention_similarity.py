"""Attention maps beside attention maps: equal, wholly different, padded, by hand, and out of models."""

import math
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from tiny import DECODERS, ENCODERS, tiny_batch, tiny_model

from potstill.errors import ModelError, ShapeError
from potstill.evaluation.attention_similarity import LARGEST, attention_similarity, compare_attention, means


def maps(rows: int = 2, heads: int = 3, tokens: int = 5, seed: int = 0) -> torch.Tensor:
    """Random distributions [B,H,S,S]."""
    return torch.randn(rows, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1)


WHOLE = torch.ones(2, 5, dtype=torch.bool)


def test_equal_maps() -> None:
    found = attention_similarity(maps(), maps(), mask=WHOLE)
    assert found.mse.shape == found.cosine.shape == found.jensen_shannon.shape == (2, 3, 5)
    assert found.mse.max() == 0
    assert found.jensen_shannon.max() < 1e-6
    torch.testing.assert_close(found.cosine, torch.ones(2, 3, 5))


def test_maps_that_share_no_token() -> None:
    student, teacher = torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 5, 5)
    student[..., 0], teacher[..., 1] = 1, 1
    found = attention_similarity(student, teacher, mask=WHOLE)
    torch.testing.assert_close(found.jensen_shannon, torch.full((2, 3, 5), LARGEST))
    assert found.cosine.max() == 0
    torch.testing.assert_close(found.mse, torch.full((2, 3, 5), 2 / 5))


def test_by_hand() -> None:
    student, teacher = maps(seed=1), maps(seed=2)
    found = attention_similarity(student, teacher, mask=WHOLE)
    p, q = teacher[1, 2, 3].double(), student[1, 2, 3].double()
    assert found.jensen_shannon[1, 2, 3].item() == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-5)
    assert found.cosine[1, 2, 3].item() == pytest.approx((p @ q / p.norm() / q.norm()).item(), rel=1e-5)
    assert found.mse[1, 2, 3].item() == pytest.approx(((p - q) ** 2).mean().item(), rel=1e-5)


def test_padding_changes_nothing() -> None:
    student, teacher, mask = maps(seed=1), maps(seed=2), WHOLE
    padded = []
    for one, filled in ((student, 0.3), (teacher, 0.1)):
        wider = torch.full((2, 3, 7, 7), filled)  # what stands at padding may be anything
        wider[..., :5, :5] = one
        padded.append(wider)
    less = attention_similarity(*padded, mask=torch.nn.functional.pad(mask, (0, 2)))
    whole = attention_similarity(student, teacher, mask=mask)
    for name in ("mse", "cosine", "jensen_shannon"):
        torch.testing.assert_close(getattr(less, name)[..., :5], getattr(whole, name))
        assert getattr(less, name)[..., 5:].abs().max() == 0


def test_other_head_counts_are_compared_by_their_means() -> None:
    student, teacher = maps(heads=2), maps(heads=4, seed=3)
    found = attention_similarity(student, teacher, mask=WHOLE)
    assert found.mse.shape == (2, 1, 5)
    same = attention_similarity(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True), mask=WHOLE)
    torch.testing.assert_close(found.jensen_shannon, same.jensen_shannon)


@pytest.mark.parametrize(
    ("teacher", "mask", "said"),
    [(maps(rows=3), WHOLE, "(3, 3, 5, 5)"), (maps(tokens=6), WHOLE, "(2, 3, 6, 6)"), (maps(), WHOLE[:1], "(1, 5)")],
)
def test_shapes_that_do_not_fit(teacher: torch.Tensor, mask: torch.Tensor, said: str) -> None:
    with pytest.raises(ShapeError) as caught:
        attention_similarity(maps(), teacher, mask=mask)
    assert said in str(caught.value)


def eager(family: str, **options: Any) -> Any:
    """A tiny model that can be looked into."""
    model = tiny_model(family, **options)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_a_model_is_like_itself(family: str) -> None:
    model = eager(family, layers=2)
    batches = [tiny_batch(rows=3, tokens=9), tiny_batch(rows=2, tokens=5, seed=1)]
    found = compare_attention(model, model, batches, [(0, 0), (1, 1)])
    assert [(one["student"], one["teacher"]) for one in found] == [(0, 0), (1, 1)]
    assert means(found)["jensen_shannon"] == pytest.approx(0, abs=1e-6)
    assert means(found)["cosine"] == pytest.approx(1, abs=1e-5)


def test_batches_weigh_by_their_tokens() -> None:
    student, teacher = eager("bert", layers=1, seed=1), eager("bert", layers=1, seed=2)
    batch = tiny_batch(rows=4, tokens=9)
    whole = compare_attention(student, teacher, [batch], [(0, 0)])
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    cut = compare_attention(student, teacher, parts, [(0, 0)])
    assert cut[0]["jensen_shannon"] == pytest.approx(whole[0]["jensen_shannon"], rel=1e-5)
    assert 0 < whole[0]["mean"] < math.log(2)


def test_a_fused_kernel_is_refused() -> None:
    model = tiny_model("bert", layers=1)
    with pytest.raises(ModelError, match="eager"):
        compare_attention(model, model, [tiny_batch()], [(0, 0)])
