"""What happens under a run, as docs/faults.md promises: to its loss, corpus, folder and disk."""

import functools
import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stackbert.batches.batches import training_plan
from stackbert.errors import RunError, UserError
from stackbert.files import sha256
from stackbert.pretraining import checkpoints as checkpoints_module
from stackbert.pretraining import distributed
from stackbert.pretraining.checkpoints import read_checkpoint
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.trainer import Trainer
from tiny_runs import (
    GROWTH,
    TOTAL,
    At,
    break_off,
    checkpoints,
    content,
    flip_bit,
    outcome,
    pretrain_command,
    tiny_recipe,
)

RECIPE = tiny_recipe()


# A loss that is not finite


def test_a_diverged_loss_stops_naming_step_stage_depth_and_causes(stackbert, tiny_corpus, tmp_path):
    recipe = tiny_recipe(optimizer={"name": "adamw", "lr": 1e30}, checkpoint__every_steps=None)
    done = stackbert(*pretrain_command(recipe, tiny_corpus, tmp_path))
    assert done.code == 1
    *_, said = done.err.splitlines()
    assert said.startswith("stackbert: The loss is not finite at step 1 (stage 1, depth 1)")
    assert "No checkpoint was due yet." in said
    assert "optimizer.lr" in said
    assert not (tmp_path / "run" / "model").exists()


def spoil_steps(patch: pytest.MonkeyPatch, corpus, *steps: int) -> None:
    """A loss that is NaN in some steps."""
    true = distributed.loss_sums
    marked = [training_plan(RECIPE, corpus).batch(step).input_ids_BS for step in steps]

    def spoiled(model: Any, batch: Any, kernels: Any) -> torch.Tensor:
        bad = any(torch.equal(batch.input_ids_BS, ids) for ids in marked)
        return true(model, batch, kernels) * (math.nan if bad else 1.0)

    patch.setattr(distributed, "loss_sums", spoiled)


def test_as_many_bad_steps_are_skipped_as_the_recipe_allows(tiny_corpus, tmp_path, monkeypatch):
    spec = {"every_steps": 1, "every_minutes": None, "keep": 9}
    recipe = tiny_recipe(skip_bad_steps=1, checkpoint=spec)
    heard, run = At(), tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil_steps(patch, tiny_corpus, 2, 6)
        for _ in range(2):  # a resumed run remembers the first
            with pytest.raises(RunError, match=r"at step 6 \(stage 2, depth 2\)") as stopped:
                pretrain(recipe, corpus=tiny_corpus, out=run, progress=heard)
            assert f"The last checkpoint is {checkpoints(run)[6]}." in str(stopped.value)
    assert any("step 2 was skipped" in text and "1 of at most 1" in text for text in heard.said)
    for file in ("model.safetensors", "optimizer.safetensors"):
        two, three = (sha256(checkpoints(run)[step] / file) for step in (2, 3))
        assert two == three, "a skipped step changes nothing"
    pretrain(recipe, corpus=tiny_corpus, out=run)
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    ledger = read_ledger(run)
    assert ledger.step[ledger.kind == "skipped"].tolist() == [2]
    steps = ledger[ledger.kind == "step"].set_index("step")
    assert steps.index.tolist() == list(range(1, TOTAL + 1))
    assert steps.index[steps.loss.isna()].tolist() == [3], "the only step of its line"


@pytest.mark.parametrize(("factor", "spoiled"), [(math.inf, GROWTH), (1e30, GROWTH), (math.inf, 5)])
def test_a_model_that_is_not_finite_is_never_saved(
    factor, spoiled, tiny_corpus, tmp_path, monkeypatch
) -> None:
    """Spoiled by a step whose own loss was finite still; after step 5 there is no evaluation."""
    true = Trainer.step

    def spoil(trainer: Trainer, number: int, *rest: Any) -> object:
        result = true(trainer, number, *rest)
        if number == spoiled - 1:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(factor)
        return result

    monkeypatch.setattr(Trainer, "step", spoil)
    with pytest.raises(RunError, match=f"not finite at step {spoiled} "):
        pretrain(tiny_recipe(checkpoint__every_steps=1), corpus=tiny_corpus, out=tmp_path)
    assert max(checkpoints(tmp_path)) == spoiled - 1


# The corpus


