"""Variants differ in what they say they differ in, and in nothing else."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_helpers import made_results, refusal, table, tiny_recipe

import stackbert as sb
from stackbert.comparison.calibration import Settings
from stackbert.comparison.costs import Budget, all_kinds, filling
from stackbert.comparison.folder import Record
from stackbert.comparison.runs import plan_runs, run_key, seeded
from stackbert.comparison.variants import (
    Variant,
    at_rate,
    depth_pairs,
    differences,
    load_variants,
    scratch_of,
    untuned,
)
from stackbert.growth.operators import OPERATORS
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.start import batch_plan
from stackbert.vocabulary import Vocabulary

RECIPE = tiny_recipe()


@pytest.fixture
def load(tmp_path: Path):
    """Loads the variants of a YAML file, and of further words."""

    def of(text: str, *words: str, **options: object) -> dict[str, Variant]:
        path = tmp_path / "variants.yaml"
        path.write_text(text, encoding="utf-8")
        settings = {"seeds": 3, "fractions": (1.0,), **options}
        found = load_variants([str(path), *words], RECIPE, **settings)
        return {variant.name: variant for variant in found}

    return of


def test_scratch_comes_first_asked_for_or_not() -> None:
    for words in ([], ["scratch"], ["stack"], ["stack", "scratch"]):
        first, *_ = load_variants(words, RECIPE, seeds=2, fractions=(0.5,))
        assert first == Variant("scratch", scratch_of(RECIPE), 2, (1.0,))


def test_scratch_is_full_depth_from_the_first_step_and_otherwise_the_recipe() -> None:
    scratch = scratch_of(RECIPE)
    assert [(stage.depth, stage.steps) for stage in scratch.stages] == [(4, 120)]
    assert scratch.model_copy(update={"stages": RECIPE.stages}) == RECIPE
    assert depth_pairs(scratch) == ()


def test_scratch_keeps_what_else_the_stages_set() -> None:
    recipe = tiny_recipe(
        stages=[
            {"depth": 1, "steps": 3, "sequence_length": 16, "sequences": 32},
            {"depth": 2, "steps": 4, "sequence_length": 16, "sequences": 32},
            {"depth": 4, "steps": 5, "mask_rate": 0.3},
            {"depth": 4, "steps": 6},
        ]
    )
    stages = scratch_of(recipe).stages
    assert [(s.depth, s.steps, s.sequence_length, s.sequences, s.mask_rate) for s in stages] == [
        (4, 7, 16, 32, None),
        (4, 5, None, None, 0.3),
        (4, 6, None, None, None),
    ]


def test_an_operator_is_a_variant_that_differs_in_the_operator_alone() -> None:
    found = load_variants(list(OPERATORS), RECIPE, seeds=1, fractions=(0.5, 1.0))
    assert [variant.name for variant in found] == ["scratch", *OPERATORS]
    for variant in found[1:]:
        growth = RECIPE.growth.model_copy(update={"operator": variant.name})
        assert variant.recipe == RECIPE.model_copy(update={"growth": growth})
        assert variant.fractions == (1.0, 0.5)
        changed = {} if variant.name == "stack" else {"growth.operator": ("stack", variant.name)}
        assert differences(variant.recipe, RECIPE) == changed


def test_a_file_changes_the_fields_it_names_and_no_others(load) -> None:
    found = load(
        """
        kept: {growth: {optimizer_state: copy}, optimizer: {lr: 0.01}}
        identity: {growth: {optimizer_state: copy}, schedule: {rewarmup_steps: 4}}
        """
    )
    assert found["kept"].recipe == tiny_recipe(growth__optimizer_state="copy", optimizer__lr=0.01)
    assert found["identity"].recipe == tiny_recipe(
        growth__optimizer_state="copy", growth__operator="identity", schedule__rewarmup_steps=4
    )
    assert differences(found["identity"].recipe, RECIPE) == {
        "growth.operator": ("stack", "identity"),
        "growth.optimizer_state": ("reset", "copy"),
        "schedule.rewarmup_steps": ("0", "4"),
    }


def test_a_file_sets_seeds_and_fractions_of_its_own(load) -> None:
    found = load(
        "stack: {fractions: [0.5, 1, 0.65, 0.5]}\nidentity: {seeds: 1}\n", "random", seeds=4
    )
    planned = {name: (variant.seeds, variant.fractions) for name, variant in found.items()}
    assert planned == {
        "scratch": (4, (1.0,)),
        "stack": (4, (1.0, 0.65, 0.5)),
        "identity": (1, (1.0,)),
        "random": (4, (1.0,)),
    }


def test_a_file_may_have_stages_of_its_own(load) -> None:
    varied = load("late: {stages: [{depth: 2, steps: 100}, {depth: 4, steps: 20}]}")["late"].recipe
    assert [(stage.depth, stage.steps) for stage in varied.stages] == [(2, 100), (4, 20)]
    assert varied.model_copy(update={"stages": RECIPE.stages}) == RECIPE
    assert list(differences(varied, RECIPE)) == ["stages"]


def test_steps_of_a_file_are_shares_and_leave_the_warm_up_its_own(load) -> None:
    varied = load("short: {stages: [{depth: 1, steps: 1}, {depth: 4, steps: 2}]}")["short"].recipe
    filled = varied.scaled(RECIPE.total_steps)
    assert [stage.steps for stage in filled.stages] == [40, 80]
    assert filled.schedule == RECIPE.schedule


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x: {batch: {sequences: 3}}", ["'x'", "'batch'"]),
        ("x: {evaluation: {mask_rate: 0.3}}", ["'x'", "'evaluation'"]),
        ("x: {stages: [{deep: 4, steps: 5}]}", ["'x'", "stages.0.deep"]),
        ("x: {stages: [{depth: 1, steps: 5}, {depth: 2, steps: 5}]}", ["'x'", "2 layers", "4"]),
        ("x: {stages: [{depth: 4, steps: 5, sequence_length: 16}]}", ["'x'", "16", "32"]),
        ("x: {growth: {operator: stak}}", ["'x'", "growth.operator", "stak"]),
        ("x: {growth: 3}", ["'x'", "growth"]),
        ("x: {optimizer: {name: muon}}", ["'x'", "optimi", "muon"]),
        ("x: {optimizer: {lr: -1}}", ["'x'", "optimizer.lr"]),
        ("x: {schedule: {warmup_steps: 1000}, seeds: 1}", ["'x'", "warmup_steps", "1000"]),
        ("scratch: {growth: {operator: stack}}", ["'scratch'", "growth"]),
        ("x: {seeds: 0, growth: {operator: random}}", ["'x'", "seeds"]),
        ("x: {seeds: two, growth: {operator: random}}", ["'x'", "seeds"]),
        ("x: {fractions: [0.0], growth: {operator: random}}", ["'x'", "fractions"]),
        ("x: {fractions: [5], growth: {operator: random}}", ["'x'", "fractions"]),
        ("x: {fractions: [], growth: {operator: random}}", ["'x'", "fractions"]),
        ("a/b: {growth: {operator: random}}", ["'a/b'", "name"]),
        ("x: 5", ["'x'"]),
        ("", ["variants.yaml"]),
        ("[x, y]", ["variants.yaml"]),
        ("x: {}", ["'x'", "scratch", "stack"]),
    ],
)
def test_a_wrong_variant_is_one_sentence_that_names_it(text, named, load) -> None:
    sentence = refusal(lambda: load(text))
    assert [word for word in named if word not in sentence] == []
    assert ": :" not in sentence


def test_a_variant_that_is_none_is_told_which_there_are() -> None:
    sentence = refusal(lambda: load_variants(["stak"], RECIPE, seeds=1, fractions=(1.0,)))
    assert "'stak'" in sentence
    assert all(name in sentence for name in ("scratch", *OPERATORS))


def test_a_file_that_is_not_there_is_named() -> None:
    words = ["nowhere/variants.yaml"]
    sentence = refusal(lambda: load_variants(words, RECIPE, seeds=1, fractions=(1.0,)))
    assert words[0] in sentence


def test_a_variant_of_two_files_is_refused(load, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("x: {growth: {operator: random}}")
    assert "'x'" in refusal(lambda: load("x: {growth: {operator: identity}}", str(other)))


@pytest.mark.parametrize("fraction", [0.0, -1.0, 4.1, float("nan"), float("inf")])
def test_a_fraction_that_is_none_is_refused(fraction) -> None:
    sentence = refusal(lambda: load_variants(["stack"], RECIPE, seeds=1, fractions=(1.0, fraction)))
    assert "fraction" in sentence


def test_a_factor_multiplies_every_rate_and_nothing_else() -> None:
    recipe = at_rate(RECIPE, 3.0)
    assert recipe.optimizer.lr == pytest.approx(3.0 * RECIPE.optimizer.lr)
    assert recipe.optimizer.muon_lr == pytest.approx(3.0 * RECIPE.optimizer.muon_lr)
    back = recipe.optimizer.model_copy(
        update={"lr": RECIPE.optimizer.lr, "muon_lr": RECIPE.optimizer.muon_lr}
    )
    assert recipe.model_copy(update={"optimizer": back}) == RECIPE


def test_all_variants_see_the_same_rows_and_masks(
    factbook_corpus: sb.Corpus, factbook_vocabulary: Vocabulary, load
) -> None:
    late = "late: {stages: [{depth: 2, steps: 7}, {depth: 4, steps: 3}]}"
    found = load(late, "stack", "identity-noise").values()
    reference = table(*(variant.recipe for variant in found))
    recipes = [filling(v.recipe, reference, Budget(30, "steps")) for v in found]
    assert len({recipe.boundaries for recipe in recipes}) == 3  # scratch, late, the others

    def rows(recipe: sb.Recipe, seed: int) -> list[np.ndarray]:
        plan = batch_plan(seeded(recipe, seed), factbook_corpus, factbook_vocabulary)
        batches = [plan.batch(step) for step in range(recipe.total_steps)]
        return [part for b in batches for part in (b.input_ids, b.columns, b.labels)]

    for seed in (0, 1):
        first, *others = [rows(recipe, seed) for recipe in recipes]
        for other in others:
            assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    # The check above sees a difference where there is one: another seed has other rows and masks.
    seeds = zip(rows(recipes[0], 0), rows(recipes[0], 1), strict=True)
    assert not any(np.array_equal(a, b) for a, b in seeds)


def test_all_variants_and_seeds_are_judged_on_the_same_rows_and_masks(
    factbook_corpus: sb.Corpus, factbook_vocabulary: Vocabulary, load
) -> None:
    mixed = "mixed: {stages: [{depth: 2, steps: 7, sequence_length: 16}, {depth: 4, steps: 3}]}"
    found = load(mixed, "stack", "random").values()
    batches = [
        evaluation_batch(seeded(variant.recipe, seed), factbook_corpus, factbook_vocabulary)
        for variant, seed in itertools.product(found, (0, 1))
    ]
    for batch in batches[1:]:
        assert np.array_equal(batch.input_ids, batches[0].input_ids)
        assert np.array_equal(batch.labels, batches[0].labels)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "other"}, True),
        ({"summary": "other"}, True),
        ({"log_every": 7}, True),
        ({"checkpoint__keep": 5}, True),
        ({"seed": 1}, False),
        ({"optimizer__lr": 2.000001e-3}, False),
        ({"growth__operator": "random"}, False),
        ({"schedule__warmup_steps": 7}, False),
        ({"batch__micro_batch": 8}, False),
        ({"evaluation__every_steps": 9}, False),
        ({"precision": "bf16"}, False),
        ({"compile": True}, False),
        ({"stages": [{"depth": 4, "steps": 120}]}, False),
    ],
)
def test_a_run_is_reused_exactly_where_its_losses_would_be_the_same(change, same) -> None:
    assert (run_key(tiny_recipe(**change), "corpus") == run_key(RECIPE, "corpus")) is same
    assert run_key(RECIPE, "corpus") != run_key(RECIPE, "another")


def record_of(recipe: sb.Recipe, settings: Settings) -> Record:
    """Of a comparison on a budget of sixty steps."""
    made = made_results({}).record
    question = replace(made.question, recipe=recipe)
    return replace(
        made,
        question=question,
        settings=settings,
        reference=table(recipe),
        budget=Budget(60, "steps"),
    )


def rows_of(recipe: sb.Recipe) -> Settings:
    """Twice as many rows at a time at twice the depth."""
    kinds = all_kinds([recipe])
    return Settings("fp32", False, tuple((kind, 4 * kind.depth) for kind in kinds))


def test_runs_that_answer_the_first_question_come_first(load) -> None:
    found = tuple(load("stack: {fractions: [1, 0.5]}", seeds=2).values())
    runs = plan_runs(found, record_of(RECIPE, rows_of(RECIPE)), rate=2.0)
    assert [(run.seed, run.fraction, run.variant) for run in runs] == [
        (0, 1.0, "scratch"),
        (0, 1.0, "stack"),
        (0, 0.5, "stack"),
        (1, 1.0, "scratch"),
        (1, 1.0, "stack"),
        (1, 0.5, "stack"),
    ]
    assert len({run.key for run in runs}) == 6
    for run in runs:
        assert run.recipe.total_steps == 60 * run.fraction
        assert run.recipe.optimizer.lr == 2.0 * RECIPE.optimizer.lr
        assert run.recipe.seed == run.seed


def test_a_planned_run_leaves_nothing_to_be_measured_by_itself() -> None:
    recipe = tiny_recipe(precision="auto", compile="auto", batch__micro_batch="auto")
    found = load_variants(["stack"], recipe, seeds=1, fractions=(1.0,))
    scratch, stack = plan_runs(found, record_of(recipe, rows_of(recipe)), rate=1.0)
    for run in (scratch, stack):
        assert run.recipe.precision == "fp32"
        assert run.recipe.compile is False
    assert [stage.micro_batch for stage in scratch.recipe.stages] == [16]
    assert [stage.micro_batch for stage in stack.recipe.stages] == [4, 8, 16]


def test_micro_batches_of_a_recipe_do_not_go_to_scratch_at_another_depth() -> None:
    stages = [{"depth": 2, "steps": 9, "micro_batch": 16}, {"depth": 4, "steps": 9}]
    recipe = untuned(tiny_recipe(stages=stages))
    assert recipe == tiny_recipe(stages=[{**stage, "micro_batch": None} for stage in stages])
    assert len(scratch_of(recipe).stages) == 1


def test_scratch_is_run_at_the_whole_budget_whatever_else(load) -> None:
    assert load("scratch: {fractions: [0.5]}")["scratch"].fractions == (1.0, 0.5)


def test_stages_and_an_operator_that_reaches_them_come_together(load) -> None:
    text = "x: {growth: {operator: random}, stages: [{depth: 3, steps: 1}, {depth: 4, steps: 2}]}"
    varied = load(text)["x"].recipe
    assert [(stage.depth, stage.steps) for stage in varied.stages] == [(3, 40), (4, 80)]
    sentence = refusal(lambda: load("x: {stages: [{depth: 3, steps: 1}, {depth: 4, steps: 2}]}"))
    assert "'x'" in sentence
    assert "cannot grow 3 layers to 4" in sentence


def test_a_name_of_an_operator_is_of_that_operator(load) -> None:
    assert "'stack'" in refusal(lambda: load("stack: {growth: {operator: random}}"))


def test_a_difference_of_rows_alone_is_listed(load) -> None:
    text = "x: {stages: [{depth: 4, steps: 1, sequences: 8}]}"
    (pair,) = differences(load(text)["x"].recipe, scratch_of(RECIPE)).values()
    assert "8" in pair[1]
    assert "8" not in pair[0]
