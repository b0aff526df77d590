"""Noise is called noise, a difference a difference, and a bound a bound."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from comparison_helpers import made_results, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st

from stackbert.comparison.folder import Tried
from stackbert.comparison.statistics import (
    Interval,
    Share,
    crossing,
    interval,
    paired,
    share_for,
)
from stackbert.comparison.variants import scratch_of
from stackbert.comparison.verdict import PLATEAU, judge
from stackbert.reporting.content import Point


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [  # Student's t at 97.5 %: 12.7062 (1 degree of freedom), 4.30265 (2), 2.77645 (4)
        ((0.0, 1.0), 0.5, 12.7062 * math.sqrt(0.5) / math.sqrt(2)),
        ((1.0, 2.0, 3.0), 2.0, 4.30265 * 1.0 / math.sqrt(3)),
        ((2.0, 4.0, 4.0, 5.0, 5.0), 4.0, 2.77645 * math.sqrt(1.5) / math.sqrt(5)),
    ],
)
def test_an_interval_is_students(values, mean, half) -> None:
    found = interval(values)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, rel=1e-4)
    assert found.high == pytest.approx(mean + half, rel=1e-4)
    assert found.number == len(values)


def test_one_value_has_no_interval_and_never_excludes_zero() -> None:
    found = interval([5.0])
    assert found == Interval(5.0, None, None, 1)
    assert not found.excludes_zero


def test_values_that_agree_are_an_interval_of_their_own() -> None:
    assert interval([0.0, 0.0, 0.0]) == Interval(0.0, 0.0, 0.0, 3)
    assert not interval([0.0, 0.0]).excludes_zero
    assert interval([0.5, 0.5]).excludes_zero


@pytest.mark.parametrize("seeds", [3, 5])
def test_of_pairs_that_do_not_differ_one_in_twenty_is_called_different(seeds) -> None:
    draws = 4000
    random = np.random.default_rng(20)
    common = random.normal(size=(draws, seeds))
    sides = common + random.normal(size=(2, draws, seeds))
    called = 0
    for a, b in zip(*sides, strict=True):
        found = paired(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())))
        assert found is not None
        called += found.excludes_zero
    # Three standard deviations of a count of 4000 at 5 %.
    assert 0.04 < called / draws < 0.06


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_shift_of_many_sigmas_is_found_on_its_side(seeds, shift) -> None:
    random = np.random.default_rng(21)
    for _ in range(300):
        common = random.normal(size=seeds)
        a = common + shift + random.normal(scale=0.01, size=seeds)
        b = common + random.normal(scale=0.01, size=seeds)
        found = paired(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())))
        assert found is not None
        assert found.excludes_zero
        assert math.copysign(1.0, found.mean) == shift


def test_only_seeds_that_both_have_are_paired() -> None:
    assert paired({0: 1.0, 1: 2.0, 7: 100.0}, {1: 1.5, 0: 0.5, 8: -100.0}) == interval([0.5, 0.5])
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_a_share_between_two_budgets_is_straight_over_the_logarithm() -> None:
    found = share_for({1.0: 2.0, 0.25: 4.0}, 3.0)
    assert (found.value, found.bound) == (pytest.approx(0.5), "=")


@pytest.mark.parametrize(
    ("losses", "target", "share"),
    [
        ({0.5: 3.0, 1.0: 2.0}, 3.5, Share(0.5, "<=")),
        ({0.5: 3.0, 1.0: 2.0}, 3.0, Share(0.5, "<=")),
        ({0.5: 3.0, 1.0: 2.0}, 2.0, Share(1.0)),
        ({0.5: 3.0, 1.0: 2.0}, 1.9, Share(1.0, ">")),
        ({0.5: 3.0}, 3.0, Share(0.5, "<=")),
        ({0.5: 3.0}, 2.9, Share(0.5, ">")),
    ],
)
def test_beyond_what_was_run_a_share_is_a_bound(losses, target, share) -> None:
    found = share_for(losses, target)
    assert (found.value, found.bound) == (pytest.approx(share.value), share.bound)


def test_a_share_of_no_runs_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="no runs"):
        share_for({}, 3.0)


def test_losses_that_rise_again_do_not_flatter_the_variant() -> None:
    # Below the target at a half by luck, above it again at 0.7, below from there on.
    losses = {0.3: 3.0, 0.5: 2.5, 0.7: 2.8, 1.0: 2.4}
    found = share_for(losses, 2.6)
    assert found.bound == "="
    assert 0.7 < found.value < 1.0
    assert share_for({0.3: 2.5, 0.5: 2.8, 1.0: 2.4}, 2.6).value > 0.5
    assert share_for({0.5: 2.5, 1.0: 2.8}, 2.6) == Share(1.0, ">")


shares = st.lists(st.floats(0.05, 4.0), min_size=2, max_size=6, unique=True).map(sorted)


@given(shares=shares, slope=st.floats(0.1, 5.0), part=st.floats(0.01, 0.99))
def test_losses_on_a_line_give_the_share_on_it(shares, slope, part) -> None:
    losses = {share: 3.0 - slope * math.log(share) for share in shares}
    wanted = math.exp(math.log(shares[0]) + part * math.log(shares[-1] / shares[0]))
    found = share_for(losses, 3.0 - slope * math.log(wanted))
    assert found.value == pytest.approx(wanted, rel=1e-6)


@given(
    losses=st.dictionaries(st.floats(0.05, 4.0), st.floats(1.0, 9.0), min_size=1, max_size=6),
    targets=st.lists(st.floats(0.5, 9.5), min_size=2, max_size=5).map(sorted),
)
def test_a_lower_loss_never_takes_less(losses, targets) -> None:
    found = [share_for(losses, target) for target in targets]
    for lower, higher in pairwise(found):
        assert lower.value >= higher.value * (1.0 - 1e-9)
    for share in found:
        assert min(losses) * (1 - 1e-9) <= share.value <= max(losses) * (1 + 1e-9)
        assert share.bound != ">" or share.value == max(losses)
        assert share.bound != "<=" or share.value == min(losses)


def curve(*values: tuple[float, float]) -> list[Point]:
    return [Point(seconds, 0.0, 0.0, 0.0, loss) for seconds, loss in values]


@pytest.mark.parametrize(
    ("points", "share"),
    [
        (curve((0, 7.0), (10, 5.0), (20, 3.0)), Share(0.30)),  # 15 of 50 seconds
        (curve((0, 7.0), (10, 4.0), (20, 3.0)), Share(0.20)),
        (curve((0, 7.0), (10, 5.0), (10, 3.0), (20, 3.0)), Share(0.20)),  # at a growth
        (curve((0, 7.0), (10, 3.0), (10, 6.0), (20, 5.0)), Share(0.15)),  # before one
        (curve((0, 3.0), (10, 5.0)), Share(0.0)),
        (curve((0, 7.0), (10, 5.0), (20, 4.5)), Share(0.40, ">")),
    ],
)
def test_curves_cross_where_the_first_goes_below(points, share) -> None:
    found = crossing(points, 4.0, 50.0, "seconds")
    assert (found.value, found.bound) == (pytest.approx(share.value), share.bound)


SCRATCH = {1.0: [3.0, 3.2, 3.1]}


def said(verdict, *words: str) -> list[str]:
    """The sentences that hold all of the words."""
    return [each for each in verdict.sentences if all(word in each for word in words)]


@pytest.mark.parametrize(
    ("losses", "outcome", "words"),
    [
        ([2.5, 2.71, 2.6], "better", ["better by 0.497 nats", "3 seeds"]),
        ([3.5, 3.71, 3.6], "worse", ["worse by 0.503 nats", "3 seeds"]),
        ([3.1, 3.1, 3.1], "no difference", ["no difference beyond noise", "3 seeds"]),
        ([3.0, 3.2, 3.1], "no difference", ["no difference beyond noise"]),
        ([2.5], "one seed", ["one seed", "nothing is known of the noise"]),
    ],
)
def test_an_outcome_is_what_the_interval_says(losses, outcome, words) -> None:
    verdict = judge(made_results({"scratch": SCRATCH, "stack": {1.0: losses}}))
    assert [standing.outcome for standing in verdict.standings] == [outcome]
    assert said(verdict, "stack ends", *words)
    other = {"better", "worse", "no difference"} - {outcome}
    assert not [word for word in other if said(verdict, "stack ends", f"{word} b")]


@pytest.mark.parametrize("gap", [PLATEAU - 0.01, PLATEAU + 0.01])
def test_a_scratch_on_the_plateau_shows_nothing_and_that_comes_first(gap) -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [2.5, 2.71, 2.6]}}
    verdict = judge(made_results(losses, entropy=3.1 + gap))
    assert verdict.on_plateau is (gap < PLATEAU)
    assert ("shows nothing" in verdict.sentences[0]) is (gap < PLATEAU)
    assert bool(said(verdict, "past the plateau")) is (gap > PLATEAU)


def test_the_plateau_is_of_words_without_the_sentence_pairs() -> None:
    losses = {"scratch": {1.0: [5.0]}, "stack": {1.0: [5.0]}}
    assert judge(made_results(losses, entropy=5.5, masked_lm=4.3)).on_plateau is False
    assert judge(made_results(losses, entropy=5.5, masked_lm=5.1)).on_plateau is True


def test_nothing_is_said_before_scratch_has_ended() -> None:
    verdict = judge(made_results({"scratch": {1.0: [None]}, "stack": {1.0: [3.0]}}))
    assert verdict.standings == ()
    assert said(verdict, "Scratch has no finished run")


def test_a_variant_that_shares_no_seed_with_scratch_is_not_judged() -> None:
    verdict = judge(made_results({"scratch": {1.0: [3.0]}, "stack": {1.0: [None, 2.0]}}))
    assert verdict.standings == ()


@pytest.mark.parametrize(("rate", "at_edge"), [(0.5, True), (1.0, False), (2.0, True)])
def test_a_best_learning_rate_at_the_edge_of_those_tried_is_reported(rate, at_edge) -> None:
    tried = [Tried(0.5, 3.0), Tried(1.0, 3.0), Tried(2.0, None)]
    losses = {"scratch": SCRATCH, "stack": {1.0: [3.0]}}
    verdict = judge(made_results(losses, tried=tried, rate=rate))
    assert bool(said(verdict, "edge of those tried")) is at_edge


def test_the_headline_is_of_the_same_budget() -> None:
    losses = {
        "scratch": SCRATCH,
        "stack": {2.0: [1.0, 1.1, 1.2], 1.0: [3.5, 3.71, 3.6], 0.5: [4.0, 4.0, 4.0]},
        "random": {1.0: [2.0, 2.0, 2.0]},
    }
    verdict = judge(made_results(losses))
    (headline, *_) = said(verdict, "stack ends")
    assert "same budget" in headline
    assert "worse" in headline


def test_a_variant_at_less_than_the_budget_is_said_to_be() -> None:
    verdict = judge(made_results({"scratch": SCRATCH, "half": {0.5: [3.5, 3.71, 3.6]}}))
    (headline, *_) = said(verdict, "half ends")
    assert "0.5 of" in headline
    assert "same budget" not in headline
    assert "worse" in headline


def test_means_and_difference_are_of_the_same_seeds() -> None:
    losses = {"scratch": {1.0: [3.0, 9.0, 9.0]}, "stack": {1.0: [2.5]}}
    (headline, *_) = said(judge(made_results(losses)), "stack ends")
    assert "2.500" in headline
    assert "3.000" in headline
    assert "7.000" not in headline


def test_the_order_is_by_the_paired_difference() -> None:
    losses = {
        "scratch": {1.0: [3.0, 5.0, 7.0]},
        "better": {1.0: [2.5, 4.4, 6.6]},  # a higher mean than scratch's first seed
        "worse": {1.0: [3.2]},  # a lower mean than every other
    }
    (order,) = said(judge(made_results(losses)), "from the lowest loss to the highest")
    assert re.search(r"better\b.*scratch\b.*worse\b", order)


def test_what_has_one_seed_is_named_with_its_shares_where_others_of_it_have_more() -> None:
    losses = {
        "scratch": {1.0: [3.0, 5.0, 7.0]},
        "stack": {1.0: [2.5, 4.4, 6.6], 0.5: [3.1], 0.35: [3.3]},
        "identity": {1.0: [2.4], 0.5: [3.2]},
    }
    (caveat,) = said(judge(made_results(losses)), "One seed only")
    assert caveat == "One seed only: identity; stack at 0.5, 0.35; their place is uncertain."


def test_a_share_with_every_seed_exact_has_an_interval() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 2.0], 0.25: [4.0, 5.0]}}
    verdict = judge(made_results(losses))
    (speed,) = verdict.speeds
    values = [0.5, math.exp(math.log(0.25) * (1 / 3))]
    assert [speed.by_seed[seed].value for seed in (0, 1)] == pytest.approx(values)
    assert speed.mean is not None
    assert speed.mean.mean == pytest.approx(sum(values) / 2)
    assert said(verdict, "stack", "95 % interval", f"{sum(values) / 2:.3g} of")


def test_a_share_that_is_a_bound_for_one_seed_has_no_mean() -> None:
    losses = {"scratch": {1.0: [3.0, 3.0]}, "stack": {1.0: [2.0, 3.5], 0.25: [4.0, 5.0]}}
    verdict = judge(made_results(losses))
    (speed,) = verdict.speeds
    assert speed.mean is None
    assert speed.by_seed[1] == Share(1.0, ">")
    (sentence,) = [s for s in verdict.sentences if "(seed 0)" in s]
    assert "at at" not in sentence


def test_the_cheap_figure_is_named_as_such_and_never_made_up() -> None:
    scratch = {"scratch": {1.0: [3.0]}}
    curves = {"stack": [(0.0, 7.0), (0.5, 4.0)]}
    below = judge(made_results({**scratch, "stack": {1.0: [2.0]}}, curves=curves))
    assert below.speeds[0].crossing == {0: Share(pytest.approx(0.75))}
    assert said(below, "stack", "cross", "0.75")
    above = judge(made_results({**scratch, "stack": {1.0: [3.5]}}, curves=curves))
    assert above.speeds[0].crossing[0].bound == ">"
    assert not said(above, "cross scratch's final loss at")


def test_the_cheap_figures_of_several_variants_share_one_caveat() -> None:
    curve = [(0.0, 7.0), (0.5, 4.0)]
    losses = {"scratch": {1.0: [3.0]}, "identity": {1.0: [2.0]}, "random": {1.0: [2.5]}}
    verdict = judge(made_results(losses, curves={"identity": curve, "random": curve}))
    (sentence,) = [s for s in verdict.sentences if "not a fair figure" in s]
    assert "0.75 (identity), 0.833 (random)" in sentence


def test_runs_that_have_not_ended_are_counted_and_named() -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [2.5, None, 2.6]}}
    verdict = judge(made_results(losses))
    (sentence,) = said(verdict, "did not end")
    assert sentence.startswith("1 planned run did not end")
    assert "stack, 1, seed 1" in sentence


def test_an_order_within_noise_is_said_to_be() -> None:
    losses = {
        "scratch": SCRATCH,
        "clear": {1.0: [2.5, 2.71, 2.6]},
        "noisy": {1.0: [2.9, 3.3, 3.08]},
        "alone": {1.0: [2.0]},
    }
    (order,) = said(judge(made_results(losses)), "from the lowest loss to the highest")
    assert re.search(
        r"alone \([^,]*, one seed\), clear \([^,]*\), noisy \([^,]*, within noise\)", order
    )


@pytest.mark.parametrize("unit", ["seconds", "flops", "steps"])
def test_where_curves_cross_is_a_share_of_the_budgets_own_unit(unit) -> None:
    losses = {"scratch": {1.0: [3.0]}, "stack": {1.0: [2.0]}}
    curves = {"stack": [(0.0, 7.0), (0.5, 4.0)]}
    verdict = judge(made_results(losses, curves=curves, unit=unit))
    assert verdict.speeds[0].crossing[0].value == pytest.approx(0.75)
    assert said(verdict, "cross", {"seconds": "the time", "flops": "the FLOPs"}.get(unit, "steps"))


def test_a_rate_that_does_not_decay_and_a_schedule_of_its_own_are_caveats() -> None:
    losses = {"scratch": SCRATCH, "stack": {1.0: [3.0]}, "flat": {1.0: [3.0]}}
    recipes = {
        "scratch": scratch_of(tiny_recipe()),
        "stack": tiny_recipe(),
        "flat": tiny_recipe(schedule__name="constant"),
    }
    verdict = judge(made_results(losses, recipes=recipes))
    (undecayed,) = said(verdict, "does not decay to zero")
    (other,) = said(verdict, "so growth is not all that is compared")
    for sentence in (undecayed, other):
        assert "flat" in sentence
        assert "stack" not in sentence
