"""Checkpoints written on a thread of their own, while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stackbert.pretraining.optimizers import NamedState


class BackgroundWriter:
    """Does one job at a time on a thread; what a job raises comes out at the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._running: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before it has ended."""
        self.wait()
        self._running = self._thread.submit(job)

    def check(self) -> None:
        """Raise what the job raised, if it has ended; does not wait."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the job, and raise what it raised."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Wait for the job and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


@torch.no_grad()
def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory; names that share a tensor share its copy.

    Args:
        tensors: as of `state_dict()`.
    """
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in copies or not tensor.numel():
            copies[key] = tensor.detach().to("cpu", copy=True)
        result[name] = copies[key]
    return result


def snapshot_state(state: "NamedState") -> "NamedState":
    """The same of an optimiser's tensors."""
    return {name: snapshot(tensors) for name, tensors in state.items()}
