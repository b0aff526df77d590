"""What happens under a run, as docs/faults.md promises: to its loss, corpus, folder and disk."""

import functools
import math
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stackbert.batches.batches import training_plan
from stackbert.errors import RunError, UserError
from stackbert.model import LossSums
from stackbert.pretraining import distributed
from stackbert.pretraining.checkpoints import read_checkpoint
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.trainer import Trainer
from tiny_runs import (
    GROWTH,
    TOTAL,
    At,
    Child,
    Crash,
    checkpoints,
    command_line,
    content,
    cut_off,
    flip_bit,
    outcome,
    pretrain_command,
    tiny_recipe,
)

RECIPE = tiny_recipe()


# A loss that is not finite


def test_a_diverged_loss_stops_naming_step_stage_depth_and_causes(stackbert, tiny_corpus, tmp_path):
    recipe = tiny_recipe(optimizer={"name": "adamw", "lr": 1e30}, checkpoint__every_steps=None)
    command = pretrain_command(recipe, tiny_corpus, tmp_path)
    for _ in range(2):  # a run is a function of its recipe: called again, it fails the same way
        done = stackbert(*command)
        assert done.code == 1
        *_, said = done.err.splitlines()
        assert said.startswith("stackbert: The loss is not finite at step 1 (stage 1, depth 1)")
        assert "No checkpoint was due yet." in said
        for cause in ("optimizer.lr", "schedule.warmup_steps", "optimizer.clip_norm"):
            assert cause in said
        assert "rewarmup" not in said, "nothing has grown yet"
        assert not (tmp_path / "run" / "model").exists()


def spoil_row(patch: pytest.MonkeyPatch, corpus, *, step: int, row: int) -> None:
    """A loss that is NaN whenever a certain row is among those that are passed."""
    true = distributed.loss_sums
    marked = training_plan(RECIPE, corpus).batch(step).input_ids_BS[row]

    def spoiled(model: Any, batch: Any, kernels: Any) -> LossSums:
        sums = true(model, batch, kernels)
        if (batch.input_ids_BS == marked).all(dim=1).any():
            return LossSums(sums.masked_lm * math.nan, sums.next_sentence)
        return sums

    patch.setattr(distributed, "loss_sums", spoiled)


def test_the_row_to_blame_and_the_last_checkpoint_are_named(tiny_corpus, tmp_path, monkeypatch):
    spoil_row(monkeypatch, tiny_corpus, step=5, row=2)
    with pytest.raises(RunError) as stopped:
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path)
    said = str(stopped.value)
    assert "not finite at step 5 (stage 2, depth 2) (row 3 of the step)" in said
    assert f"The last checkpoint is {checkpoints(tmp_path)[GROWTH]}." in said
    assert "schedule.rewarmup_steps" in said, "it has just grown"


def test_as_many_bad_steps_are_skipped_as_the_recipe_allows(tiny_corpus, tmp_path, monkeypatch):
    recipe = tiny_recipe(skip_bad_steps=1, checkpoint__every_steps=1)
    heard, run = At(), tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil_row(patch, tiny_corpus, step=2, row=0)
        spoil_row(patch, tiny_corpus, step=6, row=0)
        for _ in range(2):  # a resumed run remembers the first
            with pytest.raises(RunError, match=r"at step 6 .*\(row 1 of the step\)"):
                pretrain(recipe, corpus=tiny_corpus, out=run, progress=heard)
    assert any("step 2 was skipped" in text and "1 of at most 1" in text for text in heard.said)
    pretrain(recipe, corpus=tiny_corpus, out=run)
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    ledger = read_ledger(run)
    assert ledger.step[ledger.kind == "skipped"].tolist() == [2]
    assert ledger.rows.dropna().tolist() == ["row 1 of the step"]
    steps = ledger[ledger.kind == "step"].set_index("step")
    assert steps.index.tolist() == list(range(1, TOTAL + 1))
    assert steps.index[steps.loss.isna()].tolist() == [3], "the only step of its line"


@pytest.mark.parametrize("factor", [math.inf, 1e30])
def test_a_model_that_is_not_finite_is_never_saved(factor, tiny_corpus, tmp_path, monkeypatch):
    """Spoiled by the last update of a stage, whose own loss was finite still."""
    true = Trainer.step

    def spoiled(trainer: Trainer, number: int, *rest: Any) -> object:
        result = true(trainer, number, *rest)
        if number == GROWTH - 1:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(factor)
        return result

    monkeypatch.setattr(Trainer, "step", spoiled)
    with pytest.raises(RunError, match=f"not finite at step {GROWTH} "):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path)
    assert list(checkpoints(tmp_path)) == [3]


# The corpus


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (flip_bit, "train/tokens.bin"),
    (flip_bit, "validation/sentences.bin"),
    (flip_bit, "tokenizer/tokenizer.json"),
    (cut_off, "train/tokens.bin"),
    (cut_off, "manifest.json"),
    (Path.unlink, "train/sentences.bin"),
]


