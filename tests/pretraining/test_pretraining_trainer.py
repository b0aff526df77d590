"""A step has the loss and gradients of transformers' plain model, in micro-batches and compiled."""

import functools
import math
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from stackbert import encoder
from stackbert.batches.batches import Batch, training_plan
from stackbert.encoder import supports_masked_forward
from stackbert.growth.grow import grow
from stackbert.model import FAMILIES, LossSums
from stackbert.pretraining import distributed, trainer
from stackbert.pretraining.trainer import Trainer, recipe_model
from stackbert.recipe import GrowthSpec, Recipe
from tiny_runs import PAIRS, tiny_recipe

CPU = torch.device("cpu")
STEPS, GROWN_AT = 12, 6
RECIPE = tiny_recipe(
    stages=[{"depth": 2, "steps": STEPS}],
    batch={"sequences": 8, "sequence_length": 24, "micro_batch": 4},
    optimizer={"name": "adamw", "lr": 1e-3, "eps": 1e-6},
)


def batches(corpus, recipe: Recipe = RECIPE) -> list[Batch]:
    plan = training_plan(recipe, corpus)
    return [plan.batch(step) for step in range(recipe.total_steps)]


def make(corpus, recipe: Recipe = RECIPE, **options: Any) -> Trainer:
    model = recipe_model(recipe, corpus.vocabulary, 2, seed=1)
    options = {"micro_batch": recipe.batch.micro_batch, **options}
    return Trainer(model, recipe.optimizer, device=CPU, precision="fp32", seed=0, **options)


def losses(trainer: Trainer, batches: list[Batch]) -> list[float]:
    found = []
    for step, batch in enumerate(batches):
        if step == GROWN_AT:
            trainer.grow(4, GrowthSpec(), step)
        found.append(trainer.step(step, batch, 1.0).losses.loss)
    return found


def plain_losses(model: PreTrainedModel, batches: list[Batch]) -> list[float]:
    """By transformers' dense loss and torch's own optimizer, the model grown half-way."""
    found, spec = [], RECIPE.optimizer
    for step, batch in enumerate(batches):
        if step == GROWN_AT:
            model = grow(model, 4)
        if step in (0, GROWN_AT):
            groups = [
                {
                    "params": [p for p in model.parameters() if (p.ndim > 1) == matrices],
                    "weight_decay": spec.weight_decay * matrices,
                }
                for matrices in (True, False)
            ]
            adamw = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
        labels = torch.full(batch.input_ids_BS.shape, -100)
        labels.scatter_(1, batch.columns_BK, batch.labels_BK)
        loss = model(input_ids=batch.input_ids_BS, labels=labels).loss
        loss.backward()
        found.append(float(loss.detach()))
        adamw.step()
        adamw.zero_grad()
    return found


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_steps_and_a_growth_have_the_losses_of_transformers_and_torch(kind, tiny_corpus) -> None:
    recipe = RECIPE.model_copy(
        update={"model": RECIPE.model.model_copy(update={"type": kind})},
    )
    rows = batches(tiny_corpus, recipe)
    plain = plain_losses(recipe_model(recipe, tiny_corpus.vocabulary, 2, seed=1), rows)
    fast = make(tiny_corpus, recipe)
    assert losses(fast, rows) == pytest.approx(plain, rel=1e-4)
    assert plain[-1] < plain[0] - 0.02
    # Nothing in the library's model was patched: its forward pass still gives every position.
    assert fast.model(input_ids=rows[0].input_ids_BS).logits.shape[:2] == (8, 24)
    assert supports_masked_forward(fast.model)
    assert make(tiny_corpus, recipe, compile=True).will_compile(rows[0])


def step_gradients(trainer: Trainer, batch: Batch, monkeypatch) -> dict[str, torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(trainer.optimizers, "step", lambda factor: None)
        trainer.step(3, batch, 1.0)
    return {name: p.grad for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_of_any_size_give_a_steps_gradients(size, tiny_corpus, monkeypatch) -> None:
    recipe = tiny_recipe(**PAIRS)
    batch = batches(tiny_corpus, recipe)[3]
    whole = step_gradients(make(tiny_corpus, recipe), batch, monkeypatch)
    parts = step_gradients(make(tiny_corpus, recipe, micro_batch=size), batch, monkeypatch)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_that_is_not_finite_changes_nothing_and_its_gradient_is_dropped(
    tiny_corpus, monkeypatch
) -> None:
    fast, rows = make(tiny_corpus), batches(tiny_corpus)
    losses(fast, rows[:2])
    held = {name: p.detach().clone() for name, p in fast.model.named_parameters()}
    state = {
        (name, key): tensor.clone()
        for name, tensors in fast.optimizers.state().items()
        for key, tensor in tensors.items()
    }
    true = distributed.loss_sums

    def spoiled(*arguments: Any) -> LossSums:
        return LossSums(true(*arguments).masked_lm * math.nan, None)

    monkeypatch.setattr(distributed, "loss_sums", spoiled)
    assert not fast.step(2, rows[2], 1.0).finite
    for name, parameter in fast.model.named_parameters():
        assert torch.equal(parameter, held[name])
        assert parameter.grad is None
        for key, tensor in fast.optimizers.state()[name].items():
            assert torch.equal(tensor, state[name, key])


@pytest.mark.parametrize(("device", "graphs"), [("cpu", 1), ("cuda", 3)])
def test_compiled_steps_have_the_same_losses_and_gradients_and_growing_compiles_nothing(
    device, graphs, tiny_corpus, monkeypatch
) -> None:
    """Traced by torch.compile, run by torch's operators: building a layer's C++ takes 40 s."""
    torch._dynamo.reset()
    counters.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        kernels = encoder.compiled.__wrapped__(device)
    monkeypatch.setattr(trainer, "compiled", lambda device: kernels)
    rows, fast, eager = batches(tiny_corpus), make(tiny_corpus, compile=True), make(tiny_corpus)
    assert fast.will_compile(rows[0])
    found = losses(fast, rows[:GROWN_AT])
    assert not fast.will_compile(rows[0])
    assert counters["stats"]["unique_graphs"] == graphs
    fast.grow(4, GrowthSpec(), GROWN_AT)
    steps = range(GROWN_AT, STEPS)
    found += [fast.step(step, rows[step], 1.0).losses.loss for step in steps]
    assert counters["stats"]["unique_graphs"] == graphs, "growing compiled something"
    assert found == pytest.approx(losses(eager, rows), rel=1e-4)
    with torch.no_grad():
        for mine, its in zip(fast.model.parameters(), eager.model.parameters(), strict=True):
            mine.copy_(its)
    wanted = step_gradients(eager, rows[0], monkeypatch)
    for name, gradient in step_gradients(fast, rows[0], monkeypatch).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-6, msg=name)
