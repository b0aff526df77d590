"""Text and tokens made up from a fixed seed, for timings that do not depend on what they say."""

import random
from pathlib import Path

import numpy as np

from stackbert.corpus.shards import SplitWriter
from stackbert.corpus.store import TokenStream
from stackbert.vocabulary import Vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_DOCUMENT, _SENTENCE = 1000, 25
"""Tokens of each."""


def made_up_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of `size` tokens, the special ones first; as `load_vocabulary` gives them."""
    return Vocabulary(
        size=-(-size // 64) * 64,
        tokenizer_size=size,
        pad=SPECIAL.index("[PAD]"),
        cls=SPECIAL.index("[CLS]"),
        sep=SPECIAL.index("[SEP]"),
        mask=SPECIAL.index("[MASK]"),
        special=tuple(range(len(SPECIAL))),
    )


def made_up_stream(folder: Path, vocabulary: Vocabulary, tokens: int) -> TokenStream:
    """Evenly drawn tokens as a split on the disk, memory-mapped as a corpus' is.

    Args:
        folder: to make.
        vocabulary: from `made_up_vocabulary`.
        tokens: about how many.
    """
    documents = max(1, tokens // _DOCUMENT)
    count = documents * _DOCUMENT
    draw = np.random.default_rng(0)
    ids = draw.integers(len(SPECIAL), vocabulary.tokenizer_size, count, dtype=np.int64)
    writer = SplitWriter(folder, "uint32", vocabulary.size)
    writer.add(
        ids.astype(np.uint32),
        np.arange(1, documents + 1) * _DOCUMENT,
        np.arange(0, count, _SENTENCE),
        vocabulary.sep,
        words=count,
    )
    return TokenStream(folder, writer.finish())


def write_made_up_text(path: Path, documents: int) -> None:
    """Documents of some 700 words each, of a few thousand words with frequencies as in a language.

    Args:
        path: of the text file.
        documents: how many.
    """
    draw = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = sorted({"".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(8000)})
    draw.shuffle(words)
    weights = [1.0 / rank for rank in range(1, len(words) + 1)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            drawn = draw.choices(words, weights, k=draw.randint(400, 1000))
            ends = range(12, len(drawn), 12)
            for end in ends:
                drawn[end] += "."
            file.write(" ".join(drawn) + "\n\n")
