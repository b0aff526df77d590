"""Several processes that train together: torch.distributed under torchrun, with DDP or FSDP2.

Both engines take the mean of the processes' gradients; ours are shares of one sum, so each process
multiplies its loss by their number. Plain values travel as JSON: nothing is pickled.
"""

import contextlib
import datetime
import functools
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
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

_START_TIMEOUT = datetime.timedelta(minutes=10)
"""For the other processes to start, and for their gradients."""
_WORD_TIMEOUT = datetime.timedelta(hours=2)
"""For rank 0's word. What it does alone, such as measuring micro-batches, takes minutes; a process
that died is noticed at once."""
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|connectFullMesh|broken pipe|timed out|timeout|"
    r"remote process|unhandled system error|communicator was aborted|socket",
    re.IGNORECASE,
)
"""What gloo and NCCL say when a peer has gone; gloo has no exception of its own for it."""


@dataclass(frozen=True)
class World:
    """This process among those of the run. With one process nothing here communicates."""

    rank: int = 0
    size: int = 1
    _cpu_group: Any = field(default=None, repr=False)

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
        if self.size == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._cpu_group)
        return int(box)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors in host memory with rank 0's, which come in the same order."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0, group=self._cpu_group)

    def broadcast_object(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401 (JSON values)
        """What `make` returns on rank 0, on every rank; the other ranks do not call it.

        Args:
            make: returns a value that JSON can hold.

        Raises:
            StackBertError: `make` raised it; the other ranks raise `OtherRankError`.
        """
        if self.size == 1:
            return make()
        error: StackBertError | None = None
        message: dict[str, Any] = {}
        if self.is_main:
            try:
                message = {"value": make()}
            except StackBertError as raised:
                error, message = raised, {"exit_code": raised.exit_code}
        data = torch.tensor(list(json.dumps(message).encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        self.broadcast([length])
        data = data if self.is_main else torch.empty(int(length), dtype=torch.uint8)
        self.broadcast([data])
        if error is not None:
            raise error
        message = json.loads(bytes(data.tolist()))
        if "exit_code" in message:
            raise OtherRankError(message["exit_code"])
        return message["value"]

    def all_pass(self, check: Callable[[], None]) -> None:
        """Call `check` on every rank; if one raises, all stop and the lowest such rank reports it.

        Raises:
            UserError: what `check` raised here.
            OtherRankError: another rank reports the error.
        """
        error: UserError | None = None
        try:
            check()
        except UserError as raised:
            error = raised
        reporter = self.size - self.all_reduce_max(self.size - self.rank if error else 0)
        if error is not None and reporter == self.rank:
            raise error
        if reporter < self.size:
            raise OtherRankError(UserError.exit_code)


SINGLE = World()


def is_main_process() -> bool:
    """Whether this is rank 0 of torchrun's processes; true of a process alone."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


class LostRankError(RunError):
    """Another process is gone, and the run cannot continue without it."""


@contextlib.contextmanager
def init_distributed() -> Iterator[World]:
    """Within this block the processes that `torchrun` started form a `World`.

    A process group that the caller has started is used and left.

    Raises:
        UserError: torchrun's environment is incomplete.
        LostRankError: another process died.
        OtherRankError: the run failed or was stopped, and rank 0 says how.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE
        return
    ours = not dist.is_initialized()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and ours:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set. Start the processes with "
            "torchrun, or unset WORLD_SIZE."
        )
    rank = 0
    try:
        if ours:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_START_TIMEOUT)
        rank = dist.get_rank()
        yield World(rank, size, dist.new_group(backend="gloo", timeout=_WORD_TIMEOUT))
    except (RunError, Interrupted) as error:
        # Every rank raises these at the same step; rank 0 says it.
        if rank == 0:
            raise
        raise OtherRankError(error.exit_code) from None
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise LostRankError(
            "Another process of the run was lost (killed, out of memory, or its machine is gone), "
            "so the run was stopped. The last checkpoint is kept; start all processes again with "
            "the same command to resume."
        ) from error
    finally:
        if ours and dist.is_initialized():
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
        sums = loss_sums(self.model, batch, kernels)
        pair = sums.next_sentence
        return torch.stack(
            [sums.masked_lm, torch.zeros_like(sums.masked_lm) if pair is None else pair]
        )


class ParallelModel:
    """A model in one of the engines.

    Args:
        model: on its device. With "fsdp" and several processes its parameters become DTensors, of
            which each process holds a shard.
        world: the processes.
        engine: "ddp" or "fsdp"; a single process needs neither.
    """

    def __init__(self, model: "PreTrainedModel", world: World, engine: Engine) -> None:
        self.model = model
        self.is_sharded = world.size > 1 and engine == "fsdp"
        self._world = world
        self._losses: Any = _Losses(model)
        self._ddp: Any = None
        if self.is_sharded:
            mesh = init_device_mesh(model.device.type, (world.size,))
            for layer in find_layers(model)[1]:
                fully_shard(layer, mesh=mesh)
            fully_shard(self._losses, mesh=mesh)
        elif world.size > 1:
            # Only gradients are exchanged: the models have no buffers that change, and every
            # parameter has a gradient in every step. torch 2.13 renamed the switch.
            known = inspect.signature(DistributedDataParallel).parameters
            new = "forward_sync_buffers" in known
            off: Any = {"forward_sync_buffers" if new else "broadcast_buffers": False}
            self._ddp = DistributedDataParallel(self._losses, gradient_as_bucket_view=True, **off)

    def __call__(self, batch: Batch, kernels: Kernels = EAGER) -> Tensor:
        """(2,): masked-LM and next-sentence loss of some rows, summed; the second 0 without pairs."""
        sums: Tensor = (self._ddp or self._losses)(batch, self._hooked(kernels))
        return sums

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """The same without gradients, which DDP's hooks would wait for."""
        sums: Tensor = self._losses(batch, self._hooked(EAGER))
        return sums

    @contextlib.contextmanager
    def gradient_sync(self, now: bool) -> Iterator[None]:
        """Around a forward and backward pass: exchange gradients, or only accumulate them here."""
        if self.is_sharded:
            self._losses.set_requires_gradient_sync(now)
        with contextlib.nullcontext() if self._ddp is None or now else self._ddp.no_sync():
            yield

    def full_weights(self) -> dict[str, Tensor]:
        """The model's state_dict, every tensor whole; a collective call."""
        state = self.model.state_dict()
        if not self.is_sharded:
            return dict(state)
        # Tied parameters stay one tensor, so that a checkpoint holds them once.
        names: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), name)
        first = {
            name: names[id(parameter)]
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
        }
        whole = {name: full_tensor(state[name]) for name in names.values()}
        return {name: whole[first[name]] if name in first else state[name] for name in state}

    def _hooked(self, kernels: Kernels) -> Kernels:
        """FSDP gathers a layer in hooks around its forward pass, so that has to run the kernels."""
        if not self.is_sharded or not supports_masked_forward(self.model):
            return kernels
        for layer in find_layers(self.model)[1]:
            layer.forward = functools.partial(_forward, kernels, layer)
        return Kernels(
            lambda layer, x_BSH: layer(x_BSH),
            lambda layer, x_BSH, positions_M: layer(x_BSH, positions_M),
            kernels.masked_loss,
        )


def _forward(
    kernels: Kernels, layer: nn.Module, x_BSH: Tensor, positions_M: Tensor | None = None
) -> Tensor:
    if positions_M is None:
        return kernels.layer(layer, x_BSH)
    return kernels.last_layer(layer, x_BSH, positions_M)
