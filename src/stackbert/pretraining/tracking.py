"""Copies of the ledger's numbers in a tracker (TensorBoard, Weights & Biases, …), if asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stackbert.errors import need
from stackbert.recipe import Recipe

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
_SHOWN = {
    "step": ("train", ("loss", "lr", "gradient_norm", "tokens_per_second", "depth")),
    "evaluation": ("validation", ("loss",)),
}
"""What is logged of the ledger's lines, by their kind."""


class Tracker(NamedTuple):
    """Takes numbers by name, and a step."""

    log: Callable[[dict[str, float], int], object]
    close: Callable[[], object]

    def line(self, kind: str, fields: dict[str, Any]) -> None:
        """Log a line of the ledger."""
        if kind in _SHOWN:
            group, names = _SHOWN[kind]
            self.log({f"{group}/{name}": float(fields[name]) for name in names}, fields["step"])


def open_tracker(name: str, run: Path, step: int, recipe: Recipe) -> Tracker:
    """One of `TRACKERS`, for a run that begins, or resumes, at `step`; UserError without its
    package."""
    need(name, name, to=f"--track {name}")
    if name == "tensorboard":
        return _tensorboard(run, step)
    config = recipe.model_dump(mode="json")
    return {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}[name](run, config)


def _tensorboard(run: Path, step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what a killed run wrote after the checkpoint that it resumes from.
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + (step > 0))

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(run: Path, config: dict[str, Any]) -> Tracker:
    import wandb

    started = wandb.init(
        project="stackbert", name=run.name, id=run.name, dir=run, resume="allow", config=config
    )
    return Tracker(started.log, started.finish)


def _trackio(run: Path, config: dict[str, Any]) -> Tracker:
    import trackio

    trackio.init(project="stackbert", name=run.name, resume="allow", config=config)
    return Tracker(trackio.log, trackio.finish)


def _mlflow(run: Path, config: dict[str, Any]) -> Tracker:
    import mlflow

    mlflow.set_experiment("stackbert")
    same = mlflow.search_runs(
        filter_string=f"attributes.run_name = '{run.name}'", output_format="list"
    )
    mlflow.start_run(run_id=same[0].info.run_id if same else None, run_name=run.name)
    mlflow.log_dict(config, "recipe.json")
    return Tracker(mlflow.log_metrics, mlflow.end_run)
