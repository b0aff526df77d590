"""The referee refereed: planted outcomes are found, and nothing else is claimed."""

import re

import pytest
from comparison_helpers import compared, tiny_recipe

from stackbert.comparison.reference import Reference
from stackbert.comparison.statistics import PLATEAU

SCRATCH = {1.0: [3.0, 3.2, 3.1]}
BETTER, WORSE = {1.0: [2.5, 2.71, 2.6]}, {1.0: [3.5, 3.71, 3.6]}


def judge(losses, **options) -> list[str]:
    """The sentences on losses by hand."""
    return compared(losses, **options).verdict()


def said(sentences: list[str], *words: str) -> list[str]:
    """The sentences that hold all of the words."""
    return [each for each in sentences if all(word in each for word in words)]


@pytest.mark.parametrize(
    ("losses", "outcome", "words"),
    [
        (BETTER[1.0], "better", ["better by 0.497 nats", "3 seeds"]),
        (WORSE[1.0], "worse", ["worse by 0.503 nats", "3 seeds"]),
        ([2.9, 3.3, 3.1], "no difference", ["no difference beyond noise", "3 seeds"]),
        ([2.5], "one seed", ["one seed", "the noise is unknown"]),
    ],
)
def test_a_planted_outcome_is_found(losses, outcome, words) -> None:
    both = {"scratch": SCRATCH, "stack": {1.0: losses}}
    assert list(compared(both).standings()["outcome"]) == ["", outcome]
    first, *others = judge(both)
    assert said([first], "stack ends", "scratch, the best fixed depth,", *words)
    assert not said(others, "stack ends")
    other = {"better", "worse", "no difference"} - {outcome}
    assert not [word for word in other if said([first], f"{word} b")]


def test_a_shallow_control_that_wins_is_what_is_to_be_beaten() -> None:
    losses = {"scratch": WORSE, "depth-2": BETTER, "stack": SCRATCH}
    first, second, third, *_ = judge(losses)
    assert said([first], "stack ends", "depth-2, the best fixed depth, at 2.603", "worse by 0.497")
    assert said([second], "stack ends", "and scratch at 3.603", "better by 0.503")
    assert third.startswith("This budget is too small for 4 layers: against depth-2, scratch is ")
    losses["scratch"] = {1.0: [2.5, 2.8, 2.6]}
    assert said(judge(losses), "Perhaps this budget is too small", "not beyond noise")
    # A deeper control says nothing of the kind.
    assert not said(judge({"scratch": WORSE, "depth-8": BETTER}), "too small")


def test_on_the_plateau_nothing_is_better_and_no_time_is_saved() -> None:
    stack = BETTER | {0.5: [3.0, 3.2, 3.1]}
    losses = {"scratch": SCRATCH, "depth-2": SCRATCH, "stack": stack}
    for gap, plateau in ((PLATEAU - 0.01, True), (PLATEAU + 0.01, False)):
        sentences = judge(losses, entropy=3.1 + gap)
        assert ("shows nothing" in sentences[0]) is plateau
        for word in ("past the plateau", "better", "final loss in", "lowest loss"):
            assert bool(said(sentences, word)) is not plateau


def test_the_plateau_is_of_words_without_the_sentence_pairs() -> None:
    losses = {"scratch": {1.0: [5.0]}, "stack": {1.0: [5.0]}}
    assert not said(judge(losses, entropy=5.5, masked_lm=4.3), "shows nothing")
    assert said(judge(losses, entropy=5.5, masked_lm=5.1), "shows nothing")


def test_only_what_has_finished_is_judged() -> None:
    (only,) = judge({"scratch": {1.0: [None]}, "stack": {1.0: [3.0]}})
    assert "Scratch has no finished run" in only
    assert compared({"scratch": {1.0: [None]}}).to_json() == "{}"
    losses = {"scratch": {1.0: [3.0]}, "stack": {1.0: [None, 2.0]}}  # no seed in common
    assert list(compared(losses).standings()["variant"]) == ["scratch"]
    assert not said(judge(losses), "stack ends")
    losses = {"scratch": SCRATCH, "stack": {1.0: [None] * 5}}
    (sentence,) = said(judge(losses), "5 planned runs did not finish")
    assert "seed 3: not finished (not begun); …" in sentence
    losses = {"scratch": {1.0: [3.0, 5.0, 5.0]}, "stack": {1.0: [2.5]}}  # means of the same seeds
    assert said(judge(losses)[:1], "2.500", "at 3.000")


