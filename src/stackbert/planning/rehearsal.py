"""Batches and a vocabulary without a corpus: random tokens in the exact shapes of a run.

A step takes as long on random tokens as on text: every row is full, every count is static.
"""

from collections.abc import Sequence

import numpy as np

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.errors import UserError
from stackbert.randomness import I64
from stackbert.vocabulary import Vocabulary

PAPER_VOCABULARY = 32768
_SPECIAL = ("pad", "unknown", "cls", "sep", "mask")


def stand_in_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of `size` pieces, the special ones first.

    Raises:
        UserError: too few pieces.
    """
    if size < 64:
        raise UserError(f"A vocabulary of {size:,} word pieces is too small; give at least 64.")
    return Vocabulary(
        size=-(-size // 64) * 64,  # rounded up as a corpus does
        tokenizer_size=size,
        pad=0,
        cls=2,
        sep=3,
        mask=4,
        special=tuple(range(len(_SPECIAL))),
    )


def random_batch(shape: StageShape, vocabulary: Vocabulary, *, next_sentence: bool) -> Batch:
    """A batch of `shape` whose tokens, masked positions and labels are random, always the same."""
    draw = np.random.default_rng(0)
    rows, length = shape.rows, shape.sequence_length

    def tokens(*size: int) -> I64:
        return draw.integers(len(_SPECIAL), vocabulary.tokenizer_size, size, dtype=np.int64)

    masked = shape.masked(next_sentence=next_sentence)
    shuffled = np.argsort(draw.random((rows, length)), axis=1)
    second_half = np.arange(length) >= length // 2
    return Batch(
        input_ids=tokens(rows, length),
        columns=np.sort(shuffled[:, :masked], axis=1).astype(np.int64),
        labels=tokens(rows, masked),
        token_types=np.tile(second_half, (rows, 1)).astype(np.int64) if next_sentence else None,
        is_random=np.arange(rows, dtype=np.int64) % 2 if next_sentence else None,
    )


class RandomBatches(BatchPlan):
    """The batches of a run without a corpus: one a stage, whatever the step."""

    def __init__(
        self, vocabulary: Vocabulary, stages: Sequence[StageShape], *, next_sentence: bool
    ) -> None:  # not BatchPlan's, which wants a stream of tokens
        self.stages = tuple(stages)
        self.next_sentence = next_sentence
        self._payloads = [stage.payload(next_sentence=next_sentence) for stage in stages]
        self._drawn = [
            random_batch(stage, vocabulary, next_sentence=next_sentence) for stage in stages
        ]

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of the stage that `step` belongs to, or a rank's share of its rows."""
        drawn = self._drawn[self.locate(step)[0]]
        share = len(drawn.input_ids) // ranks
        return drawn.rows(rank * share, (rank + 1) * share)
