"""What several devices cost each other: the exchange of gradients, as far as it does not hide.

A paper estimate. A ring moves 2·(N - 1)/N times the gradients' bytes over each device's link
(Patarasu and Yuan, 2009), while the backward pass of the last micro-batch is still computed; what
is longer than that is waited for. FSDP gathers the weights twice and scatters the gradients once
instead: half as much again.
"""

from dataclasses import dataclass

from stackbert.errors import UserError
from stackbert.planning.devices import Device
from stackbert.planning.workload import Workload
from stackbert.recipe import Engine

EFFICIENCY = 0.7
"""Share of a link's published rate that an all-reduce of large tensors reaches. Assumed."""
_BYTES = 4
"""Of a weight or a gradient: both are fp32."""
_BACKWARD = 2.0 / 3.0
"""Of the time of a forward and a backward pass."""
_FEW_POSITIONS = 8192
"""Of a device in a step: with fewer, a GPU's matrix products no longer reach their rate."""


@dataclass(frozen=True)
class Exchange:
    """What a step's exchange takes."""

    bytes: int
    """Over the link of each device."""
    seconds: float
    """In all."""
    waited: float
    """Seconds that the backward pass does not hide."""


def exchange(
    load: Workload,
    device: Device,
    devices: int,
    *,
    micro_batch: int,
    compute: float,
    engine: Engine,
) -> Exchange:
    """The exchange of a step of one stage.

    Args:
        load: the stage.
        device: with its links.
        devices: that share the step; 1 exchanges nothing.
        micro_batch: rows of a forward pass on each.
        compute: seconds that a device computes in a step.
        engine: of the recipe.
    """
    if devices == 1:
        return Exchange(0, 0.0, 0.0)
    rounds = 3 if engine == "fsdp" else 2
    moved = round(rounds * (devices - 1) / devices * _BYTES * load.parameters)
    seconds = moved / (EFFICIENCY * device.link(devices))
    passes = -(-load.shape.rows // (devices * micro_batch))
    hidden = _BACKWARD * compute / passes
    return Exchange(moved, seconds, max(0.0, seconds - hidden))


def check_devices(loads: tuple[Workload, ...], device: Device | None, devices: int) -> None:
    """Refuse what cannot be planned on several devices.

    Raises:
        UserError: steps are to be measured here, the device has no link in the table, or a stage's
            rows cannot be shared equally.
    """
    if devices < 1:
        raise UserError(f"A plan needs at least one device, not {devices}.")
    if devices == 1:
        return
    if device is None:
        raise UserError(
            "Steps on several devices cannot be measured here. Name a device (--device H100), or "
            "start a short run with torchrun."
        )
    if device.within is None:
        raise UserError(
            f"The table knows no link between devices of '{device.name}'. Take a GPU's name."
        )
    for load in loads:
        if load.shape.rows % devices:
            raise UserError(
                f"The stage of depth {load.depth} has {load.shape.rows} rows a step "
                f"(batch.sequences), which {devices} devices cannot share equally."
            )


def exchange_notes(
    loads: tuple[Workload, ...], exchanges: list[Exchange], computes: list[float], devices: int
) -> list[str]:
    """Sentences about where the devices wait for each other, and where they have too little."""
    if devices == 1:
        return []
    notes = []
    for load, each, compute in zip(loads, exchanges, computes, strict=True):
        share = each.waited / (compute + each.waited)
        notes.append(
            f"Depth {load.depth}: {each.bytes / 1e9:.2f} GB over each link a step, "
            f"{1000 * each.seconds:.1f} ms beside {1000 * compute:.1f} ms of computing; "
            f"{1000 * each.waited:.1f} ms are waited for ({share:.0%} of the step)."
        )
    fewest = min(load.shape.rows * load.shape.sequence_length // devices for load in loads)
    if fewest < _FEW_POSITIONS:
        notes.append(
            f"A device has {fewest:,} positions a step: too few to keep it busy, so the MFU will "
            "be lower than assumed. Take more rows a step (batch.sequences) or fewer devices."
        )
    return notes
