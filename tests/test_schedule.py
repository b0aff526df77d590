"""The learning rate is a pure function of the step, and growth leaves it alone unless asked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe

GROWING = [(2, 100), (4, 100), (4, 50), (8, 150)]
"""It grows at 100 and 250; at 200 only a stage ends."""


def rates(total=1000, *, stages=None, **schedule) -> list[float]:
    """One stage of `total` steps, or stages given as (depth, steps)."""
    made = Recipe(
        name="test",
        stages=[{"depth": depth, "steps": steps} for depth, steps in stages or [(4, total)]],
        schedule=schedule,
    )
    return [learning_rate_factor(made, step) for step in range(made.total_steps)]


def options(name: str, total: int) -> dict:
    points = {"points": [(0, 1.0), (total // 2, 0.5), (total, 0.0)]}
    return {"name": name, **(points if name == "piecewise" else {})}


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd", "piecewise"])
@given(total=st.integers(2, 200), data=st.data())
def test_warm_up_climbs_to_the_peak_and_no_update_is_wasted_at_rate_zero(name, total, data):
    warmup = data.draw(st.integers(0, total - 1))
    found = rates(total, warmup_steps=warmup, **options(name, total))
    assert found[:warmup] == pytest.approx([(n + 1) / warmup for n in range(warmup)])
    assert all(0.0 < rate <= 1.0 for rate in found)


@given(total=st.integers(3, 200), final=st.floats(0.0, 1.0), data=st.data())
def test_linear_and_cosine_fall_from_the_peak_to_one_step_before_the_end(total, final, data):
    warmup = data.draw(st.integers(0, total - 2))
    fall = {
        name: rates(total, name=name, warmup_steps=warmup, final_fraction=final)[warmup:]
        for name in ("linear", "cosine")
    }
    share = [n / (total - warmup) for n in range(total - warmup)]
    assert fall["linear"] == pytest.approx([1 - (1 - final) * s for s in share])
    turn = [final + (1 - final) * math.cos(math.pi * s / 2) ** 2 for s in share]
    assert fall["cosine"] == pytest.approx(turn)


def test_wsd_holds_the_peak_then_falls_over_its_share_of_the_run():
    found = rates(1000, name="wsd", warmup_steps=50, decay_fraction=0.2, final_fraction=0.1)
    assert found[49:801] == [1.0] * 752
    assert found[800:] == pytest.approx([1.0 - 0.9 * n / 200 for n in range(200)])
    into_the_warm_up = rates(100, name="wsd", warmup_steps=40, decay_fraction=0.9)
    assert into_the_warm_up[39:] == pytest.approx([1.0, *(1.0 - n / 60 for n in range(60))])


def test_piecewise_joins_its_points_by_straight_lines():
    points = [(10, 1.0), (20, 0.5), (30, 0.5), (50, 0.1)]
    found = rates(70, name="piecewise", warmup_steps=5, points=points)
    assert found[5:11] == [1.0] * 6  # before its first point, that point's rate
    assert found[15] == pytest.approx(0.75)
    assert found[20:31] == [0.5] * 11
    assert found[40] == pytest.approx(0.3)
    assert found[50:] == [0.1] * 20


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd", "piecewise"])
def test_growth_leaves_the_rate_alone_and_re_warm_up_follows_nothing_else(name):
    plain = rates(400, warmup_steps=30, **options(name, 400))
    assert rates(stages=GROWING, warmup_steps=30, **options(name, 400)) == plain
    again = rates(stages=GROWING, warmup_steps=30, rewarmup_steps=9, **options(name, 400))
    for step, (found, without) in enumerate(zip(again, plain, strict=True)):
        since = min((step - grown for grown in (100, 250) if step >= grown), default=9)
        assert found == pytest.approx(without * min(1.0, (since + 1) / 10))
