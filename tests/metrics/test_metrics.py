"""Every metric against scikit-learn or scipy, on all rows and on resamples of them; and what is undefined."""

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from potstill.errors import DataError, ModelError, PotstillError, ShapeError
from potstill.metrics import METRICS, PROBLEMS, keys, primary, score, scores, statistic
from potstill.metrics.classification import confusion, log_softmax, per_class, predictions, probabilities


def example(problem, rows=60, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    if problem == "single_label":
        return generator.normal(size=(rows, classes)).astype(np.float32), generator.integers(0, classes, rows)
    if problem == "multi_label":
        # Coarse scores, so that average precision meets ties.
        return generator.normal(size=(rows, classes)).round(1), (generator.random((rows, classes)) < 0.4).astype(int)
    labels = generator.normal(size=rows).round(1)
    return (labels + generator.normal(size=rows)).round(1)[:, None], labels


def reference(key, problem, logits, labels):
    """The same by scikit-learn or scipy."""
    if problem == "regression":
        x = logits[:, 0]
        return {
            "pearson": lambda: stats.pearsonr(x, labels)[0],
            "spearman": lambda: stats.spearmanr(x, labels)[0],
            "mse": lambda: sk.mean_squared_error(labels, x),
            "mae": lambda: sk.mean_absolute_error(labels, x),
        }[key]()
    if problem == "multi_label":
        said = logits > 0
        present = labels.any(axis=0)
        return {
            "micro_f1": lambda: sk.f1_score(labels, said, average="micro"),
            "macro_f1": lambda: sk.f1_score(labels, said, average="macro", zero_division=np.nan),
            "subset_accuracy": lambda: sk.accuracy_score(labels, said),
            "average_precision": lambda: sk.average_precision_score(labels[:, present], logits[:, present]),
        }[key]()
    said = logits.argmax(1)
    return {
        "accuracy": lambda: sk.accuracy_score(labels, said),
        "macro_f1": lambda: sk.f1_score(labels, said, average="macro"),
        "matthews": lambda: sk.matthews_corrcoef(labels, said),
        "log_loss": lambda: sk.log_loss(labels, np.exp(log_softmax(logits)), labels=range(logits.shape[1])),
    }[key]()


OF_ROWS = [problem for problem in PROBLEMS if not problem.startswith("segmentation")]  # which has tests of its own
EVERY = [(problem, key) for problem in OF_ROWS for key in PROBLEMS[problem]]


@pytest.mark.parametrize(("problem", "key"), EVERY)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_metric_is_what_scikit_learn_says(problem, key, classes):
    for seed in range(3):
        logits, labels = example(problem, classes=classes, seed=seed)
        assert score(key, problem, logits, labels) == pytest.approx(reference(key, problem, logits, labels), abs=1e-9)


@pytest.mark.parametrize(("problem", "key"), EVERY)
def test_counts_as_weights_are_the_metric_of_the_resample(problem, key):
    logits, labels = example(problem, rows=25, classes=4)
    generator = np.random.default_rng(1)
    draws = generator.integers(0, 25, size=(30, 25))
    weights = np.stack([np.bincount(draw, minlength=25) for draw in draws]).astype(float)
    expected = [reference(key, problem, logits[draw], labels[draw]) for draw in draws]
    np.testing.assert_allclose(statistic(key, problem, logits, labels)(weights), expected, atol=1e-9)


@pytest.mark.parametrize("problem", OF_ROWS)
def test_scores_holds_every_metric_of_the_problem_primary_first(problem):
    logits, labels = example(problem)
    made = scores(problem, logits, labels)
    assert list(made) == keys(problem) and primary(problem) == next(iter(made))
    assert made == {key: score(key, problem, logits, labels) for key in made}
    assert all(type(value) is float and METRICS[key].key == key for key, value in made.items())


def test_primary_metrics():
    assert [primary(p) for p in ("single_label", "multi_label", "regression")] == ["accuracy", "micro_f1", "pearson"]


def test_the_direction_of_every_metric():
    lower = {key for key, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"log_loss", "mse", "mae"}
    perfect, labels = 9.0 * np.eye(3), np.arange(3)
    poor = perfect[[1, 2, 0]]
    for key in keys("single_label"):
        better = score(key, "single_label", perfect, labels) > score(key, "single_label", poor, labels)
        assert better == METRICS[key].higher_is_better


def test_per_class_and_confusion_are_scikit_learns():
    logits, labels = example("single_label")
    rows = per_class("single_label", logits, labels, ["a", "b", "c", "d"])
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, logits.argmax(1))
    assert [row["class"] for row in rows] == ["a", "b", "c", "d"]
    for name, column in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose([row[name] for row in rows], column)
    assert confusion(logits, labels) == sk.confusion_matrix(labels, logits.argmax(1)).tolist()


