"""What this machine is and how fast it multiplies matrices."""

import ctypes
import os
import platform
import shutil
import statistics
import time
from typing import Any, Literal

import torch

from stackbert.recipe import Recipe

Precision = Literal["bf16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pick_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


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


def matrix_rate(device: torch.device, precision: Precision, *, size: int | None = None) -> float:
    """Measured rate of a square matrix product, in FLOP/s (median of five).

    Args:
        device: where.
        precision: of the operands.
        size: rows and columns; by default 8192 on a GPU, 512 on a CPU (enough for two cores, and
            still only a third of a second on a processor that lacks bf16 instructions).
    """
    size = size or (8192 if device.type == "cuda" else 512)
    a = torch.randn(size, size, device=device).to(DTYPES[precision])
    b = torch.randn(size, size, device=device).to(DTYPES[precision])
    torch.mm(a, b)
    times = []
    for _ in range(5):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(times)


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where its matrix products run faster than fp32's here, else fp32.

    Processors without bf16 instructions emulate it, some forty times slower than fp32.
    """
    faster = matrix_rate(device, "bf16") > matrix_rate(device, "fp32")
    return "bf16" if faster else "fp32"


def working_precision(recipe: Recipe) -> Precision:
    """The precision of a recipe that is settled (an "auto" left over means bf16)."""
    return "fp32" if recipe.precision == "fp32" else "bf16"


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs: it builds its kernels with a C++ compiler."""
    names = (os.environ.get("CXX"), os.environ.get("CC"), "g++", "clang++", "c++", "gcc", "cc")
    return any(shutil.which(name) for name in names if name)


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
