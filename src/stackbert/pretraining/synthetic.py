"""Random tokens in place of a corpus, for measuring: a step takes as long on them as on text."""

import numpy as np

from stackbert.corpus.store import Corpus, TokenStream
from stackbert.corpus.tokenizer import ROW_MULTIPLE, SPECIAL, Vocabulary
from stackbert.errors import UserError


def synthetic_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of `size` word pieces, the special ones first; UserError if they are too few."""
    if size < 64:
        raise UserError(f"A vocabulary of {size:,} word pieces is too small; give at least 64.")
    pad, _, cls, sep, mask = special = tuple(range(len(SPECIAL)))
    rows = -(-size // ROW_MULTIPLE) * ROW_MULTIPLE
    return Vocabulary(rows, size, pad=pad, cls=cls, sep=sep, mask=mask, special=special)


class SyntheticStream(TokenStream):
    """Evenly drawn tokens in memory, always the same; sentences of 25."""

    def __init__(self, vocabulary: Vocabulary, tokens: int) -> None:
        draw = np.random.default_rng(0)
        lowest, highest = len(SPECIAL), vocabulary.tokenizer_size
        self._tokens = draw.integers(lowest, highest, tokens, dtype=np.uint32)
        self.sentence_starts = np.arange(0, tokens, 25)


class SyntheticCorpus(Corpus):
    """A corpus without a folder: a synthetic vocabulary, and the same stream on both sides."""

    def __init__(self, vocab_size: int, tokens: int = 1 << 22) -> None:
        vocabulary = synthetic_vocabulary(vocab_size)
        stream = SyntheticStream(vocabulary, tokens)
        # Corpus is frozen: its fields live here.
        self.__dict__.update(train=stream, validation=stream, vocabulary=vocabulary)
