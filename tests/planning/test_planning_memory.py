"""A plan's memory, beside what torch allocates."""

import weakref

import pytest
import torch
from planning_helpers import small
from stackbert.models import create_model
from stackbert.planning.devices import find_device
from stackbert.planning.memory import footprint
from stackbert.planning.rehearsal import random_batch, stand_in_vocabulary
from stackbert.planning.table import plan_table
from stackbert.pretraining.evaluation import to_device
from torch.utils._python_dispatch import TorchDispatchMode

import stackbert as sb
from stackbert.batches import StageShape
from stackbert.pretraining.trainer import POSITIONS_AT_ONCE, Trainer


class Live(TorchDispatchMode):
    """Bytes of all tensors alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self.add, result)
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


def model_of(recipe: sb.Recipe, vocabulary, shape: StageShape, depth: int):
    return create_model(
        recipe.model,
        depth=depth,
        vocabulary=vocabulary,
        sequence_length=shape.sequence_length,
        next_sentence=recipe.objective.next_sentence,
    )


def planned_footprint(
    recipe: sb.Recipe, vocabulary, shape: StageShape, depth: int, precision="fp32", is_cpu=True
):
    with torch.device("meta"):
        model = model_of(recipe, vocabulary, shape, depth)
    return footprint(
        model,
        recipe.optimizer,
        shape,
        vocabulary,
        next_sentence=recipe.objective.next_sentence,
        precision=precision,
        is_cpu=is_cpu,
    )


@pytest.mark.parametrize(
    ("kind", "optimizer", "pairs", "precision"),
    [
        ("bert", "adamw", "false", "bf16"),
        ("bert", "muon", "true", "fp32"),
        ("megatron-bert", "muon", "false", "fp32"),
        ("roberta-prelayernorm", "adamw", "false", "fp32"),
        ("modernbert", "adamw", "false", "fp32"),
    ],
)
def test_memory_is_what_torch_allocates(kind, optimizer, pairs, precision) -> None:
    recipe = small(
        f"model.type={kind}", f"optimizer.name={optimizer}", f"objective.next_sentence={pairs}"
    )
    vocabulary = stand_in_vocabulary(640)
    shape = StageShape(1, 12, 48, 0.3)
    batch = random_batch(shape, vocabulary, next_sentence=recipe.objective.next_sentence)
    trainer = Trainer(
        model_of(recipe, vocabulary, shape, depth=3),
        recipe.optimizer,
        device=torch.device("cpu"),
        precision=precision,
        micro_batch=shape.rows,
        seed=0,
    )
    memory = planned_footprint(recipe, vocabulary, shape, 3, precision).at(shape.rows)

    parameters = list(trainer.model.parameters())
    weights = sum(p.untyped_storage().nbytes() for p in parameters)
    assert memory.weights == memory.gradients == weights

    trainer.step(0, batch, 0.1)
    state = [t for each in trainer.optimizers.state().values() for t in each.values()]
    assert memory.optimizer == sum(t.untyped_storage().nbytes() for t in state)

    inputs = to_device(batch, torch.device("cpu"))
    with Live() as live:
        for tensor in [*parameters, *state]:
            live.add(tensor)
        for _ in range(2):  # the second micro-batch meets the gradients of the first
            trainer.backward(inputs, batch.columns.size, shape.rows)
    assert 0.95 < memory.total / live.peak < 1.1


def test_a_gpus_attention_keeps_no_probabilities_under_dropout() -> None:
    vocabulary, shape = stand_in_vocabulary(128), StageShape(1, 4, 64, 0.15)
    kept = {
        (rate, is_cpu): planned_footprint(
            small(f"model.attention_probs_dropout_prob={rate}"),
            vocabulary,
            shape,
            2,
            "fp32",
            is_cpu,
        ).activations_a_row
        for rate in (0.0, 0.1)
        for is_cpu in (True, False)
    }
    # Two heads of 64 × 64 probabilities in fp32, before and after dropout at least.
    assert kept[0.1, True] > kept[0.0, True] + 2 * 2 * 64 * 64 * 4
    assert kept[0.1, False] == kept[0.0, False] == kept[0.0, True]


def test_auto_micro_batches_fit_the_device() -> None:
    long = small("batch={sequences: 4096, sequence_length: 512}", "precision=bf16")
    planned = sb.plan(long, device="H200")
    assert {stage.micro_batch for stage in planned.stages} == {POSITIONS_AT_ONCE["cuda"] // 512}
    wide = small(
        "model.hidden_size=2048",
        "model.intermediate_size=8192",
        "model.num_attention_heads=16",
        "batch={sequences: 4096, sequence_length: 512}",
        "precision=bf16",
        "stages=[{depth: 12, steps: 9}]",
    )
    (stage,) = sb.plan(wide, device="L4").stages
    assert 1 <= stage.micro_batch < POSITIONS_AT_ONCE["cuda"] // 512
    usable = 0.9 * find_device("L4").memory
    a_row = stage.memory.activations / stage.micro_batch
    assert usable - 2 * a_row < stage.memory.total <= usable
    assert sb.plan(wide, device="L4").notes == ()


def test_what_does_not_fit_is_said_in_a_sentence() -> None:
    huge = small(
        "model.hidden_size=8192",
        "model.intermediate_size=32768",
        "model.num_attention_heads=64",
        "stages=[{depth: 1, steps: 9}, {depth: 2, steps: 9}]",
    )
    planned = sb.plan(huge, device="RTX 4090")
    (note,) = planned.notes
    assert note.startswith("Depth 2 does not fit on RTX 4090: even with one row a micro-batch")
    assert note in plan_table(planned)
    assert sb.plan(huge, device="H200").notes == ()
    (note,) = sb.plan(small("batch={sequences: 65536, micro_batch: 65536}"), device="L4").notes[:1]
    assert "micro-batches of 65536 rows need about" in note
    assert "rows fit (batch.micro_batch)" in note
