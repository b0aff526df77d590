"""A verdict says what the runs show, what they do not, and nothing else."""

import re

import pandas as pd
import pytest
from comparison_helpers import results, scratch_of, tiny_recipe

from stackbert.comparison.reference import Budget
from stackbert.comparison.standings import speeds, standings
from stackbert.comparison.statistics import Share
from stackbert.comparison.verdict import PLATEAU, verdict

SCRATCH = {1.0: [3.0, 3.2, 3.1]}
ONE_RATE = pd.DataFrame({"learning_rate": [], "loss": []})


def judge(losses, *, entropy=6.0, unit="seconds", tried=ONE_RATE, missing=(), **options):
    """The sentences on losses by hand."""
    names = ("masked_lm", "curves")
    recipes = {name: tiny_recipe() for name in losses} | {"scratch": scratch_of(tiny_recipe())}
    recipes |= options.get("recipes", {})
    return verdict(
        results(losses, **{name: options[name] for name in names if name in options}),
        budget=Budget(amount=100.0, unit=unit),
        entropy=entropy,
        tried=tried,
        missing=list(missing),
        recipe=tiny_recipe(),
        variants=recipes,
    )


def said(sentences: list[str], *words: str) -> list[str]:
    """The sentences that hold all of the words."""
    return [each for each in sentences if all(word in each for word in words)]


@pytest.mark.parametrize(
    ("losses", "outcome", "words"),
    [
        ([2.5, 2.71, 2.6], "better", ["better by 0.497 nats", "3 seeds"]),
        ([3.5, 3.71, 3.6], "worse", ["worse by 0.503 nats", "3 seeds"]),
        ([3.0, 3.2, 3.1], "no difference", ["no difference beyond noise", "3 seeds"]),
        ([2.9, 3.3, 3.1], "no difference", ["no difference beyond noise", "3 seeds"]),
        ([2.5], "one seed", ["one seed", "the noise is unknown"]),
    ],
)
def test_a_planted_outcome_is_found(losses, outcome, words) -> None:
    both = {"scratch": SCRATCH, "stack": {1.0: losses}}
    assert list(standings(results(both))["outcome"]) == ["", outcome]
    sentences = judge(both)
    assert said(sentences, "stack ends", *words)
    other = {"better", "worse", "no difference"} - {outcome}
    assert not [word for word in other if said(sentences, "stack ends", f"{word} b")]


@pytest.mark.parametrize("gap", [PLATEAU - 0.01, PLATEAU + 0.01])
def test_a_scratch_on_the_plateau_shows_nothing_and_that_comes_first(gap) -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [2.5, 2.71, 2.6]}}
    sentences = judge(losses, entropy=3.1 + gap)
    assert ("shows nothing" in sentences[0]) is (gap < PLATEAU)
    assert bool(said(sentences, "past the plateau")) is (gap > PLATEAU)


def test_the_plateau_is_of_words_without_the_sentence_pairs() -> None:
    losses = {"scratch": {1.0: [5.0]}, "stack": {1.0: [5.0]}}
    assert not said(judge(losses, entropy=5.5, masked_lm=4.3), "shows nothing")
    assert said(judge(losses, entropy=5.5, masked_lm=5.1), "shows nothing")


def test_nothing_is_said_before_scratch_has_finished() -> None:
    (only,) = judge({"scratch": {1.0: [None]}, "stack": {1.0: [3.0]}})
    assert "Scratch has no finished run" in only


def test_a_variant_that_shares_no_seed_with_scratch_is_not_judged() -> None:
    losses = {"scratch": {1.0: [3.0]}, "stack": {1.0: [None, 2.0]}}
    assert list(standings(results(losses))["variant"]) == ["scratch"]
    assert not said(judge(losses), "stack ends")


@pytest.mark.parametrize(
    ("losses", "at_edge"),
    [
        ([2.9, 3.0, None], True),
        ([3.0, 2.9, 3.1], False),
        ([3.1, 3.0, 2.9], True),
        ([None, None, None], False),
    ],
)
def test_a_best_learning_rate_at_the_edge_of_those_tried_is_reported(losses, at_edge) -> None:
    tried = pd.DataFrame({"learning_rate": [0.5, 1.0, 2.0], "loss": pd.Series(losses, dtype=float)})
    sentences = judge({"scratch": SCRATCH, "stack": {1.0: [3.0]}}, tried=tried)
    assert bool(said(sentences, "edge of those tried")) is at_edge


