"""A plan: the stages of a run before it is started, and its like from scratch."""

from dataclasses import dataclass

from stackbert.planning.devices import Device
from stackbert.planning.memory import Memory
from stackbert.pretraining.machine import Precision
from stackbert.recipe import Recipe


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run, or a whole run at one depth."""

    depth: int
    steps: int
    tokens: int
    parameters: int
    flops: int
    """Of training, all steps."""
    micro_batch: int
    """Rows a forward pass."""
    memory: Memory
    """Estimated, with micro-batches of `micro_batch` rows."""
    step_seconds: float
    evaluations: int
    evaluation_seconds: float
    """Of one evaluation."""
    waiting_seconds: float = 0.0
    """Of a step, within `step_seconds`: for the other devices' gradients."""

    @property
    def training_seconds(self) -> float:
        """All steps."""
        return self.steps * self.step_seconds

    @property
    def evaluating_seconds(self) -> float:
        """All evaluations at this depth."""
        return self.evaluations * self.evaluation_seconds

    @property
    def seconds(self) -> float:
        """Training and evaluations."""
        return self.training_seconds + self.evaluating_seconds

    @property
    def flops_per_second(self) -> float:
        """Arithmetic of a step over its time."""
        return self.flops / self.training_seconds


@dataclass(frozen=True)
class Plan:
    """A run before it is started: stacked, and from scratch for as many steps."""

    recipe: Recipe
    """As it would run: scaled to the budget or the steps; measured here, also with the precision,
    micro-batches and compilation that a run would choose."""
    device: Device
    precision: Precision
    mfu: float | None
    """Assumed share of the device's peak; None where steps were measured."""
    vocabulary_size: int
    vocabulary_source: str
    price: float | None
    """USD an hour of one device."""
    stages: tuple[StagePlan, ...]
    scratch: StagePlan
    """The last stage's depth and batches for as many steps as all stages have."""
    devices: int
    """That share every step."""
    notes: tuple[str, ...]
    """Sentences about what does not fit or was cut short."""

    @property
    def seconds(self) -> float:
        """Training and evaluations of the stacked run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def training_seconds(self) -> float:
        """Training of the stacked run."""
        return sum(stage.training_seconds for stage in self.stages)

    @property
    def flops(self) -> int:
        """Training FLOPs of the stacked run."""
        return sum(stage.flops for stage in self.stages)

    @property
    def memory(self) -> int:
        """Largest memory of any stage, in bytes."""
        return max(stage.memory.total for stage in self.stages)

    @property
    def saving(self) -> float:
        """Share of the time from scratch that stacking saves; below 0 where it costs."""
        return 1.0 - self.seconds / self.scratch.seconds

    @property
    def cost(self) -> float | None:
        """USD of the stacked run, all devices; None without a price."""
        return None if self.price is None else self.devices * self.price * self.seconds / 3600.0

    @property
    def scratch_cost(self) -> float | None:
        """USD of the run from scratch, all devices; None without a price."""
        if self.price is None:
            return None
        return self.devices * self.price * self.scratch.seconds / 3600.0
