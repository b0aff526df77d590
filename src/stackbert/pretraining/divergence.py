"""What is said of a loss or a gradient that is not finite any more."""

from pathlib import Path

import torch

from stackbert.batches import Batch
from stackbert.pretraining.ranks import Ranks
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import Recipe

_AFTER_GROWTH = 500
"""Steps for which a growth counts among the likely causes."""


def blame(trainer: Trainer, batch: Batch, ranks: Ranks) -> str:
    """Which rows of a step have a loss that is not finite by themselves, as a clause.

    Args:
        trainer: with the weights that the step saw.
        batch: this process's rows of the step.
        ranks: the processes; all must ask.

    Returns:
        " (row 3 of the step by itself)"; empty where nothing can be told: the weights are bad
        already, or each process holds a piece of them only.
    """
    if not trainer.finite or trainer.is_cut:
        return ""
    share = len(batch.input_ids)
    bad = torch.zeros(ranks.count * share, device=trainer.device)
    for row in trainer.bad_rows(batch):
        bad[ranks.rank * share + row] = 1.0
    rows = [str(row + 1) for row in ranks.add(bad).nonzero().flatten().tolist()]
    if not rows:
        return " (no row of the step is so by itself: the gradient is)"
    return f" ({'row' if len(rows) == 1 else 'rows'} {', '.join(rows)} of the step)"


def sentence(
    recipe: Recipe, what: str, step: int, stage: int, *, where: str, kept: Path | None, lost: str
) -> str:
    """What is wrong, what is kept, and what to try.

    Args:
        recipe: of the run.
        what: that is not finite: "loss", "validation loss", "model".
        step: at which it was found.
        stage: in which, from 0.
        where: from `blame`, or empty.
        kept: the last checkpoint, if there is one.
        lost: a sentence about a later one that could not be written, or empty.
    """
    causes = "a learning rate too high for this model (optimizer.lr, optimizer.muon_lr)"
    if step < recipe.schedule.warmup_steps * 2:
        causes += ", a warm-up too short (schedule.warmup_steps)"
    if any(0 <= step - grown < _AFTER_GROWTH for grown in recipe.growth_steps):
        causes += ", the jump after a growth (schedule.rewarmup_steps)"
    if recipe.optimizer.clip_norm is None:
        causes += ", gradients that are not clipped (optimizer.clip_norm)"
    last = f"The last checkpoint is {kept}. " if kept else "No checkpoint was due yet. "
    return (
        f"The {what} is not finite at step {step:,} (stage {stage + 1}, depth "
        f"{recipe.stages[stage].depth}){where}, so the run was stopped. {last}{lost}Likely causes: "
        f"{causes}. Change one and start a new run."
    )
