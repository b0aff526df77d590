"""How much memory training takes, found by running a step on tensors without storage.

torch's fake tensors go through the real model, loss and optimiser and have shapes only. So nothing
here repeats what a layer keeps for its backward pass, and every type of model comes out right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stackbert.batches.batches import Batch
from stackbert.machine import DTYPES, Precision
from stackbert.model import loss_sums
from stackbert.pretraining.optimizers import Optimizers
from stackbert.recipe import OptimizerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of a step: in its last micro-batch, when the backward pass begins."""

    weights: int
    """In fp32; the gradients take as much."""
    optimizer: int
    """Its state, in fp32."""
    activations: int
    """Kept for the backward pass however many rows: under autocast, copies of the matrices."""
    row: int
    """Of each row of a micro-batch: activations (not compiled), logits and their gradient."""

    def total(self, rows: int) -> int:
        """Everything, with micro-batches of `rows` rows."""
        return 2 * self.weights + self.optimizer + self.activations + rows * self.row

    def sharded(self, devices: int) -> "Footprint":
        """Of one of `devices` that hold shards of weights, gradients and state (FSDP)."""
        return replace(self, weights=self.weights // devices, optimizer=self.optimizer // devices)

    def rows_within(self, memory: float) -> int:
        """Rows of the largest micro-batch that fits; 0 where not even one does."""
        return max(0, int((memory - self.total(0)) / self.row))


def footprint(
    model: "PreTrainedModel",
    optimizer: OptimizerSpec,
    batch: Callable[[int], Batch],
    *,
    precision: Precision,
    is_cpu: bool,
) -> Footprint:
    """The memory that training a model takes.

    Args:
        model: on the meta device; used up.
        optimizer: the recipe's.
        batch: a number of rows to a batch of the stage.
        precision: of the forward pass.
        is_cpu: on a CPU, attention with dropout is multiplied out and keeps its probabilities.
    """
    for name, module in model.named_modules():
        if not is_cpu and isinstance(module, nn.Dropout) and name.endswith("attention.self.dropout"):
            module.p = 0.0
    # Unlike tensors on the meta device, fake ones are on the CPU to every choice that depends on
    # the device, so attention is torch's fused one, which keeps what the fused one of a GPU keeps.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.tie_weights()
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
            (two, logits), (four, _) = (_kept(model, batch(rows)) for rows in (2, 4))
        return Footprint(
            weights=sum(map(_bytes, model.parameters())),
            optimizer=_optimizer_state(model, optimizer),
            activations=2 * two - four,
            # Beside activations: the log-probabilities, their gradient, and that of the logits.
            row=(four - two) // 2 + 3 * logits // 2,
        )


def _kept(model: "PreTrainedModel", batch: Batch) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward pass: (all but log-probabilities, these alone)."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors are held, so that no storage's place is used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sums(model, batch)
    logits_shape = (batch.labels_BK.numel(), model.config.vocab_size)
    logits = sum(t.untyped_storage().nbytes() for t in kept.values() if t.shape == logits_shape)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) - logits, logits


def _optimizer_state(model: "PreTrainedModel", spec: OptimizerSpec) -> int:
    """Bytes of the optimisers' state after a step."""
    optimizers = Optimizers(model, spec)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizers.step(1.0)
    return sum(_bytes(tensor) for state in optimizers.state().values() for tensor in state.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
