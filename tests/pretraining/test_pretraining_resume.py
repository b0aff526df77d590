"""A run that was stopped, killed or that crashed, and is resumed, is the same run to the bit."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stackbert.errors import Interrupted
from stackbert.pretraining import checkpoints as checkpoints_module
from stackbert.pretraining import record, trainer
from stackbert.pretraining import run as run_module
from stackbert.pretraining.checkpoints import read_checkpoint
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.signals import StopRequest
from tiny_runs import (
    GROWTH,
    PAIRS,
    TOTAL,
    At,
    Child,
    after_step,
    break_off,
    checkpoints,
    command_line,
    interrupt,
    outcome,
    pretrain_command,
    send_self,
    tiny_recipe,
)

# Checkpoints after steps 4, 5 and 8, lines of the ledger after 2, 4, 6 and 8.
SPARSE = {"checkpoint__every_steps": 5, "log_every": 2}
VARIANTS = {
    "muon": {"optimizer__clip_norm": 1.0},
    "adamw, state copied": {"optimizer__name": "adamw", "growth__optimizer_state": "copy"},
    "muon, state copied, pairs": {"growth__optimizer_state": "copy", **PAIRS},
    "dropout, noise, two micro-batches": {
        "model__hidden_dropout_prob": 0.1,
        "model__attention_probs_dropout_prob": 0.1,
        "batch__micro_batch": 2,
        "growth__operator": "identity-noise",
        "seed": 5,
    },
    "bert, longer and more rows, micro-batches of each stage": {
        "model__type": "bert",
        "stages": [
            {"depth": 1, "steps": 4, "micro_batch": 3},
            {"depth": 2, "steps": 2, "sequences": 6, "micro_batch": 1},
            {"depth": 2, "steps": 2, "sequence_length": 24, "mask_rate": 0.3},
        ],
    },
    "modernbert": {"model__type": "modernbert"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_with_the_same_bits(variant, tiny_corpus, finished, tmp_path) -> None:
    """Stopped just before a growth; then broken off after it, in the middle of a ledger's line."""
    recipe = tiny_recipe(**SPARSE, **VARIANTS[variant])
    with pytest.raises(Interrupted, match=f"step {GROWTH} of {TOTAL}"):
        pretrain(recipe, corpus=tiny_corpus, out=tmp_path, progress=At(GROWTH, interrupt))
    assert max(checkpoints(tmp_path)) == GROWTH
    break_off(recipe, corpus=tiny_corpus, out=tmp_path, at=6)
    assert max(checkpoints(tmp_path)) == 5
    assert not (tmp_path / "model").exists()
    before = torch.get_rng_state()
    pretrain(recipe, corpus=tiny_corpus, out=tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is put back"
    assert outcome(tmp_path) == outcome(finished(recipe))


def test_ctrl_c_sigterm_and_sighup_save_and_exit_with_128_and_their_number(
    stackbert, tiny_corpus, finished, tmp_path, monkeypatch
) -> None:
    recipe, run = tiny_recipe(checkpoint__every_steps=None), tmp_path / "run"
    command = pretrain_command(recipe, tiny_corpus, tmp_path)
    for step, number in ((2, signal.SIGINT), (GROWTH, signal.SIGTERM), (7, signal.SIGHUP)):
        stop = At(step, lambda number=number: signal.raise_signal(number))
        with monkeypatch.context() as patch:
            patch.setattr("stackbert.cli.console_progress", lambda quiet, stop=stop: stop)
            done = stackbert(*command)
        assert done.code == 128 + number
        assert done.err == (
            f"stackbert: Stopped at step {step} of {TOTAL}; everything is saved in {run}. Run the "
            "same command again to resume.\n"
        )
        assert max(checkpoints(run)) == step
        assert (run / "log.txt").read_text().endswith(done.err.removeprefix("stackbert: "))
    done = stackbert(*command)
    assert (done.code, "resuming at step 7 of 8" in done.err) == (0, True)
    assert outcome(run) == outcome(finished(recipe))


def test_a_signal_is_noted_and_a_second_one_a_second_later_stops_at_once(monkeypatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same request: torchrun sends it twice
        assert stop.signal == signal.SIGTERM
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 1.5)
        monkeypatch.setattr("stackbert.pretraining.signals.time", later)
        with pytest.raises(Interrupted, match="at once") as stopped:
            signal.raise_signal(signal.SIGINT)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) == before


def close_to_others() -> None:
    """For a child: its files are for its user alone."""
    os.umask(0o077)


def killed_in(module: object, name: str, turn: int = 1) -> Callable[[], None]:
    """For a child: SIGKILL instead of the call of this number to a function."""

    def prepare() -> None:
        true, calls = getattr(module, name), iter(range(1, 99))

        def call(*arguments: object, **options: object) -> object:
            if next(calls) == turn:
                send_self(signal.SIGKILL)()
            return true(*arguments, **options)

        setattr(module, name, call)

    return prepare


def killed_while_removing() -> None:
    """For a child: SIGKILL when a folder that is being removed has lost its first file."""

    true = shutil.rmtree

    def remove(folder: Path) -> None:
        if (folder / "state.json").exists():  # a whole checkpoint
            (folder / "config.json").unlink()
            send_self(signal.SIGKILL)()
        true(folder)

    shutil.rmtree = remove


KILLS = {
    "run.json without recipe.yaml": killed_in(record, "write_text"),
    "first checkpoint, optimizer missing": killed_in(checkpoints_module, "save_file"),
    "second checkpoint, all written but its state": killed_in(checkpoints_module, "sha256", 8),
    "an old checkpoint half removed": killed_while_removing,
    "before a checkpoint": after_step(GROWTH - 1, send_self(signal.SIGKILL)),
    "the checkpoint before the growth": killed_in(checkpoints_module, "save_file"),
    "in the growth": killed_in(trainer, "grow_with_origins"),
    "after the growth": after_step(GROWTH, send_self(signal.SIGKILL)),
    "last checkpoint": after_step(TOTAL - 1, send_self(signal.SIGKILL)),
    "the export": killed_in(run_module, "model_card"),
}


def test_killed_at_any_moment_it_ends_with_the_same_bits(tiny_corpus, finished, tmp_path) -> None:
    recipe = tiny_recipe(checkpoint__every_steps=1)
    run = tmp_path / "run"
    run.mkdir(0o700)
    (run / "log.txt").touch(0o600)  # killed while it measured
    command = pretrain_command(recipe, tiny_corpus, tmp_path)
    for moment, prepare in KILLS.items():
        child = Child(tmp_path / "said.txt", close_to_others, prepare, command_line(*command))
        assert child.wait() == -signal.SIGKILL, f"{moment}: {child.output}"
        assert all(read_checkpoint(folder) for folder in checkpoints(run).values())
    last = Child(tmp_path / "said.txt", close_to_others, command_line(*command))
    assert last.wait() == 0, last.output
    assert f"resuming at step {TOTAL}" in last.output
    assert outcome(run) == outcome(finished(recipe))
    assert (run / "recipe.yaml").read_text() == recipe.to_yaml()
    assert not list(run.rglob("*.partial"))
    modes = {path.stat().st_mode & 0o077 for path in run.rglob("*")}
    assert modes == {0}, "every file follows the umask"
