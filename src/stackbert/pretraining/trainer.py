"""One model, one optimiser, one step at a time; knows nothing of stages or files."""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stackbert.batches import Batch
from stackbert.encoder import EAGER, compiled, narrows
from stackbert.growth.model import grow_with_origins
from stackbert.growth.optimizer import grow_optimizer_state
from stackbert.models import Inputs, training_flops
from stackbert.pretraining.engine import Spread, whole, whole_state
from stackbert.pretraining.evaluation import EvaluationResult, evaluate, to_device
from stackbert.pretraining.machine import DTYPES, Precision
from stackbert.pretraining.optimizers import NamedState, Optimizers
from stackbert.pretraining.ranks import ALONE, Ranks
from stackbert.randomness import derive_key
from stackbert.recipe import Engine, GrowthSpec, OptimizerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS_AT_ONCE = {"cpu": 8192, "cuda": 16384}
"""Micro-batches that were not measured hold this many positions, and so do evaluations. At
24 × 1024 in bf16 autocast that is some 16 GB of activations on a GPU (40 bytes a position, layer
and unit of width)."""
_COMPILED_SHAPES = 64
"""torch.compile's limit of graphs a function, 8 by default, after which it silently stops
compiling. A run has one a distinct shape of micro-batch."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave: mean losses in nats and the gradient's norm before clipping.

    The numbers stay on the device until one is read, and reading waits for the step to finish.
    """

    sums: Tensor
    """(3,): losses summed over masked positions and over rows, and the gradient's norm."""
    masked: int
    """Masked positions of the step, over all processes."""
    rows: int | None
    """Rows of the step, over all processes; None without next-sentence prediction."""

    @functools.cached_property
    def _numbers(self) -> list[float]:
        numbers: list[float] = self.sums.tolist()
        return numbers

    @property
    def masked_lm(self) -> float:
        """Mean over the masked positions."""
        return self._numbers[0] / self.masked

    @property
    def next_sentence(self) -> float | None:
        """Mean over the rows."""
        return None if self.rows is None else self._numbers[1] / self.rows

    @property
    def gradient_norm(self) -> float:
        """Before clipping."""
        return self._numbers[2]

    @property
    def loss(self) -> float:
        """What was minimised."""
        return self.masked_lm + (self.next_sentence or 0.0)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Trainer:
    """A model in training: `step`, `evaluate`, `grow`.

    Args:
        model: to train; moved to the device.
        optimizer: the recipe's part.
        device: where.
        precision: of the forward pass; weights and optimiser state are fp32 in any case.
        micro_batch: rows a forward pass; "auto" takes as many as usually run at full speed.
        seed: of dropout and growth.
        state: the optimiser's, of a run that goes on.
        compile: torch.compile what `encoder.compiled` names. Types that `encode` leaves to their
            own forward pass are not compiled.
        careful: look at every step before it changes the weights, also on a GPU, where looking
            waits for the device.
        ranks: the processes that train together; each does the rows that it is given.
        engine: how several share the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        optimizer: OptimizerSpec,
        *,
        device: torch.device,
        precision: Precision,
        micro_batch: int | str,
        seed: int,
        state: NamedState | None = None,
        compile: bool = False,
        careful: bool = False,
        ranks: Ranks = ALONE,
        engine: Engine = "ddp",
    ) -> None:
        self.device = device
        self.precision = precision
        self.micro_batch = micro_batch
        self._optimizer_spec = optimizer
        self._seed = seed
        self._looks = careful or device.type == "cpu"
        self._ranks = ranks
        self._engine: Engine = engine
        self._compile = compile and narrows(model)
        self._compiled_shapes: set[tuple[int, int, int, bool]] = set()
        self._last_step: Any = None  # a CUDA event, once there is one
        self._take(model, state or {})

    def _take(self, model: "PreTrainedModel", state: NamedState) -> None:
        self.model = model.to(self.device)  # type: ignore[arg-type]
        self._spread = Spread(self.model, self._ranks, self._engine)
        self.optimizers = Optimizers(
            self.model, self._optimizer_spec, newton_schulz=DTYPES[self.precision]
        )
        self.optimizers.load_state(state)
        self._flops: dict[tuple[int, int, int], int] = {}

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return int(self.model.config.num_hidden_layers)

    @property
    def is_cut(self) -> bool:
        """Whether each process holds a piece of the model only."""
        return self._spread.is_cut

    @property
    def finite(self) -> bool:
        """Whether every weight is a number, in every process."""
        held = [_held(p).isfinite().all() for p in self.model.parameters()]
        return self._ranks.largest(not torch.stack(held).all()) == 0

    def rows_at_once(self, rows: int, sequence_length: int) -> int:
        """Rows a forward pass of a batch of `rows`: `micro_batch`, or what usually runs well."""
        return rows_at_once(self.micro_batch, rows, sequence_length, self.device)

    @property
    def idle(self) -> bool:
        """Whether the device has done all steps that it was given."""
        return self._last_step is None or bool(self._last_step.query())

    def will_compile(self, batch: Batch) -> bool:
        """Whether the next step on such a batch compiles first, as it has a shape not seen yet."""
        return self._compile and not self._shapes(batch) <= self._compiled_shapes

    def _shapes(self, batch: Batch) -> set[tuple[int, int, int, bool]]:
        rows, length = batch.input_ids.shape
        size = self.rows_at_once(rows, length)
        sizes = {size, rows % size} - {0}
        # A model of one layer has no layer but the last, which is not compiled on a CPU.
        if self.depth == 1 and self.device.type == "cpu":
            return set()
        return {(each, length, batch.columns.shape[1], self.depth > 1) for each in sizes}

    def step(self, number: int, batch: Batch, factor: float) -> StepResult:
        """Train on one batch.

        Losses are divided by the masked positions (and rows) of the whole step, so micro-batches
        and processes add up to the same gradient whatever their size and number.

        Args:
            number: of the step; seeds dropout, so that a resumed run draws what it would have.
            batch: all its rows, or this process's equal share of them.
            factor: share of the peak learning rates.

        Returns:
            Losses and gradient norm. If they are not finite, the weights are not worth keeping; on
            a CPU, where looking costs nothing, or if `careful`, they were left as they were.
        """
        mine, length = batch.input_ids.shape
        seed = derive_key(self._seed, "dropout", number)
        # Each process drops other units; the first what a run in one process drops.
        torch.manual_seed(derive_key(seed, "rank", self._ranks.rank) if self._ranks.rank else seed)
        inputs = to_device(batch, self.device)
        size = self.rows_at_once(mine, length)
        rows, masked = mine * self._ranks.count, batch.columns.size * self._ranks.count
        sums = torch.zeros(2, device=self.device)
        for start in range(0, mine, size):
            end = min(start + size, mine)
            sums += self.backward(inputs.rows(start, end), masked, rows, last=end == mine)
        sums = self._ranks.add(sums)
        if self._compile:
            self._compiled_shapes |= self._shapes(batch)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.model.parameters() if p.grad is not None]
        )
        result = StepResult(
            torch.cat([sums, whole(norm)[None]]), masked, None if batch.is_random is None else rows
        )
        if self._looks and not result.finite:
            self.optimizers.forget_gradients()
        else:
            clip = self._optimizer_spec.clip_norm
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip, norm)
            self.optimizers.step(factor)
        if self.device.type == "cuda":
            self._last_step = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last_step.record()
        return result

    def bad_rows(self, batch: Batch) -> list[int]:
        """Rows of a batch whose loss alone is not finite, with the weights as they are.

        Of a model that is cut into pieces none: all processes would have to ask.
        """
        if self.is_cut:
            return []
        inputs = to_device(batch, self.device)
        bad = []
        for row in range(len(batch.input_ids)):
            with torch.autocast(
                self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"
            ):
                sums = self._spread.losses(inputs.rows(row, row + 1))
            if not bool(sums.isfinite().all()):
                bad.append(row)
        return bad

    def backward(self, inputs: Inputs, masked: int, rows: int, *, last: bool = True) -> Tensor:
        """Add the gradients of some rows of a step to the model's.

        Args:
            inputs: the rows, on the device.
            masked: masked positions of the whole step.
            rows: of the whole step.
            last: of this process's rows in the step; then the gradients are exchanged.

        Returns:
            (2,): the two losses, summed over these rows.
        """
        with self._spread.exchanging(last):
            with (
                _many_graphs() if self._compile else contextlib.nullcontext(),
                torch.autocast(
                    self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"
                ),
            ):
                sums = self._spread(inputs, compiled(self.device.type) if self._compile else EAGER)
            loss = sums[0] / masked
            if inputs.is_random_B is not None:
                loss = loss + sums[1] / rows
            self._spread.backward(loss)
        return sums.detach()

    def evaluate(self, batch: Batch) -> EvaluationResult:
        """Losses on a validation batch.

        Never compiled, as it is seldom and its shape another; and never in the micro-batches that
        were measured for training, whose rows may be shorter.
        """
        rows, length = batch.input_ids.shape
        was_training = self.model.training
        self.model.train(False)
        result = evaluate(
            self._spread.losses,
            batch,
            device=self.device,
            precision=self.precision,
            micro_batch=rows_at_once("auto", rows, length, self.device),
            ranks=self._ranks,
        )
        self.model.train(was_training)
        return result

    def whole_weights(self) -> dict[str, Tensor]:
        """The model's state_dict, whole where processes hold pieces; all must ask together."""
        return self._spread.whole_weights()

    def whole_optimizer_state(self) -> NamedState:
        """The optimiser's tensors by name, likewise."""
        return whole_state(self.optimizers.state())

    def grow(self, depth: int, spec: GrowthSpec, number: int) -> None:
        """Replace the model by a deeper one and let the optimiser's state follow by name.

        Args:
            depth: layers from now on.
            spec: operator and what happens to the optimiser's state.
            number: of the step before which this happens; seeds fresh layers and noise.
        """
        seed = derive_key(self._seed, "growth", number) >> 1  # torch seeds are signed
        growth = grow_with_origins(self._whole_model(), depth, spec.operator, seed=seed)
        state = grow_optimizer_state(self.whole_optimizer_state(), growth, spec.optimizer_state)
        self._take(growth.model, state)

    def _whole_model(self) -> "PreTrainedModel":
        held: PreTrainedModel = self.model
        if not self._spread.is_cut:
            return held
        weights = {name: tensor.cpu() for name, tensor in self.whole_weights().items()}
        made = type(self._spread.model)(held.config)
        made.load_state_dict(weights)
        return made

    def flops(self, batch: Batch) -> int:
        """FLOPs of this process in a step on `batch`, its share of the rows."""
        rows, length = batch.input_ids.shape
        masked = batch.columns.size
        shape = (rows, length, masked)
        if shape not in self._flops:
            self._flops[shape] = training_flops(
                self.model, rows=rows, sequence_length=length, masked=masked
            )
        return self._flops[shape]


def _held(parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def rows_at_once(
    micro_batch: int | str, rows: int, sequence_length: int, device: torch.device
) -> int:
    """Rows a forward pass of a batch of `rows`: so many, or with "auto" what usually runs well."""
    if isinstance(micro_batch, int):
        return min(rows, micro_batch)
    return max(1, min(rows, POSITIONS_AT_ONCE[device.type] // sequence_length))


@contextlib.contextmanager
def _many_graphs() -> Iterator[None]:
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=_COMPILED_SHAPES):
        yield
