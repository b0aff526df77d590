"""Batches come ready and checkpoints are written beside the training; errors still come out."""

import threading
import time

import numpy as np
import pytest
import torch
from pretraining_helpers import TOTAL, At, checkpoints, tiny_recipe, weights
from stackbert.models import create_model
from stackbert.pretraining.background import BackgroundWriter, snapshot
from stackbert.pretraining.prefetch import batches
from stackbert.pretraining.start import batch_plan
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining import loop as loop_module
from stackbert.pretraining import prefetch


@pytest.fixture
def plan(corpus):
    return batch_plan(tiny_recipe(), corpus, load_vocabulary(corpus))


@pytest.mark.parametrize("ahead", [0, 1, 3, 99])
def test_batches_made_ahead_are_those_of_their_steps(ahead, plan) -> None:
    made = list(batches(plan, 4, TOTAL, ahead=ahead))
    assert len(made) == TOTAL - 4
    for step, batch in enumerate(made, start=4):
        np.testing.assert_array_equal(batch.input_ids, plan.batch(step).input_ids)


def test_batches_are_made_before_they_are_asked_for_and_the_thread_ends(plan) -> None:
    asked = []

    class Noting:
        def batch(self, step: int, rank: int, ranks: int):
            asked.append((step, threading.current_thread().name))
            return plan.batch(step, rank, ranks)

    made = batches(Noting(), 0, TOTAL, ahead=3)
    next(made)
    deadline = time.monotonic() + 30
    while len(asked) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert [step for step, _ in asked] == [0, 1, 2, 3]
    assert all(name.startswith("batches") for _, name in asked)
    made.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_an_error_in_making_a_batch_comes_out_at_its_step() -> None:
    class Broken:
        def batch(self, step: int, rank: int, ranks: int):
            if step == 2:
                raise OSError("the disk is gone")
            return step

    made = batches(Broken(), 0, 9, ahead=3)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(made)


def test_a_run_is_the_same_with_batches_made_ahead(
    corpus, undisturbed, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(prefetch.AHEAD, "cpu", 3)
    sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)
    assert weights(tmp_path) == weights(undisturbed(tiny_recipe()))


def fail() -> None:
    raise OSError("no space")


def test_what_a_background_job_raises_comes_out_once() -> None:
    for look in ("check", "wait", "close"):
        writer = BackgroundWriter()
        writer.submit(fail)
        while writer._running is not None and not writer._running.done():
            time.sleep(0.001)
        with pytest.raises(OSError, match="no space"):
            getattr(writer, look)()
        writer.close()


def test_jobs_follow_one_another() -> None:
    done = []
    writer = BackgroundWriter()
    for number in range(5):
        writer.submit(lambda number=number: (time.sleep(0.01), done.append(number)))
    writer.check()
    writer.close()
    assert done == [0, 1, 2, 3, 4]


def test_a_checkpoint_that_cannot_be_written_stops_the_run_before_the_next(
    corpus, tmp_path, monkeypatch
) -> None:
    true = loop_module.write_checkpoint

    def failing(folder, *rest, **options):
        if folder.name == "step-00000006":
            raise OSError(28, "No space left on device")
        true(folder, *rest, **options)

    monkeypatch.setattr(loop_module, "write_checkpoint", failing)
    with pytest.raises(sb.StackBertError, match="disk is full"):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)
    assert set(checkpoints(tmp_path)) == {3}
    steps = [row["step"] for row in sb.read_ledger(tmp_path) if row["kind"] == "step"]
    assert 6 <= max(steps) <= 9, "the checkpoint after step 9 waits for the one before it"


def test_training_goes_on_while_a_checkpoint_is_written(
    corpus, undisturbed, tmp_path, monkeypatch
) -> None:
    """And what is written is the model as it was when the checkpoint was due."""
    true = loop_module.write_checkpoint
    two_steps_on = threading.Event()

    def slow(folder, *rest, **options):
        if folder.name == "step-00000009":
            assert two_steps_on.wait(60), "the run waits for its checkpoint"
        true(folder, *rest, **options)

    monkeypatch.setattr(loop_module, "write_checkpoint", slow)
    recipe = tiny_recipe(checkpoint__every_steps=9, checkpoint__keep=99)
    sb.pretrain(recipe, corpus=corpus, out=tmp_path, reporter=At(11, two_steps_on.set))
    reference = undisturbed(recipe)
    assert weights(tmp_path) == weights(reference)
    for step, folder in checkpoints(tmp_path).items():
        for name in ("model.safetensors", "optimizer.safetensors"):
            same = (checkpoints(reference)[step] / name).read_bytes()
            assert (folder / name).read_bytes() == same, (step, name)


def test_a_snapshot_is_apart_from_the_model_and_keeps_its_ties(corpus) -> None:
    model = create_model(
        tiny_recipe().model, depth=1, vocabulary=load_vocabulary(corpus), sequence_length=16
    )
    names = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    copies = snapshot(model.state_dict())
    assert copies.keys() == model.state_dict().keys()
    assert copies[names[0]].data_ptr() == copies[names[1]].data_ptr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    moved = model.state_dict()
    assert all(not torch.equal(copies[name], moved[name]) for name in names)
