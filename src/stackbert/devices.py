"""Machines to plan for: accelerators by their data sheets, and the machine in use as measured."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stackbert.errors import UserError
from stackbert.machine import Precision, describe, matrix_rate, memory

GIB = 2**30
NODE = 8  # devices of one machine


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a machine."""

    name: str
    memory: int  # bytes
    rates: Mapping[Precision, float]  # products in FLOP/s: by the data sheet, or as measured
    is_cpu: bool = False
    link: float = 0.0  # bytes a second, each way, to others in its machine; 0 if there are none
    network: float = 0.0  # the same to other machines: the device's share of its machine's network


def _gpu(name: str, gib: int, bf16: float, fp32: float, link: float, network: float) -> Device:
    rates: dict[Precision, float] = {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12}
    return Device(name, gib * GIB, rates, link=link * 1e9, network=network * 1e9)


DEVICES = {
    # name, GiB, TFLOP/s in bf16 and fp32, GB/s of link and network
    "a100": _gpu("A100", 80, 312, 156, 300, 25),
    "h100": _gpu("H100", 80, 989, 495, 450, 50),
    "h200": _gpu("H200", 141, 989, 495, 450, 50),
    "l4": _gpu("L4", 24, 121, 60, 32, 1.6),
    "rtx4090": _gpu("RTX 4090", 24, 165, 82.6, 32, 1.6),
    "cpu": Device("cpu", 8 * GIB, {"fp32": 0.1e12}, is_cpu=True),
}
"""Published dense peaks: bf16 with fp32 sums on tensor cores (the 80 GB A100, the SXM form of H100
and H200), and fp32 by TF32 on the same cores. Links are NVLink or 16 lanes of PCIe 4 within a
machine of eight; between machines one network card of 200 (A100) or 400 Gbit/s a device, for L4 and
RTX 4090 one of 100 Gbit/s a machine. "cpu" is a round figure for two cores."""


def find_device(name: str) -> Device:
    """The device of this name, or a UserError; case, spaces and hyphens do not matter."""
    found = DEVICES.get(name.lower().replace(" ", "").replace("-", ""))
    if found is None:
        names = ", ".join(device.name for device in DEVICES.values())
        raise UserError(f"There is no device '{name}'. Choose {names}, or 'here', this machine.")
    return found


def this_machine(device: torch.device, precision: Precision) -> Device:
    """The machine in use, with its memory and the measured rate of its matrix products."""
    rates = {precision: matrix_rate(device, precision)}
    return Device(describe(device)["device"], memory(device), rates, device.type == "cpu")
