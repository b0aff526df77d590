"""A recipe is validated whole before anything runs, and each error names its field."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.recipe_files import differing_fields, load_recipe, parse_recipe, shipped_recipes

SHIPPED = ["bert-base", "bert-base-gong2019", "bert-large", "demo", "small-cpu"]


def stages(*pairs: tuple[int, int]) -> list[dict[str, int]]:
    return [{"depth": depth, "steps": steps} for depth, steps in pairs]


def parse(**fields: object) -> Recipe:
    return parse_recipe({"name": "test", "stages": stages((2, 10)), **fields}, "my.yaml")


@pytest.fixture
def load(tmp_path):
    """load_recipe of some YAML text (or bytes) in a file."""

    def run(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "my.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe(path, overrides)

    return run


GOOD = "name: test\nstages: [{depth: 2, steps: 10}, {depth: 4, steps: 20}]\n"


# --- Shipped recipes ------------------------------------------------------------------------------


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


# --- YAML in and out ------------------------------------------------------------------------------


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


# --- What is wrong is named -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimzer: {}", "there is no field 'optimzer' (did you mean 'optimizer'?)"),
        (
            "optimizer: {weight_deacy: 0.1}",
            "'optimizer.weight_deacy' (did you mean 'weight_decay'?)",
        ),
        ("batch: {rows: 5}", "there is no field 'batch.rows'"),
        ("batch: 5", "batch: input should be a valid dictionary"),
        ("seed: many", "seed: input should be a valid integer"),
        ("seed: 1.5", "seed: input should be a valid integer"),
        ("seed: true", "seed: input should be a valid integer, got True"),
        ("compile: maybe", "compile: input should be 'auto', got 'maybe'"),
        ("seed: -1", "seed: input should be greater than or equal to 0, got -1"),
        ("log_every: 0", "log_every: input should be greater than 0, got 0"),
        ("batch: {micro_batch: some}", "batch.micro_batch: input should be 'auto', got 'some'"),
        ("batch: {micro_batch: 0}", "batch.micro_batch: input should be greater than 0"),
        ("batch: {sequence_length: 4}", "batch.sequence_length: input should be greater than"),
        ("optimizer: {lr: .inf}", "optimizer.lr: input should be a finite number"),
        ("optimizer: {lr: .nan}", "optimizer.lr: input should be a finite number"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas.1"),
        ("optimizer: {betas: [0.9, 1.5]}", "optimizer.betas.1: input should be less than"),
        ("objective: {mask_rate: 0}", "objective.mask_rate: input should be greater than 0"),
        ("precision: fp16", "precision: input should be 'auto', 'bf16' or 'fp32', got 'fp16'"),
        ("model: {type: gpt2}", "model.type: input should be 'bert', "),
        ("model: {vocab_size: 5}", "vocab_size is set by the corpus"),
        ("model: {num_hidden_layers: 5}", "num_hidden_layers is set by the stages' depth"),
        ("model: {hidden_size: 10, num_attention_heads: 3}", "hidden_size 10 is not a multiple of"),
        ("growth: {operator: stak}", "there is no growth operator 'stak'. Choose one of: stack,"),
        (
            "schedule: {warmup_steps: 30}",
            "schedule.warmup_steps 30 is not below the run's 30 steps",
        ),
        ("schedule: {name: piecewise}", "piecewise needs them"),
        ("schedule: {points: [[0, 1.0]]}", "points go with 'name: piecewise'"),
        ("schedule: {name: piecewise, points: [[5, 1.0], [5, 0.5]]}", "must rise, got [5, 5]"),
        ("1: 2", "keys should be strings"),
        ("seed: " + "x" * 3000, "x…"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(load, text, message):
    with pytest.raises(UserError) as error:
        load(GOOD + text)
    said = str(error.value)
    assert message in said
    assert "my.yaml: " in said
    assert said.endswith(".")
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "batch:\n  {sequences: 4, sequences: 8}"])
def test_a_field_that_is_given_twice_is_refused(load, text):
    """PyYAML would take the last one."""
    with pytest.raises(UserError, match=r"my\.yaml, line \d+ is not YAML: .* given twice"):
        load(GOOD + text)


def test_a_name_is_one_word(load):
    with pytest.raises(UserError, match=r"my\.yaml: name: string should match pattern"):
        load("name: two words\nstages: [{depth: 1, steps: 5}]")


def test_every_wrong_field_is_named_at_once(load):
    with pytest.raises(UserError, match=r"log_every: .*; seed: "):
        load(GOOD + "seed: x\nlog_every: 0")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("- {steps: 10}", "the field 'stages.0.depth' is missing"),
        ("- {depth: 2, stepps: 10}", "'stages.0.stepps' (did you mean 'steps'?)"),
        ("- {depth: two, steps: 10}", "stages.0.depth: input should be a valid integer"),
        ("- {depth: 2, steps: 0}", "stages.0.steps: input should be greater than 0"),
        ("- 5", "stages.0: input should be a valid dictionary"),
        ("[]", "stages: tuple should have at least 1 item"),
        ("12", "stages: input should be a valid tuple, got 12"),
    ],
)
def test_a_wrong_stage_is_named(load, given, message):
    with pytest.raises(UserError) as error:
        load(f"name: test\nstages:\n  {given}\n")
    assert message in str(error.value)
    assert str(error.value).count("stages: tuple should") == (given == "[]")


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match="the field 'stages' is missing"):
        parse_recipe({"name": "test"}, "my.yaml")


def test_impossible_depths_are_refused_with_the_depths_that_can_be_reached():
    with pytest.raises(UserError, match=r"from 3: 6 or 9"):
        parse(stages=stages((3, 10), (7, 10)))


def test_a_falling_depth_is_refused():
    with pytest.raises(UserError, match="stages: depth falls from 6 to 3"):
        parse(stages=stages((6, 10), (3, 10)))


@pytest.mark.parametrize("kind", ["roberta", "roberta-prelayernorm", "modernbert"])
def test_next_sentence_needs_a_model_with_that_head(kind):
    with pytest.raises(UserError, match=rf"next_sentence: {kind} has no .* bert, megatron-bert"):
        parse(model={"type": kind}, objective={"next_sentence": True})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "is not a recipe: it must be a mapping"),
        ("", "is not a recipe: it must be a mapping"),
        ("just words", "is not a recipe: it must be a mapping"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is not a text file in UTF-8"),
        ("name: [1,\nstages: }", "line 2 is not YAML"),
        ("name: a\0b", "is not YAML"),
        (GOOD + "seed: !!python/object/apply:os.system ['exit 1']", "line 3 is not YAML"),
        (GOOD + "seed: !!python/name:os.system", "line 3 is not YAML"),
        (GOOD + "seed: !!bool maybe", "does not fit its '!!' tag"),
        (GOOD + "seed: !!timestamp now", "does not fit its '!!' tag"),
        (GOOD + "seed: 2020-13-45", "cannot be read: month must be in 1..12"),
        (GOOD + "seed: 0x" + "f" * 5000, "an integer of more than 64 bits"),
        (GOOD + "model: &m {x: *m}", "nested too deeply"),
        ("&a {name: x, stages: *a}", "nested too deeply"),
        ("[" * 2_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_gets_a_sentence(load, text, message):
    with pytest.raises(UserError) as error:
        load(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("field", ["name", "model", "extra"])
def test_aliases_of_aliases_do_not_exhaust_the_memory(load, field):
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    bomb = f"l0: &l0 [{', '.join(['lol'] * 9)}]\n{levels}"
    value = "{hidden_act: *l11}" if field == "model" else "*l11"
    with pytest.raises(UserError, match="aliases make more than 10,000 values"):
        load(f"{bomb}stages: [{{depth: 2, steps: 10}}]\n{field}: {value}\n")


def test_an_alias_is_a_copy(load):
    text = "name: a\nstages:\n- &s {depth: 2, steps: 10}\n- *s\n"
    assert [stage.steps for stage in load(text).stages] == [10, 10]
    assert [stage.steps for stage in load(text, "stages.0.steps=5").stages] == [5, 10]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal-cpu", "did you mean 'small-cpu'?"),
        ("nothing/there.yaml", "neither a file nor one of bert-base, bert-base-gong2019"),
        ("", "There is no recipe ''"),
        (".", "There is no recipe '.'"),
        ("x" * 1000, "File name too long"),
    ],
)
def test_a_recipe_that_is_not_there_is_named(name, message):
    with pytest.raises(UserError) as error:
        load_recipe(name)
    assert message in str(error.value)


def test_a_recipe_may_be_given_by_its_path(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(str(tmp_path / "mine.yaml"))


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse().seed = 3


# --- Overrides ------------------------------------------------------------------------------------


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


# --- Another number of steps ----------------------------------------------------------------------


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


# --- What differs ---------------------------------------------------------------------------------


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
