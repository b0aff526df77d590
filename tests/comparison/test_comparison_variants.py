"""Variants differ in what they say they differ in, and in nothing else."""

import itertools
from pathlib import Path

import pytest
import torch
from comparison_helpers import refusal, scratch_of, table, tiny_recipe

from stackbert.batches.batches import training_plan, validation_batch
from stackbert.comparison.reference import Budget, filling
from stackbert.comparison.variants import Variant, at_depth, load_variants, refuse_twins

RECIPE = tiny_recipe()  # 1, 2 and 4 layers


def load(*words: str, **options: object) -> dict[str, Variant]:
    settings = {"seeds": 3, "fractions": (1.0,), **options}
    return {variant.name: variant for variant in load_variants(words, RECIPE, **settings)}


@pytest.fixture
def file(tmp_path: Path):
    def of(text: str) -> str:
        path = tmp_path / "variants.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return of


def test_every_depth_that_a_variant_passes_through_is_a_control_asked_for_or_not(file) -> None:
    for words in ([], ["scratch"]):
        assert list(load(*words)) == ["scratch"]
    late = file("late: {stages: [{depth: 2, steps: 1}, {depth: 4, steps: 1}]}")
    assert list(load(late)) == ["scratch", "depth-2", "late"]
    found = load("stack", "depth-8", seeds=2, fractions=(0.5,), shares=(1.0, 0.25))
    assert list(found) == ["scratch", "depth-8", "depth-1", "depth-2", "stack"]
    assert found["scratch"].recipe == scratch_of(RECIPE)
    assert found["depth-2"].recipe == at_depth(RECIPE, 2)
    assert {v.seeds for v in found.values()} == {2}
    assert {v.fractions for v in found.values() if v.name != "stack"} == {frozenset({1.0, 0.25})}
    assert found["stack"].fractions == {1.0, 0.5, 0.25}


def test_a_file_changes_the_fields_it_names_and_no_others(file) -> None:
    text = """
        kept: {growth: {optimizer_state: copy}, optimizer: {lr: 0.01}, seeds: 1}
        identity: {growth: {optimizer_state: copy}, schedule: {rewarmup_steps: 4}}
        late: {stages: [{depth: 2, steps: 1}, {depth: 4, steps: 2}], fractions: [0.5, 1, 0.5]}
        scratch: {fractions: [0.5]}
        stack:
        """
    found = load(file(text), "random", seeds=4)
    assert found["kept"].recipe == tiny_recipe(growth__optimizer_state="copy", optimizer__lr=0.01)
    assert found["identity"].recipe == tiny_recipe(
        growth__optimizer_state="copy", growth__operator="identity", schedule__rewarmup_steps=4
    )
    # Steps are shares, and leave the warm-up its own.
    late = [{"depth": 2, "steps": 40}, {"depth": 4, "steps": 80}]
    assert found["late"].recipe == tiny_recipe(stages=late)
    assert {name: (each.seeds, each.fractions) for name, each in found.items()} == {
        "scratch": (4, {1.0, 0.5}),  # always at the whole budget, too
        "depth-1": (4, {1.0}),
        "depth-2": (4, {1.0}),
        "kept": (1, {1.0}),
        "identity": (4, {1.0}),
        "late": (4, {1.0, 0.5}),
        "stack": (4, {1.0}),
        "random": (4, {1.0}),
    }


def test_learning_rates_of_a_variant_stand_behind_its_name_or_in_a_file(file) -> None:
    text = "late: {stages: [{depth: 2, steps: 1}, {depth: 4, steps: 2}], learning_rates: [3, 1]}"
    found = load("stack@2", "stack@0.5", "scratch", file(text), learning_rates=(1.0, 0.1))
    assert found["stack"].learning_rates == {0.5, 2.0}
    assert found["late"].learning_rates == {1.0, 3.0}
    assert found["scratch"].learning_rates == found["depth-2"].learning_rates == {0.1, 1.0}
    assert "learning_rates" in refusal(lambda: load("stack@x"))
    assert "given twice" in refusal(lambda: load("stack@1", file("stack: {seeds: 1}")))


@pytest.mark.parametrize(
    ("twins", "first"),
    [
        ("a: {growth: {optimizer_state: copy}}\nb: {growth: {optimizer_state: copy}}", "a"),
        ("b: {optimizer: {lr: 0.5}}", "stack"),
        (
            "b: {stages: [{depth: 4, steps: 1}, {depth: 4, steps: 7}], growth: {operator: random}}",
            "scratch",
        ),
    ],
)
def test_one_recipe_under_two_names_is_refused(twins, first, file) -> None:
    recipes = {name: each.recipe for name, each in load("stack", file(twins)).items()}
    second = twins.splitlines()[-1].partition(":")[0]
    sentence = refusal(lambda: refuse_twins(recipes))
    assert f"'{first}' and '{second}'" in sentence
    del recipes[second]
    refuse_twins(recipes)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x: {batch: {sequences: 3}}", ["'x'", "'batch'"]),
        ("x: {stages: [{depth: 1, steps: 5}, {depth: 2, steps: 5}]}", ["'x'", "depth", "4, not 2"]),
        ("x: {growth: {operator: stak}}", ["'x'", "growth.operator", "stak"]),
        ("stack: {growth: {operator: random}}", ["'stack'", "must be stack, not random"]),
        ("scratch: {growth: {operator: stack}}", ["'scratch'", "growth"]),
        ("x: {fractions: [.nan], growth: {operator: random}}", ["'x'", "fractions"]),
        ("a/b: {growth: {operator: random}}", ["'a/b'", "name"]),
        ("[x, y]", ["variants.yaml"]),
        ("x: {}", ["'x'", "scratch", "stack"]),
    ],
)
def test_a_wrong_variant_is_one_sentence_that_names_it(text, named, file) -> None:
    sentence = refusal(lambda: load(file(text)))
    assert [word for word in named if word not in sentence] == []


def test_all_variants_see_and_are_judged_on_the_same_rows_and_masks(factbook_corpus, file) -> None:
    text = "late: {stages: [{depth: 2, steps: 7}, {depth: 4, steps: 3}]}"
    variants = load(file(text), "stack").values()
    reference = table(*(variant.recipe for variant in variants))
    twelve = Budget(amount=12, unit="step")
    recipes = [filling(variant.recipe, reference, twelve) for variant in variants]
    assert len({recipe.boundaries for recipe in recipes}) == 3  # controls, late, stack

    def rows(recipe, seed: int) -> list[torch.Tensor]:
        recipe = recipe.model_copy(update={"seed": seed})
        plan = training_plan(recipe, factbook_corpus)
        batches = [validation_batch(recipe, factbook_corpus), *map(plan.batch, range(12))]
        return [part for b in batches for part in (b.input_ids_BS, b.columns_BK, b.labels_BK)]

    def same(one, other) -> list[bool]:
        return list(itertools.starmap(torch.equal, zip(one, other, strict=True)))

    first, *others = [rows(recipe, 0) for recipe in recipes]
    assert all(all(same(first, other)) for other in others)
    # Another seed has other rows and masks, but is judged on the same ones.
    assert same(first, rows(recipes[0], 1)) == [True] * 3 + [False] * 36
