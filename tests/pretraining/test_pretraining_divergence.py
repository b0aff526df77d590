"""A loss that is no number stops the run with a sentence; what was saved before stays good."""

import math

import pytest
import torch
from pretraining_helpers import TOTAL, Listening, checkpoints, tiny_recipe
from stackbert.models import LossSums, create_model
from stackbert.pretraining.start import batch_plan
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining import engine
from stackbert.pretraining.checkpoints import CheckpointStore, load_model, read_state
from stackbert.pretraining.trainer import StepResult, Trainer


def test_a_rate_far_too_high_stops_naming_step_stage_and_causes(corpus, tmp_path) -> None:
    recipe = tiny_recipe(optimizer__lr=1e30, checkpoint__every_steps=1, log_every=1)
    with pytest.raises(sb.RunError, match="The loss is not finite at step 1 ") as stopped:
        sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    message = str(stopped.value)
    assert stopped.value.exit_code == 1
    assert "(stage 1, depth 1)" in message
    for cause in (
        "optimizer.lr",
        "optimizer.muon_lr",
        "schedule.warmup_steps",
        "optimizer.clip_norm",
    ):
        assert cause in message
    assert "rewarmup" not in message, "nothing has grown yet"
    assert not (tmp_path / "model").exists()
    # Called again, it fails the same way: the run is a function of its recipe.
    with pytest.raises(sb.RunError, match="not finite at step 1 "):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path)


class SpoiledAt:
    """Weights that an update at one step turns into something no forward pass survives."""

    def __init__(
        self, step: int, monkeypatch: pytest.MonkeyPatch, factor_of_weights: float = math.inf
    ) -> None:
        true = Trainer.step

        def spoiled(trainer, number, batch, factor):
            result = true(trainer, number, batch, factor)
            if number == step:
                with torch.no_grad():
                    for parameter in trainer.model.parameters():
                        parameter.mul_(factor_of_weights)
            return result

        monkeypatch.setattr(Trainer, "step", spoiled)


@pytest.mark.parametrize("spoiled_by", [7, 8])
def test_the_last_checkpoint_before_is_named_and_kept_whole(
    spoiled_by, corpus, tmp_path, monkeypatch
) -> None:
    SpoiledAt(spoiled_by, monkeypatch)
    recipe = tiny_recipe()
    with pytest.raises(
        sb.RunError, match=r"not finite at step \d+ \(stage 2, depth 2\)"
    ) as stopped:
        sb.pretrain(recipe, corpus=corpus, out=tmp_path)
    message = str(stopped.value)
    assert "schedule.rewarmup_steps" in message, "it has just grown"
    last = checkpoints(tmp_path)[6]
    assert max(checkpoints(tmp_path)) == 6
    assert str(last) in message
    found, problems = CheckpointStore(tmp_path / "checkpoints").newest()
    assert found == (last, read_state(last))
    assert not problems
    from transformers import MegatronBertForMaskedLM

    model = load_model(last, MegatronBertForMaskedLM)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("factor", [math.inf, 1e30], ids=["no numbers", "numbers, but huge"])
@pytest.mark.parametrize("spoiled_by", [11, 17])
def test_a_model_spoiled_by_a_stages_last_step_is_never_saved(
    spoiled_by, factor, corpus, tmp_path, monkeypatch
) -> None:
    """The loss that trained it was a number still; the evaluation is the first to see."""
    SpoiledAt(spoiled_by, monkeypatch, factor)
    with pytest.raises(sb.RunError, match=f"not finite at step {spoiled_by + 1} "):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)
    assert not (tmp_path / "model").exists()
    assert max(checkpoints(tmp_path)) == spoiled_by - 2


def test_weights_that_are_no_numbers_are_never_saved(corpus, tmp_path, monkeypatch) -> None:
    """Between evaluations too."""
    SpoiledAt(7, monkeypatch)
    with pytest.raises(sb.RunError, match="not finite"):
        sb.pretrain(tiny_recipe(checkpoint__every_steps=1), corpus=corpus, out=tmp_path)
    assert max(checkpoints(tmp_path)) == 7


def test_the_ledger_stays_json_and_ends_before_the_step_that_failed(
    corpus, tmp_path, monkeypatch
) -> None:
    SpoiledAt(7, monkeypatch)
    with pytest.raises(sb.RunError):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)
    rows = sb.read_ledger(tmp_path)
    assert rows[-1]["step"] == 8
    assert all(math.isfinite(row["loss"]) for row in rows if row["kind"] == "step")
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_no_checkpoint_was_due_is_said(corpus, tmp_path) -> None:
    recipe = tiny_recipe(optimizer__lr=1e30, checkpoint__every_steps=None)
    with pytest.raises(sb.RunError, match="No checkpoint was due yet"):
        sb.pretrain(recipe, corpus=corpus, out=tmp_path)


