"""The metrics: cases worked out by hand, what cannot change them, and what guessing scores."""

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackbert.errors import RunError, UserError
from stackbert.finetuning.metrics import METRICS, majority, score

few = settings(max_examples=25)  # scikit-learn takes milliseconds a call
CLASSES = tuple(METRICS)[:4]
CORRELATIONS = ("pearson", "spearman")

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
triples = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)
points = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=30)


def of(metric, rows):
    return score([metric], *map(list, zip(*rows, strict=True)))[metric]


def test_class_metrics_equal_cases_worked_out_by_hand():
    labels, predictions = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0, 1]
    # True positives 3, false ones 1; true negatives 3, false ones 1.
    assert score(CLASSES, labels, predictions) == pytest.approx(
        {
            "accuracy": 6 / 8,
            "f1": 2 * 3 / (2 * 3 + 1 + 1),
            "f1_macro": 3 / 4,
            "matthews": (3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4),
        }
    )
    # Class 0: precision 1/2, recall 1; class 1: 1, 1/2; class 2: 1, 1.
    three = score(["accuracy", "f1_macro"], [0, 1, 1, 2], [0, 0, 1, 2])
    assert three == pytest.approx({"accuracy": 3 / 4, "f1_macro": (2 / 3 + 2 / 3 + 1) / 3})


def test_correlations_equal_cases_worked_out_by_hand():
    # Deviations -1.5 -0.5 0.5 1.5 and -4 -3 -1 8: products 6 + 1.5 - 0.5 + 12 = 19.
    values = score(CORRELATIONS, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 13.0])
    assert values == pytest.approx({"pearson": 19 / math.sqrt(5 * 90), "spearman": 1.0})
    # Ranks 1 2 3 4 and, two sharing a place, 1 2.5 2.5 4.
    tied = score(["spearman"], [1.0, 2.0, 3.0, 4.0], [0.0, 5.0, 5.0, 6.0])
    assert tied["spearman"] == pytest.approx(4.5 / math.sqrt(5 * 4.5))


@few
@given(pairs)
def test_class_metrics_depend_neither_on_the_order_nor_but_for_f1_on_which_class_is_which(rows):
    turned = [(1 - label, 1 - guess) for label, guess in rows]
    for metric in CLASSES:
        value = of(metric, rows)
        assert of(metric, rows[::-1]) == pytest.approx(value)
        if metric != "f1":
            assert of(metric, turned) == pytest.approx(value)


@few
@given(triples)
def test_perfect_is_one_and_nothing_leaves_its_bounds(rows):
    for metric in CLASSES:
        low = -1.0 if metric == "matthews" else 0.0
        assert low - 1e-9 <= of(metric, rows) <= 1.0 + 1e-9
    labels = [label for label, _ in rows]
    assert score(["accuracy", "f1_macro"], labels, labels) == {"accuracy": 1.0, "f1_macro": 1.0}
    assert score(["matthews"], labels, labels)["matthews"] == pytest.approx(
        float(len(set(labels)) > 1)
    )


@given(points, st.integers(1, 9), st.integers(-9, 9))
def test_correlations_are_symmetric_and_blind_to_scale_and_shift(rows, scale, shift):
    moved = [(label, scale * guess + shift) for label, guess in rows]
    mirrored = [(label, -guess) for label, guess in rows]
    swapped = [(guess, label) for label, guess in rows]
    for metric in CORRELATIONS:
        value = of(metric, rows)
        assert -1.0 - 1e-9 <= value <= 1.0 + 1e-9
        assert of(metric, moved) == pytest.approx(value, abs=1e-9)
        assert of(metric, mirrored) == pytest.approx(-value, abs=1e-9)
        assert of(metric, swapped) == pytest.approx(value, abs=1e-9)


@given(points)
def test_spearman_is_blind_to_any_rising_change_of_the_predictions(rows):
    changed = [(label, guess**3 + guess) for label, guess in rows]
    assert of("spearman", changed) == pytest.approx(of("spearman", rows), abs=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", ["matthews", *CORRELATIONS])
def test_predictions_or_labels_that_are_all_equal_correlate_with_nothing(metric):
    assert score([metric], [0, 1, 1, 0], [1, 1, 1, 1]) == {metric: 0.0}
    assert score([metric], [1, 1, 1, 1], [0, 1, 1, 0]) == {metric: 0.0}
    assert score([metric], [1], [1]) == {metric: 0.0}


@pytest.mark.filterwarnings("error")
def test_f1_without_the_class_anywhere_is_zero():
    assert score(["f1"], [0, 0], [0, 0]) == {"f1": 0.0}


def test_predictions_that_are_not_finite_fail_and_unequal_numbers_are_no_input():
    with pytest.raises(RunError, match="not finite"):
        score(["pearson"], [1.0, 2.0], [1.0, math.nan])
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        score(["accuracy"], [0, 1], [0])
    with pytest.raises(ValueError, match="0 predictions"):
        score(["accuracy"], [], [])


def test_without_scikit_learn_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'stackbert\[finetuning\]'"):
        score(["accuracy"], [0], [0])


def test_majority_is_the_score_of_the_most_common_class():
    labels = [1, 1, 1, 0]
    assert majority(["accuracy", "f1"], labels) == pytest.approx({"accuracy": 3 / 4, "f1": 6 / 7})
    assert majority(["accuracy", "f1"], labels, training=[0, 0, 1]) == {"accuracy": 1 / 4, "f1": 0}
    assert majority(["accuracy"], [2, 0, 1, 0, 2]) == {"accuracy": 2 / 5}
    assert majority(["accuracy", "f1"], [0, 1]) == {"accuracy": 1 / 2, "f1": 0.0}
    assert majority(["matthews"], labels) == {"matthews": 0.0}
    assert majority(CORRELATIONS, [0.5, 2.0, 4.5]) == {"pearson": 0.0, "spearman": 0.0}


@few
@given(triples)
def test_majority_is_never_below_one_over_the_number_of_classes(rows):
    labels = [label for label, _ in rows]
    assert majority(["accuracy"], labels)["accuracy"] >= 1.0 / len(set(labels)) - 1e-12
