"""A plan's memory, next to what torch allocates."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from stackbert import planner
from stackbert.batches.batches import training_plan
from stackbert.devices import find_device
from stackbert.planner import plan
from stackbert.pretraining.memory import footprint
from stackbert.pretraining.synthetic import SyntheticCorpus
from stackbert.pretraining.trainer import Trainer, recipe_model
from stackbert.recipe import Recipe
from tiny_runs import recipe_of

SMALL = {
    "name": "small",
    "model": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "stages": [{"depth": 2, "steps": 9}],
    "batch": {"sequences": 12, "sequence_length": 64},
    "objective": {"mask_rate": 0.3},
    "precision": "fp32",
}
CORPUS = SyntheticCorpus(1280, tokens=20_000)  # the loss of a CPU takes more than one part


class Live(TorchDispatchMode):
    """Bytes of all tensors alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.add, result)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._gone, storage.nbytes())
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)

    def _gone(self, count: int) -> None:
        self.bytes -= count


def planned_memory(recipe: Recipe, is_cpu: bool = True) -> tuple[int, int]:
    row = training_plan(recipe, CORPUS).batch(0).rows(0, 1)
    with torch.device("meta"):
        model = recipe_model(recipe, CORPUS.vocabulary, recipe.stages[0].depth)
    return footprint(model, recipe.optimizer, row, precision=recipe.precision, is_cpu=is_cpu)


@pytest.mark.parametrize(
    ("kind", "optimizer", "pairs", "precision"),
    [
        ("bert", "adamw", False, "bf16"),
        ("bert", "muon", True, "fp32"),
        ("megatron-bert", "muon", False, "fp32"),
        ("roberta-prelayernorm", "adamw", False, "fp32"),
        ("modernbert", "adamw", False, "fp32"),
    ],
)
def test_memory_is_what_torch_allocates(kind, optimizer, pairs, precision) -> None:
    fields = {"model__type": kind, "optimizer__name": optimizer, "precision": precision}
    recipe = recipe_of(SMALL, objective__next_sentence=pairs, **fields)
    batch = training_plan(recipe, CORPUS).batch(0)
    model = recipe_model(recipe, CORPUS.vocabulary, 2)
    trainer = Trainer(model, recipe, device=torch.device("cpu"))
    trainer.step(0, batch, 0.1)
    state = [t for each in trainer.optimizers.state().values() for t in each.values()]
    with Live() as live:
        for tensor in [*trainer.model.parameters(), *state]:
            live.add(tensor)
        for _ in range(2):  # the second micro-batch meets the gradients of the first
            trainer.backward(batch, batch.columns_BK.numel(), 12)
    fixed, row = planned_memory(recipe)
    assert 0.95 < (fixed + 12 * row) / live.peak < 1.1


def test_a_gpus_attention_keeps_no_probabilities_under_dropout() -> None:
    def row(rate: float, is_cpu: bool) -> int:
        recipe = recipe_of(SMALL, model__attention_probs_dropout_prob=rate)
        return planned_memory(recipe, is_cpu)[1]

    # Two heads of 64 × 64 probabilities in fp32, before and after dropout.
    assert row(0.1, True) > row(0.0, True) + 2 * 2 * 64 * 64 * 4
    assert row(0.1, False) == row(0.0, False)


def test_micro_batches_are_planned_to_fit_and_what_does_not_fit_is_said(monkeypatch) -> None:
    recipe = recipe_of(SMALL, batch={"sequences": 64, "sequence_length": 64})
    fixed, row = planned_memory(recipe, is_cpu=False)
    memory = int((fixed + 20.5 * row) / planner.USABLE)
    small = replace(find_device("L4"), memory=memory)
    monkeypatch.setattr(planner, "find_device", lambda _: small)
    planned = plan(recipe, device="L4", vocab_size=1280)
    assert planned.table.micro_batch["stage 1"] == 20
    assert planned.table.memory["stage 1"] == pytest.approx(fixed + 20 * row)
    assert "does not fit" not in planned.text()
    asked = recipe_of(SMALL, batch={"sequences": 64, "sequence_length": 64, "micro_batch": 32})
    assert "32 rows need about" in plan(asked, device="L4", vocab_size=1280).text()
