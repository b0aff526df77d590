"""Validation loss on the same rows and masks every time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.corpus.store import Corpus
from stackbert.models import Inputs, loss_sums
from stackbert.pretraining.machine import DTYPES, Precision
from stackbert.randomness import I64, derive_key
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EvaluationResult:
    """Mean losses in nats."""

    masked_lm: float
    """Over the masked positions."""
    next_sentence: float | None
    """Over the rows; None without the objective."""

    @property
    def loss(self) -> float:
        """What training minimises: the sum of the two."""
        return self.masked_lm + (self.next_sentence or 0.0)


def evaluation_batch(recipe: Recipe, corpus: Corpus, vocabulary: Vocabulary) -> Batch:
    """The fixed validation rows of a recipe, masks included, as one batch.

    The first rows of the validation split in its own order (documents lie there in the order of
    the sources), at the longest sequence length of any stage. The seed is not the recipe's: runs
    with different seeds are judged on the same masks.
    """
    length = recipe.longest_sequence
    pairs = recipe.objective.next_sentence
    shape = StageShape(1, 1, length, recipe.evaluation.mask_rate)
    fit = max(2, len(corpus.validation) // shape.payload(next_sentence=pairs))
    rows = min(recipe.evaluation.sequences, fit)
    shape = StageShape(1, max(2, rows), length, recipe.evaluation.mask_rate)
    plan = BatchPlan(
        corpus.validation,
        vocabulary,
        [shape],
        seed=derive_key(0, "evaluation"),
        next_sentence=pairs,
        shuffle=False,
    )
    return plan.batch(0)


@torch.no_grad()
def evaluate(
    model: "PreTrainedModel", batch: Batch, *, precision: Precision, micro_batch: int
) -> EvaluationResult:
    """Mean losses of `model` over `batch`, in evaluation mode; the mode is put back after.

    Args:
        model: on any device.
        batch: from `evaluation_batch`.
        precision: of the forward pass, as in training.
        micro_batch: rows at a time.
    """
    device = model.device
    was_training = model.training
    model.train(False)
    rows = len(batch.input_ids)
    inputs = to_device(batch, device)
    masked = torch.zeros((), dtype=torch.float64, device=device)
    pairs = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, rows, micro_batch):
        part = inputs.rows(start, min(start + micro_batch, rows))
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            sums = loss_sums(model, part)
        masked += sums.masked_lm
        if sums.next_sentence is not None:
            pairs += sums.next_sentence
    model.train(was_training)
    counted = int((batch.labels != -100).sum())
    return EvaluationResult(
        float(masked) / max(1, counted), None if batch.is_random is None else float(pairs) / rows
    )


def to_device(batch: Batch, device: torch.device) -> Inputs:
    """A batch as tensors on `device`, without waiting for the copy."""

    def tensor(array: I64) -> torch.Tensor:
        host = torch.from_numpy(array)
        if device.type == "cuda":
            return host.pin_memory().to(device, non_blocking=True)
        return host

    return Inputs(
        input_ids_BS=tensor(batch.input_ids),
        columns_BK=tensor(batch.columns),
        labels_BK=tensor(batch.labels),
        token_types_BS=None if batch.token_types is None else tensor(batch.token_types),
        is_random_B=None if batch.is_random is None else tensor(batch.is_random),
    )
