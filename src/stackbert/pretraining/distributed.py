"""Several processes that train together: torch.distributed under torchrun, with DDP or FSDP2."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.tensor
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stackbert.batches.batches import Batch
from stackbert.encoder import EAGER, Kernels, supports_masked_forward
from stackbert.errors import Interrupted, OtherRankError, RunError, StackBertError, UserError
from stackbert.growth.grow import find_layers
from stackbert.model import loss_sums
from stackbert.recipe import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Value = TypeVar("Value")
# What gloo and NCCL say when a peer is gone; gloo has no exception of its own for it.
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|connectFullMesh|broken pipe|timed out|timeout|"
    r"remote process|unhandled system error|communicator was aborted|socket",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class World:
    """This process among those of the run. Values travel as JSON: nothing is pickled."""

    rank: int = 0
    size: int = 1
    cpu_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, value: int) -> int:
        """The largest of all processes' values."""
        box = torch.tensor([value])
        if self.size > 1:
            dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return int(box)

    def all_pass(self, check: Callable[[], Any]) -> Any:  # noqa: ANN401
        """What `check` returns, called on every rank. If it raises on some, the lowest of them
        raises its error, and all others `OtherRankError`."""
        result, error, mine = None, None, 0
        try:
            result = check()
        except StackBertError as raised:
            error, mine = raised, (self.size - self.rank) * 256 + raised.exit_code
        first = self.all_reduce_max(mine)
        if error is not None and mine == first:
            raise error
        if first:
            raise OtherRankError(first % 256)
        return result

    def broadcast_object(self, make: Callable[[], Value], kind: Any = Any) -> Value:  # noqa: ANN401
        """What `make` returns on rank 0, a value of a type that pydantic writes as JSON, on every
        rank. An error of `make` is raised on rank 0; the others raise `OtherRankError`."""
        if self.size == 1:
            return make()
        adapter = TypeAdapter(kind)
        made = self.all_pass(lambda: adapter.dump_json(make()) if self.is_main else b"")
        text = bytearray(made).ljust(self.all_reduce_max(len(made)))
        data = torch.frombuffer(text, dtype=torch.uint8)
        dist.broadcast(data, src=0, group=self.cpu_group)
        value: Value = adapter.validate_json(text)
        return value

    def broadcast(self, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors, in host memory, that `make` returns on rank 0, by name on every rank."""
        tensors: dict[str, Tensor] = self.all_pass(lambda: make() if self.is_main else {})
        if self.size > 1:
            layout = {name: (list(t.shape), str(t.dtype)) for name, t in tensors.items()}
            for name, (shape, dtype) in self.broadcast_object(lambda: layout).items():
                empty = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                dist.broadcast(tensors.setdefault(name, empty), src=0, group=self.cpu_group)
        return tensors


SINGLE = World()


def is_main_process() -> bool:
    """Whether this is rank 0 of torchrun's processes; true of a process alone."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def init_distributed() -> Iterator[World]:
    """Within this block the processes that `torchrun` started form a `World`.

    Raises:
        UserError: torchrun's environment is incomplete.
        RunError: another process died.
        OtherRankError: the run failed or was stopped; rank 0 says how.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield SINGLE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set. Start the processes with "
            "torchrun, or unset WORLD_SIZE."
        )
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
        # What rank 0 does alone, such as measuring micro-batches, takes minutes.
        yield World(rank, size, dist.new_group(backend="gloo", timeout=timedelta(hours=2)))
    except (RunError, Interrupted) as error:
        if rank == 0:
            raise
        raise OtherRankError(error.exit_code) from None  # all raise it; rank 0 says it
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise RunError(
            "Another process of the run was lost (killed, out of memory, or its machine is gone), "
            "so the run was stopped. The last checkpoint is kept; start all processes again with "
            "the same command to resume."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, put together; a collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_tensor(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process' shard of a full tensor, sharded as the parameter is; scalars stay whole."""
    if not isinstance(parameter, DTensor) or not tensor.ndim:
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    return torch.distributed.tensor.distribute_tensor(tensor, mesh, placements, src_data_rank=None)


class _Losses(nn.Module):
    """`loss_sums` as a module, because the engines hook into a module's forward pass."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, kernels: Kernels) -> Tensor:
        return loss_sums(self.model, batch, kernels)


class ParallelModel:
    """A model on its device; several processes hold a copy each ("ddp"), or a shard of each
    parameter ("fsdp", a DTensor)."""

    def __init__(self, model: "PreTrainedModel", world: World, engine: Engine) -> None:
        self.model = model
        self.is_sharded = world.size > 1 and engine == "fsdp"
        self.is_copied = world.size > 1 and engine == "ddp"
        self._losses: Any = _Losses(model)
        if self.is_sharded:
            mesh = init_device_mesh(model.device.type, (world.size,))
            for layer in find_layers(model)[1]:
                fully_shard(layer, mesh=mesh)
            fully_shard(self._losses, mesh=mesh)
        elif self.is_copied:
            self._losses = DistributedDataParallel(self._losses, gradient_as_bucket_view=True)

    def __call__(self, batch: Batch, kernels: Kernels = EAGER) -> Tensor:
        """`loss_sums` of some rows."""
        if self.is_sharded and supports_masked_forward(self.model):
            # FSDP gathers a layer in hooks around its forward pass.
            layer, last_layer = _in_forward(kernels.layer), _in_forward(kernels.last_layer)
            kernels = Kernels(layer, last_layer, kernels.masked_loss)
        sums: Tensor = self._losses(batch, kernels)
        return sums

    @contextlib.contextmanager
    def gradient_sync(self, now: bool) -> Iterator[None]:
        """Around a forward and backward pass: exchange gradients, or only accumulate them here."""
        if self.is_sharded:
            self._losses.set_requires_gradient_sync(now)
        with self._losses.no_sync() if self.is_copied and not now else contextlib.nullcontext():
            yield

    def reshard(self) -> None:
        """Drop what FSDP has gathered for an evaluation, so that parameters are shards again."""
        for module in self._losses.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def full_weights(self) -> dict[str, Tensor]:
        """The model's state_dict, every tensor whole; a collective call."""
        weights = dict(self.model.state_dict())  # first, as it makes parameters shards again
        whole = {p: full_tensor(p.detach()) for p in self.model.parameters()}
        # Tied parameters stay one tensor, saved once.
        tied = self.model.named_parameters(remove_duplicate=False)
        return weights | {name: whole[parameter] for name, parameter in tied}


def _in_forward(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(layer: nn.Module, *inputs: Tensor) -> Tensor:
        layer.forward = functools.partial(kernel, layer)
        result: Tensor = layer(*inputs)
        return result

    return run
