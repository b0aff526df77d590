"""The recipe: everything a user decides about a pre-training run, validated before it starts.

YAML in, frozen pydantic models inside, YAML out. Nothing here needs torch.
"""

import bisect
import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stackbert.errors import UserError
from stackbert.growth.operators import MOST_LAYERS, Operator, get_operator, layer_list

ModelType = Literal["bert", "roberta-prelayernorm", "megatron-bert", "roberta", "modernbert"]
NEXT_SENTENCE_TYPES: tuple[ModelType, ...] = ("bert", "megatron-bert")
"""Types whose transformers implementation has a next-sentence head."""

_SET_BY_THE_CORPUS = ("vocab_size", *(f"{n}_token_id" for n in ("pad", "cls", "sep", "bos", "eos")))

Engine = Literal["ddp", "fsdp"]
PositiveInt = Annotated[int, Field(strict=True, gt=0, le=10**9)]
Count = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Depth = Annotated[int, Field(strict=True, gt=0, le=MOST_LAYERS)]
Positive = Annotated[float, Field(gt=0.0)]
RowLength = Annotated[int, Field(strict=True, ge=8, le=10**9)]
MaskRate = Annotated[float, Field(gt=0.0, le=0.6)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(_Part):
    """Which transformers model; any further field goes to its config (checked against it)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: ModelType = "bert"
    hidden_size: PositiveInt = 768
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072

    @model_validator(mode="after")
    def _fields_of_others(self) -> Self:
        for name in self.model_extra or {}:
            if name in _SET_BY_THE_CORPUS:
                raise ValueError(f"{name} is set by the corpus; leave it out here")
            if name == "num_hidden_layers":
                raise ValueError("num_hidden_layers is set by the stages' depth; leave it out here")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        return self


class StartSpec(_Part):
    """The trained model that a run starts from. Its folder is given, the rest is found in it."""

    folder: str
    model: str = ""
    """Its transformers class, with the masked-LM head that is trained."""
    depth: Count = 0
    config: dict[str, Any] = {}
    """As transformers writes it."""
    sha256: str = ""
    """Of its weights."""
    fresh: tuple[str, ...] = ()
    """Parameters of the class that the folder lacks; the seed initialises them."""
    history: tuple[str, ...] = ()
    """What is known of how it was trained, a sentence each."""


class Objective(_Part):
    """What is learned: masked LM, and next-sentence prediction if asked."""

    mask_rate: MaskRate = 0.15
    """Share of a row's tokens that are predicted; BERT's 0.15."""
    kept_rate: Fraction = 0.1
    random_rate: Fraction = 0.1
    """Shares of the predicted tokens that stay, or become any token, as in BERT; the rest are
    masked."""
    next_sentence: bool = False

    @model_validator(mode="after")
    def _some_are_masked(self) -> Self:
        if self.kept_rate + self.random_rate >= 1.0:
            raise ValueError("kept_rate + random_rate must be below 1, or nothing is masked")
        return self


class StageSpec(_Part):
    """Some steps at one depth. The optional fields override the recipe's for this stage."""

    depth: Depth
    steps: PositiveInt
    sequence_length: RowLength | None = None
    sequences: PositiveInt | None = None
    mask_rate: MaskRate | None = None
    micro_batch: PositiveInt | None = None
    train: Literal["all", "new"] = "all"
    """new: only the layers that the growth into this stage adds, and what lies above them all; the
    old layers and the embeddings stay as they are (Yang et al. 2020; LLaMA Pro, 2024)."""


@dataclass(frozen=True)
class Stage:
    """A stage with nothing left open."""

    depth: int
    steps: int
    sequences: int
    sequence_length: int
    mask_rate: float
    micro_batch: int | Literal["auto"]


class GrowthSpec(_Part):
    """How the model gets from one stage's depth to the next."""

    operator: Annotated[str, AfterValidator(lambda name: get_operator(name).name)] = "stack"
    layers: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Instead of an operator: the old layer that each new one copies, bottom first, from 0."""
    optimizer_state: Literal["reset", "copy", "split"] = "reset"
    """The paper resets Adam's moments at a switch; split keeps those of the trained layers."""

    @property
    def rule(self) -> Operator:
        """The operator that is named or listed."""
        return get_operator(self.operator) if self.layers is None else layer_list(self.layers)


class BatchSpec(_Part):
    """What one optimiser step sees."""

    sequences: PositiveInt = 320
    sequence_length: RowLength = 384
    """Tokens a row, special tokens included."""
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    """Rows a forward pass; changes memory and speed, never the result beyond rounding (and the
    draws of dropout, if there is any). auto: a long run measures the fastest at each depth before
    it starts, a short one takes what usually is."""


class OptimizerSpec(_Part):
    """AdamW, or Muon on the encoder's matrices with AdamW on everything else."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 8e-4
    """Peak learning rate of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled; on matrices only, never on biases and norms."""
    clip_norm: Positive | None = None
    """Largest gradient norm; the paper does not clip."""
    muon_lr: Positive = 0.02
    """Peak learning rate of Muon, in its own units (an orthogonal update has spectral norm 1)."""
    muon_momentum: Decay = 0.95


class ScheduleSpec(_Part):
    """The learning rate as a share of its peak, at every step of the whole run."""

    name: Literal["constant", "linear", "cosine", "wsd", "piecewise"] = "linear"
    warmup_steps: Count = 0
    rewarmup_steps: Count = 0
    """Steps after each growth over which the rate climbs back from near zero to the schedule."""
    restarts: tuple[Count, ...] = ()
    """The steps at which the schedule begins anew, of a run that was extended."""
    final_fraction: Fraction = 0.0
    """Where linear, cosine and wsd end."""
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """wsd: the share of the run over which the rate falls."""
    points: tuple[tuple[Count, Fraction], ...] = ()
    """piecewise: (step, share of the peak), joined by straight lines after the warm-up."""

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        if (self.name == "piecewise") != bool(self.points):
            raise ValueError("points go with 'name: piecewise', and piecewise needs them")
        steps = [step for step, _ in self.points]
        if steps != sorted(set(steps)):
            raise ValueError(f"the steps of points must rise, got {steps}")
        return self


class EvaluationSpec(_Part):
    """The fixed validation set: the same rows and masks at every evaluation of a run."""

    every_steps: PositiveInt | None = None
    """None: twenty evaluations a run. One on either side of each growth comes on top."""
    sequences: PositiveInt = 1024
    """Rows at most; fewer if the validation text gives fewer."""
    mask_rate: MaskRate = 0.15
    """Fixed whatever the training rate, so that losses of different recipes compare."""


class CheckpointSpec(_Part):
    """When to save. Each stage's last step is always saved, and kept."""

    every_steps: PositiveInt | None = None
    every_minutes: Positive | None = 10.0
    keep: PositiveInt = 2
    """Newest checkpoints kept; each stage's last is kept, too."""


class Recipe(_Part):
    """A pre-training run, whole. See docs/recipes.md for every field with its reason."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    summary: str = ""
    model: ModelSpec | None = ModelSpec()
    """None where `start` brings a model of its own."""
    start: StartSpec | None = None
    objective: Objective = Objective()
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    growth: GrowthSpec = GrowthSpec()
    batch: BatchSpec = BatchSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    tail_average: Fraction = 0.0
    """The run's last share whose mean weights become the model; from the last growth at most."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the processor has instructions for it, else fp32. Weights and
    optimiser state are fp32 in any case."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile. auto: where the run is long enough to win back what compiling costs, and a
    measurement says that it would."""
    bf16_norms: bool = False
    """In bf16, norms with a bf16 output and so a bf16 residual stream, statistics in fp32. For a
    compiled run on a GPU, where it halves the traffic between the matrix products."""
    deterministic: bool = False
    """On a GPU, only kernels that repeat to the bit, some of which are slower."""
    engine: Engine = "ddp"
    """How several processes share a model: ddp gives each a copy; fsdp (FSDP2) cuts weights,
    gradients and optimiser state into pieces, for models that do not fit. Nothing with one."""
    skip_bad_steps: Count = 0
    """Steps of a run that may be left out because loss or gradient was not finite."""
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    log_every: PositiveInt = 10
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for before, after in itertools.pairwise(self.stages):
            if after.depth < before.depth:
                raise ValueError(f"stages: depth falls from {before.depth} to {after.depth}")
            if after.depth > before.depth:
                self.growth.rule.depth_map(before.depth, after.depth)
        if (self.model is None) == (self.start is None):
            raise ValueError("a recipe has a model or a start; set the other one to null")
        if self.objective.next_sentence and self.model_type not in NEXT_SENTENCE_TYPES:
            raise ValueError(
                f"objective.next_sentence: {self.model_type} has no next-sentence head; use one "
                f"of {', '.join(NEXT_SENTENCE_TYPES)} or set it to false"
            )
        for index, stage in enumerate(self.stages):
            grows = index > 0 and stage.depth > self.stages[index - 1].depth
            if stage.train == "new" and not (grows and self.engine == "ddp"):
                raise ValueError(
                    f"stages.{index}.train: new needs a growth into this stage, and engine ddp"
                )
        if self.schedule.warmup_steps >= self.total_steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is not below the run's "
                f"{self.total_steps} steps"
            )
        return self

    @property
    def model_type(self) -> str:
        """What transformers calls this kind of model."""
        config = self.start.config if self.start else {}
        return self.model.type if self.model else str(config.get("model_type", "bert"))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The step at which each stage starts, then the step after the last: 0, …, total."""
        return (0, *itertools.accumulate(stage.steps for stage in self.stages))

    @property
    def growth_steps(self) -> tuple[int, ...]:
        """The steps before which the model grows."""
        starts = self.boundaries[1:-1]
        pairs = itertools.pairwise(self.stages)
        return tuple(s for s, (a, b) in zip(starts, pairs, strict=True) if b.depth > a.depth)

    @property
    def decay_start(self) -> int:
        """The step from which wsd's rate falls."""
        span = self.total_steps - max((0, *self.schedule.restarts))
        return self.total_steps - max(1, round(self.schedule.decay_fraction * span))

    @property
    def kept_steps(self) -> set[int]:
        """After which a checkpoint is saved and kept: each stage's last, and wsd's before it decays
        (what `pretrain --extend` continues from)."""
        return {*self.boundaries} | ({self.decay_start} if self.schedule.name == "wsd" else set())

    def stage_index(self, step: int) -> int:
        """The stage that step number `step` (from 0) belongs to; the last one past the end."""
        return min(bisect.bisect(self.boundaries, step) - 1, len(self.stages) - 1)

    def stage(self, index: int) -> Stage:
        """Stage `index` with every optional field filled in from the recipe."""
        stage = self.stages[index]
        return Stage(
            depth=stage.depth,
            steps=stage.steps,
            sequences=stage.sequences or self.batch.sequences,
            sequence_length=stage.sequence_length or self.batch.sequence_length,
            mask_rate=stage.mask_rate or self.objective.mask_rate,
            micro_batch=stage.micro_batch or self.batch.micro_batch,
        )

    def frozen_layers(self, index: int) -> frozenset[int]:
        """The layers that stage `index` leaves as they are: with `train: new`, the first copy of
        each old layer."""
        if self.stages[index].train == "all":
            return frozenset()
        origins = self.growth.rule.depth_map(self.stages[index - 1].depth, self.stages[index].depth)
        kept: dict[int, int] = {}
        for place, origin in enumerate(origins):
            if origin.source is not None and origin.outputs == "kept":
                kept.setdefault(origin.source, place)
        return frozenset(kept.values())

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest row of any stage: what the model's positions must reach."""
        return max(self.stage(i).sequence_length for i in range(len(self.stages)))

    def scaled(self, total_steps: int) -> "Recipe":
        """The same recipe over another number of steps, every stage keeping its share.

        Warm-up and piecewise points scale along; re-warm-up and the intervals do not.

        Raises:
            UserError: fewer steps than stages.
        """
        if total_steps < len(self.stages):
            raise UserError(
                f"{total_steps} steps are too few for the {len(self.stages)} stages of "
                f"'{self.name}'. Give more steps or a longer budget."
            )
        factor = total_steps / self.total_steps
        # Rounding the boundaries, not the lengths, makes the parts add up to the whole.
        ends: list[int] = []
        for index, boundary in enumerate(self.boundaries[1:]):
            earliest, later = ends[-1] + 1 if ends else 1, len(self.stages) - 1 - index
            ends.append(min(max(earliest, round(boundary * factor)), total_steps - later))
        stages = tuple(
            stage.model_copy(update={"steps": end - start})
            for stage, start, end in zip(self.stages, [0, *ends[:-1]], ends, strict=True)
        )
        warmup = min(round(self.schedule.warmup_steps * factor), total_steps - 1)
        # Points that fall together leave the last of them.
        points = tuple({round(s * factor): f for s, f in self.schedule.points}.items())
        schedule = self.schedule.model_copy(update={"warmup_steps": warmup, "points": points})
        return self.model_copy(update={"stages": stages, "schedule": schedule})

    def to_yaml(self) -> str:
        """The recipe as YAML, every field written out."""
        plain = self.model_dump(mode="json")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)
