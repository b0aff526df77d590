"""A budget of time becomes a number of steps: parsed, measured, scaled, written down."""

import contextlib
import math
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pretraining_helpers import At, Crash, Listening, crash, tiny_recipe
from stackbert.pretraining.budget import (
    EVALUATIONS,
    Timing,
    evaluations_by_stage,
    measure,
    parse_duration,
    scaled_to,
    steps_within,
)
from stackbert.pretraining.start import batch_plan
from stackbert.recipe_files import load_recipe
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining import start as start_module

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@given(
    parts=st.lists(
        st.tuples(st.decimals(0, 10**6, places=2), st.sampled_from(list(UNITS))),
        min_size=1,
        max_size=4,
    )
)
def test_durations_add_up(parts) -> None:
    expected = sum(float(number) * UNITS[unit] for number, unit in parts)
    assume(expected > 0)
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert parse_duration(text) == pytest.approx(expected)


@given(text=st.text(alphabet="0123456789.smhd -+eE,٣\n", max_size=12) | st.text(max_size=8))
def test_whatever_else_is_a_sentence(text: str) -> None:
    seconds = 1.0
    with contextlib.suppress(sb.UserError):
        seconds = parse_duration(text)
    assert 0 < seconds < math.inf


@pytest.mark.parametrize(
    "text",
    ["", "30", "m", "1.h", "30 m", "-3m", "+3m", "1h30", "1,5h", "3M", "1e3s", "0s", "0m0s", "inf"],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(sb.UserError):
        parse_duration(text)


def test_a_duration_beyond_all_numbers_is_a_sentence(corpus, tmp_path) -> None:
    with pytest.raises(sb.UserError):
        parse_duration("9" * 400 + "d")


STEPS = st.integers(1, 10**5)


@given(
    steps=st.tuples(STEPS, STEPS, STEPS),
    times=st.tuples(*[st.floats(1e-4, 10.0)] * 3),
    evaluation=st.floats(0.0, 20.0),
    every=st.none() | st.integers(1, 1000),
    seconds=st.floats(1.0, 10**6),
)
def test_the_steps_fit_and_each_stage_keeps_its_share(
    steps, times, evaluation, every, seconds
) -> None:
    stages = [{"depth": d, "steps": s} for d, s in zip((1, 2, 4), steps, strict=True)]
    recipe = tiny_recipe(stages=stages, schedule__warmup_steps=0, evaluation__every_steps=every)
    timing = Timing(times, evaluation)
    try:
        total = steps_within(recipe, timing, seconds)
    except sb.UserError:
        # Three steps, one a stage, would have taken longer.
        assert 3 * max(times) + evaluation > 0.9 * seconds
        return
    scaled = recipe.scaled(total)
    assert scaled.total_steps == total
    for before, after in zip(recipe.stages, scaled.stages, strict=True):
        share = before.steps / recipe.total_steps * total
        # Boundaries are rounded, and no stage is left without a step.
        assert abs(after.steps - share) <= 2
    spent = sum(s.steps * t for s, t in zip(scaled.stages, times, strict=True))
    assert spent <= seconds * (1 + 1e-9) + 3 * max(times), "of training"
    if every is not None:
        spent += total / every * evaluation
    else:
        count = EVALUATIONS + 2 * len(recipe.growth_steps)
        spent += min(count * evaluation, seconds / 10)
    assert spent <= seconds * (1 + 1e-9) + 3 * max(times)
    # And not much is left over.
    assert spent >= seconds - 4 * max(times) - evaluation


def test_measuring_times_every_depth(corpus) -> None:
    stages = [{"depth": d, "steps": 2} for d in (1, 8)]
    recipe = tiny_recipe(stages=stages, schedule__warmup_steps=0)
    vocabulary = load_vocabulary(corpus)
    import torch

    timing = measure(
        recipe,
        corpus,
        vocabulary,
        batch_plan(recipe, corpus, vocabulary),
        device=torch.device("cpu"),
        precision="fp32",
    )
    shallow, deep = timing.step
    assert 0 < shallow < deep
    assert timing.evaluation > 0


@pytest.mark.parametrize("evaluation", [0.01, 1.0, 3.0, 50.0])
def test_evaluations_take_no_more_than_a_tenth_of_a_budget(evaluation: float) -> None:
    timing = Timing((0.1, 0.2, 0.4), evaluation)
    recipe = tiny_recipe(evaluation__every_steps=None, schedule__warmup_steps=1)
    scaled = scaled_to(recipe, timing, 600.0)
    assert scaled.total_steps == steps_within(recipe, timing, 600.0)
    beside_growths = 2 * len(recipe.growth_steps) + 2
    most = max(600.0 / 10, beside_growths * evaluation)
    assert sum(evaluations_by_stage(scaled)) * evaluation <= most + 2 * evaluation
    if evaluation == 0.01:
        assert scaled.evaluation == recipe.evaluation
    asked = tiny_recipe(evaluation__every_steps=7)
    assert scaled_to(asked, timing, 600.0).evaluation == asked.evaluation


def test_a_real_budget_scales_the_stages_and_is_measured_once(
    corpus, tmp_path, monkeypatch
) -> None:
    recipe = tiny_recipe(evaluation__every_steps=None, log_every=10, schedule__warmup_steps=6)
    listening = Listening()

    class Broken(At, Listening):
        pass

    broken = Broken(20, crash)
    broken.said = listening.said
    started = time.perf_counter()
    with pytest.raises(Crash):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path, budget="2s", reporter=broken)
    written = load_recipe(tmp_path / "recipe.yaml")
    total = written.total_steps
    assert total > 20
    assert total != recipe.total_steps
    assert [stage.depth for stage in written.stages] == [1, 2, 4]
    assert all(abs(stage.steps - total / 3) <= 1 for stage in written.stages)
    assert abs(written.schedule.warmup_steps - total / 3) <= 1
    assert any(f"{total:,} steps fit into 2s" in text for text in listening.said)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("it measured again")

    monkeypatch.setattr(start_module, "measure", forbidden)
    result = sb.pretrain(recipe, corpus=corpus, out=tmp_path, budget="2s")
    assert result.summary.steps == total
    assert time.perf_counter() - started < 60, "a budget of two seconds"
    assert load_recipe(tmp_path / "recipe.yaml") == written
    with pytest.raises(sb.UserError, match=r"--budget \(2s there, 4s here\)"):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path, budget="4s")


def test_too_short_a_budget_is_a_sentence_and_leaves_no_run(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(start_module, "measure", lambda *_, **__: Timing((1.0, 2.0, 4.0), 0.5))
    with pytest.raises(sb.UserError, match=r"The budget of 2 s is too short: .* takes 2\.33 s"):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path, budget="2s")
    assert not (tmp_path / "run.json").exists()
