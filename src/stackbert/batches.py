"""(corpus, stage, step, rank) → batch: order, rows, sentence pairs and masks, as a pure function.

The order of the data. An epoch cuts the corpus' token stream into chunks and strings them together
in a random order; epochs follow one another without a gap. Rows are cut from this endless string
one after the other, so every row is full, the cursor is one integer (tokens consumed), no token is
lost or seen twice in an epoch, and a stage may change the length of its rows anywhere.

A chunk is as long as the longest stage's rows, and each epoch shifts the cuts so that rows and
chunks stay aligned: with one sequence length a row is always a contiguous piece of text (at the
end of an epoch it runs on from the corpus' end to its beginning).

Rows: [CLS] tokens [SEP]; for next-sentence prediction [CLS] A [SEP] B [SEP].
Shape letters: B rows of a batch, S positions of a row, K masked positions of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stackbert.corpus.store import TokenStream
from stackbert.errors import UserError
from stackbert.randomness import I64, Permutation, derive_key, mix, random_bits
from stackbert.vocabulary import Vocabulary

Segment = tuple[int, int]
"""A contiguous piece of the corpus: (first token, length)."""


@dataclass(frozen=True)
class Batch:
    """The rows of one optimiser step (or one rank's or micro-batch's share of them)."""

    input_ids: I64
    """(B, S), masks applied."""
    columns: I64
    """(B, K): the masked positions of each row, ascending."""
    labels: I64
    """(B, K): what stood there; -100 where a row has too few maskable tokens."""
    token_types: I64 | None
    """(B, S): 0 up to the first [SEP], 1 after it; None without next-sentence prediction."""
    is_random: I64 | None
    """(B,): 1 where segment B comes from elsewhere."""

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start … stop - 1 as a batch of their own."""
        cut = slice(start, stop)
        return Batch(
            self.input_ids[cut],
            self.columns[cut],
            self.labels[cut],
            None if self.token_types is None else self.token_types[cut],
            None if self.is_random is None else self.is_random[cut],
        )

    @property
    def flat_positions(self) -> I64:
        """(B·K,): the masked positions as indices into the flattened (B·S) rows."""
        rows, length = self.input_ids.shape
        flat: I64 = (self.columns + np.arange(rows, dtype=np.int64)[:, None] * length).reshape(-1)
        return flat


@dataclass(frozen=True)
class StageShape:
    """The shape of every batch of one stage."""

    steps: int
    rows: int
    sequence_length: int
    mask_rate: float

    def payload(self, *, next_sentence: bool) -> int:
        """Corpus tokens a row: what the special tokens leave."""
        return self.sequence_length - (3 if next_sentence else 2)

    def masked(self, *, next_sentence: bool) -> int:
        """Masked positions a row: the mask rate's share of the payload, at least one."""
        return max(1, round(self.mask_rate * self.payload(next_sentence=next_sentence)))


class DataOrder:
    """Position in the endless string of epochs → piece of the corpus."""

    def __init__(self, tokens: int, chunk: int, seed: int, *, shuffle: bool = True) -> None:
        self.tokens = tokens
        self.chunk = chunk
        self._seed = seed
        self._shuffle = shuffle

    def segments(self, position: int, length: int) -> list[Segment]:
        """The pieces that make up tokens position … position + length - 1 of the string."""
        pieces: list[Segment] = []
        end = position + length
        while position < end:
            epoch = position // self.tokens
            epoch_end = (epoch + 1) * self.tokens
            pieces += self._within_epoch(
                epoch, position - epoch * self.tokens, min(end, epoch_end) - epoch * self.tokens
            )
            position = min(end, epoch_end)
        return pieces

    def _within_epoch(self, epoch: int, start: int, end: int) -> list[Segment]:
        # The first `head` tokens complete the chunk that the last epoch's end left open; then come
        # whole chunks, shuffled; then what is left of the corpus.
        head = min(-epoch * self.tokens % self.chunk, self.tokens)
        whole = (self.tokens - head) // self.chunk
        tail = head + whole * self.chunk
        pieces: list[Segment] = []
        if start < head:
            pieces.append((start, min(end, head) - start))
        low, high = max(start, head), min(end, tail)
        if low < high:
            first, last = (low - head) // self.chunk, (high - 1 - head) // self.chunk
            numbers = np.arange(first, last + 1, dtype=np.int64)
            starts = self._shuffled(epoch, whole, numbers) * self.chunk + head
            ends = starts + self.chunk
            starts[0] += low - head - first * self.chunk
            ends[-1] -= head + (last + 1) * self.chunk - high
            pieces += zip(starts.tolist(), (ends - starts).tolist(), strict=True)
        if end > tail:
            low = max(start, tail)
            pieces.append((low, end - low))
        return pieces

    def _shuffled(self, epoch: int, chunks: int, numbers: I64) -> I64:
        if not self._shuffle:
            return numbers
        return Permutation(chunks, derive_key(self._seed, "order", epoch))(numbers)


