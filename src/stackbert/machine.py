"""What this machine is, and how fast it multiplies matrices."""

import contextlib
import ctypes
import os
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from stackbert.recipe import Recipe

Precision = Literal["bf16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pick_device() -> torch.device:
    """The first CUDA device, under torchrun the one of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)  # NCCL and CUDA graphs use the current device
    return device


def keep_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the system at once.

    A step frees and allocates the same large tensors. By default glibc returns blocks above 32 MB
    to the system each time, and every page is faulted in and zeroed again (13-18 % of a step at
    6 × 256 on two cores). The setting holds for the process; other C libraries ignore it.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # constants of malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, -1)  # unsigned: never trim


@contextlib.contextmanager
def gpu_settings(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """Within this block a GPU multiplies fp32 on its tensor cores (TF32), takes only kernels that
    repeat to the bit if asked, and its random state is put back at the end as the CPU's is."""
    with contextlib.ExitStack() as stack:
        # Of one GPU: a process that touches another takes memory there.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if device.type == "cuda":
            before = torch.get_float32_matmul_precision()
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("high")
        if device.type == "cuda" and deterministic:
            repeats = torch.are_deterministic_algorithms_enabled()
            stack.callback(torch.use_deterministic_algorithms, repeats)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
            torch.use_deterministic_algorithms(True)
        yield


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished, so that a clock read afterwards is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of this machine as far as this process may use it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def matrix_rate(device: torch.device, precision: Precision) -> float:
    """Measured rate of a square matrix product, in FLOP/s: the best of 5 (on a GPU, of 20).

    A GPU multiplies 8192 × 8192. A CPU tries 256, 512 and 1024, because smaller products do not
    reach the rate of a model's, and stops at the first that takes over 20 ms: a processor without
    bf16 instructions emulates them a hundred times slower than fp32.
    """
    best = 0.0
    for size in (8192,) if device.type == "cuda" else (256, 512, 1024):
        seconds = _product_seconds(device, precision, size)
        best = max(best, 2.0 * size**3 / seconds)
        if seconds > 0.02:
            break
    return best


def _product_seconds(device: torch.device, precision: Precision, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in "ab")

    def product() -> float:
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        return time.perf_counter() - start

    begun = time.perf_counter()
    product()
    while device.type == "cuda" and time.perf_counter() - begun < 0.3:
        product()  # until an idle GPU has raised its clock
    return min(product() for _ in range(20 if device.type == "cuda" else 5))


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where a GPU or an x86 processor has instructions for it; others are measured."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif "amx_bf16" in (has := torch.cpu.get_capabilities()):  # x86
        has_bf16 = has["amx_bf16"] or has["avx512_bf16"]
    else:
        has_bf16 = matrix_rate(device, "bf16") > matrix_rate(device, "fp32")
    return "bf16" if has_bf16 else "fp32"


def working_precision(recipe: Recipe) -> Precision:
    """The precision of an autotuned recipe; an "auto" that was never tuned means bf16."""
    return "fp32" if recipe.precision == "fp32" else "bf16"


def compiling_lacks(device: torch.device) -> str | None:
    """What torch.compile lacks here, as a sentence that says what to do; None if nothing."""
    compilers = (os.environ.get("CXX"), os.environ.get("CC"), "g++", "clang++", "c++", "gcc", "cc")
    if not any(shutil.which(name) for name in compilers if name):
        return "torch.compile needs a C++ compiler and finds none. Install one (Debian: g++)"
    if device.type == "cpu" and " " in str(Path(torch.__file__).parent):
        return (  # torch does not quote the path in the linker's command
            "torch.compile cannot link for a CPU from a folder with a space in its name, and torch "
            "is installed in one. Use a virtual environment elsewhere"
        )
    return None


def describe(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    ours = "run from its source"
    with contextlib.suppress(PackageNotFoundError):
        ours = version("stackbert")
    cpu = f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return ({"processes": processes} if processes > 1 else {}) | {
        "stackbert": ours,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
    }
