"""A run in a table: what each stage cost and what it brought, read from the ledger."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.pretraining.ledger import LEDGER, read_ledger
from stackbert.pretraining.rundir import read_record


@dataclass(frozen=True)
class StageSummary:
    """One stage as it was run."""

    depth: int
    steps: int
    tokens: int
    flops: int
    seconds: float
    """Of training alone."""
    mfu: float
    """Share of the machine's measured matrix rate that training used."""
    loss_grown: float | None
    """Validation loss right after growing into this stage; None for the first."""
    loss: float | None
    """Validation loss at the end of the stage."""


@dataclass(frozen=True)
class RunSummary:
    """All stages that have ended, and the last evaluation."""

    name: str
    stages: tuple[StageSummary, ...]
    loss: float | None
    """Last validation loss, in nats."""
    steps: int
    wall: dict[str, float]
    """Seconds by kind of work, from the run's beginning to the last stage that has ended."""

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def scratch_seconds(self) -> float:
        """What as many steps would have taken at the last stage's speed: scratch at equal steps."""
        last = self.stages[-1]
        return self.steps * last.seconds / last.steps

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RunSummary":
        """What `to_json` gave, as a summary again."""
        return cls(**{**value, "stages": tuple(StageSummary(**s) for s in value["stages"])})


def summarise(run: str | Path) -> RunSummary:
    """Read a run's stages from its ledger.

    Args:
        run: the run directory.

    Raises:
        UserError: it is not a run directory, or no stage has ended yet.
    """
    run = Path(run)
    recipe, record = read_record(run)
    rows = read_ledger(run)
    rate = record.matrix_rate * record.machine.get("processes", 1)
    evaluations = {row["step"]: row for row in rows if row["kind"] == "evaluation"}
    grown = {row["step"]: row["loss_after"] for row in rows if row["kind"] == "growth"}
    stages = []
    for index, stage in enumerate(recipe.stages):
        first, end = recipe.boundaries[index : index + 2]
        if end not in evaluations or first not in evaluations:
            break
        start, stop = evaluations[first], evaluations[end]
        seconds, flops = stop["seconds"] - start["seconds"], stop["flops"] - start["flops"]
        if seconds <= 0.0:
            raise UserError(
                f"{run / LEDGER} is damaged: steps {first} to {end} took {seconds:g} seconds."
            )
        stages.append(
            StageSummary(
                depth=stage.depth,
                steps=stage.steps,
                tokens=stop["tokens"] - start["tokens"],
                flops=flops,
                seconds=seconds,
                mfu=flops / seconds / rate,
                loss_grown=grown.get(first),
                loss=stop["loss"],
            )
        )
    if not stages:
        raise UserError(f"{run} has no finished stage yet.")
    last = evaluations[max(evaluations)]
    walls = [row["wall"] for row in rows if row["kind"] in ("time", "end")]
    wall = walls[-1] if walls else {}  # a kill may come between a stage's last two lines
    return RunSummary(recipe.name, tuple(stages), last["loss"], last["step"], wall)
