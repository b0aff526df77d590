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
    within: float | None = None
    """Bytes a second, each way, from a device to the others of its machine."""
    between: float | None = None
    """The same to other machines: the device's share of its machine's network."""

    def link(self, devices: int) -> float:
        """Bytes a second of the slowest link that so many devices have between them."""
        if self.within is None or self.between is None:
            raise ValueError(f"{self.name} has no links")
        return self.within if devices <= NODE else min(self.within, self.between)


def _gpu(name: str, gib: int, *, bf16: float, fp32: float, within: float, between: float) -> Device:
    rates: dict[Precision, float] = {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12}
    return Device(name, gib * GIB, rates, within=within * 1e9, between=between * 1e9)


NODE = 8
"""Devices of a machine."""
DEVICES = (
    _gpu("A100", 80, bf16=312, fp32=19.5, within=300, between=25),
    _gpu("H100", 80, bf16=989, fp32=67, within=450, between=50),
    _gpu("H200", 141, bf16=989, fp32=67, within=450, between=50),
    _gpu("L4", 24, bf16=121, fp32=30.3, within=32, between=1.6),
    _gpu("RTX 4090", 24, bf16=165, fp32=82.6, within=32, between=1.6),
    Device("cpu", 8 * GIB, {"fp32": 0.1e12}, is_cpu=True),
)
"""Published dense peaks, without sparsity: bf16 with fp32 sums on tensor cores (the 80 GB A100, the
SXM form of H100 and H200), and fp32 outside them, as torch multiplies fp32 by default. Links in
GB/s each way: NVLink or 16 lanes of PCIe 4 within a machine of eight; between machines one network
card of 200 (A100) or 400 Gbit/s a device, for the two others one of 100 Gbit/s a machine. The CPU
is no product but a round figure for two cores with AVX2: 2 × 16 multiply-adds at 1.6 GHz."""


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
