"""Noise is called noise, a difference a difference, and a bound a bound."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from stackbert.comparison.statistics import Share, holm, interval, share_for


@pytest.mark.parametrize("values", [(0.0, 1.0), (1.0, 2.0, 3.0), (2.0, 4.0, 4.0, 5.0, 5.0)])
def test_an_interval_is_students(values) -> None:
    found, by_scipy = interval(values), ttest_1samp(values, 0.0)
    assert (found.mean, found.number) == (pytest.approx(np.mean(values)), len(values))
    assert (found.low, found.high) == pytest.approx(tuple(by_scipy.confidence_interval(0.95)))
    assert found.p == pytest.approx(by_scipy.pvalue)


def test_values_without_any_noise_have_a_p_value() -> None:
    assert (interval([0.5, 0.5]).p, interval([0.0, 0.0]).p) == (0.0, 1.0)


def test_of_pairs_that_do_not_differ_one_in_twenty_is_called_different() -> None:
    draws, random = 1000, np.random.default_rng(20)
    sides = random.normal(size=(draws, 3)) + random.normal(size=(2, draws, 3))
    found = [interval(differences) for differences in (sides[0] - sides[1]).tolist()]
    # Three standard deviations of a count of 1000 at 5 %.
    assert 0.029 < np.mean([each.p < 0.05 for each in found]) < 0.071


def test_p_values_are_corrected_in_their_order() -> None:
    found = holm(pd.Series([0.01, 0.04, 0.03, 0.005]))
    assert list(found.sort_index()) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("losses", "target", "share"),
    [
        ({1.0: 2.0, 0.25: 4.0}, 3.0, Share(0.5)),  # straight over the logarithm
        ({0.5: 3.0, 1.0: 2.0}, 2.0, Share(1.0)),
        ({0.5: 3.0, 1.0: 2.0}, 3.0, Share(0.5, "<=")),
        ({0.5: 3.0, 1.0: 2.0}, 1.9, Share(1.0, ">")),
        ({0.5: 2.5, 1.0: 2.8}, 2.6, Share(1.0, ">")),
        # Below the target at a half by luck, above it again at 0.7: the last crossing counts.
        ({0.3: 3.0, 0.5: 2.5, 0.7: 2.8, 1.0: 2.4}, 2.6, Share(0.8367, "=")),
    ],
)
def test_a_share_is_interpolated_between_runs_and_a_bound_beyond_them(
    losses, target, share
) -> None:
    found = share_for(losses, target)
    assert (found.value, found.bound) == (pytest.approx(share.value, rel=1e-4), share.bound)


@given(
    losses=st.dictionaries(st.floats(0.05, 4.0), st.floats(1.0, 9.0), min_size=1, max_size=6),
    targets=st.lists(st.floats(0.5, 9.5), min_size=2, max_size=5).map(sorted),
)
def test_a_lower_loss_never_takes_less(losses, targets) -> None:
    found = [share_for(losses, target) for target in targets]
    for lower, higher in pairwise(found):
        assert lower.value >= higher.value * (1.0 - 1e-9)
    for share in found:
        assert share.bound != ">" or share.value == max(losses)
        assert share.bound != "<=" or share.value == min(losses)
