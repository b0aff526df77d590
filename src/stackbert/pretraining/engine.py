"""How a model is spread over the processes of a run: not at all, copied (DDP), or cut (FSDP2).

PyTorch's engines hook into a module's forward pass, so the losses are a module here. Both engines
take the mean of the processes' gradients; ours are shares of one sum, so each process scales its
loss by their number.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stackbert.encoder import EAGER, Pieces, narrows
from stackbert.growth.layers import find_layers
from stackbert.models import Inputs, loss_sums
from stackbert.pretraining.ranks import Ranks
from stackbert.recipe import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Losses(nn.Module):
    """`loss_sums` as a module; its parameters are the model's."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs, pieces: Pieces = EAGER) -> Tensor:
        """(2,): the masked-LM and the next-sentence loss, summed; the second 0 without pairs."""
        sums = loss_sums(self.model, inputs, pieces)
        pair = sums.next_sentence
        return torch.stack(
            [sums.masked_lm, torch.zeros_like(sums.masked_lm) if pair is None else pair]
        )


class Spread:
    """A model in one of the engines.

    Args:
        model: on its device; with `engine` "fsdp" and several processes its parameters become
            DTensors, each process holding its piece.
        ranks: the processes.
        engine: "ddp" or "fsdp"; a single process needs neither.
    """

    def __init__(self, model: "PreTrainedModel", ranks: Ranks, engine: Engine) -> None:
        self.model = model
        self._ranks = ranks
        self._losses = Losses(model)
        self._ddp: Any = None
        self._fsdp: Any = None
        if ranks.count > 1 and engine == "fsdp":
            self._fsdp = _cut(self._losses, ranks)
        elif ranks.count > 1:
            from torch.nn.parallel import DistributedDataParallel

            # Nothing but the gradients is exchanged: the models have no buffers that change, and
            # every parameter has a gradient in every step. torch 2.13 has renamed the switch.
            known = inspect.signature(DistributedDataParallel).parameters
            new = "forward_sync_buffers" in known
            off: Any = {"forward_sync_buffers" if new else "broadcast_buffers": False}
            self._ddp = DistributedDataParallel(self._losses, gradient_as_bucket_view=True, **off)

    @property
    def is_cut(self) -> bool:
        """Whether this process holds a piece of each parameter only."""
        return self._fsdp is not None

    def __call__(self, inputs: Inputs, pieces: Pieces) -> Tensor:
        """(2,): the losses of some rows, summed; within `exchanging`."""
        spread = self._ddp or self._fsdp or self._losses
        sums: Tensor = spread(inputs, self._pieces(pieces))
        return sums

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of the loss; within `exchanging`."""
        torch.autograd.backward(loss * self._ranks.count if self._ranks.count > 1 else loss)

    @contextlib.contextmanager
    def exchanging(self, now: bool) -> Iterator[None]:
        """Around a forward and its backward pass: exchange gradients, or keep them for later.

        Args:
            now: for the last rows of this process in a step; those of earlier ones are kept here
                and exchanged once.
        """
        if self._fsdp is not None:
            self._fsdp.set_requires_gradient_sync(now)
        with self._ddp.no_sync() if self._ddp is not None and not now else contextlib.nullcontext():
            yield

    def losses(self, inputs: Inputs) -> Tensor:
        """(2,): the losses of some rows, summed, without gradients."""
        with torch.no_grad():
            sums: Tensor = (self._fsdp or self._losses)(inputs, self._pieces(EAGER))
        return sums

    def _pieces(self, pieces: Pieces) -> Pieces:
        if not self.is_cut or not narrows(self.model):
            return pieces
        for module in find_layers(self.model)[1]:
            module.forward = functools.partial(_any_layer, pieces, module)
        return Pieces(_whole_layer, _whole_last_layer, pieces.masked_loss)

    def whole_weights(self) -> dict[str, Tensor]:
        """The model's state_dict, every tensor whole; all processes must ask at the same step."""
        if not self.is_cut:
            return dict(self.model.state_dict())
        # Tied parameters must stay one tensor, so that a checkpoint holds it once.
        first: dict[int, str] = {}
        named = self.model.named_parameters(remove_duplicate=False)
        same = {name: first.setdefault(id(p), name) for name, p in named}
        state = self.model.state_dict()
        made = {name: whole(state[name]) for name in first.values()}
        return {name: made.get(same.get(name, ""), tensor) for name, tensor in state.items()}


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut, put together; all processes must ask in one order."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's piece of a whole tensor of a parameter's shape, cut as the parameter is."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(parameter, DTensor) or not tensor.ndim:
        return tensor
    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=parameter.placements)


def whole_state(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """An optimiser's tensors by name, put together."""
    return {
        name: {key: whole(tensor) for key, tensor in tensors.items()}
        for name, tensors in state.items()
    }


def _cut(losses: Losses, ranks: Ranks) -> Any:  # noqa: ANN401 (a module of two classes)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(losses.parameters()).device
    mesh = init_device_mesh(device.type, (ranks.count,))
    for module in find_layers(losses.model)[1]:
        fully_shard(module, mesh=mesh)
    return fully_shard(losses, mesh=mesh)


def _any_layer(
    pieces: Pieces, module: nn.Module, x_BSH: Tensor, positions_M: Tensor | None = None
) -> Tensor:
    """What the forward pass of a layer that is cut does, between its engine's hooks."""
    if positions_M is None:
        return pieces.layer(module, x_BSH)
    return pieces.last_layer(module, x_BSH, positions_M)


def _whole_layer(module: nn.Module, x_BSH: Tensor) -> Tensor:
    result: Tensor = module(x_BSH)
    return result


def _whole_last_layer(module: nn.Module, x_BSH: Tensor, positions_M: Tensor) -> Tensor:
    result: Tensor = module(x_BSH, positions_M)
    return result
