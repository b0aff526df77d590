"""Budgets buy the steps that fill them, by the reference table."""

import json

import pytest
from comparison_helpers import refusal, table, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st

from stackbert.comparison.calibration import Settings, extended
from stackbert.comparison.costs import (
    Budget,
    GrowthCost,
    Reference,
    StepCost,
    StepKind,
    filling,
    parse_budget,
    step_kinds,
)
from stackbert.comparison.variants import scratch_of
from stackbert.recipe import Recipe

UNITS = ("seconds", "flops", "steps")
some_seconds = st.floats(1e-4, 100.0)


@pytest.mark.parametrize(
    ("text", "amount", "unit", "shown"),
    [
        ("30m", 1800.0, "seconds", "30 min 00 s"),
        ("1.5h", 5400.0, "seconds", "90 min 00 s"),
        ("1h30m", 5400.0, "seconds", "90 min 00 s"),
        ("2000steps", 2000.0, "steps", "2,000 steps"),
        (" 2000 Steps ", 2000.0, "steps", "2,000 steps"),
        ("4e15flops", 4e15, "flops", "4 PFLOPs"),
        ("4e+15 FLOPs", 4e15, "flops", "4 PFLOPs"),
        ("2.5e3steps", 2500.0, "steps", "2,500 steps"),
    ],
)
def test_a_budget_is_read_and_shown_in_its_unit(text, amount, unit, shown) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.unit) == (amount, unit)
    assert str(budget) == shown


@pytest.mark.parametrize(
    "text",
    ["", "soon", "30", "0s", "0steps", "-3steps", "1.2.3steps", "steps", "e5steps", "1e99flops"],
)
def test_what_is_no_budget_is_refused_by_name(text) -> None:
    assert f"'{text}'" in refusal(lambda: parse_budget(text))


def recipe_of(lengths: list[int]) -> Recipe:
    stages = [{"depth": 2**place, "steps": steps} for place, steps in enumerate(lengths)]
    return tiny_recipe(stages=stages, schedule={"warmup_steps": 0})


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seconds=st.lists(some_seconds, min_size=4, max_size=4),
    growth=st.floats(0.0, 50.0),
    unit=st.sampled_from(UNITS),
    share=st.floats(0.1, 4.0),
    more=st.floats(0.0, 500.0),
)
def test_a_budget_is_never_exceeded_and_one_step_more_would(
    lengths, seconds, growth, unit, share, more
) -> None:
    recipe = recipe_of(lengths)
    reference = table(
        recipe, seconds=lambda kind: seconds[kind.depth.bit_length() - 1], growth=growth
    )
    least = reference.cost(recipe.scaled(len(lengths)), unit)
    budget = Budget(least * (1.0 + more) / share, unit)
    filled = filling(recipe, reference, budget, share)
    most = budget.amount * share * (1.0 + 1e-9)
    assert reference.cost(filled, unit) <= most
    assert reference.cost(recipe.scaled(filled.total_steps + 1), unit) > most
    assert filled == recipe.scaled(filled.total_steps)


@given(steps=st.integers(1, 20_000), seconds=some_seconds, unit=st.sampled_from(UNITS))
def test_a_budget_of_so_many_steps_of_scratch_buys_scratch_exactly_these(
    steps, seconds, unit
) -> None:
    scratch = scratch_of(tiny_recipe())
    reference = table(scratch, seconds=lambda kind: seconds)
    budget = Budget(reference.cost(scratch.scaled(steps), unit), unit)
    assert filling(scratch, reference, budget).total_steps == steps


def test_seconds_of_growth_are_paid_out_of_the_budget() -> None:
    recipe = recipe_of([10, 10])
    budget = Budget(70.0, "seconds")
    bought = {
        growth: filling(
            recipe, table(recipe, seconds=lambda kind: float(kind.depth), growth=growth), budget
        ).total_steps
        for growth in (0.0, 10.0)
    }
    # 24 steps of 1 s and 23 of 2 s; with a growth of 10 s, 20 of each.
    assert bought == {0.0: 47, 10.0: 40}


