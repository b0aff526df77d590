"""What a run counts from step to step; a checkpoint holds it, and a resumed run goes on with it."""

from dataclasses import dataclass


@dataclass
class Counters:
    """What grows from step to step, besides the weights."""

    step: int = 0
    tokens: int = 0
    flops: int = 0
    last_loss: float | None = None
    """Of the evaluation at this very step, if there was one."""
    skipped: int = 0
    """Steps left out because they were not finite."""


@dataclass
class LogWindow:
    """Sums since the last line of the ledger."""

    started: float = 0.0
    steps: int = 0
    """Those that were finite."""
    tokens: int = 0
    """Of the steps that count as training: those that compiled are left out of the rates."""
    flops: int = 0
    masked_lm: float = 0.0
    next_sentence: float = 0.0
