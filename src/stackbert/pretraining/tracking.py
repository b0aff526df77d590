"""Optional copies of the ledger's numbers: TensorBoard, Weights & Biases."""

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
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "--track tensorboard needs the package tensorboard: pip install "
                "'stackbert[tensorboard]'."
            ) from error
        # purge_step hides what a killed run wrote behind the checkpoint that it resumes from.
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=first)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "--track wandb needs the package wandb: pip install 'stackbert[wandb]'."
            ) from error
        self._run: Any = wandb.init(
            project="stackbert", name=run.name, id=run.name, dir=run, resume="allow", config=config
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def check_trackers(names: Iterable[str]) -> None:
    """Refuse an unknown tracker.

    Raises:
        UserError: naming it and those that there are.
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
        UserError: an unknown name, or a package that is not installed.
    """
    names = list(names)
    check_trackers(names)
    opened: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            opened.append(_TensorBoard(run, first))
        else:
            opened.append(_WandB(run, config))
    return opened