def test_the_order_is_by_the_paired_difference_and_says_what_is_noise() -> None:
    losses = {
        "scratch": SCRATCH,
        "noisy": {1.0: [2.9, 3.3, 3.08]},
        "clear": BETTER,
        "alone": {1.0: [2.0]},
        "high": {1.0: [3.09]},  # a lower mean than scratch's, and above it with its own seed
    }
    (order,) = said(judge(losses), "from the lowest loss to the highest")
    assert re.search(
        r"alone \([^,]*, one seed\), clear \([^,]*\), noisy \([^,]*, within noise\), "
        r"scratch, high \([^,]*, one seed\)",
        order,
    )


def test_several_variants_that_were_looked_at_are_corrected_for() -> None:
    lucky = {1.0: [2.9, 3.02, 3.0]}  # p = 0.03 by itself
    alone = {"scratch": SCRATCH, "lucky": lucky}
    assert said(judge(alone)[:1], "better by")
    several = alone | {"equal": SCRATCH, "noisy": {1.0: [2.9, 3.3, 3.08]}}
    assert said(judge(several)[:1], "no difference beyond noise")
    assert said(judge(several), "3 variants were looked at", "Holm")
    # Controls are what is compared with, not what is looked at.
    assert said(judge(alone | {"depth-2": WORSE})[:1], "better by")


def test_a_share_of_time_has_an_interval_or_is_a_bound() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 2.0], 0.25: [4.0, 5.0]}}
    found = [share.value for share in compared(losses).speeds()["share"]]
    assert found == pytest.approx([0.5, 0.25 ** (1 / 3)])
    assert said(judge(losses), "stack", "95 % interval", f"{sum(found) / 2:.3g} of scratch's time")
    losses["stack"][1.0] = [2.0, 3.5]
    losses["depth-2"] = {1.0: [2.5, 2.5]}
    against = said(judge(losses, unit="flops"), "With its full schedule, stack")
    assert "of depth-2's FLOPs: 0.707 (seed 0), not within 1 (seed 1)." in against[0]
    assert "of scratch's FLOPs: 0.5 (seed 0), not within 1 (seed 1)." in against[1]


def test_over_several_budgets_the_envelope_and_the_crossings_are_named() -> None:
    losses = {
        "scratch": {1.0: [3.0, 3.0], 0.25: [4.5, 4.5]},
        "depth-2": {1.0: [3.5, 3.5], 0.25: [4.0, 4.0]},
        "stack": {1.0: [2.9, 2.8], 0.25: [4.2, 4.1]},
    }
    sentences = judge(losses, shares=(1.0, 0.25))
    (small,) = said(sentences, "At 25 s the envelope is depth-2 with 4.000 nats")
    assert "the best variant is stack: no difference" in small
    assert said(sentences, "At 1 min 40 s the envelope is scratch with 3.000 nats")
    (crossing,) = said(sentences, "Mean losses cross")
    assert "scratch goes below depth-2 at 50 s" in crossing
    assert "stack goes below the envelope at" in crossing
    assert not said(judge(losses), "envelope")


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        (
            {"schedule__name": "constant"},
            "other (schedule, a learning rate that does not",
        ),
        ({"stages": [{"depth": 4, "steps": 9}]}, "other (no growth)"),
        (
            {"stages": [{"depth": 2, "steps": 9}, {"depth": 4, "steps": 9, "mask_rate": 0.3}]},
            "other (rows, their length or the mask rate)",
        ),
        ({}, ""),
    ],
)
def test_what_differs_beside_growth_is_named(fields, note) -> None:
    losses = {"scratch": SCRATCH, "stack": BETTER, "other": BETTER}
    found = said(judge(losses, recipes={"other": tiny_recipe(**fields)}), "More than growth")
    assert bool(note) == bool(found)
    assert not note or note in found[0]


def test_readings_that_lie_far_apart_are_reported_where_time_is_the_budget() -> None:
    losses = {"scratch": SCRATCH, "stack": BETTER}
    for unit, slowest, told in (("seconds", 1.2, 1), ("seconds", 1.05, 0), ("step", 1.2, 0)):
        found = compared(losses, unit=unit)
        steps = found.reference.steps.assign(slowest=slowest * found.reference.steps["seconds"])
        wide = Reference(**dict(found.reference) | {"steps": steps})
        sentences = found.model_copy(update={"reference": wide}).verdict()
        assert len(said(sentences, "Equal time", "20% at depth 1")) == told
