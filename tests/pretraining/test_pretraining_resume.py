"""A run that was stopped and called again is the same run to the last bit."""

import signal
from pathlib import Path

import pytest
import torch
from pretraining_helpers import (
    GROWTHS,
    TOTAL,
    At,
    Crash,
    Listening,
    checkpoints,
    crash,
    interrupt,
    tiny_recipe,
    untimed_ledger,
    weights,
)

import stackbert as sb

VARIANTS = {
    "adamw, state reset at growth": {},
    "adamw, state copied": {"growth__optimizer_state": "copy"},
    "muon, state reset": {"optimizer__name": "muon", "optimizer__clip_norm": 1.0},
    "muon, state copied": {"optimizer__name": "muon", "growth__optimizer_state": "copy"},
    "dropout": {
        "model__hidden_dropout_prob": 0.1,
        "model__attention_probs_dropout_prob": 0.1,
        "batch__micro_batch": 2,
    },
    "next sentence": {"objective__next_sentence": True, "batch__sequence_length": 24},
    "fresh layers and noise": {"growth__operator": "identity-noise", "seed": 5},
    "bert, longer rows at the end": {
        "model__type": "bert",
        "stages": [
            {"depth": 1, "steps": 6},
            {"depth": 2, "steps": 6, "sequences": 6},
            {"depth": 4, "steps": 6, "sequence_length": 24, "mask_rate": 0.3},
        ],
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_run_ends_bit_identical(variant, corpus, undisturbed, tmp_path) -> None:
    """Stopped in a stage, just at, and just after a growth boundary."""
    recipe = tiny_recipe(**VARIANTS[variant])
    for step in (2, GROWTHS[0], GROWTHS[1] + 1):
        with pytest.raises(sb.Interrupted, match=f"step {step} of {TOTAL}") as stopped:
            sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(step, interrupt))
        assert stopped.value.exit_code == 130
        assert max(checkpoints(tmp_path)) == step
        assert not (tmp_path / "model").exists()
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed(recipe))
    assert untimed_ledger(tmp_path) == untimed_ledger(undisturbed(recipe))


@pytest.mark.parametrize("save_every", [2, None])
def test_crashed_run_ends_bit_identical(save_every, corpus, undisturbed, tmp_path) -> None:
    """Without a goodbye: the steps since the last checkpoint are done again."""
    recipe = tiny_recipe(optimizer__name="muon", checkpoint__every_steps=save_every)
    for step in (1, 5, *GROWTHS, 13, 17, TOTAL):
        with pytest.raises(Crash):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(step, crash))
        assert max(checkpoints(tmp_path), default=0) < step
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed(recipe))
    assert untimed_ledger(tmp_path) == untimed_ledger(undisturbed(recipe))


def test_stopped_after_every_step_it_ends_bit_identical(corpus, undisturbed, tmp_path) -> None:
    recipe = tiny_recipe(log_every=4, optimizer__name="muon", growth__optimizer_state="copy")

    class EveryStep(Listening):
        """Asks to stop as soon as the run is under way."""

        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("resuming") or text.startswith("step 0:"):
                interrupt()

    for _ in range(TOTAL - 1):
        with pytest.raises(sb.Interrupted):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=EveryStep())
    assert max(checkpoints(tmp_path)) == TOTAL - 1
    sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=EveryStep())
    assert weights(tmp_path) == weights(undisturbed(recipe))
    assert untimed_ledger(tmp_path) == untimed_ledger(undisturbed(recipe))


def test_ledger_of_a_resumed_run_has_each_line_once_in_order(corpus, tmp_path) -> None:
    recipe = tiny_recipe(checkpoint__every_steps=4)
    for step in (3, 7, 14):
        with pytest.raises(Crash):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(step, crash))
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    rows = sb.read_ledger(tmp_path)
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    assert steps == list(range(1, TOTAL + 1))
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [0, 3, 6, 9, 12, 15, 18]
    assert [row["step"] for row in rows if row["kind"] == "growth"] == list(GROWTHS)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds), "the clock of training runs on, and never backwards"


def test_training_seconds_carry_over_and_the_work_done_twice_counts_once(corpus, tmp_path) -> None:
    recipe = tiny_recipe()
    with pytest.raises(Crash):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(11, crash))
    before = [r for r in sb.read_ledger(tmp_path) if r["kind"] == "step" and r["step"] <= 9]
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    after = [r for r in sb.read_ledger(tmp_path) if r["kind"] == "step"]
    assert after[:9] == before
    assert after[9]["seconds"] > before[-1]["seconds"]


def test_a_second_signal_stops_at_once_and_the_run_goes_on_from_the_checkpoint_before(
    corpus, undisturbed, tmp_path
) -> None:
    recipe = tiny_recipe()

    def twice() -> None:
        interrupt()
        interrupt()

    # Whoever started the tests in the background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(8, twice))
    finally:
        signal.signal(signal.SIGINT, before)
    assert max(checkpoints(tmp_path)) == 6
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed(recipe))


def test_the_callers_random_state_and_signal_handlers_are_put_back(corpus, tmp_path) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sb.pretrain(tiny_recipe(model__hidden_dropout_prob=0.1), corpus=corpus, out=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_stopped_before_its_last_step_has_no_model_and_a_signal_at_the_last_step_is_late(
    corpus, undisturbed, tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(TOTAL, interrupt))
    assert weights(tmp_path) == weights(undisturbed(recipe))


def test_the_export_is_made_again_if_it_was_lost(corpus, tmp_path, monkeypatch) -> None:
    recipe = tiny_recipe()
    with monkeypatch.context() as patch:
        patch.setattr("stackbert.pretraining.run.write_model_card", lambda *_: crash())
        with pytest.raises(Crash):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert not (tmp_path / "model").exists()
    ledger = untimed_ledger(tmp_path)
    sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    assert weights(tmp_path)["exported"] == weights(tmp_path)["model"]
    assert untimed_ledger(tmp_path) == ledger
