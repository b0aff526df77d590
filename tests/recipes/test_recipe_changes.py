"""Overrides, another number of steps, and what differs between two recipes."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe_helpers import GOOD, parse, stages

from stackbert.errors import UserError
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe_files import differing_fields, load_recipe, parse_recipe, shipped_recipes


def test_overrides_reach_every_kind_of_field(load):
    recipe = load(
        GOOD + "batch:\n",
        "seed=7",
        "stages.0.steps=11",
        "stages.1.mask_rate=0.4",
        "optimizer.lr=1e-3",
        "batch.sequences=5",
        "model.hidden_act=relu",
        "schedule={name: cosine, warmup_steps: 2}",
        "checkpoint.every_minutes=null",
        "optimizer.betas=[0.8, 0.9]",
        "summary=a=b",
    )
    assert recipe.seed == 7
    assert [stage.steps for stage in recipe.stages] == [11, 20]
    assert [stage.mask_rate for stage in recipe.stages] == [None, 0.4]
    assert recipe.optimizer.lr == 1e-3
    assert recipe.batch.sequences == 5
    assert recipe.model.model_extra == {"hidden_act": "relu"}
    assert (recipe.schedule.name, recipe.schedule.warmup_steps) == ("cosine", 2)
    assert recipe.checkpoint.every_minutes is None
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.summary == "a=b"


def test_overrides_apply_in_order(load):
    assert load(GOOD, "seed=1", "seed=2").seed == 2
    swapped = load(GOOD, "stages=[{depth: 1, steps: 4}]", "stages.0.steps=6")
    assert [(stage.depth, stage.steps) for stage in swapped.stages] == [(1, 6)]
    replaced = load(GOOD, "stages.1={depth: 8, steps: 3}")
    assert [(stage.depth, stage.steps) for stage in replaced.stages] == [(2, 10), (8, 3)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write it as field=value"),
        ("=5", "write it as field=value"),
        ("sed=5", "there is no field 'sed' (did you mean 'seed'?)"),
        ("optimizer.lr=fast", "optimizer.lr: input should be a valid number"),
        ("stages.9.steps=5", "'9' is not a place from 0 to 1"),
        ("stages.-1.steps=5", "'-1' is not a place from 0 to 1"),
        ("stages.².steps=5", "'²' is not a place from 0 to 1"),
        ("stages.first=5", "'first' is not a place from 0 to 1"),
        ("name.x=5", "name has no fields"),
        ("name.x.y=5", "nothing can be set below a plain value"),
        ("seed=[", "The value of --set seed, line 1 is not YAML"),
        ("seed=" + "[" * 2_000, "The value of --set seed is nested too deeply"),
        ("seed=!!python/name:os.system", "is not YAML"),
        ("name=", "name: input should be a valid string, got None"),
    ],
)
def test_a_bad_override_gets_a_sentence(load, override, message):
    with pytest.raises(UserError) as error:
        load(GOOD, override)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


@given(
    lengths=st.lists(st.integers(1, 400_000), min_size=1, max_size=6),
    extra=st.integers(0, 1_000_000),
    warmup=st.floats(0.0, 0.9),
)
def test_scaling_keeps_the_shares_and_the_sum_is_exact(lengths, extra, warmup):
    recipe = parse(
        stages=stages(*((2**n, steps) for n, steps in enumerate(lengths))),
        schedule={"warmup_steps": int(sum(lengths) * warmup)},
    )
    total = len(lengths) + extra
    scaled = recipe.scaled(total)
    assert scaled.total_steps == total
    assert all(stage.steps >= 1 for stage in scaled.stages)
    assert [stage.depth for stage in scaled.stages] == [stage.depth for stage in recipe.stages]
    factor = total / recipe.total_steps
    if all(steps * factor >= 1 for steps in lengths):
        for old, new in zip(lengths, scaled.stages, strict=True):
            assert abs(new.steps - old * factor) <= len(lengths)
    assert abs(scaled.schedule.warmup_steps - recipe.schedule.warmup_steps * factor) <= 1
    assert parse_recipe(yaml.safe_load(scaled.to_yaml()), "scaled") == scaled


@given(total=st.integers(3, 2_000_000))
def test_the_papers_recipe_scales_to_any_number_of_steps(total):
    recipe = load_recipe("bert-base-gong2019")
    scaled = recipe.scaled(total)
    assert scaled.total_steps == total
    assert parse_recipe(yaml.safe_load(scaled.to_yaml()), "scaled") == scaled
    if total >= 1000:
        shares = [stage.steps / total for stage in scaled.stages]
        assert shares == pytest.approx([0.125, 0.175, 0.7], abs=2 / total)
        ends = [learning_rate_factor(scaled, step) for step in scaled.growth_steps]
        assert ends == pytest.approx([0.6875, 0.375], abs=0.01)


def test_scaling_to_the_same_number_of_steps_changes_nothing():
    for recipe in shipped_recipes().values():
        assert recipe.scaled(recipe.total_steps) == recipe


def test_stages_that_would_vanish_keep_a_step():
    recipe = parse(stages=stages((2, 1000), (4, 1), (4, 1), (8, 1000)))
    assert [stage.steps for stage in recipe.scaled(8).stages] == [4, 1, 1, 2]
    assert [stage.steps for stage in recipe.scaled(4).stages] == [1, 1, 1, 1]


def test_fewer_steps_than_stages_are_refused():
    with pytest.raises(UserError, match="2 steps are too few for the 3 stages of 'demo'"):
        load_recipe("demo").scaled(2)


def test_differing_fields_are_named_with_both_values():
    a = load_recipe("demo")
    b = load_recipe(
        "demo", ["seed=3", "stages.1.steps=77", "optimizer.lr=0.5", "model.hidden_act=relu"]
    )
    assert differing_fields(a, a) == []
    assert set(differing_fields(a, b)) == {
        "seed (0 there, 3 here)",
        f"stages.1.steps ({a.stages[1].steps} there, 77 here)",
        f"optimizer.lr ({a.optimizer.lr} there, 0.5 here)",
        "model.hidden_act (None there, relu here)",
    }


def test_a_stage_more_is_a_difference():
    a, b = parse(), parse(stages=stages((2, 10), (4, 5)))
    found = differing_fields(a, b)
    assert "stages.1.depth (None there, 4 here)" in found
    assert "stages.1.steps (None there, 5 here)" in found
    assert all(field.startswith("stages.1.") for field in found)
