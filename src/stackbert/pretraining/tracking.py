"""Copies of the ledger's numbers in TensorBoard or Weights & Biases, where asked for."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stackbert.errors import UserError
from stackbert.recipe import Recipe

TRACKERS = ("tensorboard", "wandb")
_SHOWN = {
    "step": ("train", ("loss", "lr", "gradient_norm", "tokens_per_second", "depth")),
    "evaluation": ("validation", ("loss",)),
}
"""What is logged of the ledger's lines, by their kind."""


class Tracker(NamedTuple):
    """Takes numbers by name and step."""

    log: Callable[[int, dict[str, float]], object]
    close: Callable[[], object]

    def line(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Log a line of the ledger."""
        if kind in _SHOWN:
            group, names = _SHOWN[kind]
            self.log(fields["step"], {f"{group}/{name}": float(fields[name]) for name in names})


def open_trackers(names: Iterable[str], run: Path, step: int, recipe: Recipe) -> list[Tracker]:
    """Open trackers of `TRACKERS` by name for a run that begins, or resumes, at `step`.

    Raises:
        UserError: the package of a tracker is not installed.
    """
    try:
        return [
            _tensorboard(run, step) if name == "tensorboard" else _wandb(run, recipe)
            for name in names
        ]
    except ImportError as error:
        name = "wandb" if "wandb" in str(error) else "tensorboard"
        raise UserError(
            f"--track {name} needs the package {name}: pip install 'stackbert[{name}]'."
        ) from error


def _tensorboard(run: Path, step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what a killed run wrote after the checkpoint that it resumes from.
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + (step > 0))

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(run: Path, recipe: Recipe) -> Tracker:
    import wandb

    config = recipe.model_dump(mode="json")
    started = wandb.init(
        project="stackbert", name=run.name, id=run.name, dir=run, resume="allow", config=config
    )
    return Tracker(lambda step, numbers: started.log(numbers, step=step), started.finish)