def test_the_headline_is_of_the_same_budget() -> None:
    losses = {
        "scratch": SCRATCH,
        "stack": {2.0: [1.0, 1.1, 1.2], 1.0: [3.5, 3.71, 3.6], 0.5: [4.0, 4.0, 4.0]},
        "random": {1.0: [2.0, 2.0, 2.0]},
    }
    (headline,) = said(judge(losses), "ends at")
    assert "stack ends" in headline
    assert "same budget" in headline
    assert "worse" in headline


def test_a_variant_at_less_than_the_budget_is_said_to_be() -> None:
    (headline,) = said(judge({"scratch": SCRATCH, "half": {0.5: [3.5, 3.71, 3.6]}}), "half ends")
    assert "0.5 of scratch's budget" in headline
    assert "same budget" not in headline
    assert "worse" in headline


def test_means_and_difference_are_of_the_same_seeds() -> None:
    losses = {"scratch": {1.0: [3.0, 9.0, 9.0]}, "stack": {1.0: [2.5]}}
    (headline,) = said(judge(losses), "stack ends")
    assert "2.500" in headline
    assert "3.000" in headline
    assert "7.000" not in headline


def test_the_order_is_by_the_paired_difference_and_says_what_is_noise() -> None:
    losses = {
        "scratch": SCRATCH,
        "noisy": {1.0: [2.9, 3.3, 3.08]},
        "clear": {1.0: [2.5, 2.71, 2.6]},
        "alone": {1.0: [2.0]},
        "high": {1.0: [3.09]},  # a lower mean than scratch's, and above it with its own seed
    }
    (order,) = said(judge(losses), "from the lowest loss to the highest")
    assert re.search(
        r"alone \([^,]*, one seed\), clear \([^,]*\), noisy \([^,]*, within noise\), "
        r"scratch, high \([^,]*, one seed\)",
        order,
    )
    assert list(standings(results(losses))["variant"]) == [
        *("scratch", "alone", "clear", "noisy", "high")
    ]


def test_a_share_with_every_seed_exact_has_an_interval() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 2.0], 0.25: [4.0, 5.0]}}
    found = [share.value for share in speeds(results(losses), "seconds")["share"]]
    assert found == pytest.approx([0.5, 0.25 ** (1 / 3)])
    assert said(judge(losses), "stack", "95 % interval", f"{sum(found) / 2:.3g} of scratch's time")


def test_a_share_that_is_a_bound_for_one_seed_has_no_mean() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 3.5], 0.25: [4.0, 5.0]}}
    (sentence,) = said(judge(losses), "With its full schedule, stack")
    assert "0.5 (seed 0), not within 1 (seed 1)" in sentence
    assert "interval" not in sentence


@pytest.mark.parametrize(("unit", "word"), [("seconds", "time"), ("flops", "FLOPs"), ("step", "s")])
def test_where_learning_curves_cross_is_named_as_unfair_and_never_made_up(unit, word) -> None:
    curves = {name: [(0.0, 7.0), (0.5, 4.0)] for name in ("identity", "random", "late")}
    losses = {"scratch": {1.0: [3.0]}, "identity": {1.0: [2.0]}, "random": {1.0: [2.5]}}
    losses["late"] = {1.0: [3.5]}
    crossings = speeds(results(losses, curves=curves), unit)["crossing"]
    assert list(crossings) == [
        Share(pytest.approx(0.75)),
        Share(pytest.approx(5 / 6)),
        Share(1, ">"),
    ]
    sentences = judge(losses, curves=curves, unit=unit)
    (unfair,) = said(sentences, "not a fair figure", word)
    assert "at 0.75 (identity), 0.833 (random) of" in unfair
    assert "late" not in unfair


def test_runs_that_have_not_finished_are_counted_and_named() -> None:
    missing = [f"stack, 1, seed {seed}: not begun" for seed in range(5)]
    (sentence,) = said(judge({"scratch": SCRATCH}, missing=missing), "did not finish")
    assert sentence.startswith("5 planned runs did not finish")
    assert "seed 3: not begun; …" in sentence


def test_a_rate_that_does_not_decay_and_a_schedule_of_its_own_are_caveats() -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [3.0]}, "flat": {1.0: [3.0]}}
    recipes = {"flat": tiny_recipe(schedule__name="constant")}
    sentences = judge(losses, recipes=recipes)
    for words in ("does not decay to zero in flat", "differ in flat, so more than growth"):
        assert len(said(sentences, words)) == 1
    assert not said(judge({"scratch": SCRATCH, "stack": {1.0: [3.0]}}), "decay")