def test_a_step_whose_loss_is_no_number_leaves_the_weights_alone(
    corpus, tmp_path, monkeypatch
) -> None:
    seen = []
    true = Trainer.step

    def infinite(trainer, number, batch, factor):
        before = [p.detach().clone() for p in trainer.model.parameters()]
        monkeypatch.setattr(StepResult, "finite", property(lambda _: number != 2))
        result = true(trainer, number, batch, factor)
        after = [p.detach() for p in trainer.model.parameters()]
        seen.append(all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        return result

    monkeypatch.setattr(Trainer, "step", infinite)
    with pytest.raises(sb.RunError):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)
    assert seen == [False, False, True]


class BadRow:
    """A loss that is no number whenever one certain row is among those that are passed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches, step: int, row: int) -> None:
        true = engine.loss_sums
        marked = torch.from_numpy(batches.batch(step).input_ids[row])

        def spoiled(model, inputs, pieces):
            sums = true(model, inputs, pieces)
            if bool((inputs.input_ids_BS == marked).all(dim=1).any()):
                return LossSums(sums.masked_lm * math.nan, sums.next_sentence)
            return sums

        monkeypatch.setattr(engine, "loss_sums", spoiled)


@pytest.fixture
def batches(corpus):
    return batch_plan(tiny_recipe(), corpus, load_vocabulary(corpus))


def test_the_row_whose_loss_is_no_number_is_named(corpus, batches, tmp_path, monkeypatch) -> None:
    BadRow(monkeypatch, batches, step=4, row=2)
    with pytest.raises(sb.RunError, match=r"at step 4 \(stage 1, depth 1\) \(row 3 of the step\)"):
        sb.pretrain(tiny_recipe(), corpus=corpus, out=tmp_path)


def test_as_many_bad_steps_are_skipped_as_the_recipe_allows(
    corpus, batches, tmp_path, monkeypatch
) -> None:
    recipe = tiny_recipe(skip_bad_steps=1)
    heard = Listening()
    with monkeypatch.context() as patch:
        BadRow(patch, batches, step=4, row=2)
        sb.pretrain(recipe, corpus=corpus, out=tmp_path / "one", reporter=heard)
        BadRow(patch, batches, step=8, row=0)
        with pytest.raises(sb.RunError, match=r"at step 8 .*\(row 1 of the step\)"):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path / "two")
        # The count goes on in a run that goes on.
        with pytest.raises(sb.RunError, match="at step 8 "):
            sb.pretrain(recipe, corpus=corpus, out=tmp_path / "two")
    assert sum("step 4 was skipped" in line and "1 of at most 1" in line for line in heard.said)
    rows = sb.read_ledger(tmp_path / "one")
    (skipped,) = (row for row in rows if row["kind"] == "skipped")
    assert (skipped["step"], skipped["loss"]) == (4, None)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, TOTAL + 1))
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
    assert losses.pop(5) is None, "the only step of its window"
    assert all(math.isfinite(loss) for loss in losses.values())


def test_a_skipped_step_changes_nothing_and_its_gradient_is_forgotten(
    corpus, batches, monkeypatch
) -> None:
    trainer = make_trainer(corpus)
    for step in (0, 1):
        trainer.step(step, batches.batch(step), 1.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    moments = {
        n: {k: t.clone() for k, t in s.items()} for n, s in trainer.optimizers.state().items()
    }
    with monkeypatch.context() as patch:
        BadRow(patch, batches, step=2, row=1)
        assert not trainer.step(2, batches.batch(2), 1.0).finite
    assert all(map(torch.equal, before, trainer.model.parameters()))
    for name, state in trainer.optimizers.state().items():
        assert all(torch.equal(tensor, moments[name][key]) for key, tensor in state.items())
    assert all(p.grad is None for p in trainer.model.parameters())


def make_trainer(corpus) -> Trainer:
    recipe = tiny_recipe()
    vocabulary = load_vocabulary(corpus)
    model = create_model(
        recipe.model, depth=1, vocabulary=vocabulary, sequence_length=16, next_sentence=False
    )
    return Trainer(
        model,
        recipe.optimizer,
        device=torch.device("cpu"),
        precision="fp32",
        micro_batch=4,
        seed=0,
    )
