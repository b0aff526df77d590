"""A recipe is validated whole before anything runs, and each error names its field."""

import pytest
from recipe_helpers import GOOD, parse, stages

from stackbert.errors import UserError
from stackbert.recipe_files import load_recipe, parse_recipe


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