class BatchPlan:
    """Every batch of a run, by its step number.

    Args:
        stream: the split to draw from.
        vocabulary: special ids and sizes.
        stages: the shapes, in order.
        seed: of order, pairs and masks.
        next_sentence: make sentence pairs (Devlin et al., 2019, section 3.1).
        shuffle: False reads the corpus in its own order, for evaluation.

    Raises:
        UserError: rows too short, too few rows for pairs, an empty split.
    """

    def __init__(
        self,
        stream: TokenStream,
        vocabulary: Vocabulary,
        stages: Sequence[StageShape],
        *,
        seed: int,
        next_sentence: bool = False,
        shuffle: bool = True,
    ) -> None:
        if not len(stream):
            raise UserError("The corpus has no tokens in this split. Build it from more text.")
        if next_sentence and min(stage.rows for stage in stages) < 2:
            raise UserError(
                "batch.sequences: next-sentence prediction needs at least 2 rows a step."
            )
        payloads = [stage.payload(next_sentence=next_sentence) for stage in stages]
        if min(payloads) < 4:
            raise UserError("batch.sequence_length: rows need room for at least 4 tokens of text.")
        self.stages = tuple(stages)
        self.next_sentence = next_sentence
        self._stream = stream
        self._seed = seed
        self._vocabulary = vocabulary
        self._payloads = payloads
        self._order = DataOrder(len(stream), max(payloads), seed, shuffle=shuffle)
        self._special = np.zeros(max(vocabulary.size, vocabulary.tokenizer_size), dtype=bool)
        self._special[list(vocabulary.special)] = True
        self._ordinary: I64 = np.flatnonzero(~self._special[: vocabulary.tokenizer_size])
        if not len(self._ordinary):
            raise UserError("The vocabulary has special tokens only.")

    def locate(self, step: int) -> tuple[int, int]:
        """(stage index, tokens consumed before this step). Past the end the last stage goes on."""
        cursor, first = 0, 0
        for index, (stage, payload) in enumerate(zip(self.stages, self._payloads, strict=True)):
            if step < first + stage.steps or index == len(self.stages) - 1:
                return index, cursor + (step - first) * stage.rows * payload
            cursor += stage.steps * stage.rows * payload
            first += stage.steps
        raise AssertionError("unreachable: a plan has at least one stage")

    def masked_rows(self, step: int) -> tuple[int, int]:
        """(rows, masked positions) of a whole step over all ranks: what losses are divided by."""
        stage = self.stages[self.locate(step)[0]]
        return stage.rows, stage.rows * stage.masked(next_sentence=self.next_sentence)

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The rows that `rank` of `ranks` sees at step `step`; together the ranks see each once.

        Raises:
            UserError: the rows of this stage cannot be divided by the number of ranks.
        """
        index, cursor = self.locate(step)
        stage, payload = self.stages[index], self._payloads[index]
        if stage.rows % ranks:
            raise UserError(
                f"batch.sequences: {stage.rows} rows cannot be shared equally by {ranks} processes."
            )
        share = stage.rows // ranks
        first = rank * share
        positions = cursor + (first + np.arange(share, dtype=np.int64)) * payload
        if self.next_sentence:
            ids, types, is_random = self._pairs(cursor, stage.rows, payload, first, share)
        else:
            ids = self._single_rows(cursor + first * payload, share, payload)
            types, is_random = None, None
        masked = stage.masked(next_sentence=self.next_sentence)
        columns, labels = self._mask(ids, positions, masked)
        return Batch(ids, columns, labels, types, is_random)

    def _read(self, segments: list[Segment]) -> I64:
        parts = [self._stream.read(start, length) for start, length in segments]
        whole: I64 = np.concatenate(parts).astype(np.int64)
        return whole

    def _single_rows(self, position: int, rows: int, payload: int) -> I64:
        ids = np.empty((rows, payload + 2), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self._vocabulary.cls, self._vocabulary.sep
        text = self._read(self._order.segments(position, rows * payload))
        ids[:, 1:-1] = text.reshape(rows, payload)
        return ids

    def _pairs(
        self, cursor: int, rows: int, payload: int, first: int, share: int
    ) -> tuple[I64, I64, I64]:
        """Rows first … first + share - 1 of the step, their token types and labels.

        Each row is a contiguous piece of text, cut in two where a sentence starts. Exactly half of
        the rows give up their second part for another's: they are ordered by the place of their
        cut and each takes the next one's, so that lengths nearly agree; where they do not, the
        part is read on or cut short. Every row is full whatever its label, and every second part
        starts with a sentence, so neither gives the label away.
        """
        positions = cursor + np.arange(rows, dtype=np.int64) * payload
        text, cuts, places = self._cut_rows(positions, payload)
        lots = random_bits(derive_key(self._seed, "pair"), positions, 1)[:, 0]
        chosen = np.argsort(lots, kind="stable")[: rows // 2]
        chosen = chosen[np.argsort(cuts[chosen], kind="stable")]
        donors = np.roll(chosen, -1) if len(chosen) > 1 else (chosen + 1) % rows
        mine = slice(first, first + share)
        for row, donor in zip(chosen.tolist(), donors.tolist(), strict=True):
            if first <= row < first + share:
                cut = int(cuts[row])
                text[row, cut:] = self._read(self._cyclic(int(places[donor]), payload - cut))
        is_random = np.isin(np.arange(first, first + share), chosen).astype(np.int64)

        ids = np.empty((share, payload + 3), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self._vocabulary.cls, self._vocabulary.sep
        between = np.arange(payload + 1) == cuts[mine, None]
        ids[:, 1:-1][between] = self._vocabulary.sep
        ids[:, 1:-1][~between] = text[mine].reshape(-1)
        types = (np.arange(payload + 3) > cuts[mine, None] + 1).astype(np.int64)
        return ids, types, is_random

    def _cut_rows(self, positions: I64, payload: int) -> tuple[I64, I64, I64]:
        """The text (B, payload) of consecutive rows, and where each is cut: in the row, the corpus.

        A row is cut before one of its sentences, drawn evenly; not before a document, for what
        follows there is no continuation. A row within one sentence is cut in its middle half.
        """
        rows = len(positions)
        segments = self._order.segments(int(positions[0]), rows * payload)
        text = self._read(segments)
        starts, lengths = np.array(segments, dtype=np.int64).T
        offsets = np.cumsum(lengths) - lengths  # of the segments in the text
        found, owner = self._stream.sentence_starts_within(starts + 1, lengths - 1)
        inner = np.sort(found - starts[owner] + offsets[owner])
        inner = inner[(inner % payload > 0) & (text[inner - 1] != self._vocabulary.sep)]
        draws = random_bits(derive_key(self._seed, "cut"), positions, 1)[:, 0]
        counts = np.bincount(inner // payload, minlength=rows)
        which = (draws % np.maximum(counts, 1).astype(np.uint64)).astype(np.int64)
        drawn = np.cumsum(counts) - counts + which
        middle = payload // 4 + draws % np.uint64(max(1, payload // 2))
        cuts = np.where(counts > 0, np.append(inner, 0)[drawn] % payload, middle).astype(np.int64)
        flat = np.arange(rows) * payload + cuts
        segment = np.searchsorted(offsets, flat, side="right") - 1
        return text.reshape(rows, payload), cuts, starts[segment] + flat - offsets[segment]

    def _cyclic(self, start: int, length: int) -> list[Segment]:
        total, pieces = len(self._stream), []
        while length:
            piece = min(length, total - start)
            pieces.append((start, piece))
            start, length = 0, length - piece
        return pieces

    def _mask(self, ids: I64, positions: I64, masked: int) -> tuple[I64, I64]:
        """Mask `masked` tokens a row in place: 80 % [MASK], 10 % any token, 10 % kept.

        Returns the columns (B, K) and the labels (B, K). Drawn by the rows' positions in the
        string of epochs, so every epoch draws anew and every rank draws the same.
        """
        lots = random_bits(derive_key(self._seed, "mask"), positions, ids.shape[1])
        maskable = ~self._special[ids]
        lots[~maskable] = np.iinfo(np.uint64).max
        columns = np.sort(np.argpartition(lots, masked - 1, axis=1)[:, :masked], axis=1)
        places = columns + np.arange(len(ids), dtype=np.int64)[:, None] * ids.shape[1]
        flat = ids.reshape(-1)  # a view
        labels, counts = flat[places], maskable.reshape(-1)[places]
        draws = mix(lots.reshape(-1)[places])
        tenth = draws >> np.uint64(32)  # the upper half decides what happens, the lower with what
        share = tenth.astype(np.float64) / 2.0**32
        which = (draws & np.uint64(0xFFFFFFFF)) * np.uint64(len(self._ordinary)) >> np.uint64(32)
        replaced = np.where(
            share < 0.8,
            self._vocabulary.mask,
            np.where(share < 0.9, self._ordinary[which.astype(np.int64)], labels),
        )
        flat[places] = np.where(counts, replaced, labels)
        return columns, np.where(counts, labels, -100)
