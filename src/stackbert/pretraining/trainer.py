"""One model, one optimizer, one step at a time; knows nothing of stages or files."""

import contextlib
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch._dynamo
from torch import Tensor
from torch.distributed.tensor import DTensor

from stackbert.batches.batches import IGNORED, Batch
from stackbert.batches.randomness import derive_key
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.encoder import EAGER, compiled, supports_masked_forward
from stackbert.growth.grow import grow_optimizer_state, grow_with_origins
from stackbert.machine import DTYPES, Precision
from stackbert.model import create_model
from stackbert.pretraining.distributed import SINGLE, ParallelModel, World, full_tensor
from stackbert.pretraining.optimizers import NamedState, Optimizers, step_flops
from stackbert.recipe import Engine, GrowthSpec, OptimizerSpec, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS_AT_ONCE = {"cpu": 8192, "cuda": 16384}
"""Positions of a micro-batch that was not measured, and of evaluations. At 24 × 1024 in bf16
autocast that is some 16 GB of activations on a GPU (40 bytes a position, layer and unit)."""
_COMPILED_SHAPES = 64
"""torch.compile's limit of graphs a function, one for each shape of a micro-batch. After 8, the
default, it silently stops compiling."""


class Losses(NamedTuple):
    """Mean losses in nats, over masked positions and over rows (None without the objective)."""

    masked_lm: float
    next_sentence: float | None

    @property
    def loss(self) -> float:
        """What training minimises: the sum of the two."""
        return self.masked_lm + (self.next_sentence or 0.0)


@dataclass(frozen=True)
class StepResult:
    """What a step gave. Numbers stay on the device until one is read, which waits for the step."""

    sums: Tensor
    """(3,): losses summed over masked positions and over rows, and the gradient's norm."""
    masked: int
    """Masked positions of the step, over all processes."""
    rows: int | None
    """Rows of the step, over all processes; None without next-sentence prediction."""

    @functools.cached_property
    def losses(self) -> Losses:
        """Mean losses."""
        masked_lm, pair, _ = self.sums.tolist()
        return Losses(masked_lm / self.masked, None if self.rows is None else pair / self.rows)

    @functools.cached_property
    def gradient_norm(self) -> float:
        """Before clipping."""
        return float(self.sums[2])

    @property
    def finite(self) -> bool:
        """Whether neither loss nor gradient is NaN or infinite."""
        return math.isfinite(self.losses.loss) and math.isfinite(self.gradient_norm)


