"""A recipe is validated whole, each error names its field; the rate is a function of the step."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.recipes import load_recipe, parse_recipe, shipped_recipes

GOOD = "name: test\nstages: [{depth: 2, steps: 10}, {depth: 4, steps: 20}]\n"


@pytest.fixture
def load(tmp_path):
    """Loads a recipe from its text, as a user's file."""

    def load(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides)

    return load


def test_shipped_recipes_all_load_and_grow_from_shallow_to_deep():
    recipes = shipped_recipes()
    base = ["bert-base", "bert-base-gong2019", "bert-large"]
    assert list(recipes) == [*base, "demo", "mini-cpu", "small-cpu"]
    for name, recipe in recipes.items():
        depths = [stage.depth for stage in recipe.stages]
        assert (recipe.name, bool(recipe.summary)) == (name, True)
        assert depths == sorted(depths)
        assert depths[0] < depths[-1]
        assert parse_recipe(yaml.safe_load(recipe.to_yaml()), name) == recipe


def test_the_papers_recipe_has_the_papers_numbers():
    """Gong et al. 2019, section 4.1; pre-norm and 384 tokens a row by their released code."""
    recipe = load_recipe("bert-base-gong2019")
    model, optimizer = recipe.model, recipe.optimizer
    assert model.type == "megatron-bert"
    sizes = (model.hidden_size, model.num_attention_heads, model.intermediate_size)
    assert sizes == (768, 12, 3072)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    assert model.model_extra == {"hidden_act": "gelu", **dropout}
    assert (recipe.objective.mask_rate, recipe.objective.next_sentence) == (0.15, True)
    stages = [(stage.depth, stage.steps) for stage in recipe.stages]
    assert stages == [(3, 50_000), (6, 70_000), (12, 280_000)]
    assert (recipe.growth.operator, recipe.growth.optimizer_state) == ("stack", "reset")
    assert recipe.stage(2).sequences * recipe.stage(2).sequence_length == 122_880
    assert (optimizer.name, optimizer.lr, optimizer.betas) == ("adamw", 8e-4, (0.9, 0.999))
    assert (optimizer.eps, optimizer.weight_decay, optimizer.clip_norm) == (1e-6, 0.01, None)
    rates = {0: 8e-4 / 10_000, 9_999: 8e-4, 50_000: 5.5e-4, 120_000: 3e-4}
    rates[399_999] = 3e-4 * (1 - 279_999 / 800_000)
    for step, rate in rates.items():
        assert math.isclose(optimizer.lr * learning_rate_factor(recipe, step), rate, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimzer: {}", "there is no field 'optimzer' (did you mean 'optimizer'?)"),
        ("optimizer: {weight_deacy: 0.1}", "optimizer.weight_deacy' (did you mean 'weight_decay'"),
        ("seed: many\nlog_every: 0", "log_every: input should be greater than 0, got 0; seed: "),
        ("optimizer: {lr: .inf}", "optimizer.lr: input should be a finite number"),
        ("model: {vocab_size: 5}", "vocab_size is set by the corpus"),
        ("model: {hidden_size: 10, num_attention_heads: 3}", "hidden_size 10 is not a multiple of"),
        ("growth: {operator: stak}", "growth.operator: there is no growth operator 'stak'"),
        ("schedule: {warmup_steps: 30}", "warmup_steps 30 is not below the run's 30 steps"),
        ("schedule: {name: piecewise}", "piecewise needs them"),
        ("objective: {next_sentence: true}\nmodel: {type: roberta}", "roberta has no next-sent"),
        ("stages: [{steps: 10}]", "gives the field 'stages' a second time"),
        ("seed: !!python/object/apply:os.system ['exit 1']", "could not determine a constructor"),
        ("seed: " + "x" * 3000, "x" * 79 + "."),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(load, text, message):
    with pytest.raises(UserError) as error:
        load(GOOD + text)
    said = str(error.value)
    assert "my.yaml" in said
    assert message in said
    assert said.endswith(".")


def test_a_file_that_is_no_recipe_or_not_there_is_named(load):
    for text in ("- a\n- b\n", "", "just words"):
        with pytest.raises(UserError, match="is not a recipe: it must be a mapping"):
            load(text)
    with pytest.raises(UserError, match=r"my\.yaml cannot be read: .*utf-8"):
        load(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    for name in ("nothing/there.yaml", "", "."):
        with pytest.raises(UserError, match="There is no recipe"):
            load_recipe(name)
    with pytest.raises(UserError, match="did you mean 'small-cpu'"):
        load_recipe("smal-cpu")


def test_overrides_reach_every_kind_of_field(load):
    recipe = load(
        GOOD + "batch:\n",
        *("seed=1", "seed=7", "stages.0.steps=11", "optimizer.lr=1e-3", "batch.sequences=5"),
        *("stages.1={depth: 8, steps: 3, mask_rate: 0.4}", "model.layer_norm_eps=1e-12"),
        *("checkpoint.every_minutes=null", "optimizer.betas=[0.8, 0.9]", "summary=a=b"),
    )
    assert recipe.seed == 7
    assert [(s.depth, s.steps, s.mask_rate) for s in recipe.stages] == [(2, 11, None), (8, 3, 0.4)]
    assert (recipe.stage(0).mask_rate, recipe.stage(1).mask_rate) == (0.15, 0.4)
    assert (recipe.optimizer.lr, recipe.stage(0).sequences) == (1e-3, 5)
    assert recipe.model.model_extra == {"layer_norm_eps": 1e-12}
    assert recipe.checkpoint.every_minutes is None
    assert (recipe.optimizer.betas, recipe.summary) == ((0.8, 0.9), "a=b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write it as field=value"),
        ("stages=[{depth: 2, stepps: 10}]", "'stages.0.stepps' (did you mean 'steps'?)"),
        ("stages=[{depth: 3, steps: 1}, {depth: 7, steps: 1}]", "from 3: 6 or 9"),
        ("stages=[{depth: 6, steps: 1}, {depth: 3, steps: 1}]", "depth falls from 6 to 3"),
        ("sed=5", "there is no field 'sed' (did you mean 'seed'?)"),
        ("stages.9.steps=5", "the recipe has no such place"),
        ("seed=[", "The value of --set seed cannot be read"),
        ("name=", "name: input should be a valid string, got None"),
    ],
)
def test_a_bad_override_gets_a_sentence(load, override, message):
    with pytest.raises(UserError) as error:
        load(GOOD, override)
    assert message in str(error.value)