def test_a_growth_is_paid_with_the_first_step_after_it() -> None:
    recipe = recipe_of([3, 2])
    reference = table(recipe, seconds=lambda kind: float(kind.depth), growth=10.0)
    assert [reference.spent(recipe, steps).seconds for steps in range(6)] == [0, 1, 2, 3, 15, 17]


def test_every_axis_counts_its_own() -> None:
    recipe = recipe_of([3, 2])
    reference = table(recipe, seconds=lambda kind: 0.5, growth=1.0)
    spent = reference.spent(recipe, 4)
    assert spent.steps == 4
    assert spent.tokens == 4 * 16 * 32
    assert spent.flops == 3 * (1000 + 32) + (2000 + 32)
    assert spent.seconds == 4 * 0.5 + 1.0
    assert [reference.cost(recipe, unit) for unit in UNITS] == [3.5, 3 * 1032 + 2 * 2032, 5.0]


def test_stages_of_other_rows_are_other_kinds_of_step() -> None:
    stages = [
        {"depth": 2, "steps": 1, "sequences": 4},
        {"depth": 2, "steps": 1, "mask_rate": 0.3},
        {"depth": 2, "steps": 1},
        {"depth": 2, "steps": 9, "sequence_length": 32},  # as the recipe's
    ]
    kinds = step_kinds(tiny_recipe(stages=stages))
    assert len(set(kinds)) == 3
    assert kinds[2] == kinds[3] == StepKind(2, 16, 32, 0.15)


@pytest.mark.parametrize("unit", UNITS)
def test_a_budget_without_a_step_for_each_stage_is_refused(unit) -> None:
    recipe = recipe_of([10, 10])
    reference = table(recipe)
    budget = Budget(0.99 * reference.cost(recipe.scaled(2), unit), unit)
    sentence = refusal(lambda: filling(recipe, reference, budget))
    assert str(budget) in sentence
    assert "too short" in sentence


kinds_of_step = st.builds(
    StepKind, st.integers(1, 48), st.integers(1, 512), st.integers(8, 512), st.floats(0.01, 0.6)
)


@given(
    rows=st.lists(
        st.builds(
            StepCost,
            kinds_of_step,
            some_seconds,
            st.lists(some_seconds, min_size=1, max_size=6).map(tuple),
            st.integers(1, 10**18),
        ),
        max_size=4,
    ),
    growths=st.lists(
        st.builds(GrowthCost, st.integers(1, 12), st.integers(13, 24), some_seconds), max_size=3
    ),
)
def test_a_reference_table_survives_its_file(rows, growths) -> None:
    reference = Reference(tuple(rows), tuple(growths))
    assert Reference.from_json(json.loads(json.dumps(reference.to_json()))) == reference


@given(rows=st.lists(st.tuples(kinds_of_step, st.integers(1, 64)), max_size=4))
def test_settings_survive_their_file(rows) -> None:
    settings = Settings("fp32", True, tuple(rows))
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_what_is_measured_later_is_brought_to_the_first_speed() -> None:
    recipe = recipe_of([1, 1, 1])
    first, second, third = step_kinds(recipe)
    old = Reference((StepCost(third, 4.0, (4.0,), 3),), (GrowthCost(1, 2, 7.0),))
    # The machine is twice as slow now.
    new = Reference(
        (
            StepCost(first, 2.0, (1.0, 2.0, 9.0), 1),
            StepCost(second, 4.0, (4.0,), 2),
            StepCost(third, 8.0, (8.0,), 3),
        ),
        (GrowthCost(1, 2, 1.0), GrowthCost(2, 4, 3.0)),
    )
    both = extended(old, new, third)
    assert {row.kind: row.seconds for row in both.steps} == {third: 4.0, first: 1.0, second: 2.0}
    assert len(both.steps) == 3
    assert len(both.growths) == 2
    assert both.step(first).readings == (0.5, 1.0, 4.5)
    assert both.growth(1, 2) == 7.0
    assert both.growth(2, 4) == 1.5
