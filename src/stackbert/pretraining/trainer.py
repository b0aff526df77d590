"""One model, one optimiser, one step at a time; knows nothing of stages or files."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stackbert.batches import Batch
from stackbert.growth.model import grow_with_origins
from stackbert.growth.optimizer import grow_optimizer_state
from stackbert.models import loss_sums, training_flops
from stackbert.pretraining.evaluation import EvaluationResult, evaluate, to_device
from stackbert.pretraining.machine import DTYPES, Precision
from stackbert.pretraining.optimizers import NamedState, Optimizers
from stackbert.randomness import derive_key
from stackbert.recipe import GrowthSpec, OptimizerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS_AT_ONCE = {"cpu": 8192, "cuda": 65536}
"""Micro-batches by default hold this many positions: large enough for full speed, and at 24 × 1024
still some 20 GB of activations on a GPU."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave: mean losses in nats and the gradient's norm before clipping."""

    masked_lm: float
    next_sentence: float | None
    gradient_norm: float

    @property
    def loss(self) -> float:
        """What was minimised."""
        return self.masked_lm + (self.next_sentence or 0.0)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Trainer:
    """A model in training: `step`, `evaluate`, `grow`."""

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
    ) -> None:
        self.device = device
        self.precision = precision
        self._optimizer_spec = optimizer
        self._micro_batch = micro_batch
        self._seed = seed
        self._take(model, state or {})

    def _take(self, model: "PreTrainedModel", state: NamedState) -> None:
        self.model = model.to(self.device)  # type: ignore[arg-type]
        self.optimizers = Optimizers(
            self.model, self._optimizer_spec, newton_schulz=DTYPES[self.precision]
        )
        self.optimizers.load_state(state)

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return int(self.model.config.num_hidden_layers)

    @property
    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def micro_batch(self, rows: int, sequence_length: int) -> int:
        """Rows a forward pass: the recipe's number, or as many as run at full speed."""
        if isinstance(self._micro_batch, int):
            return min(rows, self._micro_batch)
        at_once = _POSITIONS_AT_ONCE[self.device.type] // sequence_length
        return max(1, min(rows, at_once))

    def step(self, number: int, batch: Batch, factor: float) -> StepResult:
        """Train on one batch.

        Losses are divided by the masked positions (and rows) of the whole step, so micro-batches
        add up to the same gradient whatever their size.

        Args:
            number: of the step; seeds dropout, so that a resumed run draws what it would have.
            batch: all its rows.
            factor: share of the peak learning rates.

        Returns:
            Losses and gradient norm. If they are not finite, the weights were left as they were.
        """
        rows, length = batch.input_ids.shape
        masked = batch.columns.size
        torch.manual_seed(derive_key(self._seed, "dropout", number))
        masked_sum = torch.zeros((), device=self.device)
        pair_sum = torch.zeros((), device=self.device)
        size = self.micro_batch(rows, length)
        for start in range(0, rows, size):
            part = batch.rows(start, min(start + size, rows))
            with torch.autocast(
                self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"
            ):
                sums = loss_sums(self.model, to_device(part, self.device))
            loss = sums.masked_lm / masked
            masked_sum += sums.masked_lm.detach()
            if sums.next_sentence is not None:
                loss = loss + sums.next_sentence / rows
                pair_sum += sums.next_sentence.detach()
            torch.autograd.backward(loss)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.model.parameters() if p.grad is not None]
        )
        result = StepResult(
            float(masked_sum) / masked,
            None if batch.is_random is None else float(pair_sum) / rows,
            float(norm),
        )
        if result.finite:
            clip = self._optimizer_spec.clip_norm
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip, norm)
            self.optimizers.step(factor)
        return result

    def evaluate(self, batch: Batch) -> EvaluationResult:
        """Losses on a validation batch."""
        size = self.micro_batch(*batch.input_ids.shape)
        return evaluate(self.model, batch, precision=self.precision, micro_batch=size)

    def grow(self, depth: int, spec: GrowthSpec, number: int) -> None:
        """Replace the model by a deeper one and let the optimiser's state follow by name.

        Args:
            depth: layers from now on.
            spec: operator and what happens to the optimiser's state.
            number: of the step before which this happens; seeds fresh layers and noise.
        """
        seed = derive_key(self._seed, "growth", number) >> 1  # torch seeds are signed
        growth = grow_with_origins(self.model, depth, spec.operator, seed=seed)
        state = grow_optimizer_state(self.optimizers.state(), growth, spec.optimizer_state)
        self._take(growth.model, state)

    def flops(self, batch: Batch) -> int:
        """FLOPs of a step on `batch`."""
        rows, length = batch.input_ids.shape
        return training_flops(
            self.model, rows=rows, sequence_length=length, masked=batch.columns.size
        )
