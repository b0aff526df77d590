"""Copies of the ledger's numbers in TensorBoard or Weights & Biases, where asked for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackbert.errors import UserError

TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Tracker:
    """Takes numbers by name and step."""

    log: Callable[[int, Mapping[str, float]], object]
    close: Callable[[], object]


def open_trackers(
    names: Iterable[str], run: Path, *, first: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """Open trackers by name.

    Args:
        names: of `TRACKERS`.
        run: the run directory; TensorBoard's files go to its folder tensorboard/.
        first: the first step that is going to be logged, or logged again.
        config: the recipe's plain values.

    Raises:
        UserError: the package of a tracker is not installed.
    """
    try:
        return [
            _tensorboard(run, first) if name == "tensorboard" else _wandb(run, config)
            for name in names
        ]
    except ImportError as error:
        name = "wandb" if "wandb" in str(error) else "tensorboard"
        raise UserError(
            f"--track {name} needs the package {name}: pip install 'stackbert[{name}]'."
        ) from error


def _tensorboard(run: Path, first: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what a killed run wrote after the checkpoint that it resumes from.
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(run: Path, config: Mapping[str, Any]) -> Tracker:
    import wandb

    started = wandb.init(
        project="stackbert", name=run.name, id=run.name, dir=run, resume="allow", config=config
    )
    return Tracker(lambda step, numbers: started.log(dict(numbers), step=step), started.finish)
