"""Writing one side of a corpus as its documents come: sentences, encoded together, to the disk."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stackbert.corpus.encoder import Encode
from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.store import DOCUMENTS, SENTENCES, TOKENS, Offsets, Side

_BATCH_CHARACTERS = 1 << 20
_PIECE_COST = 32
"""Characters that a sentence counts for besides its own: many short ones need memory as well."""
_WORD = re.compile(r"\S+")


class SideWriter:
    """Takes documents and writes their token ids; memory does not grow with them.

    Args:
        folder: of the side, made here.
        encode: from sentences to ids below `vocab_size`.
        vocab_size: of the tokenizer.
        separator: the id put behind every document.
        dtype: of the ids on the disk, "uint16" or "uint32".
    """

    def __init__(
        self, folder: Path, encode: Encode, *, vocab_size: int, separator: int, dtype: str
    ) -> None:
        folder.mkdir()
        self.empty = 0
        """Documents that gave no token."""
        self._folder = folder
        self._encode = encode
        self._separator = separator
        self._dtype = dtype
        self._counts = np.zeros(vocab_size, np.int64)
        self._tokens = self._documents = self._sentences = self._words = 0
        self._document_start = 0
        """Where the document starts that is not at its end yet."""
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[str] = []
        self._ends: list[int] = []
        """How many of the pieces there were when each document ended."""
        self._words_of: list[int] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Append a document that is not blank."""
        for piece in split_sentences(text):
            self._pieces.append(piece)
            self._size += len(piece) + _PIECE_COST
            if self._size >= _BATCH_CHARACTERS:
                self._flush()
        self._ends.append(len(self._pieces))
        # Not split(): the list of a long text takes too much memory.
        self._words_of.append(sum(1 for _ in _WORD.finditer(text)))

    def _flush(self) -> None:
        ids, lengths = self._encode(self._pieces)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        ends = bounds[np.array(self._ends, np.int64)]
        # Text of control characters alone gives no token: such a sentence or document is dropped.
        kept = np.diff(ends, prepend=self._document_start - self._tokens) > 0
        self.empty += int((~kept).sum())
        self._words += int(np.array(self._words_of, np.int64)[kept].sum())
        ends, sentences = ends[kept], bounds[:-1][lengths > 0]

        stream = np.insert(ids.astype(self._dtype), ends, self._separator)
        documents = self._tokens + ends + np.arange(1, len(ends) + 1)  # behind each separator
        documents = np.concatenate([[self._document_start], documents])
        sentences = self._tokens + sentences + np.searchsorted(ends, sentences, side="right")
        self._append(TOKENS, stream)
        self._append(DOCUMENTS, documents[:-1])
        self._append(SENTENCES, sentences)
        self._counts += np.bincount(ids, minlength=len(self._counts))
        self._tokens += len(stream)
        self._documents += len(ends)
        self._sentences += len(sentences)
        self._document_start = int(documents[-1])
        self._clear()

    def _append(self, name: str, array: npt.NDArray[Any]) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(array.data)

    def finish(self) -> Side:
        """Write what is left and describe the side."""
        self._flush()
        return Side(
            tokens=self._tokens,
            documents=self._documents,
            sentences=self._sentences,
            words=self._words,
            unigram_entropy=unigram_entropy(self._counts),
        )


def unigram_entropy(counts: Offsets) -> float:
    """Entropy in nats of the distribution that `counts` gives."""
    present = counts[counts > 0].astype(np.float64)
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())
