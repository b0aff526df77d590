"""Machines to plan for: a table of accelerators by their data sheets, and the one in use."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stackbert.errors import UserError
from stackbert.pretraining.machine import Precision, describe, matrix_rate

GIB = 2**30
HERE = "here"


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a machine."""

    name: str
    memory: int
    """Bytes."""
    rates: Mapping[Precision, float]
    """Matrix products, in FLOP/s: dense peaks of the data sheet, or as measured."""
    is_cpu: bool = False


def _gpu(name: str, gib: int, bf16: float, fp32: float) -> Device:
    return Device(name, gib * GIB, {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12})


DEVICES = (
    _gpu("A100", 80, 312, 19.5),
    _gpu("H100", 80, 989, 67),
    _gpu("H200", 141, 989, 67),
    _gpu("L4", 24, 121, 30.3),
    _gpu("RTX 4090", 24, 165, 82.6),
    Device("cpu", 8 * GIB, {"fp32": 0.1e12}, is_cpu=True),
)
"""Published dense peaks, without sparsity: bf16 with fp32 sums on tensor cores (the 80 GB A100, the
SXM form of H100 and H200), and fp32 outside them, as torch multiplies fp32 by default. The CPU is
no product but a round figure for two cores with AVX2: 2 × 16 multiply-adds at 1.6 GHz."""


def find_device(name: str) -> Device:
    """The device of this name in the table; case, spaces and hyphens do not matter.

    Raises:
        UserError: there is none, with the names there are.
    """

    def plain(text: str) -> str:
        return text.lower().replace(" ", "").replace("-", "")

    for device in DEVICES:
        if plain(device.name) == plain(name):
            return device
    names = ", ".join(device.name for device in DEVICES)
    raise UserError(
        f"There is no device '{name}' in the table. Take one of {names}, or '{HERE}' to measure "
        f"this machine."
    )


def this_machine(device: torch.device, precision: Precision) -> Device:
    """The machine in use, with its memory and the measured rate of its matrix products."""
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        str(describe(device)["device"]),
        memory,
        {precision: matrix_rate(device, precision)},
        is_cpu=device.type == "cpu",
    )
