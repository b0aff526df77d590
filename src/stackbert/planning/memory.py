"""How much memory training takes, found by running a step on tensors that have no storage.

torch's fake tensors go through the real model, loss and optimiser and have shapes only. So nothing
here repeats what a layer keeps for its backward pass, and every type of model comes out right.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stackbert.batches import StageShape
from stackbert.models import Inputs, loss_sums
from stackbert.planning.rehearsal import random_batch
from stackbert.pretraining.evaluation import to_device
from stackbert.pretraining.machine import DTYPES, Precision
from stackbert.pretraining.optimizers import Optimizers
from stackbert.recipe import OptimizerSpec
from stackbert.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step: in the last micro-batch, at the beginning of its way back."""

    weights: int
    """In fp32."""
    gradients: int
    """Likewise."""
    optimizer: int
    """Its state, in fp32."""
    activations: int
    """What one micro-batch keeps for the backward pass, not compiled; under bf16 autocast copies
    of the matrices, too."""
    logits: int
    """The head's outputs over the vocabulary, and their gradient."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Footprint:
    """Memory as a function of the rows of a micro-batch. All in bytes."""

    parameters: int
    optimizer: int
    activations: int
    """However many rows."""
    activations_a_row: float
    logits_a_row: float

    def at(self, rows: int) -> Memory:
        """The memory with micro-batches of so many rows."""
        return Memory(
            weights=self.parameters,
            gradients=self.parameters,
            optimizer=self.optimizer,
            activations=self.activations + round(rows * self.activations_a_row),
            logits=round(rows * self.logits_a_row),
        )

    def cut(self, devices: int) -> "Footprint":
        """Of one of so many devices that hold weights, gradients and state in pieces (FSDP)."""
        return replace(
            self, parameters=self.parameters // devices, optimizer=self.optimizer // devices
        )

    def rows_within(self, memory: float) -> int:
        """Rows of the largest micro-batch that fits; 0 where not even one does."""
        left = memory - self.at(0).total
        return max(0, int(left / (self.activations_a_row + self.logits_a_row)))


def footprint(
    model: "PreTrainedModel",
    optimizer: OptimizerSpec,
    shape: StageShape,
    vocabulary: Vocabulary,
    *,
    next_sentence: bool,
    precision: Precision,
    is_cpu: bool,
) -> Footprint:
    """The memory that training a model takes, as a function of the micro-batch's rows.

    Args:
        model: on the meta device; used up.
        optimizer: the recipe's.
        shape: of the stage's batches; its number of rows does not matter.
        vocabulary: the model's.
        next_sentence: whether there is that objective.
        precision: of the forward pass.
        is_cpu: on a CPU, attention with dropout is multiplied out and keeps its probabilities.
    """
    if not is_cpu:
        _without_attention_dropout(model)
    cpu = torch.device("cpu")
    # Unlike the meta device, fake tensors are on the CPU to every choice that depends on the
    # device, so attention is torch's fused one, which keeps what the fused one of a GPU keeps.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=cpu)
        model.tie_weights()

        def passed(rows: int) -> tuple[int, int]:
            few = StageShape(1, rows, shape.sequence_length, shape.mask_rate)
            batch = random_batch(few, vocabulary, next_sentence=next_sentence)
            with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
                return _kept(model, to_device(batch, cpu), vocabulary.size)

        (two, logits), (four, _) = passed(2), passed(4)
        return Footprint(
            parameters=sum(_bytes(parameter) for parameter in model.parameters()),
            optimizer=_optimizer_state(model, optimizer),
            activations=2 * two - four,
            activations_a_row=(four - two) / 2,
            # The log-probabilities, their gradient, and that of the logits.
            logits_a_row=3 * logits / 2,
        )


def _kept(model: "PreTrainedModel", inputs: Inputs, vocabulary_size: int) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward pass: (all but log-probabilities, these alone)."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors are held, so that no storage's place is used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sums(model, inputs)
    logits_shape = (inputs.labels_BK.numel(), vocabulary_size)
    logits = sum(t.untyped_storage().nbytes() for t in kept.values() if t.shape == logits_shape)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) - logits, logits


def _optimizer_state(model: "PreTrainedModel", spec: OptimizerSpec) -> int:
    """Bytes of the optimisers' state after a step."""
    optimizers = Optimizers(model, spec)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizers.step(1.0)
    return sum(_bytes(tensor) for state in optimizers.state().values() for tensor in state.values())


def _without_attention_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith("attention.self.dropout"):
            module.p = 0.0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
