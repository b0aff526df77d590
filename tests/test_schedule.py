"""The learning rate is a pure function of the step, and growth leaves it alone unless asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe

NAMES = ("constant", "linear", "cosine", "wsd", "piecewise")
GROWING = [(2, 100), (4, 100), (4, 50), (8, 150)]
"""It grows at 100 and 250; at 200 only a stage ends."""


def rates(stages: list[tuple[int, int]], **schedule) -> list[float]:
    """Of a recipe with stages of (depth, steps)."""
    total = sum(steps for _, steps in stages)
    if schedule["name"] == "piecewise":
        schedule.setdefault("points", [(0, 1.0), (total // 2, 0.5), (total, 0.0)])
    stages = [{"depth": depth, "steps": steps} for depth, steps in stages]
    made = Recipe(name="test", stages=stages, schedule=schedule)
    return [learning_rate_factor(made, step) for step in range(total)]


@pytest.mark.parametrize("name", NAMES)
@given(total=st.integers(2, 200), data=st.data())
def test_warm_up_climbs_to_the_peak_and_no_update_is_wasted_at_rate_zero(name, total, data):
    warmup = data.draw(st.integers(0, total - 1))
    found = rates([(4, total)], warmup_steps=warmup, name=name)
    assert found[:warmup] == pytest.approx([(n + 1) / warmup for n in range(warmup)])
    assert all(0.0 < rate <= 1.0 for rate in found)


FALLS = {
    "linear": ({"final_fraction": 0.2}, [1.0, 0.8, 0.6, 0.4]),
    "cosine": ({}, [1.0, 0.853553, 0.5, 0.146447]),
    "wsd": ({"decay_fraction": 0.5, "final_fraction": 0.1}, [1.0, 1.0, 0.82, 0.46]),
    "piecewise": ({"points": [(15, 1.0), (20, 0.5), (30, 0.5), (50, 0.1)]}, [1.0, 0.5, 0.5, 0.3]),
}


@pytest.mark.parametrize("name", FALLS)
def test_the_rate_falls_as_the_schedule_says(name) -> None:
    options, expected = FALLS[name]
    found = rates([(4, 50)], name=name, warmup_steps=10, **options)
    assert found[10::10] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_growth_leaves_the_rate_alone_and_re_warm_up_follows_nothing_else(name):
    plain = rates([(4, 400)], warmup_steps=30, name=name)
    assert rates(GROWING, warmup_steps=30, name=name) == plain
    again = rates(GROWING, warmup_steps=30, rewarmup_steps=9, name=name)
    for step, (found, without) in enumerate(zip(again, plain, strict=True)):
        since = min((step - grown for grown in (100, 250) if step >= grown), default=9)
        assert found == pytest.approx(without * min(1.0, (since + 1) / 10))