def test_a_changed_corpus_is_refused_at_the_start_and_on_resuming(tiny_corpus, finished, tmp_path):
    mine, run = shutil.copytree(tiny_corpus.folder, tmp_path / "mine"), tmp_path / "run"
    break_off(RECIPE, corpus=mine, out=run, at=5)
    before = content(run)
    flip_bit(mine / "train" / "tokens.bin")
    for out in (tmp_path / "new", run):
        with pytest.raises(UserError, match=str(mine)):
            pretrain(RECIPE, corpus=mine, out=out)
    assert not content(tmp_path / "new")
    assert content(run) == before
    flip_bit(mine / "train" / "tokens.bin")
    pretrain(RECIPE, corpus=mine, out=run)
    assert outcome(run) == outcome(finished(RECIPE))


def test_a_tokenizer_changed_under_a_run_is_not_saved(tiny_corpus, finished, tmp_path) -> None:
    mine, run = shutil.copytree(tiny_corpus.folder, tmp_path / "mine"), tmp_path / "run"
    spoil = functools.partial(flip_bit, mine / "tokenizer" / "tokenizer.json")
    pretrain(RECIPE, corpus=mine, out=run, progress=At(1, spoil))
    true = sha256(tiny_corpus.tokenizer_folder / "tokenizer.json")
    for folder in (*checkpoints(run).values(), run / "model"):
        assert sha256(folder / "tokenizer.json") == true
    assert outcome(run) == outcome(finished(RECIPE))


def test_a_text_changed_under_a_run_reaches_no_checkpoint(tiny_corpus, finished, tmp_path) -> None:
    mine, run = shutil.copytree(tiny_corpus.folder, tmp_path / "mine"), tmp_path / "run"
    tokens = mine / "train" / "tokens.bin"
    true = tokens.read_bytes()
    with pytest.raises(UserError, match=f"{mine} was changed after it was built"):
        pretrain(RECIPE, corpus=mine, out=run, progress=At(5, lambda: flip_bit(tokens)))
    assert max(checkpoints(run)) == GROWTH
    tokens.write_bytes(true)
    pretrain(RECIPE, corpus=mine, out=run, progress=At(7, tokens.touch))
    assert outcome(run) == outcome(finished(RECIPE))


# The run's folder


REMOVED = "was removed, renamed or replaced while"


def test_a_folder_removed_before_a_checkpoint_stops_it(tiny_corpus, tmp_path, monkeypatch) -> None:
    run, true = tmp_path / "run", checkpoints_module.new_folder

    def remove_first(place: Path, **options: Any) -> Any:
        shutil.rmtree(run)
        return true(place, **options)

    monkeypatch.setattr(checkpoints_module, "new_folder", remove_first)
    with pytest.raises(RunError, match=REMOVED):
        pretrain(RECIPE, corpus=tiny_corpus, out=run)
    assert not run.exists(), "nothing is made in its place"


def test_a_folder_that_is_replaced_under_a_run_stops_it(tiny_corpus, finished, tmp_path) -> None:
    run, other, away = (tmp_path / name for name in ("run", "other", "away"))
    break_off(tiny_recipe(seed=1), corpus=tiny_corpus, out=other, at=5)
    before = content(other)

    def replace() -> None:
        while GROWTH not in checkpoints(run):  # one that is being written is in the way
            time.sleep(0.01)
        run.rename(away)
        other.rename(run)

    with pytest.raises(RunError, match=REMOVED):
        pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=At(5, replace))
    assert content(run) == before, "it does not write into another run"
    pretrain(RECIPE, corpus=tiny_corpus, out=away)
    assert outcome(away) == outcome(finished(RECIPE))


def test_a_cut_ledger_is_refused_and_damage_costs_no_model(tiny_corpus, finished, tmp_path) -> None:
    break_off(RECIPE, corpus=tiny_corpus, out=tmp_path, at=6)
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
    start = first + second
    ledger.write_bytes(start + ledger.read_bytes()[len(start) :])
    assert outcome(tmp_path) == outcome(finished(RECIPE))


def test_memory_that_is_full_is_a_sentence(tiny_corpus, tmp_path) -> None:
    everything = functools.partial(torch.empty, 1 << 60, dtype=torch.uint8)
    with pytest.raises(RunError, match=r"The memory is full while training in .*micro_batch"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path, progress=At(2, everything))


# The disk


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
    assert all(read_checkpoint(folder) for folder in checkpoints(run).values())
    assert not list(run.rglob("*.partial"))
    pretrain(recipe, corpus=tiny_corpus, out=run)
    assert outcome(run) == outcome(finished(recipe))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system while training in"):
        pretrain(recipe, corpus=tiny_corpus, out=small_disk / "new")