@given(
    lengths=st.lists(st.integers(1, 400_000), min_size=1, max_size=6),
    extra=st.integers(0, 1_000_000),
    warmup=st.floats(0.0, 0.9),
)
def test_scaling_keeps_the_shares_and_the_sum_is_exact(lengths, extra, warmup):
    stages = [{"depth": 2**n, "steps": steps} for n, steps in enumerate(lengths)]
    schedule = {"warmup_steps": int(sum(lengths) * warmup)}
    recipe = parse_recipe({"name": "test", "stages": stages, "schedule": schedule}, "my.yaml")
    total = len(lengths) + extra
    scaled = recipe.scaled(total)
    assert scaled.total_steps == total
    assert all(stage.steps >= 1 for stage in scaled.stages)
    factor = total / recipe.total_steps
    if all(steps * factor >= 1 for steps in lengths):
        for old, new in zip(lengths, scaled.stages, strict=True):
            assert abs(new.steps - old * factor) <= len(lengths)
    assert abs(scaled.schedule.warmup_steps - recipe.schedule.warmup_steps * factor) <= 1
    assert recipe.scaled(recipe.total_steps) == recipe
    with pytest.raises(UserError, match="steps are too few for the"):
        recipe.scaled(len(lengths) - 1)


def test_growth_may_list_the_layers_that_are_copied(load):
    recipe = load(GOOD, "growth.layers=[0, 1, 1, 0]")
    assert [o.source for o in recipe.growth.rule.depth_map(2, 4)] == [0, 1, 1, 0]
    assert load(recipe.to_yaml()) == recipe
    for layers, said in (("[0, 1, 2, 0]", "copy layers 0 to 1"), ("[0, 1, 0]", "from 2: 3")):
        with pytest.raises(UserError, match=said):
            load(GOOD, f"growth.layers={layers}")


def test_steps_are_counted_through_the_stages(load):
    recipe = load(GOOD, "stages.0.steps=10", "stages.1={depth: 2, steps: 5}")
    recipe = recipe.model_copy(update={"stages": (*recipe.stages, load(GOOD).stages[1])})
    assert (recipe.total_steps, recipe.boundaries) == (35, (0, 10, 15, 35))
    assert recipe.growth_steps == (15,)
    assert [recipe.stage_index(s) for s in (0, 9, 10, 14, 15, 34, 99)] == [0, 0, 1, 1, 2, 2, 2]


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
