"""The learning rate is a pure function of the step, and growth leaves it alone unless asked."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe

fractions = st.floats(0.0, 1.0)


def recipe(total=1000, *, stages=None, **schedule) -> Recipe:
    """One stage of `total` steps, or stages given as (depth, steps)."""
    stages = stages or [(4, total)]
    return Recipe(
        name="test",
        stages=[{"depth": depth, "steps": steps} for depth, steps in stages],
        schedule=schedule,
    )


def rates(made: Recipe) -> list[float]:
    return [learning_rate_factor(made, step) for step in range(made.total_steps)]


def shapes(total: int, **schedule) -> dict[str, Recipe]:
    """Every schedule there is."""
    made = {
        name: recipe(total, name=name, **schedule)
        for name in ("constant", "linear", "cosine", "wsd")
    }
    points = [(0, 1.0), (total // 2, 0.5), (total, 0.0)]
    return made | {"piecewise": recipe(total, name="piecewise", points=points, **schedule)}


@given(total=st.integers(2, 200), data=st.data())
def test_warm_up_climbs_in_equal_steps_from_above_zero_to_the_peak(total, data):
    warmup = data.draw(st.integers(1, total - 1))
    for made in shapes(total, warmup_steps=warmup).values():
        climb = rates(made)[:warmup]
        assert climb == pytest.approx([(n + 1) / warmup for n in range(warmup)])
        assert climb[-1] == 1.0


@given(total=st.integers(2, 200), data=st.data())
def test_no_update_is_wasted_at_rate_zero_or_above_the_peak(total, data):
    warmup = data.draw(st.integers(0, total - 1))
    for made in shapes(total, warmup_steps=warmup).values():
        assert all(0.0 < rate <= 1.0 for rate in rates(made))


@given(total=st.integers(3, 200), final=fractions, data=st.data())
def test_linear_falls_in_a_straight_line_to_one_step_before_the_end(total, final, data):
    warmup = data.draw(st.integers(0, total - 2))
    fall = rates(recipe(total, name="linear", warmup_steps=warmup, final_fraction=final))[warmup:]
    assert fall[0] == 1.0
    slope = (1.0 - final) / (total - warmup)
    assert fall == pytest.approx([1.0 - slope * n for n in range(len(fall))])
    if final < 0.99:
        assert all(a > b for a, b in pairwise(fall))
        assert fall[-1] > final


@given(total=st.integers(3, 200), final=st.floats(0.0, 0.9), data=st.data())
def test_cosine_falls_slowly_then_fast_then_slowly(total, final, data):
    warmup = data.draw(st.integers(0, total - 2))
    made = recipe(total, name="cosine", warmup_steps=warmup, final_fraction=final)
    fall = rates(made)[warmup:]
    assert fall[0] == 1.0
    assert all(a > b for a, b in pairwise(fall))
    assert fall[-1] > final
    if len(fall) % 2 == 0:
        assert fall[len(fall) // 2] == pytest.approx((1.0 + final) / 2)
    turn = [
        final + (1 - final) * math.cos(math.pi * n / len(fall) / 2) ** 2 for n in range(len(fall))
    ]
    assert fall == pytest.approx(turn)


def test_wsd_holds_the_peak_then_falls_over_its_share_of_the_run():
    made = recipe(1000, name="wsd", warmup_steps=50, decay_fraction=0.2, final_fraction=0.1)
    found = rates(made)
    assert found[49:801] == [1.0] * 752
    assert found[800:] == pytest.approx([1.0 - 0.9 * n / 200 for n in range(200)])


def test_wsd_whose_fall_would_reach_into_the_warm_up_falls_from_its_end():
    made = recipe(100, name="wsd", warmup_steps=40, decay_fraction=0.9)
    assert rates(made)[39:] == pytest.approx([1.0, *(1.0 - n / 60 for n in range(60))])


def test_constant_stays_at_the_peak():
    assert rates(recipe(50, name="constant", warmup_steps=10))[9:] == [1.0] * 41


def test_piecewise_joins_its_points_by_straight_lines():
    points = [(10, 1.0), (20, 0.5), (30, 0.5), (50, 0.1)]
    found = rates(recipe(70, name="piecewise", warmup_steps=10, points=points))
    assert found[10] == 1.0
    assert found[15] == pytest.approx(0.75)
    assert found[20:31] == [0.5] * 11
    assert found[40] == pytest.approx(0.3)
    assert found[50:] == [0.1] * 20  # the last point's, to the end


def test_piecewise_before_its_first_point_is_at_that_points_rate():
    made = recipe(50, name="piecewise", warmup_steps=5, points=[(20, 0.8), (40, 0.2)])
    assert rates(made)[5:21] == [0.8] * 16


GROWING = [(2, 100), (4, 100), (4, 50), (8, 150)]
"""It grows at 100 and 250; at 200 only a stage ends."""


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd", "piecewise"])
def test_growth_leaves_the_rate_alone(name):
    options = {"name": name, "warmup_steps": 30}
    if name == "piecewise":
        options["points"] = [(30, 1.0), (400, 0.1)]
    assert rates(recipe(stages=GROWING, **options)) == rates(recipe(400, **options))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_re_warm_up_follows_a_growth_and_nothing_else(name):
    plain = rates(recipe(400, name=name, warmup_steps=30))
    found = rates(recipe(stages=GROWING, name=name, warmup_steps=30, rewarmup_steps=9))
    for step, (with_, without) in enumerate(zip(found, plain, strict=True)):
        since = min((step - grown for grown in (100, 250) if step >= grown), default=9)
        assert with_ == pytest.approx(without * min(1.0, (since + 1) / 10))
    assert found[99] == plain[99]
    assert found[109] == plain[109]
    assert found[200:209] == plain[200:209]


def test_re_warm_up_does_nothing_to_a_model_that_does_not_grow():
    stages = [(4, 100), (4, 100)]
    assert rates(recipe(stages=stages, rewarmup_steps=50)) == rates(recipe(200))


@given(
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    rewarmup=st.integers(0, 40),
    data=st.data(),
)
def test_the_rate_stays_above_zero_and_below_the_peak_through_any_growth(steps, rewarmup, data):
    warmup = data.draw(st.integers(0, sum(steps) - 1))
    made = recipe(
        stages=[(2**n, count) for n, count in enumerate(steps)],
        warmup_steps=warmup,
        rewarmup_steps=rewarmup,
    )
    assert all(0.0 < rate <= 1.0 for rate in rates(made))
