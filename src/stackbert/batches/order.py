"""The order of the data: position in an endless string of epochs → piece of the corpus.

An epoch cuts the corpus' token stream into chunks and strings them together in a random order;
epochs follow without a gap. Read in pieces of whatever length, an epoch has each token once.

A chunk is as long as the longest stage's rows, and each epoch shifts the cuts so that rows and
chunks stay aligned: with one sequence length a row is always a contiguous piece of text.
"""

import numpy as np

from stackbert.batches.randomness import I64, Permutation, derive_key

Segments = tuple[I64, I64]  # pieces of the corpus in turn: first tokens (N,), lengths (N,)

_AHEAD = 1024  # chunks whose order is drawn at a time: a few cost nearly as much


class DataOrder:
    """Position in the endless string of epochs → piece of the corpus; chunks of `chunk` tokens."""

    def __init__(self, tokens: int, chunk: int, seed: int) -> None:
        self._tokens, self._chunk, self._seed = tokens, chunk, seed
        # (epoch, number of the first, where they go): kept because steps follow one another. One
        # attribute, so that a thread sees the three of one draw.
        self._drawn: tuple[int, int, I64] = (-1, 0, np.empty(0, dtype=np.int64))

    def segments(self, position: int, length: int) -> Segments:
        """The pieces that make up tokens position … position + length - 1 of the string."""
        pieces: list[Segments] = []
        end = position + length
        while position < end:
            epoch = position // self._tokens
            begin = epoch * self._tokens
            stop = min(end, begin + self._tokens)
            pieces += self._within_epoch(epoch, position - begin, stop - begin)
            position = stop
        starts, lengths = zip(*pieces, strict=True)
        return np.concatenate(starts), np.concatenate(lengths)

    def _within_epoch(self, epoch: int, start: int, end: int) -> list[Segments]:
        # The first `head` tokens complete the chunk that the last epoch's end left open; then come
        # whole chunks, shuffled; then what is left of the corpus.
        head = min(-epoch * self._tokens % self._chunk, self._tokens)
        whole = (self._tokens - head) // self._chunk
        tail = head + whole * self._chunk
        pieces: list[Segments] = []
        if start < head:
            pieces.append((np.array([start]), np.array([min(end, head) - start])))
        low, high = max(start, head), min(end, tail)
        if low < high:
            first, skipped = divmod(low - head, self._chunk)
            last, kept = divmod(high - 1 - head, self._chunk)
            starts = self._shuffled(epoch, whole, first, last + 1) * self._chunk + head
            lengths = np.full(len(starts), self._chunk)
            lengths[-1] = kept + 1
            starts[0] += skipped
            lengths[0] -= skipped
            pieces.append((starts, lengths))
        if end > tail:
            low = max(start, tail)
            pieces.append((np.array([low]), np.array([end - low])))
        return pieces

    def _shuffled(self, epoch: int, chunks: int, first: int, stop: int) -> I64:
        """The numbers of the chunks that come first-th to (stop - 1)-th in an epoch of `chunks`."""
        drawn, start, places = self._drawn
        if epoch != drawn or first < start or stop > start + len(places):
            end = max(stop, min(chunks, first + _AHEAD))
            numbers = np.arange(first, end, dtype=np.int64)
            permutation = Permutation(chunks, derive_key(self._seed, "order", epoch))
            start, places = first, permutation(numbers)
            self._drawn = epoch, start, places
        return places[first - start : stop - start]


class EvenOrder:
    """Rows of `chunk` tokens, spread evenly over the corpus, again and again.

    They overlap only where the corpus has fewer tokens.
    """

    def __init__(self, tokens: int, chunk: int, rows: int) -> None:
        self._tokens, self.chunk, self._rows = tokens, chunk, rows

    def segments(self, position: int, length: int) -> Segments:
        """The pieces of whole rows: `position` and `length` are multiples of the chunk."""
        rows = np.arange(position, position + length, self.chunk) // self.chunk % self._rows
        starts = rows * self._tokens // self._rows
        return cyclic(starts, np.full(len(rows), self.chunk), self._tokens)


def cyclic(starts: I64, lengths: I64, tokens: int) -> Segments:
    """Pieces that may reach beyond the corpus' end, where they are continued at its beginning."""
    while (beyond := np.flatnonzero(starts + lengths > tokens)).size:
        rest = starts[beyond] + lengths[beyond] - tokens
        lengths = lengths.copy()
        lengths[beyond] -= rest
        starts = np.insert(starts, beyond + 1, 0)
        lengths = np.insert(lengths, beyond + 1, rest)
    return starts, lengths
