"""The bootstrap against a naive loop, known standard errors, and simulated coverage with one seed and with three."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from potstill.errors import PotstillError, ShapeError
from potstill.evaluation.significance import Comparison, bootstrap, interval, retained_interval
from potstill.metrics import PROBLEMS, score
from potstill.metrics.segmentation import pixel_counts


def logits_of(correct, labels):
    """Two-class logits that are right where `correct` says so."""
    said = np.where(correct, labels, 1 - labels)
    return np.eye(2)[said]


def example(rows=200, seeds=3, seed=0, problem="single_label"):
    generator = np.random.default_rng(seed)
    if problem == "regression":
        labels = generator.normal(size=rows)
        return [[labels + generator.normal(size=rows) * s for _ in range(seeds)] for s in (1.0, 1.5)], labels
    if problem.startswith("segmentation"):
        maps = generator.integers(0, 3, (rows, 6, 8))
        wrong = [[generator.random(maps.shape) < share for _ in range(seeds)] for share in (0.3, 0.5)]
        said = [[np.where(one, generator.integers(0, 3, maps.shape), maps) for one in side] for side in wrong]
        counts = [[pixel_counts(one, maps, 3) for one in side] for side in said]
        return counts, counts[0][0][:, :, :3].sum(2)
    labels = generator.integers(0, 2, rows if problem == "single_label" else (rows, 2))
    truth = np.eye(2)[labels] if problem == "single_label" else labels
    return [[truth * s + generator.normal(size=(rows, 2)) for _ in range(seeds)] for s in (1.5, 1.0)], labels


def naive(key, problem, a, b, labels, resamples, seed):
    """The same resamples, drawn row by row and scored one at a time."""
    rows = len(labels)
    draws = np.random.default_rng(seed).integers(0, rows, size=(resamples, rows))
    return np.array([score(key, problem, a[d], labels[d]) - score(key, problem, b[d], labels[d]) for d in draws])


@pytest.mark.parametrize(("problem", "key"), [(problem, key) for problem in PROBLEMS for key in PROBLEMS[problem]])
def test_one_seed_is_the_percentile_interval_of_a_naive_loop(problem, key):
    (a, b), labels = example(rows=40, seeds=1, problem=problem)
    made = bootstrap(key, problem, a, b, labels, resamples=200, seed=3)
    drawn = naive(key, problem, a[0], b[0], labels, 200, 3)
    assert made.difference == pytest.approx(score(key, problem, a[0], labels) - score(key, problem, b[0], labels))
    assert made.interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert made.standard_error == pytest.approx(drawn.std(ddof=1))
    assert (made.run_error, made.std, made.resamples) == (None, None, 200)


def test_a_function_gives_the_same_as_the_key():
    (a, b), labels = example(rows=50)

    def accuracy(logits, labels):
        return float((logits.argmax(1) == labels).mean())

    by_key = bootstrap("accuracy", "single_label", a, b, labels, resamples=50)
    by_function = bootstrap(accuracy, "single_label", a, b, labels, resamples=50)
    assert by_function.per_seed == by_key.per_seed
    assert by_function.interval == pytest.approx(by_key.interval)


def test_it_is_the_same_every_time_and_turns_with_its_sides():
    (a, b), labels = example()
    first, again = (bootstrap("accuracy", "single_label", a, b, labels, resamples=300) for _ in range(2))
    turned = bootstrap("accuracy", "single_label", b, a, labels, resamples=300)
    assert first == again and isinstance(first, Comparison)
    assert first.difference == -turned.difference
    assert first.interval == pytest.approx((-turned.interval[1], -turned.interval[0]))
    assert bootstrap("accuracy", "single_label", a, b, labels, resamples=300, seed=1) != first


def test_pairing_takes_the_common_rows_out():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500)
    right = generator.random(500) < 0.8
    better = right | (generator.random(500) < 0.1)  # the same rows, and a few more
    a, b = logits_of(better, labels), logits_of(right, labels)
    made = bootstrap("accuracy", "single_label", a, b, labels)
    apart = [interval("accuracy", "single_label", logits, labels).standard_error for logits in (a, b)]
    assert made.interval[0] > 0 and made.standard_error < 0.5 * math.hypot(*apart)


def test_the_standard_error_of_accuracy_is_the_binomial_one():
    labels = np.zeros(400, dtype=int)
    made = interval("accuracy", "single_label", logits_of(np.arange(400) < 300, labels), labels, resamples=4000)
    assert made.mean == 0.75
    assert made.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.05)


def test_equal_models_have_no_difference_at_all():
    (a, _), labels = example()
    made = bootstrap("accuracy", "single_label", a, a, labels, resamples=100)
    assert (made.difference, made.interval, made.standard_error) == (0.0, (0.0, 0.0), 0.0)


def test_several_seeds_follow_the_stated_formula():
    (a, b), labels = example(rows=100)
    made = bootstrap("accuracy", "single_label", a, b, labels, resamples=400, seed=2)
    drawn = np.stack([naive("accuracy", "single_label", x, y, labels, 400, 2) for x, y in zip(a, b, strict=True)])
    covariances = np.cov(drawn)
    v, c = np.diag(covariances).mean(), covariances[~np.eye(3, dtype=bool)].mean()
    s2 = np.var(made.per_seed, ddof=1)
    squared = max(0.0, c) + (v - c) / 3 + max(0.0, s2 - (v - c)) / 3
    assert made.standard_error == pytest.approx(math.sqrt(squared))
    assert made.test_error == pytest.approx(math.sqrt(max(0.0, c) + (v - c) / 3))
    reach = stats.t.ppf(0.975, 2 * (squared / (s2 / 3)) ** 2) * math.sqrt(squared)
    assert made.interval == pytest.approx((made.difference - reach, made.difference + reach))
    assert math.hypot(made.test_error, made.run_error) == pytest.approx(made.standard_error)
    assert made.difference == pytest.approx(np.mean(made.per_seed)) and made.std == pytest.approx(math.sqrt(s2))


def test_no_interval_reaches_beyond_the_t_of_its_seeds():
    for seed in range(20):  # small samples, where a covariance is estimated below 0 now and then
        (a, b), labels = example(rows=30, seed=seed)
        made = bootstrap("accuracy", "single_label", a, b, labels, resamples=100)
        reach = made.interval[1] - made.difference
        assert 1.95 * made.standard_error < reach < 4.31 * made.standard_error


def test_runs_that_differ_widen_the_interval():
    labels = np.zeros(1000, dtype=int)
    places = np.arange(1000) % 100
    base = logits_of(places < 80, labels)
    steady = [logits_of(places < 84, labels)] * 3
    shaky = [logits_of(places < share, labels) for share in (78, 84, 90)]
    narrow = bootstrap("accuracy", "single_label", steady, base, labels)
    wide = bootstrap("accuracy", "single_label", shaky, base, labels)
    assert narrow.difference == pytest.approx(wide.difference) == pytest.approx(0.04)
    assert narrow.run_error == 0.0 and wide.run_error > wide.test_error
    assert narrow.interval[0] > 0 > wide.interval[0]
    # Three seeds 6 points apart, and hardly any other noise: nearly the t interval with 2 degrees of freedom.
    assert wide.interval[1] - wide.difference == pytest.approx(4.303 * 0.06 / math.sqrt(3), rel=0.15)


def test_a_single_teacher_is_compared_with_every_seed():
    (a, b), labels = example(rows=80)
    once = bootstrap("accuracy", "single_label", a, b[0], labels, resamples=100)
    assert once == bootstrap("accuracy", "single_label", a, [b[0]] * 3, labels, resamples=100)
    assert len(once.per_seed) == 3


def test_the_interval_of_a_share_stays_a_share():
    labels = np.zeros(50, dtype=int)
    seeds = [logits_of(np.arange(50) < right, labels) for right in (50, 49, 46)]
    made = interval("accuracy", "single_label", seeds, labels, resamples=200)
    assert made.interval[1] == 1.0 and made.mean < 1.0


def test_retained_is_the_ratio_on_the_same_rows():
    labels = np.zeros(600, dtype=int)
    places = np.arange(600) % 100
    teacher, student = logits_of(places < 90, labels), logits_of(places < 81, labels)
    made = retained_interval("accuracy", "single_label", [student], teacher, labels)
    assert made.mean == pytest.approx(0.9)
    assert 0.87 < made.interval[0] < 0.9 < made.interval[1] < 0.93
    assert retained_interval("accuracy", "single_label", teacher, teacher, labels).interval == (1.0, 1.0)
    assert retained_interval("log_loss", "single_label", student, teacher, labels) is None
    assert retained_interval("accuracy", "single_label", student, logits_of(places < 0, labels), labels) is None


def test_what_does_not_fit_is_refused():
    (a, b), labels = example()
    with pytest.raises(ShapeError, match="3 and 2"):
        bootstrap("accuracy", "single_label", a, b[:2], labels)
    with pytest.raises(ShapeError, match="At least one"):
        interval("accuracy", "single_label", [], labels)
    with pytest.raises(PotstillError, match="at least 2 resamples"):
        interval("accuracy", "single_label", a, labels, resamples=1)
    with pytest.raises(PotstillError, match="Unknown metric"):
        interval("pearson", "single_label", a, labels)


def test_chunks_change_nothing_that_matters(monkeypatch):
    (a, b), labels = example(rows=64)
    whole = bootstrap("macro_f1", "single_label", a, b, labels, resamples=500)
    monkeypatch.setattr("potstill.evaluation.significance._CELLS", 64 * 7)
    parts = bootstrap("macro_f1", "single_label", a, b, labels, resamples=500)
    assert parts.difference == whole.difference and parts.resamples == 500
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=0.15)


def experiment(generator, *, rows, seeds, truth, flips, runs):
    """Right or wrong of a student [S, N] and a baseline [S, N] whose expected accuracies differ by `truth`.

    flips: the share of rows on which each run decides anew. runs: the standard deviation of a run's own accuracy.
    """
    common = generator.random(rows)

    def model(level):
        for _ in range(seeds):
            threshold = level + runs * generator.standard_normal()
            ease = np.where(generator.random(rows) < flips, generator.random(rows), common)
            yield ease < threshold

    return np.stack(list(model(0.8 + truth))), np.stack(list(model(0.8)))


@pytest.mark.parametrize("truth", [0.0, 0.03])
@pytest.mark.parametrize(
    ("flips", "runs"), [(0.3, 0.0), (0.1, 0.01), (0.0, 0.02)], ids=["rows decided anew", "mixed", "run to run"]
)
def test_the_interval_of_three_seeds_covers_the_truth(truth, flips, runs):
    generator = np.random.default_rng(7)
    labels = np.zeros(300, dtype=int)
    times = 400
    covered = 0
    for _ in range(times):
        a, b = experiment(generator, rows=300, seeds=3, truth=truth, flips=flips, runs=runs)
        sides = [[logits_of(right, labels) for right in side] for side in (a, b)]
        low, high = bootstrap("accuracy", "single_label", *sides, labels, resamples=200).interval
        covered += low <= truth <= high
    assert 0.92 <= covered / times <= 0.99


def test_the_interval_of_one_seed_covers_the_truth_of_that_model():
    generator = np.random.default_rng(5)
    labels = np.zeros(300, dtype=int)
    covered = 0
    for _ in range(400):
        a, b = experiment(generator, rows=300, seeds=1, truth=0.03, flips=0.3, runs=0.0)
        low, high = bootstrap(
            "accuracy", "single_label", logits_of(a[0], labels), logits_of(b[0], labels), labels, resamples=300
        ).interval
        covered += low <= 0.03 <= high
    assert 0.92 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("problem", "key"), [("single_label", "accuracy"), ("single_label", "macro_f1"), ("regression", "spearman")]
)
def test_two_thousand_resamples_of_three_seeds_are_quick(problem, key):
    (a, b), labels = example(rows=2000, problem=problem)
    start = time.process_time()
    bootstrap(key, problem, a, b, labels)
    assert time.process_time() - start < (6 if key == "spearman" else 2)
