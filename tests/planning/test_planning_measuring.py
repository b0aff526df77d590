"""Plans whose device is measured on the spot."""

import time
from dataclasses import replace

import pytest
import torch
from planning_helpers import small
from stackbert.planning import pace
from stackbert.planning.devices import GIB, find_device
from stackbert.planning.table import plan_table
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining.trainer import Trainer


def test_here_trains_steps_of_every_depth(monkeypatch) -> None:
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    recipe = small("stages=[{depth: 1, steps: 10}, {depth: 16, steps: 20}]")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    planned = sb.plan(recipe, device="here", vocab_size=128, steps=60, price=1.0)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is untouched"
    shallow, deep = planned.stages
    assert 0 < shallow.step_seconds < deep.step_seconds < 10
    assert 0 < shallow.evaluation_seconds < deep.evaluation_seconds < 10
    assert (shallow.steps, deep.steps) == (20, 40)
    assert planned.mfu is None
    assert planned.device.memory > GIB
    assert planned.notes == ()
    assert 0 < planned.saving < 1
    text = plan_table(planned)
    assert "measured here" in text
    assert "Matrix products run at" in text


def test_here_measures_on_the_corpus_if_there_is_one(factbook_corpus, monkeypatch) -> None:
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    seen = []
    step = Trainer.step

    def listening(self, number, batch, factor):
        seen.append(batch)
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", listening)
    recipe = small("objective.next_sentence=true")
    planned = sb.plan(recipe, corpus=factbook_corpus)
    assert planned.stages[0].step_seconds > 0
    plan = pace.batch_plan(recipe, factbook_corpus, load_vocabulary(factbook_corpus))
    assert (seen[0].input_ids == plan.batch(0).input_ids).all()
    assert (seen[4].input_ids == plan.batch(10 + 1).input_ids).all(), "second turn, second stage"


def test_patience_buys_more_turns_and_ends(monkeypatch) -> None:
    counts = {}
    step = Trainer.step

    def counting(self, number, batch, factor):
        counts[self.depth] = counts.get(self.depth, 0) + 1
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", counting)
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    sb.plan(small())
    assert counts == {1: 7, 2: 7, 4: 7}
    counts.clear()
    monkeypatch.setattr(pace, "_PATIENCE", 1000.0)
    sb.plan(small())
    assert counts == {1: 32, 2: 32, 4: 32}


def test_each_stage_is_timed_with_its_own_micro_batch(monkeypatch) -> None:
    seen = []
    step = Trainer.step

    def listening(self, number, batch, factor):
        seen.append((self.depth, self.micro_batch))
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", listening)
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    planned = sb.plan(small("stages=[{depth: 1, steps: 9, micro_batch: 4}, {depth: 1, steps: 9}]"))
    assert set(seen) == {(1, 4), (1, 2)}
    assert [stage.micro_batch for stage in planned.stages] == [4, 2]


def test_here_settles_what_a_run_would_settle(monkeypatch) -> None:
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    monkeypatch.setattr("stackbert.pretraining.tuning.TUNE_FROM", 0.0)
    planned = sb.plan(small("batch.micro_batch=auto", "batch.sequences=64"))
    chosen = [stage.micro_batch for stage in planned.recipe.stages]
    assert all(isinstance(rows, int) for rows in chosen)
    assert [stage.micro_batch for stage in planned.stages] == chosen
    assert planned.recipe.compile is False


def test_a_step_too_long_is_timed_on_fewer_rows_and_scaled_up(monkeypatch) -> None:
    rows = set()
    step = Trainer.step

    def slow(self, number, batch, factor):
        rows.add(len(batch.input_ids))
        time.sleep(0.02)
        return step(self, number, batch, factor)

    monkeypatch.setattr(Trainer, "step", slow)
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    monkeypatch.setattr(pace, "_LONGEST_TURN", 1e-12)
    planned = sb.plan(small("batch.sequences=40", "stages=[{depth: 1, steps: 10}]"))
    assert rows == {1}
    assert planned.stages[0].step_seconds > 40 * 0.02
    assert any("scaled up" in note for note in planned.notes)


def test_too_little_memory_to_measure_in_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(pace, "measure_batches", lambda *_, **__: pytest.fail("it measured"))
    monkeypatch.setattr(
        "stackbert.planning.planner.this_machine",
        lambda *_: replace(find_device("cpu"), memory=10**5),
    )
    with pytest.raises(sb.UserError, match=r"Measuring 'demo' here takes about .* GiB"):
        sb.plan(small())
