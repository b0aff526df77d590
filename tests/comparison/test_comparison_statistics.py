"""Noise is called noise, a bound a bound; budgets buy the steps that fill them."""

import numpy as np
import pandas as pd
import pytest
from comparison_helpers import refusal, scratch_of, table, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from stackbert.comparison.reference import Budget, filling, parse_budget
from stackbert.comparison.statistics import Share, holm, p_value, share_for
from stackbert.intervals import interval
from stackbert.recipe import Recipe


@pytest.mark.parametrize("values", [(0.0, 1.0), (1.0, 2.0, 3.0), (2.0, 4.0, 4.0, 5.0, 5.0)])
def test_an_interval_is_students(values) -> None:
    by_scipy = ttest_1samp(values, 0.0)
    expected = np.mean(values), *by_scipy.confidence_interval(0.95)
    assert interval(values) == pytest.approx(expected)
    assert p_value(values) == pytest.approx(by_scipy.pvalue)


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
def test_shares_are_interpolated_between_runs_and_bounds_beyond(losses, target, share) -> None:
    found = share_for(losses, target)
    assert (found.value, found.bound) == (pytest.approx(share.value, rel=1e-4), share.bound)


UNITS = ("seconds", "flops", "step")
some_seconds = st.floats(1e-4, 100.0)


def recipe_of(lengths: list[int]) -> Recipe:
    stages = [{"depth": 2**place, "steps": steps} for place, steps in enumerate(lengths)]
    return tiny_recipe(stages=stages, schedule={"warmup_steps": 0})


@pytest.mark.parametrize(
    ("text", "amount", "unit", "shown"),
    [
        ("30m", 1800.0, "seconds", "30 min"),
        ("1h30m", 5400.0, "seconds", "1 h 30 min"),
        ("2000steps", 2000.0, "step", "2,000 steps"),
        ("4e+15 FLOPs", 4e15, "flops", "4e+15 FLOPs"),
    ],
)
def test_a_budget_is_read_and_shown_in_its_unit(text, amount, unit, shown) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.unit, str(budget)) == (amount, unit, shown)


@pytest.mark.parametrize("text", ["soon", "30", "1.2.3steps", "0steps", "1e99flops"])
def test_what_is_no_budget_is_refused_by_name(text) -> None:
    assert f"'{text}'" in refusal(lambda: parse_budget(text))


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seconds=st.lists(some_seconds, min_size=4, max_size=4),
    growth=st.floats(0.0, 50.0),
    unit=st.sampled_from(UNITS),
    share=st.floats(0.1, 4.0),
    more=st.floats(0.0, 500.0),
)
def test_one_step_more_would_exceed_a_budget(lengths, seconds, growth, unit, share, more) -> None:
    recipe = recipe_of(lengths)
    reference = table(
        recipe, seconds=lambda kind: seconds[kind.depth.bit_length() - 1], growth=growth
    )
    least = reference.cost(recipe.scaled(len(lengths)), unit)
    budget = Budget(amount=least * (1.0 + more) / share, unit=unit)
    filled = filling(recipe, reference, budget, share)
    most = budget.amount * share * (1.0 + 1e-9)
    assert reference.cost(filled, unit) <= most
    assert reference.cost(recipe.scaled(filled.total_steps + 1), unit) > most
    assert filled == recipe.scaled(filled.total_steps)


@given(steps=st.integers(1, 20_000), seconds=some_seconds, unit=st.sampled_from(UNITS))
def test_a_budget_of_n_steps_of_scratch_buys_scratch_exactly_n(steps, seconds, unit) -> None:
    scratch = scratch_of(tiny_recipe())
    reference = table(scratch, seconds=lambda kind: seconds)
    budget = Budget(amount=reference.cost(scratch.scaled(steps), unit), unit=unit)
    assert filling(scratch, reference, budget).total_steps == steps


def test_every_axis_counts_its_own_and_a_growth_goes_with_the_step_after_it() -> None:
    recipe = recipe_of([3, 2])
    reference = table(recipe, seconds=lambda kind: float(kind.depth), growth=10.0)
    spent = [reference.spent(recipe, steps) for steps in range(6)]
    assert [each.seconds for each in spent] == [0, 1, 2, 3, 15, 17]
    assert [each.step for each in spent] == [0, 1, 2, 3, 4, 5]
    assert spent[4].tokens == 4 * 16 * 32
    assert spent[4].flops == 3 * (1000 + 32) + (2000 + 32)
