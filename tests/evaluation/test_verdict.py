"""Every outcome in its own words; one seed worded with care; the direction of the metric kept."""

from dataclasses import replace

import pytest

from potstill.evaluation.significance import Comparison, Estimate
from potstill.evaluation.verdict import side, smallest_visible, verdict
from potstill.metrics import METRICS

ACCURACY, MSE, PEARSON = METRICS["accuracy"], METRICS["mse"], METRICS["pearson"]


def compared(difference, low, high, *, error=0.004, seeds=3, test_error=0.003, run_error=0.002):
    return Comparison(
        mean=difference,
        interval=(low, high),
        standard_error=error,
        per_seed=[difference + 0.002 * (k - (seeds - 1) / 2) for k in range(seeds)],
        resamples=2000,
        level=0.95,
        test_error=test_error,
        run_error=None if seeds == 1 else run_error,
    )


def share(mean, low, high):
    return Estimate(mean, (low, high), 0.004, [mean], 2000, 0.95, 0.004, None)


HELPED = compared(0.013, 0.005, 0.021)


def test_helped():
    made = verdict(HELPED, metric=ACCURACY, seeds=3)
    assert made["outcome"] == "helped"
    assert made["headline"] == (
        "Distillation helped: +1.3 points of accuracy over the same student trained without a teacher "
        "(95 % interval +0.5 to +2.1)."
    )
    assert made["sentences"] == ["The difference in each of the 3 runs: +1.1, +1.3, +1.5 points."]


def test_one_seed_is_worded_with_care():
    made = verdict(compared(0.013, 0.005, 0.021, seeds=1), metric=ACCURACY, seeds=1)
    assert made["outcome"] == "helped"
    assert made["headline"].startswith("Distillation helped on this seed: +1.3 points of accuracy")
    assert "test-sample noise only" in made["headline"]
    assert any("unknown. Run with evaluate.seeds=3 to know." in sentence for sentence in made["sentences"])
    assert "on this seed" in verdict(compared(-0.02, -0.03, -0.01, seeds=1), metric=ACCURACY, seeds=1)["headline"]


def test_two_seeds_ask_for_a_third():
    made = verdict(compared(0.013, 0.005, 0.021, seeds=2), metric=ACCURACY, seeds=2)
    assert made["sentences"] == [
        "Two seeds say little about the noise from run to run: run with evaluate.seeds=3 or more."
    ]


def test_harm():
    made = verdict(compared(-0.02, -0.03, -0.01), metric=ACCURACY, seeds=3)
    assert made["outcome"] == "harm"
    assert made["headline"] == (
        "Distillation did harm: -2.0 points of accuracy against the same student trained without a teacher "
        "(95 % interval -3.0 to -1.0)."
    )
    assert "better trained on the labels alone" in made["sentences"][0]


def test_no_difference_says_what_could_have_been_seen_and_what_to_do():
    unclear = compared(0.006, -0.009, 0.021, error=0.0074)
    made = verdict(unclear, metric=ACCURACY, seeds=3)
    assert made["outcome"] == "no_difference"
    assert made["headline"].startswith("Distillation made no difference that can be told: +0.6 points of accuracy")
    assert smallest_visible(unclear) == pytest.approx(0.015 + 0.8416 * 0.0074, abs=1e-5)
    assert "standard error of the difference is 0.7 points" in made["sentences"][0]
    assert "smaller than about 2.1 points" in made["sentences"][0]
    assert "more test rows (four times as many halve it), and more seeds" in made["sentences"][1]
    shaky = replace(unclear, run_error=0.007, test_error=0.002)
    assert "take more than 3 seeds" in verdict(shaky, metric=ACCURACY, seeds=3)["sentences"][1]
    single = verdict(compared(0.006, -0.009, 0.021, seeds=1), metric=ACCURACY, seeds=1)
    assert "on this seed" not in single["headline"] and "evaluate.seeds=3" in single["sentences"][-1]


def test_no_difference_at_all():
    made = verdict(compared(0.0, 0.0, 0.0, error=0.0), metric=ACCURACY, seeds=3)
    assert made["outcome"] == "no_difference" and "-0.0" not in made["headline"]
    assert made["sentences"] == ["Student and baseline have the same result in every resample of the test rows."]


