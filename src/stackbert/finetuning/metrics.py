"""The official metrics, computed by scikit-learn and scipy, and what guessing would score."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stackbert.errors import RunError, UserError

_Array = npt.NDArray[Any]


def _sklearn() -> Any:  # noqa: ANN401 (an untyped module)
    try:
        import sklearn.metrics
    except ImportError as error:
        raise UserError(
            "Scoring needs the library scikit-learn. Install it with: pip install "
            "'stackbert[finetuning]'"
        ) from error
    return sklearn.metrics


def _accuracy(labels: _Array, predictions: _Array) -> float:
    return float(_sklearn().accuracy_score(labels, predictions))


def _f1(labels: _Array, predictions: _Array) -> float:
    return float(_sklearn().f1_score(labels == 1, predictions == 1, zero_division=0.0))


def _f1_macro(labels: _Array, predictions: _Array) -> float:
    return float(_sklearn().f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(labels: _Array, predictions: _Array) -> float:
    if _constant(labels) or _constant(predictions):
        return 0.0
    return float(_sklearn().matthews_corrcoef(labels, predictions))


def _pearson(labels: _Array, predictions: _Array) -> float:
    from scipy.stats import pearsonr

    if _constant(labels) or _constant(predictions):
        return 0.0
    return _finite(float(pearsonr(labels, predictions).statistic))


def _spearman(labels: _Array, predictions: _Array) -> float:
    from scipy.stats import spearmanr

    if _constant(labels) or _constant(predictions):
        return 0.0
    return _finite(float(spearmanr(labels, predictions).statistic))


def _constant(values: _Array) -> bool:
    return bool((values == values[0]).all())


def _finite(correlation: float) -> float:
    """0 where values differ by so little that the correlation is lost in rounding."""
    return correlation if math.isfinite(correlation) else 0.0


METRICS: dict[str, Callable[[_Array, _Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""By name: "f1" is that of class 1 against the rest, "f1_macro" the plain mean of every class's."""


def score(
    metrics: Sequence[str],
    labels: Sequence[int] | Sequence[float],
    predictions: Sequence[int] | Sequence[float],
) -> dict[str, float]:
    """Each metric of some predictions, as a fraction (not in percent).

    Where nothing varies there is nothing to correlate: predictions or labels that are all equal
    give 0.0 for "matthews", "pearson" and "spearman". Where no class 1 is there nor predicted,
    "f1" is 0.0.

    Args:
        metrics: names of `METRICS`.
        labels: classes' numbers, or the numbers to predict.
        predictions: as many, of the same kind.

    Raises:
        RunError: a prediction is not finite.
        UserError: scikit-learn is needed and not installed.
        ValueError: there are no labels, or not as many as predictions.
    """
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    true, predicted = np.asarray(labels), np.asarray(predictions)
    if not np.isfinite(predicted).all():
        raise RunError(
            "The model predicts values that are not finite: its training has diverged. Lower the "
            "learning rate."
        )
    return {name: METRICS[name](true, predicted) for name in metrics}


def majority(
    metrics: Sequence[str],
    labels: Sequence[int] | Sequence[float],
    training: Sequence[int] | Sequence[float] | None = None,
) -> dict[str, float]:
    """What always guessing the most common label scores.

    Args:
        metrics: names of `METRICS`.
        labels: what is to be predicted.
        training: labels to take the guess from; without them `labels` themselves.

    Returns:
        By metric; of several most common labels the lowest is guessed. Correlations are 0.0, as
        of any constant guess, the mean included.
    """
    counts = Counter(labels if training is None else training)
    guess = min(counts, key=lambda label: (-counts[label], label))
    return score(metrics, labels, [guess] * len(labels))
