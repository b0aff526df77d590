"""A verdict says what the runs show, what they do not, and nothing else."""

import re

import pytest
from comparison_helpers import compared, tiny_recipe

from stackbert.comparison.statistics import PLATEAU

SCRATCH = {1.0: [3.0, 3.2, 3.1]}


def judge(losses, **options):
    """The sentences on losses by hand."""
    return compared(losses, **options).verdict()


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
    assert list(compared(both).standings()["outcome"]) == ["", outcome]
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
    assert list(compared(losses).standings()["variant"]) == ["scratch"]
    assert not said(judge(losses), "stack ends")


def test_the_headline_is_of_the_same_budget() -> None:
    losses = {
        "scratch": SCRATCH,
        "stack": {1.0: [3.5, 3.71, 3.6], 0.5: [4.0, 4.0, 4.0]},
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
    assert list(compared(losses).standings()["variant"]) == [
        *("scratch", "alone", "clear", "noisy", "high")
    ]


def test_a_share_with_every_seed_exact_has_an_interval() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 2.0], 0.25: [4.0, 5.0]}}
    found = [share.value for share in compared(losses).speeds()["share"]]
    assert found == pytest.approx([0.5, 0.25 ** (1 / 3)])
    assert said(judge(losses), "stack", "95 % interval", f"{sum(found) / 2:.3g} of scratch's time")


def test_a_share_that_is_a_bound_for_one_seed_has_no_mean() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 3.5], 0.25: [4.0, 5.0]}}
    (sentence,) = said(judge(losses), "With its full schedule, stack")
    assert "0.5 (seed 0), not within 1 (seed 1)" in sentence
    assert "interval" not in sentence


def test_runs_that_have_not_finished_are_counted_and_named() -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [None] * 5}}
    (sentence,) = said(judge(losses), "did not finish")
    assert sentence.startswith("5 planned runs did not finish")
    assert "seed 3: not finished (not begun); …" in sentence


def test_a_rate_that_does_not_decay_and_a_schedule_of_its_own_are_caveats() -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [3.0]}, "flat": {1.0: [3.0]}}
    recipes = {"flat": tiny_recipe(schedule__name="constant")}
    sentences = judge(losses, recipes=recipes)
    for words in ("does not decay to zero in flat", "differ in flat, so more than growth"):
        assert len(said(sentences, words)) == 1
    assert not said(judge({"scratch": SCRATCH, "stack": {1.0: [3.0]}}), "decay")
