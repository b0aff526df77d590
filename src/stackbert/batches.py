"""(corpus, stage, step, rank) → batch: rows, sentence pairs and masks, as a pure function.

Rows are cut from the endless string of epochs that `data_order` describes, one after the other, so
every row is full, no token is lost or seen twice in an epoch, and the cursor is one integer: tokens
consumed. What costs is the number of numpy calls, so no loop goes over the rows but the ones in
`TokenStream`, and small batches are made several steps at a time.

Rows: [CLS] tokens [SEP]; for next-sentence prediction [CLS] A [SEP] B [SEP].
Shape letters: B rows of a batch, S positions of a row, K masked positions of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stackbert.corpus.store import TokenIds, TokenStream
from stackbert.data_order import DataOrder
from stackbert.errors import UserError
from stackbert.randomness import I64, U64, derive_key, mix, random_bits
from stackbert.vocabulary import Vocabulary

_NEVER = np.uint64(2**64 - 1)
"""The lot of a token that must not be masked: no other is higher."""


def _below(share: float) -> np.uint64:
    """What a draw is below with this probability; decided by its upper half alone."""
    return np.uint64(math.ceil(share * 2**32) << 32)


_TOGETHER, _AT_MOST = 1 << 15, 16
"""Tokens that are made at a time, and steps: beyond either little is won."""
_MASKED, _REPLACED = _below(0.8), _below(0.9)
_LOWER_HALF, _HALF = np.uint64(2**32 - 1), np.uint64(32)


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
        """Rows start … stop - 1 as a batch of their own, as views."""
        return self.take(slice(start, stop))

    def take(self, which: "slice | I64") -> "Batch":
        """Some rows as a batch of their own."""
        return Batch(
            self.input_ids[which],
            self.columns[which],
            self.labels[which],
            None if self.token_types is None else self.token_types[which],
            None if self.is_random is None else self.is_random[which],
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
        self._vocabulary = vocabulary
        self._payloads = payloads
        self._order = DataOrder(len(stream), max(payloads), seed, shuffle=shuffle)
        self._keys = {purpose: derive_key(seed, purpose) for purpose in ("mask", "pair", "cut")}
        self._special = np.zeros(max(vocabulary.size, vocabulary.tokenizer_size), dtype=bool)
        self._special[list(vocabulary.special)] = True
        self._ordinary: I64 = np.flatnonzero(~self._special[: vocabulary.tokenizer_size])
        if not len(self._ordinary):
            raise UserError("The vocabulary has special tokens only.")
        # (first step, one after the last, their rows). One attribute, as other threads may read it.
        self._made: tuple[int, int, Batch | None] = (0, 0, None)

    def locate(self, step: int) -> tuple[int, int]:
        """(stage index, tokens consumed before this step). Past the end the last stage goes on."""
        index, first, cursor = self._stage_of(step)
        return index, cursor + (step - first) * self.stages[index].rows * self._payloads[index]

    def _stage_of(self, step: int) -> tuple[int, int, int]:
        """(stage index, its first step, tokens consumed before that)."""
        cursor, first = 0, 0
        for index, (stage, payload) in enumerate(zip(self.stages, self._payloads, strict=True)):
            if step < first + stage.steps or index == len(self.stages) - 1:
                return index, first, cursor
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
        index, first, _ = self._stage_of(step)
        stage = self.stages[index]
        if stage.rows % ranks:
            raise UserError(
                f"batch.sequences: {stage.rows} rows cannot be shared equally by {ranks} processes."
            )
        together = min(_AT_MOST, _TOGETHER // (stage.rows * stage.sequence_length))
        if ranks > 1 or together < 2:
            share = stage.rows // ranks
            return self._rows(step, 1, rank * share, share)
        begin, end, made = self._made
        if made is None or not begin <= step < end:
            begin, end = max(first, step - step % together), step - step % together + together
            if index < len(self.stages) - 1:
                end = min(end, first + stage.steps)
            made = self._rows(begin, end - begin, 0, stage.rows)
            self._made = begin, end, made
        # Copied, so that who changes a batch changes only that.
        first = (step - begin) * stage.rows
        return made.take(np.arange(first, first + stage.rows))

    def _rows(self, step: int, steps: int, first: int, share: int) -> Batch:
        """Rows first … first + share - 1 of a step; or all rows of several steps of one stage."""
        index, cursor = self.locate(step)
        stage, payload = self.stages[index], self._payloads[index]
        positions = cursor + (first + np.arange(steps * share, dtype=np.int64)) * payload
        if self.next_sentence:
            ids, types, is_random = self._pairs(cursor, steps, stage.rows, payload, first, share)
        else:
            ids = self._single_rows(cursor + first * payload, steps * share, payload)
            types, is_random = None, None
        masked = stage.masked(next_sentence=self.next_sentence)
        columns, labels = self._mask(ids, positions, masked)
        return Batch(ids, columns, labels, types, is_random)

    def _single_rows(self, position: int, rows: int, payload: int) -> I64:
        ids = np.empty((rows, payload + 2), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self._vocabulary.cls, self._vocabulary.sep
        text = self._stream.read_many(*self._order.segments(position, rows * payload))
        ids[:, 1:-1] = text.reshape(rows, payload)
        return ids

    def _pairs(
        self, cursor: int, steps: int, rows: int, payload: int, first: int, share: int
    ) -> tuple[I64, I64, I64]:
        """Rows of one step or of several, as `_rows` has them, their token types and labels.

        Each row is a contiguous piece of text, cut in two where a sentence starts. Exactly half of
        a step's rows give up their second part for another's: they are ordered by the place of
        their cut and each takes the next one's, so that lengths nearly agree; where they do not,
        the part is read on or cut short. Every row is full whatever its label, and every second
        part starts with a sentence, so neither gives the label away.
        """
        positions = cursor + np.arange(steps * rows, dtype=np.int64) * payload
        text, cuts, places = self._cut_rows(positions, payload)
        lots = random_bits(self._keys["pair"], positions, 1)
        donors = _donors(lots.reshape(steps, rows), cuts.reshape(steps, rows)).reshape(-1)

        mine = slice(first, first + steps * share)
        text, cuts, donors = text[mine], cuts[mine], donors[mine]
        second = np.arange(payload) >= cuts[:, None]
        is_random = donors >= 0
        taken = self._read_cyclic(places[donors[is_random]], payload - cuts[is_random])
        text[second & is_random[:, None]] = taken

        ids = np.empty((steps * share, payload + 3), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self._vocabulary.cls, self._vocabulary.sep
        ids[:, 1:-2] = text
        np.copyto(ids[:, 2:-1], text, where=second)  # moved one on, behind the first [SEP]
        ids[np.arange(steps * share), cuts + 1] = self._vocabulary.sep
        types = np.zeros(ids.shape, dtype=np.int64)
        types[:, 2:-1], types[:, -1] = second, 1
        return ids, types, is_random.astype(np.int64)

    def _cut_rows(self, positions: I64, payload: int) -> tuple[TokenIds, I64, I64]:
        """The text (B, payload) of consecutive rows, and where each is cut: in the row, the corpus.

        A row is cut before one of its sentences, drawn evenly; not before a document, for what
        follows there is no continuation. A row within one sentence is cut in its middle half.
        """
        rows = len(positions)
        starts, lengths = self._order.segments(int(positions[0]), rows * payload)
        text = self._stream.read_many(starts, lengths)
        offsets = np.cumsum(lengths) - lengths  # of the segments in the text
        found, owner = self._stream.sentence_starts_within(starts + 1, lengths - 1)
        inner = np.sort(found + (offsets - starts)[owner])
        inner = inner[(inner % payload > 0) & (text[inner - 1] != self._vocabulary.sep)]
        draws = random_bits(self._keys["cut"], positions, 1)[:, 0]
        counts = np.bincount(inner // payload, minlength=rows)
        cuts = (payload // 4 + draws % np.uint64(max(1, payload // 2))).astype(np.int64)
        some = counts > 0
        which = (draws[some] % counts[some].astype(np.uint64)).astype(np.int64)
        cuts[some] = inner[(np.cumsum(counts) - counts)[some] + which] % payload
        flat = np.arange(rows) * payload + cuts
        segment = np.searchsorted(offsets, flat, side="right") - 1
        return text.reshape(rows, payload), cuts, flat + (starts - offsets)[segment]

    def _read_cyclic(self, starts: I64, lengths: I64) -> TokenIds:
        """Pieces of the corpus, joined; one that reaches beyond the end goes on in front."""
        total = len(self._stream)
        while (beyond := np.flatnonzero(starts + lengths > total)).size:
            rest = starts[beyond] + lengths[beyond] - total
            lengths = lengths.copy()
            lengths[beyond] -= rest
            starts = np.insert(starts, beyond + 1, 0)
            lengths = np.insert(lengths, beyond + 1, rest)
        return self._stream.read_many(starts, lengths)

    def _mask(self, ids: I64, positions: I64, masked: int) -> tuple[I64, I64]:
        """Mask `masked` tokens a row in place: 80 % [MASK], 10 % any token, 10 % kept.

        Returns the columns (B, K) and the labels (B, K). Drawn by the rows' positions in the
        string of epochs, so every epoch draws anew and every rank draws the same.
        """
        rows, length = ids.shape
        lots = random_bits(self._keys["mask"], positions, length)
        lots[self._special[ids]] = _NEVER
        places = _lowest(lots, masked)
        flat = ids.reshape(-1)  # a view
        labels, drawn = flat[places], lots.reshape(-1)[places]
        draws = mix(drawn)  # the upper half decides what happens, the lower with what
        which = (draws & _LOWER_HALF) * np.uint64(len(self._ordinary)) >> _HALF
        replaced = np.where(draws < _REPLACED, self._ordinary[which.astype(np.int64)], labels)
        replaced[draws < _MASKED] = self._vocabulary.mask
        short = drawn == _NEVER
        if short.any():  # a row with too few maskable tokens
            replaced[short] = labels[short]
            labels[short] = -100
        flat[places] = replaced
        return places - np.arange(0, rows * length, length)[:, None], labels


def _donors(lots: U64, cuts: I64) -> I64:
    """Of each step's rows (N, R): the row that gives its second part, of all N·R; -1 for none."""
    steps, rows = lots.shape
    chosen = np.argsort(lots, axis=1, kind="stable")[:, : rows // 2]
    order = np.argsort(np.take_along_axis(cuts, chosen, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, order, axis=1)
    givers = np.roll(chosen, -1, axis=1) if rows > 3 else (chosen + 1) % rows
    donors = np.full((steps, rows), -1)
    np.put_along_axis(donors, chosen, givers + np.arange(0, steps * rows, rows)[:, None], axis=1)
    return donors


def _lowest(lots: U64, count: int) -> I64:
    """Where each row's lowest lots (B, S) are: (B, count) indices into all B·S, ascending."""
    rows, length = lots.shape
    highest = np.partition(lots, count - 1, axis=1)[:, count - 1, None]
    places: I64 = np.flatnonzero(lots <= highest)
    if len(places) > rows * count:  # a row has to take from its equal lots: argpartition chooses
        columns = np.sort(np.argpartition(lots, count - 1, axis=1)[:, :count], axis=1)
        places = columns + np.arange(0, rows * length, length)[:, None]
    return places.reshape(rows, count)