def test_a_changed_corpus_is_refused_at_the_start_and_on_resuming(tiny_corpus, finished, tmp_path):
    mine, run = shutil.copytree(tiny_corpus.folder, tmp_path / "mine"), tmp_path / "run"
    with pytest.raises(Crash):
        pretrain(RECIPE, corpus=mine, out=run, progress=At(5))
    before = content(run)
    for damage, name in DAMAGES:
        true = (mine / name).read_bytes()
        damage(mine / name)
        for out in (tmp_path / "new", run):
            with pytest.raises(UserError, match=str(mine)):
                pretrain(RECIPE, corpus=mine, out=out)
        (mine / name).write_bytes(true)
    assert not content(tmp_path / "new")
    assert content(run) == before
    pretrain(RECIPE, corpus=mine, out=run)
    assert outcome(run) == outcome(finished(RECIPE))


# The run's folder


def test_a_folder_that_is_removed_or_replaced_under_a_run_stops_it(
    tiny_corpus, finished, tmp_path
) -> None:
    run, other, away = (tmp_path / name for name in ("run", "other", "away"))

    def remove() -> None:
        while run.exists():  # a checkpoint that is being written is in rmtree's way
            shutil.rmtree(run, ignore_errors=True)

    with pytest.raises(RunError, match="was removed, renamed or replaced while"):
        pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=At(6, remove))
    assert not run.exists(), "nothing is made in its place"
    with pytest.raises(Crash):
        pretrain(tiny_recipe(seed=1), corpus=tiny_corpus, out=other, progress=At(5))
    before = content(other)

    def replace() -> None:
        while GROWTH not in checkpoints(run):
            time.sleep(0.01)
        run.rename(away)
        other.rename(run)

    with pytest.raises(RunError, match="was removed, renamed or replaced while") as stopped:
        pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=At(5, replace))
    assert str(run) in str(stopped.value)
    assert content(run) == before, "it does not write into another run"
    pretrain(RECIPE, corpus=tiny_corpus, out=away)
    assert outcome(away) == outcome(finished(RECIPE))


def test_a_cut_off_ledger_is_refused_and_a_damaged_one_costs_no_model(
    tiny_corpus, finished, tmp_path
) -> None:
    with pytest.raises(Crash):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, progress=At(6))
    ledger = tmp_path / "metrics.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:200])
    with pytest.raises(UserError, match="is shorter than when the last checkpoint was saved"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path)
    first, second, *rest = whole.splitlines(keepends=True)
    ledger.write_bytes(b"".join([first, b"\0" + second[1:], *rest]))
    with pytest.raises(UserError, match=r"Line 2 is damaged.* The model is whole"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path)
    assert "is damaged" in (tmp_path / "model" / "README.md").read_text("utf-8")
    ledger.write_bytes(
        whole[: len(first) + len(second)] + ledger.read_bytes()[len(first + second) :]
    )
    assert outcome(tmp_path) == outcome(finished(RECIPE))


# The disk


def assert_resumable(run: Path, recipe, corpus, finished) -> None:
    """What was saved is whole, nothing half-written is taken for it, and the run ends the same."""
    assert all(read_checkpoint(folder) for folder in checkpoints(run).values())
    assert not list(run.rglob("*.partial"))
    pretrain(recipe, corpus=corpus, out=run)
    assert outcome(run) == outcome(finished(recipe))


def test_a_file_that_cannot_be_written_is_a_sentence_and_what_was_saved_stays(
    tiny_corpus, finished, tmp_path
) -> None:
    """A limit on the size of files, which the weights of two layers go beyond first."""
    recipe, run = tiny_recipe(checkpoint__every_steps=1), tmp_path / "run"
    command = command_line(*pretrain_command(recipe, tiny_corpus, tmp_path))
    one_layer = checkpoints(finished(recipe))[GROWTH] / "optimizer.safetensors"
    most = one_layer.stat().st_size + 1000
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    child = Child(tmp_path / "said.txt", limit, command)
    assert child.wait() == 1
    *_, said = child.output.splitlines()
    assert said.startswith("stackbert: The operating system reports 'File too large' while saving")
    assert "Traceback" not in child.output
    assert max(checkpoints(run)) == GROWTH
    assert_resumable(run, recipe, tiny_corpus, finished)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a run."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_and_a_read_only_one_are_sentences(small_disk, tiny_corpus, finished) -> None:
    recipe, run = tiny_recipe(checkpoint__every_steps=1), small_disk / "run"
    with pytest.raises(RunError, match=r"The disk is full while .*nothing that was already saved"):
        pretrain(recipe, corpus=tiny_corpus, out=run)
    assert checkpoints(run)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert_resumable(run, recipe, tiny_corpus, finished)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system while training in"):
        pretrain(recipe, corpus=tiny_corpus, out=small_disk / "new")


def test_a_folder_that_may_not_be_written_to_is_a_sentence(tiny_corpus, tmp_path, monkeypatch):
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    with pytest.raises(UserError, match=r"Permission denied while training in .*may write to"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "run")
