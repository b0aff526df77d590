"""The processes of a run: which one this is, and the little that they tell each other.

`torchrun` starts them and sets their environment; PyTorch's process groups carry what they say.
Plain values travel as JSON and tensors as tensors: nothing is pickled.
"""

import contextlib
import datetime
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stackbert.errors import Interrupted, RunError, StackBertError, UserError

_PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the first one's word. What the first does alone, such as measuring
micro-batches, is minutes; a process that died is noticed at once."""
_JOINING = datetime.timedelta(minutes=10)
"""How long a process waits for the others to start, and for their gradients."""
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|connectFullMesh|broken pipe|timed out|timeout|"
    r"remote process|unhandled system error|communicator was aborted|socket",
    re.IGNORECASE,
)
"""What gloo and NCCL say when a peer has gone; gloo has no exception of its own for it."""


class SaidByFirstError(StackBertError):
    """Another process says what is wrong; this one only ends with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    A run in one process has one rank; then nothing here communicates.
    """

    rank: int = 0
    count: int = 1
    _words: Any = field(default=None, repr=False)
    """Process group on the CPU, for plain values."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def on_machine(self) -> tuple[int, int]:
        """This process's place among those of its machine, and their number, as torchrun says.

        (0, 1) where nobody says.
        """
        if self.count == 1 or "LOCAL_WORLD_SIZE" not in os.environ:
            return 0, 1
        return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])

    def largest(self, value: int) -> int:
        """The largest of all processes' values, in each of them."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._words)
        return int(box)

    def all_pass(self, check: Callable[[], None]) -> None:
        """Call `check` in each process; if one of them refuses, all end and one says why.

        Raises:
            UserError: what `check` raised here, in the first process that it was raised in.
            SaidByFirstError: in the others.
        """
        found: UserError | None = None
        try:
            check()
        except UserError as error:
            found = error
        speaker = self.count - self.largest(0 if found is None else self.count - self.rank)
        if found is not None and speaker == self.rank:
            raise found
        if speaker < self.count:
            raise SaidByFirstError(UserError.exit_code)

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place and in each of them."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def from_first(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401 (JSON values)
        """What `make` returns in the first process, in each of them; the others do not call it.

        Args:
            make: returns something that JSON can hold.

        Raises:
            StackBertError: `make` raised it; the first raises it, the others `SaidByFirstError`.
        """
        if self.count == 1:
            return make()
        if not self.is_first:
            told = json.loads(self._tell(""))
            if "exit_code" in told:
                raise SaidByFirstError(told["exit_code"])
            return told["value"]
        try:
            value = make()
        except StackBertError as error:
            self._tell(json.dumps({"exit_code": error.exit_code}))
            raise
        # What the first goes on with is what the others get: tuples have become lists.
        told = self._tell(json.dumps({"value": value}))
        return json.loads(told)["value"]

    def _tell(self, text: str) -> str:
        """The first's text, in each process."""
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else None
        length = torch.tensor([0 if data is None else len(data)])
        dist.broadcast(length, src=0, group=self._words)
        if data is None:
            data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, src=0, group=self._words)
        return bytes(data.tolist()).decode()

    def spread(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the tensors (in host memory) with the first process's; names in one order."""
        if self.count == 1:
            return
        import torch.distributed as dist

        for tensor in tensors.values():
            dist.broadcast(tensor, src=0, group=self._words)

    def check_equal(self, value: str, what: str) -> None:
        """Refuse to go on where a process has another value than the first.

        Raises:
            UserError: in the process that differs.
        """
        first = self.from_first(lambda: value)
        if value != first:
            raise UserError(
                f"Process {self.rank} has another {what} ({value}) than the first ({first}). Give "
                "every process the same."
            )


ALONE = Ranks()


def is_first_process() -> bool:
    """Whether this is the one of torchrun's processes that speaks; true of a process alone."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Within this block the processes that `torchrun` started know each other.

    Without torchrun's environment, or with one process, nothing is started. A process group that
    the caller has started is used and left.

    Raises:
        UserError: the environment is incomplete.
        RunError: another process was lost.
        SaidByFirstError: the run failed or was stopped, and the first process says how.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    import torch.distributed as dist

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and not dist.is_initialized():
        raise UserError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set. Start the processes with "
            "torchrun, or unset WORLD_SIZE."
        )
    ours = not dist.is_initialized()
    if ours:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _explaining_lost():
            dist.init_process_group(backend, timeout=_JOINING)
    words = dist.new_group(backend="gloo", timeout=_PATIENCE)
    ranks = Ranks(dist.get_rank(), count, words)
    try:
        with _explaining_lost():
            yield ranks
    except (RunError, Interrupted) as error:
        # These come in all processes at the same step; one of them is enough to say so.
        if ranks.is_first or isinstance(error, LostRankError):
            raise
        raise SaidByFirstError(error.exit_code) from None
    finally:
        if ours:
            dist.destroy_process_group()


class LostRankError(RunError):
    """Another process has gone, and a run cannot go on without it."""


@contextlib.contextmanager
def _explaining_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise LostRankError(
            "Another process of the run was lost (killed, out of memory, or its machine gone), so "
            "the run was stopped. The last checkpoint is kept; start all processes again with the "
            "same command to go on."
        ) from error