def test_lower_is_better_turns_the_outcome_and_is_said():
    made = verdict(compared(-0.012, -0.02, -0.004), metric=MSE, seeds=3)
    assert made["outcome"] == "helped"
    assert made["headline"] == (
        "Distillation helped: -0.012 in mean squared error (lower is better) against the same student trained without "
        "a teacher (95 % interval -0.020 to -0.004)."
    )
    assert side(compared(0.012, 0.004, 0.02), MSE) == "harm"


def test_plain_numbers_do_not_speak_of_points():
    made = verdict(compared(0.013, 0.005, 0.021), metric=PEARSON, seeds=3)
    assert "+0.013 in Pearson correlation over" in made["headline"]
    assert not any("points" in sentence for sentence in [made["headline"], *made["sentences"]])


def test_a_small_interval_is_not_rounded_to_nothing():
    headline = verdict(compared(0.0013, 0.0002, 0.0024), metric=ACCURACY, seeds=3)["headline"]
    assert "+0.02 to +0.24" in headline


def test_a_pretrained_cut_that_does_better_stands_in_the_headline():
    made = verdict(HELPED, metric=ACCURACY, seeds=3, other=compared(-0.008, -0.014, -0.002))
    assert made["outcome"] == "helped"
    assert made["headline"].endswith(
        "But the same cut of the pretrained model, trained without a teacher, does better than the student: "
        "+0.8 points of accuracy."
    )
    assert any("gave the better model" in sentence for sentence in made["sentences"])
    harm = verdict(compared(-0.02, -0.03, -0.01), metric=ACCURACY, seeds=3, other=compared(-0.02, -0.03, -0.01))
    assert " And the same cut of the pretrained model" in harm["headline"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (compared(0.01, 0.002, 0.018), "does better than that one as well"),
        (compared(-0.01, -0.03, 0.01), "can't be told apart"),
    ],
)
def test_a_pretrained_cut_that_does_not_leaves_the_headline(other, said):
    made = verdict(HELPED, metric=ACCURACY, seeds=3, other=other)
    assert made["headline"] == verdict(HELPED, metric=ACCURACY, seeds=3)["headline"]
    assert any(said in sentence for sentence in made["sentences"])


def test_what_the_student_keeps():
    sentences = verdict(
        HELPED, metric=ACCURACY, seeds=3, retained=share(0.987, 0.979, 0.994),
        teacher_comparison=compared(-0.011, -0.019, -0.005),
    )["sentences"]  # fmt: skip
    assert "The student keeps 98.7 % of the teacher's accuracy (95 % interval 97.9 to 99.4 %)." in sentences
    expected = "The difference to the teacher is -1.1 points of accuracy (95 % interval -1.9 to -0.5)."
    assert sentences[-1] == expected
    even = verdict(HELPED, metric=ACCURACY, seeds=3, teacher_comparison=compared(-0.001, -0.009, 0.007))["sentences"]
    assert even[-1].endswith("which can't be told from none.")


def test_more_than_the_teacher():
    above = verdict(HELPED, metric=ACCURACY, seeds=3, retained=share(1.012, 1.002, 1.022))["sentences"][-1]
    assert (
        above
        == "The student scores above its teacher: 101.2 % of the teacher's accuracy (95 % interval 100.2 to 102.2 %)."
    )
    maybe = verdict(HELPED, metric=ACCURACY, seeds=3, retained=share(1.002, 0.992, 1.012))["sentences"][-1]
    assert maybe.endswith("though the two can't be told apart.")


def test_without_a_baseline_nothing_is_claimed():
    made = verdict(
        None, metric=ACCURACY, seeds=1, retained=share(0.98, 0.97, 0.99), other=compared(-0.01, -0.02, -0.003)
    )
    assert made["outcome"] == "not_compared"
    assert made["headline"].startswith("Whether distillation helped is not known: no baseline was run.")
    assert " But the same cut" in made["headline"] and "evaluate.baseline=true" in made["sentences"][0]
