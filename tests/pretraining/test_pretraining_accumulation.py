"""The size of the micro-batch changes neither losses nor gradients."""

import pytest
import torch
from pretraining_helpers import tiny_recipe
from stackbert.models import create_model
from stackbert.pretraining.start import batch_plan
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert.pretraining.trainer import Trainer


def losses(run) -> list[float]:
    return [row["loss"] for row in sb.read_ledger(run) if row["kind"] in ("step", "evaluation")]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer__name": "muon", "optimizer__clip_norm": 0.5},
        {"objective__next_sentence": True, "batch__sequence_length": 24},
    ],
    ids=["adamw", "muon, clipped", "next sentence"],
)
def test_a_whole_run_has_the_same_losses_at_any_micro_batch(fields, undisturbed) -> None:
    # Adam's first update is the sign of the gradient, so a rate of 5e-3 makes much of a rounding.
    fields = {"optimizer__lr": 5e-4, "optimizer__eps": 1e-4} | fields
    whole, ones = (
        losses(undisturbed(tiny_recipe(batch__micro_batch=size, **fields))) for size in (4, 1)
    )
    assert ones == pytest.approx(whole, abs=1e-5)
    assert ones != whole, "rows went through the model one by one"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_of_a_step_add_up(size, corpus, monkeypatch) -> None:
    recipe = tiny_recipe(objective__next_sentence=True, batch__sequence_length=24)
    vocabulary = load_vocabulary(corpus)
    batch = batch_plan(recipe, corpus, vocabulary).batch(3)
    gradients = []
    for rows in (4, size):
        model = create_model(
            recipe.model, depth=2, vocabulary=vocabulary, sequence_length=24, next_sentence=True
        )
        trainer = Trainer(
            model,
            recipe.optimizer,
            device=torch.device("cpu"),
            precision="fp32",
            micro_batch=rows,
            seed=0,
        )
        monkeypatch.setattr(trainer.optimizers, "step", lambda factor: None)
        trainer.step(3, batch, 1.0)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_micro_batches_by_default_fit_what_runs_at_full_speed(corpus) -> None:
    vocabulary = load_vocabulary(corpus)
    model = create_model(tiny_recipe().model, depth=1, vocabulary=vocabulary, sequence_length=16)
    trainer = Trainer(
        model,
        tiny_recipe().optimizer,
        device=torch.device("cpu"),
        precision="fp32",
        micro_batch="auto",
        seed=0,
    )
    assert trainer.rows_at_once(4, 16) == 4
    assert trainer.rows_at_once(4096, 128) == 64
    assert trainer.rows_at_once(4096, 1 << 20) == 1
