"""A vocabulary and tokens without a corpus, for measuring: a step takes as long on random tokens."""

from collections.abc import Sequence

import numpy as np

from stackbert.batches.batches import BatchPlan
from stackbert.corpus.store import TokenStream
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.errors import UserError
from stackbert.recipe import Stage

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def synthetic_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of `size` word pieces, the special ones first.

    Raises:
        UserError: too few pieces.
    """
    if size < 64:
        raise UserError(f"A vocabulary of {size:,} word pieces is too small; give at least 64.")
    pad, _, cls, sep, mask = range(len(SPECIAL))
    return Vocabulary(
        size=-(-size // 64) * 64,  # rounded up, as of a corpus
        tokenizer_size=size,
        pad=pad,
        cls=cls,
        sep=sep,
        mask=mask,
        special=tuple(range(len(SPECIAL))),
    )


class SyntheticStream(TokenStream):
    """Evenly drawn tokens in memory, always the same; documents of 1,000, sentences of 25."""

    def __init__(self, vocabulary: Vocabulary, tokens: int = 1 << 20) -> None:
        draw = np.random.default_rng(0)
        self._tokens = draw.integers(
            len(SPECIAL), vocabulary.tokenizer_size, tokens, dtype=np.uint32
        )
        self.document_starts = np.arange(0, tokens, 1000)
        self.sentence_starts = np.arange(0, tokens, 25)


def synthetic_plan(
    stages: Sequence[Stage], vocabulary: Vocabulary, *, next_sentence: bool
) -> BatchPlan:
    """The batches of some stages on synthetic tokens."""
    stream = SyntheticStream(vocabulary)
    return BatchPlan(stream, vocabulary, stages, seed=0, next_sentence=next_sentence)
