"""Budgets buy the steps that fill them, by the reference table."""

import pytest
from comparison_helpers import refusal, scratch_of, table, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st

from stackbert.comparison.reference import Budget, Reference, StepKind, filling, parse_budget
from stackbert.comparison.reference import step_kinds as kinds_of
from stackbert.recipe import Recipe

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
        (" 2.5e3 Steps ", 2500.0, "step", "2,500 steps"),
        ("4e15flops", 4e15, "flops", "4e+15 FLOPs"),
        ("4e+15 FLOPs", 4e15, "flops", "4e+15 FLOPs"),
    ],
)
def test_a_budget_is_read_and_shown_in_its_unit(text, amount, unit, shown) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.unit, str(budget)) == (amount, unit, shown)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "30", "0s", "0steps", "-3steps", "1.2.3steps", "steps", "e5steps", "1e99flops"],
)
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
def test_a_budget_is_never_exceeded_and_one_step_more_would(
    lengths, seconds, growth, unit, share, more
) -> None:
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


def test_stages_of_other_rows_are_other_kinds_of_step() -> None:
    stages = [
        {"depth": 2, "steps": 1, "sequences": 4},
        {"depth": 2, "steps": 1, "mask_rate": 0.3},
        {"depth": 2, "steps": 1},
        {"depth": 2, "steps": 9, "sequence_length": 32},  # as the recipe's
    ]
    kinds = kinds_of(tiny_recipe(stages=stages))
    assert len(set(kinds)) == 3
    assert kinds[2] == kinds[3] == StepKind(2, 16, 32, 0.15)


@pytest.mark.parametrize("unit", UNITS)
def test_a_budget_without_a_step_for_each_stage_is_refused(unit) -> None:
    recipe = recipe_of([10, 10])
    reference = table(recipe)
    budget = Budget(amount=0.99 * reference.cost(recipe.scaled(2), unit), unit=unit)
    sentence = refusal(lambda: filling(recipe, reference, budget))
    assert str(budget) in sentence
    assert "too short" in sentence


def test_a_reference_table_survives_its_file() -> None:
    recipe = tiny_recipe()
    reference = table(recipe, growth=1 / 3)
    again = Reference.model_validate_json(reference.model_dump_json())
    assert again.by_kind == reference.by_kind
    assert again.growth_seconds == reference.growth_seconds
    assert again.complete(recipe) == reference.complete(recipe)
