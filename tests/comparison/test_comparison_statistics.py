"""Noise is called noise, a difference a difference, and a bound a bound."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from stackbert.comparison.statistics import Share, holm, p_value, share_for
from stackbert.intervals import interval


@pytest.mark.parametrize("values", [(0.0, 1.0), (1.0, 2.0, 3.0), (2.0, 4.0, 4.0, 5.0, 5.0)])
def test_an_interval_is_students(values) -> None:
    by_scipy = ttest_1samp(values, 0.0)
    expected = np.mean(values), *by_scipy.confidence_interval(0.95)
    assert interval(values) == pytest.approx(expected)
    assert p_value(values) == pytest.approx(by_scipy.pvalue)


def test_values_without_any_noise_have_a_p_value_and_one_value_has_none() -> None:
    found = [p_value(values) for values in ([0.5, 0.5], [0.0, 0.0], [0.5])]
    assert found == pytest.approx([0.0, 1.0, np.nan], nan_ok=True)


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
