"""The fast path gives what the plain one gives, compiled or not, and growing compiles nothing."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.encoder import NARROWING_TYPES, narrows
from stackbert.growth.model import grow
from stackbert.models import FAMILIES, create_model
from stackbert.pretraining.machine import compiling_lacks
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import GrowthSpec, ModelSpec, ModelType, OptimizerSpec

CPU = torch.device("cpu")
ROWS, LENGTH, STEPS, GROWN_AT = 8, 32, 20, 10
SPEC = OptimizerSpec(lr=1e-3, eps=1e-6)
needs_a_compiler = pytest.mark.skipif(
    compiling_lacks(CPU) is not None, reason=str(compiling_lacks(CPU))
)


def make(kind: ModelType, vocabulary) -> PreTrainedModel:
    spec = ModelSpec(type=kind, hidden_size=32, num_attention_heads=4, intermediate_size=48)
    return create_model(spec, depth=2, vocabulary=vocabulary, sequence_length=LENGTH, seed=1)


@pytest.fixture(scope="module")
def batches(factbook_corpus, factbook_vocabulary) -> list[Batch]:
    shape = StageShape(STEPS, ROWS, LENGTH, 0.2)
    plan = BatchPlan(factbook_corpus.train, factbook_vocabulary, [shape], seed=0)
    return [plan.batch(step) for step in range(STEPS)]


def plain_losses(model: PreTrainedModel, batches: list[Batch]) -> list[float]:
    """Transformers' own dense loss and torch's own optimiser, a model grown half-way."""
    losses = []
    for step, batch in enumerate(batches):
        if step == GROWN_AT:
            model = grow(model, 4)
        if step in (0, GROWN_AT):
            decayed = [p for p in model.parameters() if p.ndim > 1]
            others = [p for p in model.parameters() if p.ndim < 2]
            groups = [
                {"params": decayed, "weight_decay": SPEC.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ]
            adamw = torch.optim.AdamW(groups, lr=SPEC.lr, betas=SPEC.betas, eps=SPEC.eps)
        labels = torch.full((ROWS, LENGTH), -100)
        labels.scatter_(1, torch.from_numpy(batch.columns), torch.from_numpy(batch.labels))
        loss = model(input_ids=torch.from_numpy(batch.input_ids), labels=labels).loss
        loss.backward()
        losses.append(float(loss.detach()))
        adamw.step()
        adamw.zero_grad()
    return losses


def fast_trainer(model: PreTrainedModel, **options: Any) -> Trainer:
    settings = {"device": CPU, "precision": "fp32", "micro_batch": ROWS // 2, "seed": 0}
    return Trainer(model, SPEC, **(settings | options))


def fast_losses(trainer: Trainer, batches: list[Batch]) -> list[float]:
    losses = []
    for step, batch in enumerate(batches):
        if step == GROWN_AT:
            trainer.grow(4, GrowthSpec(), step)
        losses.append(trainer.step(step, batch, 1.0).loss)
    return losses


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_twenty_steps_with_a_growth_have_the_plain_paths_losses(
    kind: ModelType, batches, factbook_vocabulary
) -> None:
    plain = plain_losses(make(kind, factbook_vocabulary), batches)
    fast = fast_losses(fast_trainer(make(kind, factbook_vocabulary)), batches)
    assert fast == pytest.approx(plain, rel=1e-4)
    assert fast != plain
    assert plain[-1] < plain[0] - 0.2


@needs_a_compiler
def test_compiled_too_and_growing_compiles_nothing(batches, factbook_vocabulary) -> None:
    from torch._dynamo.utils import counters

    plain = plain_losses(make("megatron-bert", factbook_vocabulary), batches)
    trainer = fast_trainer(make("megatron-bert", factbook_vocabulary), compile=True)
    torch._dynamo.reset()
    counters.clear()
    assert trainer.will_compile(batches[0])
    first = fast_losses(trainer, batches[:2])
    assert not trainer.will_compile(batches[0])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1, "the layer; on a CPU the last one is not compiled"
    trainer.grow(4, GrowthSpec(), 2)
    grown = [trainer.step(step, batches[step], 1.0).loss for step in (2, 3)]
    assert counters["stats"]["unique_graphs"] == graphs

    eager = fast_trainer(make("megatron-bert", factbook_vocabulary))
    eager_first = fast_losses(eager, batches[:2])
    eager.grow(4, GrowthSpec(), 2)
    eager_grown = [eager.step(step, batches[step], 1.0).loss for step in (2, 3)]
    assert first == pytest.approx(plain[:2], rel=1e-5)
    assert first + grown == pytest.approx(eager_first + eager_grown, rel=1e-4)

    for one in (trainer, eager):
        one.optimizers.step = lambda factor: None  # to look at the gradients of one step
        one.model.zero_grad()
    weights = {name: p.detach().clone() for name, p in eager.model.named_parameters()}
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            p.copy_(weights[name])
    for one in (trainer, eager):
        one.step(4, batches[4], 1.0)
    expected = {name: p.grad for name, p in eager.model.named_parameters()}
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_the_types_that_are_narrowed_are_known(kind: ModelType, factbook_vocabulary) -> None:
    model = make(kind, factbook_vocabulary)
    assert narrows(model) == (kind in NARROWING_TYPES) == (kind != "modernbert")
    assert fast_trainer(model, compile=True).will_compile(BATCH) == narrows(model)


BATCH = Batch(
    torch.full((2, 8), 7).numpy(), torch.ones(2, 1).long().numpy(), torch.ones(2, 1).long().numpy(),
    None, None,
)  # fmt: skip


def test_the_library_model_is_left_as_it_was(batches, factbook_vocabulary) -> None:
    """Nothing is patched: its own forward pass still gives every position."""
    model = make("bert", factbook_vocabulary)
    ids = torch.from_numpy(batches[0].input_ids)
    before = model(input_ids=ids).logits
    trainer = fast_trainer(model)
    trainer.evaluate(batches[0])
    assert torch.equal(model(input_ids=ids).logits, before)
    assert before.shape[:2] == (ROWS, LENGTH)
