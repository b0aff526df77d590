"""What this machine is and how fast it multiplies matrices."""

import contextlib
import ctypes
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from stackbert.errors import RunError
from stackbert.recipe import Recipe

Precision = Literal["bf16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
_CLOCK_RISES = 0.3
"""Seconds of work after which an idle GPU runs at its full clock."""
_LONG_PRODUCT = 0.02
"""Seconds of a product beyond which no larger one is tried."""


def pick_device() -> torch.device:
    """A CUDA device, or the CPU: the first, or of several processes each its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)  # what NCCL and graphs take as theirs
    return device


def keep_memory() -> None:
    """Let the C library keep what is freed instead of giving it back to the system at once.

    A step frees and takes again the same large tensors; by default glibc returns those above 32 MB
    to the system each time, and every page is faulted in and zeroed anew (13-18 % of a step at
    6 × 256 on two cores). A process-wide setting; nothing on other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; no such library
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, -1)  # as unsigned: never


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards means what it says."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, precision: Precision) -> float:
    """Measured rate of a square matrix product, in FLOP/s (median of five, on a GPU of twenty).

    8192 rows and columns on a GPU. On a CPU up to 1024, as smaller ones do not reach what a model's
    products reach; but no larger than takes a fiftieth of a second, for a processor without bf16
    instructions emulates them a hundred times slower than fp32.

    Args:
        device: where.
        precision: of the operands.
    """
    best = 0.0
    for size in (8192,) if device.type == "cuda" else (256, 512, 1024):
        seconds = _product_seconds(device, precision, size)
        best = max(best, 2.0 * size**3 / seconds)
        if seconds > _LONG_PRODUCT:
            break
    return best


def _product_seconds(device: torch.device, precision: Precision, size: int) -> float:
    a = torch.randn(size, size, device=device).to(DTYPES[precision])
    b = torch.randn(size, size, device=device).to(DTYPES[precision])
    begun = time.perf_counter()
    torch.mm(a, b)
    synchronise(device)
    while device.type == "cuda" and time.perf_counter() - begun < _CLOCK_RISES:
        torch.mm(a, b)
        synchronise(device)
    times = []
    for _ in range(20 if device.type == "cuda" else 5):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where its matrix products run faster than fp32's here, else fp32."""
    faster = matrix_rate(device, "bf16") > matrix_rate(device, "fp32")
    return "bf16" if faster else "fp32"


def working_precision(recipe: Recipe) -> Precision:
    """The precision of a recipe that is settled (an "auto" left over means bf16)."""
    return "fp32" if recipe.precision == "fp32" else "bf16"


@contextlib.contextmanager
def explaining_out_of_memory() -> Iterator[None]:
    """Within this block a GPU without enough memory becomes a sentence.

    Raises:
        RunError: torch ran out of the GPU's memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The GPU's memory is full. Set batch.micro_batch to fewer rows (the result stays the "
            "same), or take a smaller model."
        ) from error


def compiling_lacks(device: torch.device) -> str | None:
    """What torch.compile lacks here, as a sentence with what to do about it; None if nothing.

    Args:
        device: that the graphs are for. Those for a CPU are linked by a command line that torch
            does not quote.
    """
    names = (os.environ.get("CXX"), os.environ.get("CC"), "g++", "clang++", "c++", "gcc", "cc")
    if not any(shutil.which(name) for name in names if name):
        return "torch.compile needs a C++ compiler and finds none. Install one (Debian: g++)"
    if device.type == "cpu" and " " in str(Path(torch.__file__).parent):
        return (
            "torch.compile cannot link for a CPU from a folder with a space in its name, and torch "
            "is installed in one. Use a virtual environment elsewhere"
        )
    return None


def describe(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the run's record."""
    import transformers

    import stackbert

    return {
        "stackbert": stackbert.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU {platform.machine()} {capability}"
