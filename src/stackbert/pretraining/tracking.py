"""Copies of the ledger's numbers in TensorBoard or Weights & Biases, where asked for."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from stackbert.errors import UserError

TRACKERS = ("tensorboard", "wandb")


class Tracker(Protocol):
    """Takes numbers by name and step."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record numbers."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class _TensorBoard:
    def __init__(self, run: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run wrote after the checkpoint that it resumes from.
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=first)
        self.close = self._writer.close

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)


class _WandB:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project="stackbert", name=run.name, id=run.name, dir=run, resume="allow", config=config
        )
        self.close = self._run.finish

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)


def check_trackers(names: Iterable[str]) -> None:
    """Refuse an unknown tracker.

    Raises:
        UserError: naming it and the known ones.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track {name}: choose from {', '.join(TRACKERS)}.")


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
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(_TensorBoard(run, first) if name == "tensorboard" else _WandB(run, config))
        except ImportError as error:
            raise UserError(
                f"--track {name} needs the package {name}: pip install 'stackbert[{name}]'."
            ) from error
    return opened
