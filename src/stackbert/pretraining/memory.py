"""How much memory training takes: at least, by counting; or a step of the real model, loss and
optimiser on fake tensors, which have shapes and no storage: right for every type of model.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stackbert.batches.batches import Batch
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.devices import GIB
from stackbert.encoder import IN_CACHE
from stackbert.errors import UserError
from stackbert.machine import DTYPES, Precision, memory
from stackbert.model import loss_sums, parameter_count
from stackbert.pretraining.optimizers import Optimizers
from stackbert.pretraining.trainer import recipe_model
from stackbert.recipe import OptimizerSpec, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_beyond_memory(
    recipe: Recipe, vocabulary: Vocabulary, device: torch.device, *, world_size: int = 1
) -> None:
    """Raise UserError where a run cannot fit, or a model's field is wrong, before it is allocated.

    It takes at least weights, gradients and a moment in fp32; making a batch, six arrays of int64.
    """
    with torch.device("meta"):
        deepest = recipe_model(recipe, vocabulary, recipe.stages[-1].depth)
    parameters, shards = parameter_count(deepest), world_size if recipe.engine == "fsdp" else 1
    stages = map(recipe.stage, range(len(recipe.stages)))
    tokens = max(stage.sequences * stage.sequence_length for stage in stages)
    for what, needed, place in (
        (f"Training {parameters:,} parameters", 12 * parameters // shards, device),
        (f"A step of {tokens:,} tokens", 6 * 8 * tokens // world_size, torch.device("cpu")),
    ):
        if needed > (there := memory(place)):
            raise UserError(
                f"{what} takes at least {needed / GIB:,.1f} GiB of memory, and there are "
                f"{there / GIB:,.1f}. Take a smaller model, or fewer or shorter rows."
            )


def footprint(
    model: "PreTrainedModel",
    optimizer: OptimizerSpec,
    row: Batch,
    *,
    precision: Precision,
    is_cpu: bool,
    shards: int = 1,
) -> tuple[int, int]:
    """Bytes at the peak of a step, in its last micro-batch when the backward pass begins.

    Args:
        model: on the meta device; used up.
        optimizer: the recipe's.
        row: of the stage.
        precision: of the forward pass.
        is_cpu: on a CPU, attention with dropout is multiplied out and keeps its probabilities.
        shards: devices that each hold a part of weights, gradients and optimiser state (FSDP).

    Returns:
        (bytes however small the micro-batch: weights, gradients, optimiser state, what autocast
        copies; bytes of each row: activations, not compiled, logits and their gradient).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith("attention.self.dropout"):
            module.p = module.p if is_cpu else 0.0
    # Unlike tensors on the meta device, fake ones are on the CPU to every choice that depends on
    # the device. A GPU's fused attention keeps what the CPU's fused one keeps in fp16; in bf16 a
    # CPU multiplies attention out.
    half = DTYPES[precision] if is_cpu else torch.float16
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.tie_weights()
        with torch.autocast("cpu", half, enabled=precision != "fp32"):
            (two, logits), (four, _) = (_kept(model, row, rows) for rows in (2, 4))
        optimizers = Optimizers(model, optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizers.step(1.0)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        state = [tensor for each in optimizers.state().values() for tensor in each.values()]
        held = 2 * (weights // shards) + sum(tensor.nbytes for tensor in state) // shards
    held, activations = held + 2 * two - four, (four - two) // 2
    if is_cpu:  # the gradient takes the logits' place, a few rows at a time
        copies = 1 if precision == "fp32" else 2
        return held + copies * 4 * IN_CACHE, activations + logits // 2
    # Log-probabilities in fp32, their gradient, and that of the logits.
    return held, activations + 3 * 4 * row.labels_BK.numel() * model.config.vocab_size


def _kept(model: "PreTrainedModel", row: Batch, rows: int) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward pass: (all but the logits, these alone)."""
    batch = row.each(lambda tensor: tensor[[0] * rows])
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors are held, so that no storage's place is used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sums(model, batch)
    sizes = [(t.shape, t.untyped_storage().nbytes()) for t in kept.values()]
    logits_shape = (batch.labels_BK.numel(), model.config.vocab_size)
    logits = sum(size for shape, size in sizes if shape == logits_shape)
    return sum(size for _, size in sizes) - logits, logits