def test_per_class_of_several_labels_and_of_none():
    logits, labels = example("multi_label")
    rows = per_class("multi_label", logits, labels)
    _, recall, _, support = sk.precision_recall_fscore_support(labels, logits > 0)
    np.testing.assert_allclose([row["recall"] for row in rows], recall)
    assert [row["support"] for row in rows] == support.tolist() and rows[2]["class"] == "2"
    assert per_class("regression", *example("regression")) == []


def test_a_class_that_never_occurs_has_a_stated_value():
    logits, labels = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), np.array([0, 1])
    assert score("macro_f1", "single_label", logits, labels) == 1.0  # the third class is left out
    assert per_class("single_label", logits, labels)[2] == {
        "class": "2", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0,
    }  # fmt: skip
    nothing = np.zeros((3, 2), dtype=int)
    assert scores("multi_label", np.full((3, 2), -1.0), nothing) == {
        "micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0, "average_precision": 0.0,
    }  # fmt: skip


def test_matthews_of_one_predicted_class_is_zero():
    logits = np.tile([1.0, 0.0], (6, 1))
    assert score("matthews", "single_label", logits, np.array([0, 1, 0, 1, 1, 0])) == 0.0


@pytest.mark.parametrize("key", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.1, 3e9, 0.0])
def test_a_constant_side_has_correlation_zero(key, constant):
    values = np.array([0.3, 0.1, 0.7, 0.2])
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 2, 0], [4, 0, 0, 0]])
    for x, y in ((np.full(4, constant), values), (values, np.full(4, constant))):
        np.testing.assert_array_equal(statistic(key, "regression", x, y)(weights), [0.0, 0.0, 0.0])
    assert statistic(key, "regression", values, values)(weights)[2] == 0.0  # constant in this resample only


def test_rounding_is_not_taken_for_variation():
    # 49 times x over 49 isn't always x, which leaves a variance of some 1e-17 where there is none.
    generator = np.random.default_rng(0)
    values = generator.normal(size=49)
    one_row = statistic("pearson", "regression", values, values**3)(49 * np.eye(49))
    np.testing.assert_array_equal(one_row, np.zeros(49))
    for constant in generator.normal(size=50):
        assert score("pearson", "regression", np.full(49, constant), values) == 0.0


def test_correlations_stand_a_large_offset():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=50), generator.normal(size=50)
    assert score("pearson", "regression", x + 1e6, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-8)


def test_very_sure_logits_have_a_finite_loss():
    logits = np.array([[1000.0, -1000.0]], dtype=np.float32)
    assert score("log_loss", "single_label", logits, np.array([1])) == 2000.0
    assert probabilities("multi_label", logits).tolist() == [[1.0, 0.0]]


def test_predictions_of_each_problem():
    logits = np.array([[0.2, -0.1], [0.0, 0.5]])
    assert predictions("single_label", logits).tolist() == [0, 1]
    assert predictions("multi_label", logits).tolist() == [[True, False], [False, True]]
    assert predictions("regression", logits[:, :1]).tolist() == [0.2, 0.0]


@pytest.mark.parametrize(
    ("problem", "logits", "labels", "error", "said"),
    [
        ("single_label", np.zeros((2, 3)), np.array([0, 3]), DataError, "from 0 to 2. Got: 0 to 3"),
        ("single_label", np.zeros((2, 3)), np.array([0, -100]), DataError, "Leave rows without a label out"),
        ("single_label", np.zeros((2, 3)), np.array([0.0, 1.0]), DataError, "integers"),
        ("single_label", np.zeros((2, 3)), np.array([0, 1, 2]), ShapeError, r"logits \(2, 3\), labels \(3,\)"),
        ("single_label", np.zeros((0, 3)), np.zeros(0, dtype=int), DataError, "at least one row"),
        ("single_label", np.array([[0.0, np.nan]]), np.array([0]), ModelError, "1 of 1 rows"),
        ("multi_label", np.zeros((2, 3)), np.array([0, 1]), ShapeError, "Multi-label"),
        ("multi_label", np.zeros((1, 2)), np.array([[0, 2]]), DataError, "0 or 1"),
        ("regression", np.zeros((2, 2)), np.zeros(2), ShapeError, "Regression"),
        ("regression", np.zeros(2), np.array([0.0, np.nan]), DataError, "Labels must be finite"),
    ],
)
def test_bad_input_is_refused(problem, logits, labels, error, said):
    with pytest.raises(error, match=said):
        scores(problem, logits, labels)


def test_unknown_names_are_refused_with_the_nearest():
    logits, labels = example("single_label")
    with pytest.raises(PotstillError, match="Did you mean 'accuracy'"):
        score("acuracy", "single_label", logits, labels)
    with pytest.raises(PotstillError, match="Did you mean 'single_label'"):
        scores("single_labels", logits, labels)
    with pytest.raises(ShapeError, match="2 names, logits of 4 classes"):
        per_class("single_label", logits, labels, ["a", "b"])
