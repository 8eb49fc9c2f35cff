"""Which differences among many variants can be told from noise, and in which words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potstill.evaluation import comparison
from potstill.evaluation.comparison import Variant, best_of, comparison_verdict, differences

LABELS = np.random.default_rng(0).integers(0, 2, 600)
HARD = np.random.default_rng(1).normal(size=600)


def variant(key: str, ease: float, *, plain: str | None = "plain", seeds: int = 3, noise: float = 0.3) -> Variant:
    """Logits that are right the more often the larger `ease` is, on rows that are hard for all alike."""
    chance = np.random.default_rng([ord(letter) for letter in key])
    found = []
    for _ in range(seeds):
        margin = ease + HARD + noise * chance.normal(size=600)
        found.append(np.stack([np.zeros(600), np.where(LABELS == 1, margin, -margin)], axis=1))
    return Variant(key, key.capitalize(), plain, found)


def outcomes(variants: list[Variant], family: str = "plain") -> dict[str, str]:
    """What can be told of each variant of a family."""
    return {one.a: one.outcome for one in differences(variants, LABELS, "single_label") if one.family == family}


PLAIN = variant("plain", 0.8, plain=None)


def test_what_is_far_is_told_apart() -> None:
    found = outcomes([PLAIN, variant("good", 1.3), variant("alike", 0.8), variant("bad", 0.3)])
    assert found == {"good": "helped", "alike": "no_difference", "bad": "harm"}


def test_families_and_their_pairs() -> None:
    variants = [PLAIN, variant("alike", 0.8), variant("good", 1.3), variant("bad", 0.3)]
    found = differences(variants, LABELS, "single_label")
    assert [(one.family, one.a, one.b) for one in found] == [
        ("plain", "alike", "plain"),
        ("plain", "good", "plain"),
        ("plain", "bad", "plain"),
        ("first", "good", "alike"),
        ("first", "bad", "alike"),
        ("best", "alike", "good"),
        ("best", "bad", "good"),
    ]
    assert best_of(variants, LABELS, "single_label") == "good"


def test_a_variant_is_held_against_its_own_plain_student() -> None:
    small = variant("small", 0.2, plain=None)
    found = differences([PLAIN, small, variant("a", 1.3), variant("b", 0.7, plain="small")], LABELS, "single_label")
    assert [(one.a, one.b) for one in found if one.family == "plain"] == [("a", "plain"), ("b", "small")]


def test_among_many_one_interval_alone_is_not_enough() -> None:
    """Of variants that are all alike, a few have an interval beside 0; together, hardly any is told apart."""
    alike = [variant(f"v{number}", 0.8, seeds=1, noise=0.5) for number in range(60)]
    one = [PLAIN.key, PLAIN.title, None, PLAIN.logits[:1]]
    found = [d for d in differences([Variant(*one), *alike], LABELS, "single_label") if d.family == "plain"]
    alone = sum(low > 0 or high < 0 for low, high in (d.made.interval for d in found))
    assert alone >= 1, "the seed of this test is to give a false alarm"
    assert sum(d.outcome != "no_difference" for d in found) == 0


def test_one_variant_needs_no_correction() -> None:
    found = differences([PLAIN, variant("good", 1.3)], LABELS, "single_label")
    [only] = found
    assert only.outcome == "helped" and only.made.interval[0] > 0


def test_equal_logits_are_no_difference() -> None:
    twin = Variant("twin", "Twin", "plain", PLAIN.logits)
    assert outcomes([PLAIN, twin]) == {"twin": "no_difference"}


def test_the_best_of_an_error_is_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [PLAIN, variant("good", 1.3), variant("bad", 0.3)]
    turned = replace(comparison.METRICS["accuracy"], higher_is_better=False)
    monkeypatch.setitem(comparison.METRICS, "accuracy", turned)
    assert best_of(variants, LABELS, "single_label") == "bad"
    assert outcomes(variants) == {"good": "harm", "bad": "helped"}


def words(*variants: Variant, seeds: int = 3) -> dict[str, Any]:
    """The verdict on some variants beside the plain student."""
    plain = Variant("plain", "Plain", None, PLAIN.logits[:seeds])
    every = [plain, *(Variant(v.key, v.title, v.plain, v.logits[:seeds]) for v in variants)]
    found = differences(every, LABELS, "single_label")
    titles = {one.key: one.title for one in every}
    best = best_of(every, LABELS, "single_label")
    return comparison_verdict(found, titles, best, problem="single_label", seeds=seeds)


def test_words_for_what_helped() -> None:
    found = words(variant("good", 1.3), variant("bad", 0.3), variant("alike", 0.8))
    assert found["best"] == "good"
    assert found["headline"].startswith("Good has the best result: +")
    said = " ".join(found["sentences"])
    assert "Better than the plain student, beyond what noise explains: Good." in said
    assert "Worse than the plain student, beyond what noise explains: Bad." in said
    assert "Not to be told from the plain student: Alike." in said
    assert "Behind Good by more than noise explains: Bad and Alike." in said
    assert "Holm" in said


def test_words_for_what_did_not() -> None:
    found = words(variant("alike", 0.8), variant("equal", 0.81))
    assert found["headline"].startswith("No variant can be told to be better")
    assert any("none of the others can be told from it" in sentence for sentence in found["sentences"])


@pytest.mark.parametrize(("seeds", "said"), [(1, "One seed was run"), (2, "Two seeds say little"), (3, "")])
def test_words_about_seeds(seeds: int, said: str) -> None:
    text = " ".join(words(variant("good", 1.3), seeds=seeds)["sentences"])
    assert said in text
    assert ("seed" in text) == bool(said)


def test_names_with_commas_are_kept_apart() -> None:
    odd = Variant("x", "kd, layers 3", "plain", variant("alike", 0.8).logits)
    text = " ".join(words(odd, variant("equal", 0.81))["sentences"])
    assert "kd, layers 3; and Equal" in text
