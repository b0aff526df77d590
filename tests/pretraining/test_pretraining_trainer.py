"""A step has the loss and gradients of transformers' plain model, in micro-batches and compiled."""

import functools
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from stackbert import encoder
from stackbert.batches.batches import IGNORED, Batch
from stackbert.encoder import supports_masked_forward
from stackbert.growth.grow import grow
from stackbert.model import FAMILIES
from stackbert.pretraining import autotune, trainer
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.trainer import Trainer, recipe_model
from stackbert.recipe import Recipe
from tiny_runs import PAIRS, batches, tiny_recipe

CPU = torch.device("cpu")
STEPS, GROWN_AT = 12, 6
RECIPE = tiny_recipe(
    stages=[{"depth": 2, "steps": STEPS}],
    batch={"sequences": 8, "sequence_length": 24, "micro_batch": 4},
    optimizer={"name": "adamw", "lr": 1e-3, "eps": 1e-6},
)


def make(corpus, recipe: Recipe = RECIPE, **changes: Any) -> Trainer:
    model = recipe_model(recipe, corpus.vocabulary, 2, seed=1)
    return Trainer(model, recipe.model_copy(update=changes), device=CPU)


def losses(trainer: Trainer, batches: list[Batch]) -> list[float]:
    found = []
    for step, batch in enumerate(batches):
        if step == GROWN_AT:
            trainer.grow(4, step)
        found.append(float(trainer.step(step, batch, 1.0)[0]))
    return found


def plain_losses(model: PreTrainedModel, batches: list[Batch]) -> list[float]:
    """By transformers' dense loss and torch's own optimizer, the model grown half-way."""
    found, spec = [], RECIPE.optimizer
    for step, batch in enumerate(batches):
        if step == GROWN_AT:
            model = grow(model, 4)
        if step in (0, GROWN_AT):
            matrices = [p for p in model.parameters() if p.ndim > 1]
            others = [p for p in model.parameters() if p.ndim == 1]
            groups = [{"params": matrices, "weight_decay": spec.weight_decay}]
            groups += [{"params": others, "weight_decay": 0.0}]
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
    spec = RECIPE.model.model_copy(update={"type": kind})
    recipe = RECIPE.model_copy(update={"model": spec})
    rows = batches(tiny_corpus, recipe)
    rows[1].labels_BK[:5, 1:] = IGNORED  # as in rows with fewer tokens than are to be masked
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
    small = make(tiny_corpus, recipe)
    small.micro_batch = size
    parts = step_gradients(small, batch, monkeypatch)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def trace(device: str, monkeypatch) -> None:
    """Trace kernels by torch.compile, run torch's operators: building their C++ takes 40 s."""
    torch._dynamo.reset()
    counters.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        kernels = encoder.compiled.__wrapped__(device)
    monkeypatch.setattr(trainer, "compiled", lambda device: kernels)
    monkeypatch.setattr(encoder, "_on_cpu", lambda tensor: device == "cpu")


@pytest.mark.parametrize(("device", "graphs"), [("cpu", 1), ("cuda", 3)])
def test_compiled_steps_have_the_same_losses_and_gradients_and_growing_compiles_nothing(
    device, graphs, tiny_corpus, monkeypatch
) -> None:
    trace(device, monkeypatch)
    rows, eager = batches(tiny_corpus, RECIPE), make(tiny_corpus)
    fast = make(tiny_corpus, compile=True)
    assert fast.will_compile(rows[0])
    found = losses(fast, rows[:GROWN_AT])
    assert not fast.will_compile(rows[0])
    assert counters["stats"]["unique_graphs"] == graphs
    fast.grow(4, GROWN_AT)
    steps = range(GROWN_AT, STEPS)
    found += [float(fast.step(step, rows[step], 1.0)[0]) for step in steps]
    assert found == pytest.approx(losses(eager, rows), rel=1e-4)
    with torch.no_grad():
        for mine, its in zip(fast.model.parameters(), eager.model.parameters(), strict=True):
            mine.copy_(its)
    wanted = step_gradients(eager, rows[0], monkeypatch)
    for name, gradient in step_gradients(fast, rows[0], monkeypatch).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-6, msg=name)
    fast.evaluate(rows[0])
    fast.grow(8, STEPS)
    fast.step(STEPS, rows[0], 1.0)
    assert counters["stats"]["unique_graphs"] == graphs, "growing or evaluating compiled something"


def test_a_compiled_run_has_the_same_losses_and_its_compilation_is_not_training(
    tiny_corpus, finished, tmp_path, monkeypatch
) -> None:
    trace("cpu", monkeypatch)
    monkeypatch.setattr(autotune, "compiling_lacks", lambda device: None)
    stages = [{"depth": depth, "steps": 4} for depth in (2, 4)]
    pretrain(tiny_recipe(stages=stages, compile=True), corpus=tiny_corpus, out=tmp_path)
    ours, plain = read_ledger(tmp_path), read_ledger(finished(tiny_recipe(stages=stages)))
    assert ours.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-4, nan_ok=True)
    assert ours.wall.iloc[-1]["compilation"] > ours.wall.iloc[-1]["training"]
    assert ours.tokens_per_second[ours.step == 1].max() == 0, "the step that compiled"
