"""Validation loss on the same rows and masks every time."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.corpus.store import Corpus
from stackbert.models import Inputs
from stackbert.pretraining.machine import DTYPES, Precision
from stackbert.pretraining.ranks import Ranks
from stackbert.randomness import I64, derive_key
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

IGNORED = -100
"""The label that no loss counts, as in transformers."""


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


def evaluate(
    losses: Callable[[Inputs], Tensor],
    batch: Batch,
    *,
    device: torch.device,
    precision: Precision,
    micro_batch: int,
    ranks: Ranks,
) -> EvaluationResult:
    """Mean losses over `batch`, each process doing its share of the rows.

    Args:
        losses: rows to their two losses, (2,), summed, without gradients.
        batch: all rows, from `evaluation_batch`.
        device: where.
        precision: of the forward pass, as in training.
        micro_batch: rows at a time.
        ranks: the processes.
    """
    inputs = to_device(share_of(batch, ranks), device)
    rows = len(inputs.input_ids_BS)
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, rows, micro_batch):
        part = inputs.rows(start, min(start + micro_batch, rows))
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            totals += losses(part)
    masked, pairs = ranks.add(totals).tolist()
    counted = int((batch.labels != IGNORED).sum())
    return EvaluationResult(
        masked / max(1, counted), None if batch.is_random is None else pairs / len(batch.input_ids)
    )


def share_of(batch: Batch, ranks: Ranks) -> Batch:
    """The rows of a batch that this process evaluates; every process has as many.

    Where they do not divide equally, rows are repeated whose labels count for nothing: processes
    that share a model have to pass through it equally often.
    """
    if ranks.count == 1:
        return batch
    rows = len(batch.input_ids)
    share = -(-rows // ranks.count)
    places = np.arange(ranks.rank * share, (ranks.rank + 1) * share)
    beyond = places >= rows
    places = np.where(beyond, 0, places)
    part = batch.take(places)
    labels = np.where(beyond[:, None], IGNORED, part.labels)
    is_random = None if part.is_random is None else np.where(beyond, IGNORED, part.is_random)
    return replace(part, labels=labels, is_random=is_random)


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