class Trainer:
    """A model in training: `step`, `evaluate`, `grow`.

    Args:
        model: to train; moved to the device.
        optimizer_spec: the recipe's part.
        device: where.
        precision: of the forward pass; weights and optimizer state are fp32 in any case.
        micro_batch: rows of a forward pass; "auto" takes as many as usually run at full speed.
        seed: of dropout and growth.
        state: the optimizer's, of a run that resumes.
        compile: compile the kernels of types that have them.
        check_finite: look at every step before it changes the weights, which on a GPU waits for
            the device; on a CPU that is always done.
        world: the processes that train together; each does the rows that it is given.
        engine: how they share the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        optimizer_spec: OptimizerSpec,
        *,
        device: torch.device,
        precision: Precision,
        micro_batch: int | str,
        seed: int,
        state: NamedState | None = None,
        compile: bool = False,
        check_finite: bool = False,
        world: World = SINGLE,
        engine: Engine = "ddp",
    ) -> None:
        self.device = device
        self.precision = precision
        self.micro_batch = micro_batch
        self._spec = optimizer_spec
        self._seed = seed
        self._check_finite = check_finite or device.type == "cpu"
        self._world = world
        self._engine: Engine = engine
        self._compile = compile and supports_masked_forward(model)
        self._compiled: set[tuple[int, ...]] = set()  # shapes
        self._last_step: Any = None  # a CUDA event, once there is one
        self._take(model, state or {})

    def _take(self, model: "PreTrainedModel", state: NamedState) -> None:
        self.model = model.to(self.device)  # type: ignore[arg-type]
        self.parallel = ParallelModel(self.model, self._world, self._engine)
        dtype = DTYPES[self.precision]
        self.optimizers = Optimizers(self.model, self._spec, newton_schulz=dtype)
        self.optimizers.load_state(state)
        self._flops: dict[tuple[int, int, int], int] = {}

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return int(self.model.config.num_hidden_layers)

    @property
    def finite(self) -> bool:
        """Whether all weights of all processes are finite; a collective call."""
        # FSDP leaves some parameters unsharded between two passes.
        local = [p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        held = torch.stack([part.isfinite().all() for part in local])
        return self._world.all_reduce_max(int(not held.all())) == 0

    @property
    def idle(self) -> bool:
        """Whether the device has done all steps that it was given."""
        return self._last_step is None or bool(self._last_step.query())

    def rows_at_once(self, rows: int, sequence_length: int) -> int:
        """Rows of a forward pass of a batch of `rows`."""
        return rows_at_once(self.micro_batch, rows, sequence_length, self.device)

    def will_compile(self, batch: Batch) -> bool:
        """Whether the next step on such a batch compiles first, as its shape is new."""
        if self.depth == 1 and self.device.type == "cpu":  # where the last layer is not compiled
            return False
        return self._compile and self._shape(batch) not in self._compiled

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        rows, length = batch.input_ids_BS.shape
        size = self.rows_at_once(rows, length)
        return size, rows % size, length, batch.columns_BK.shape[1], min(self.depth, 2)

    def step(self, number: int, batch: Batch, factor: float) -> StepResult:
        """Train on one batch.

        Losses are divided by the masked positions (and rows) of the whole step, so micro-batches
        and processes add up to the same gradient whatever their size and number. If the result is
        not finite, the weights were left as they were (on a CPU or with `check_finite`) or are not
        worth keeping.

        Args:
            number: of the step; seeds dropout, so that a resumed run draws what it would have.
            batch: all its rows, or this process' equal share of them.
            factor: share of the peak learning rates.
        """
        seed = derive_key(self._seed, "dropout", number)
        # Rank 0 drops the units that a run in one process drops, the other ranks others.
        torch.manual_seed(derive_key(seed, "rank", self._world.rank) if self._world.rank else seed)
        batch = batch.to(self.device)
        rows = len(batch) * self._world.size
        masked = batch.columns_BK.numel() * self._world.size
        size = self.rows_at_once(*batch.input_ids_BS.shape)
        sums = torch.zeros(2, device=self.device)
        for start in range(0, len(batch), size):
            last = start + size >= len(batch)
            sums += self.backward(batch.rows(start, start + size), masked, rows, last=last)
        sums = self._world.all_reduce(sums)
        if self._compile:
            self._compiled.add(self._shape(batch))
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.model.parameters() if p.grad is not None]
        )
        sums = torch.cat([sums, full_tensor(norm)[None]])
        result = StepResult(sums, masked, None if batch.is_random_B is None else rows)
        if self._check_finite and not result.finite:
            self.optimizers.zero_grad()
        else:
            if self._spec.clip_norm is not None:
                parameters = self.model.parameters()
                torch.nn.utils.clip_grads_with_norm_(parameters, self._spec.clip_norm, norm)
            self.optimizers.step(factor)
        if self.device.type == "cuda":
            self._last_step = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last_step.record()
        return result

    def backward(self, batch: Batch, masked: int, rows: int, *, last: bool = True) -> Tensor:
        """Add the gradients of some rows of a step to the model's.

        Args:
            batch: the rows, on the device.
            masked: masked positions of the whole step.
            rows: of the whole step.
            last: whether they are this process' last of the step; then gradients are exchanged.

        Returns:
            (2,): the two losses, summed over these rows.
        """
        kernels, limit = EAGER, contextlib.nullcontext()
        if self._compile:
            kernels = compiled(self.device.type)
            limit = torch._dynamo.config.patch(recompile_limit=_COMPILED_SHAPES)
        with self.parallel.gradient_sync(last):
            with limit, self._autocast():
                sums = self.parallel(batch, kernels)
            loss = sums[0] / masked
            if batch.is_random_B is not None:
                loss = loss + sums[1] / rows
            torch.autograd.backward(loss * self._world.size)  # the engines take the mean
        return sums.detach()

    def _autocast(self) -> torch.autocast:
        enabled = self.precision != "fp32"
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=enabled)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """Losses on a validation batch (all rows, on every process, which does its share of them).

        Never compiled nor in the micro-batches of training: it is seldom and of another shape.
        """
        rows, length = batch.input_ids_BS.shape
        size = rows_at_once("auto", rows, length, self.device)
        share = batch.share(self._world.rank, self._world.size).to(self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.model.train(False)
        for start in range(0, len(share), size):
            with self._autocast():
                sums += self.parallel(share.rows(start, start + size))
        self.model.train(True)
        masked_lm, pair = self._world.all_reduce(sums).tolist()
        masked = max(1, int((batch.labels_BK != IGNORED).sum()))
        return Losses(masked_lm / masked, None if batch.is_random_B is None else pair / rows)

    @torch.no_grad()
    def blame(self, batch: Batch) -> str:
        """Which rows have a loss that alone is not finite ("row 3 of the step"); a collective call.

        `batch` is of a step that left the weights as they were. Empty if no row is to blame, or
        nothing can be told: the weights are not finite either, or are sharded.
        """
        if self.parallel.is_sharded or not self.finite:
            return ""
        batch, rows = batch.to(self.device), len(batch)
        bad = torch.zeros(self._world.size, rows, device=self.device)
        for row in range(rows):
            with self._autocast():
                sums = self.parallel(batch.rows(row, row + 1))
            bad[self._world.rank, row] = float(not sums.isfinite().all())
        found = self._world.all_reduce(bad).flatten().nonzero().flatten() + 1
        numbers = ", ".join(map(str, found.tolist()))
        return f"row{'s' * (len(found) > 1)} {numbers} of the step" if numbers else ""

    def full_optimizer_state(self) -> NamedState:
        """The optimizer's tensors by parameter name, every tensor whole; a collective call."""
        return {
            name: {key: full_tensor(tensor) for key, tensor in tensors.items()}
            for name, tensors in self.optimizers.state().items()
        }

    def grow(self, depth: int, growth_spec: GrowthSpec, number: int) -> None:
        """Replace the model by one of `depth` layers; the optimizer's state follows by name.

        `number`, of the step before which this happens, seeds fresh layers and noise.
        """
        seed = derive_key(self._seed, "growth", number) >> 1  # torch seeds are signed
        source = self.model
        if self.parallel.is_sharded:
            source = type(self.model)(self.model.config)
            source.load_state_dict({n: t.cpu() for n, t in self.parallel.full_weights().items()})
        growth = grow_with_origins(source, depth, growth_spec.operator, seed=seed)
        state = self.full_optimizer_state()
        state = grow_optimizer_state(state, growth, growth_spec.optimizer_state)
        self._take(growth.model, state)

    def flops(self, batch: Batch) -> int:
        """FLOPs of a whole step, of whose rows `batch` is this process's equal share."""
        rows, length = batch.input_ids_BS.shape
        shape = rows, length, batch.columns_BK.numel()
        if shape not in self._flops:  # counting takes a millisecond, a small step ten
            self._flops[shape] = step_flops(
                self.model,
                self._spec,
                rows=rows * self._world.size,
                sequence_length=length,
                masked=shape[2] * self._world.size,
            )
        return self._flops[shape]


def rows_at_once(
    micro_batch: int | str, rows: int, sequence_length: int, device: torch.device
) -> int:
    """Rows of a forward pass of a batch of `rows`; with "auto" as many as usually run well."""
    if isinstance(micro_batch, int):
        return min(rows, micro_batch)
    return max(1, min(rows, POSITIONS_AT_ONCE[device.type] // sequence_length))


def recipe_model(
    recipe: Recipe, vocabulary: Vocabulary, depth: int, *, seed: int = 0
) -> "PreTrainedModel":
    """A freshly initialised model of a recipe at some depth, on the CPU (or torch's device)."""
    return create_model(
        recipe.model,
        depth=depth,
        vocabulary=vocabulary,
        sequence_length=recipe.longest_sequence,
        next_sentence=recipe.objective.next_sentence,
        seed=seed,
    )
