"""Signals and SIGKILL, to a process of its own, at any moment."""

import random
import signal
import time
from pathlib import Path

import pytest
from pretraining_helpers import (
    GROWTHS,
    TOTAL,
    checkpoints,
    tiny_recipe,
    untimed_ledger,
    weights,
)

import stackbert as sb

RECIPE = tiny_recipe(checkpoint__every_steps=1, optimizer__name="muon")


def lines(run: Path, kind: str) -> int:
    """Lines of one kind in a ledger that is being written."""
    path = run / "metrics.jsonl"
    return path.read_text().count(f'"kind": "{kind}"') if path.exists() else 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(
    number: signal.Signals, code: int, undisturbed, train_in_child, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(optimizer__name="muon", checkpoint__every_steps=None)
    child = train_in_child(recipe, run)
    assert child.wait_until(lambda: lines(run, "step") > 7)
    child.send(number)
    assert child.wait() == code, child.output
    assert child.output.count("stackbert: Stopped at step ") == 1
    assert "Run the same command again to go on" in child.output
    assert "Traceback" not in child.output
    stopped = max(checkpoints(run))
    assert 7 < stopped < TOTAL
    assert sb.read_ledger(run)[-1]["step"] == stopped

    again = train_in_child(recipe, run)
    assert again.wait() == 0, again.output
    assert f"resuming at step {stopped}" in again.output
    assert weights(run) == weights(undisturbed(recipe))
    assert untimed_ledger(run) == untimed_ledger(undisturbed(recipe))


def test_killed_at_random_moments_it_ends_bit_identical(
    undisturbed, train_in_child, tmp_path: Path
) -> None:
    """Four kills, each at a step that is drawn and some milliseconds after it."""
    run = tmp_path / "run"
    draw = random.Random(time.time_ns())
    targets = sorted(draw.sample(range(1, TOTAL), 4))
    killed = 0
    for target in targets:
        delay = draw.uniform(0.0, 0.06)
        print(f"kill {1000 * delay:.0f} ms after step {target}")
        child = train_in_child(RECIPE, run)
        child.wait_until(lambda target=target: lines(run, "step") >= target)
        time.sleep(delay)
        child.send(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed
    assert train_in_child(RECIPE, run).wait() == 0
    assert weights(run) == weights(undisturbed(RECIPE))
    assert untimed_ledger(run) == untimed_ledger(undisturbed(RECIPE))


def test_killed_while_a_checkpoint_is_written_it_ends_bit_identical(
    undisturbed, train_in_child, tmp_path: Path
) -> None:
    """The half-written one is never taken for a whole one, and is cleared away."""
    run = tmp_path / "run"
    folder = run / "checkpoints"
    left_half = 0
    for target in (1, *GROWTHS, TOTAL):
        child = train_in_child(RECIPE, run)
        half = folder / f"step-{target:08d}.partial"
        assert child.wait_until(half.exists), child.output
        child.send(signal.SIGKILL)
        child.wait()
        left_half += half.exists()
        assert max(checkpoints(run), default=0) in (target - 1, target)
    assert left_half, "not one kill fell into the writing"
    assert train_in_child(RECIPE, run).wait() == 0
    assert weights(run) == weights(undisturbed(RECIPE))
    assert untimed_ledger(run) == untimed_ledger(undisturbed(RECIPE))
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob(".*"))


def test_killed_while_the_model_is_exported_it_is_exported_again(
    undisturbed, train_in_child, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    child = train_in_child(RECIPE, run)
    assert child.wait_until((run / "model.partial").exists), child.output
    child.send(signal.SIGKILL)
    child.wait()
    again = train_in_child(RECIPE, run)
    assert again.wait() == 0, again.output
    assert weights(run) == weights(undisturbed(RECIPE))
    assert not (run / "model.partial").exists()


def test_killed_before_the_first_step_it_begins_again(
    undisturbed, train_in_child, tmp_path: Path
) -> None:
    """Between the folder, recipe.yaml, run.json and the first line of the ledger."""
    run = tmp_path / "run"
    for moment in ("", ".lock", "recipe.yaml", "run.json", "metrics.jsonl"):
        child = train_in_child(RECIPE, run)
        assert child.wait_until((run / moment).exists), child.output
        child.send(signal.SIGKILL)
        child.wait()
    assert train_in_child(RECIPE, run).wait() == 0
    assert weights(run) == weights(undisturbed(RECIPE))
