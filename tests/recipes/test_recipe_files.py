"""The shipped recipes, and YAML in and out."""

import math

import pytest
import yaml
from recipe_helpers import GOOD, SHIPPED, parse, stages

from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.recipe_files import differing_fields, load_recipe, shipped_recipes


def test_shipped_recipes_all_load():
    assert sorted(shipped_recipes()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_called_what_it_is_loaded_by_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.total_steps > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_grows_from_shallow_to_deep(name):
    depths = [stage.depth for stage in load_recipe(name).stages]
    assert depths == sorted(set(depths))
    assert len(depths) > 1


def test_the_papers_recipe_has_the_papers_numbers():
    """METHOD.md, sections 1 and 2."""
    recipe = load_recipe("bert-base-gong2019")
    assert recipe.model.type == "megatron-bert"  # pre-norm
    assert (
        recipe.model.hidden_size,
        recipe.model.num_attention_heads,
        recipe.model.intermediate_size,
    ) == (768, 12, 3072)
    assert recipe.model.model_extra == {
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    assert recipe.objective.mask_rate == 0.15
    assert recipe.objective.next_sentence
    plan = [(stage.depth, stage.steps) for stage in recipe.stages]
    assert plan == [(3, 50_000), (6, 70_000), (12, 280_000)]
    assert recipe.total_steps == 400_000
    assert recipe.growth_steps == (0.125 * 400_000, 0.3 * 400_000)
    assert recipe.growth.operator == "stack"
    assert recipe.growth.optimizer_state == "reset"
    for index in range(3):
        stage = recipe.resolved_stage(index)
        assert stage.sequence_length == 384
        assert stage.sequences * stage.sequence_length == 122_880
        assert stage.mask_rate == 0.15
    assert recipe.optimizer.name == "adamw"
    assert recipe.optimizer.lr == 8e-4
    assert recipe.optimizer.betas == (0.9, 0.999)
    assert recipe.optimizer.eps == 1e-6
    assert recipe.optimizer.weight_decay == 0.01
    assert recipe.optimizer.clip_norm is None
    assert recipe.schedule.warmup_steps == 10_000
    assert recipe.schedule.rewarmup_steps == 0


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 8e-4 / 10_000),
        (9_999, 8e-4),
        (10_000, 8e-4),
        (50_000, 5.5e-4),
        (120_000, 3e-4),
        (399_999, 3e-4 * (1 - 279_999 / 800_000)),
    ],
)
def test_the_papers_recipe_has_the_released_scripts_learning_rates(step, rate):
    recipe = load_recipe("bert-base-gong2019")
    found = recipe.optimizer.lr * learning_rate_factor(recipe, step)
    assert math.isclose(found, rate, rel_tol=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_being_written_and_read(name, load):
    recipe = load_recipe(name)
    again = load(recipe.to_yaml())
    assert again == recipe
    assert differing_fields(again, recipe) == []


def test_every_field_survives_being_written_and_read(load):
    recipe = parse(
        summary="größer: 'quoted' # no comment",
        model={
            "type": "roberta",
            "hidden_size": 64,
            "num_attention_heads": 4,
            "hidden_act": "relu",
        },
        stages=[
            {"depth": 2, "steps": 10, "sequence_length": 64, "sequences": 7, "mask_rate": 0.3},
            {"depth": 4, "steps": 20},
        ],
        growth={"operator": "identity", "optimizer_state": "copy"},
        batch={"sequences": 12, "sequence_length": 32, "micro_batch": 3},
        optimizer={"name": "muon", "eps": 1e-12, "clip_norm": 0.5, "muon_lr": 0.01},
        schedule={"name": "piecewise", "points": [[3, 1.0], [20, 0.25]], "warmup_steps": 3},
        precision="fp32",
        evaluation={"every_steps": 5, "sequences": 8, "mask_rate": 0.2},
        checkpoint={"every_steps": 4, "every_minutes": None, "keep": 1},
        log_every=3,
        seed=2**63 - 1,
    )
    text = recipe.to_yaml()
    assert load(text) == recipe
    written = yaml.safe_load(text)
    assert set(written) == set(Recipe.model_fields)
    assert written["model"]["hidden_act"] == "relu"


def test_numbers_may_be_written_as_people_write_them(load):
    recipe = load(GOOD + "optimizer: {lr: 1e-3, eps: 1E-6}\nseed: 1_000")
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.seed) == (1e-3, 1e-6, 1000)


def test_a_stage_overrides_the_recipe(load):
    recipe = parse(
        stages=[
            {"depth": 2, "steps": 10, "sequence_length": 64, "mask_rate": 0.3},
            {"depth": 4, "steps": 20, "sequences": 5},
        ],
        batch={"sequences": 12, "sequence_length": 32},
    )
    first, second = recipe.resolved_stage(0), recipe.resolved_stage(1)
    assert (first.sequences, first.sequence_length, first.mask_rate) == (12, 64, 0.3)
    assert (second.sequences, second.sequence_length, second.mask_rate) == (5, 32, 0.15)
    assert recipe.longest_sequence == 64


def test_steps_are_counted_through_the_stages():
    recipe = parse(stages=stages((2, 10), (2, 5), (4, 20)))
    assert recipe.total_steps == 35
    assert recipe.boundaries == (0, 10, 15, 35)
    assert recipe.growth_steps == (15,)
    assert [recipe.stage_index(step) for step in (0, 9, 10, 14, 15, 34, 99)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        2,
    ]
