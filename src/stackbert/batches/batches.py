"""(corpus, stage, step, rank) → batch: rows, sentence pairs and masks, as a pure function.

Rows are cut from the string of epochs that `order` describes: [CLS] tokens [SEP], or for sentence
pairs [CLS] A [SEP] B [SEP]. Letters: B rows, S positions of a row, K masked positions of a row.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stackbert.batches.order import DataOrder, EvenOrder, cyclic
from stackbert.batches.randomness import I64, U64, derive_key, mix, random_bits
from stackbert.corpus.store import Corpus, TokenIds, TokenStream, entropy
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.errors import UserError
from stackbert.recipe import Recipe, Stage
from stackbert.units import counted

IGNORED = -100  # the label that no loss counts, as in transformers
MANY_PASSES = 20  # over a text, beyond which a user is warned: only a few pay
MAX_KEY = np.uint64(2**64 - 1)  # of a token that must not be masked: a row's lowest keys are
_CACHED_TOKENS, _CACHED_STEPS = 1 << 15, 16  # made at a time: beyond either little is won
_LEAST_PART = 8  # tokens of either part of a pair, if its row has four times as many
_LOWER_HALF, _HALF = np.uint64(2**32 - 1), np.uint64(32)


def _at_most(share: float) -> np.uint64:
    """What a draw is at most with this probability; decided by its upper half alone."""
    return np.uint64((math.ceil(share * 2**32) << 32) - 1)


@dataclass(frozen=True)
class Batch:
    """The rows of one optimiser step (or one rank's or micro-batch's share of them), int64."""

    input_ids_BS: Tensor  # with masks applied
    columns_BK: Tensor  # the masked positions of each row, ascending
    labels_BK: Tensor  # what stood there; IGNORED where a row has too few maskable tokens
    token_types_BS: Tensor | None = None  # 0 up to the first [SEP], 1 after it; None without pairs
    is_random_B: Tensor | None = None  # 1 where segment B comes from elsewhere

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.input_ids_BS)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch of the changed tensors."""
        tensors: dict[str, Any] = dict(vars(self))
        tensors |= {name: change(each) for name, each in tensors.items() if each is not None}
        return Batch(**tensors)

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start … stop - 1 as a batch of their own, as views."""
        return self.each(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, without waiting for the copy."""
        if device.type == "cuda":
            return self.each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self.each(lambda tensor: tensor.to(device))

    def share(self, rank: int, world_size: int) -> "Batch":
        """The rows that one rank evaluates; every rank has equally many, as it must be with FSDP.

        Where they do not divide equally, the first row is repeated with labels that do not count.
        """
        if world_size == 1:
            return self
        share = -(-len(self) // world_size)
        places = torch.arange(rank * share, (rank + 1) * share)
        beyond = places >= len(self)
        part = self.each(lambda tensor: tensor[places.masked_fill(beyond, 0)])
        is_random = part.is_random_B
        return replace(
            part,
            labels_BK=part.labels_BK.masked_fill(beyond[:, None], IGNORED),
            is_random_B=None if is_random is None else is_random.masked_fill(beyond, IGNORED),
        )


def _text_tokens(stage: Stage, *, next_sentence: bool) -> int:
    """Corpus tokens in a row of a stage: what the special tokens leave."""
    return stage.sequence_length - (3 if next_sentence else 2)


class BatchPlan:
    """Every batch of a run, by its step number.

    Args:
        seed: of order, pairs and masks.
        next_sentence: make sentence pairs (Devlin et al., 2019, section 3.1).
        kept_rate: share of the predicted tokens that stay.
        random_rate: share of them that become any token; the rest are masked.
        order: of the stream's pieces; by default shuffled epochs of it.

    Raises:
        UserError: rows too short, or too few rows for pairs.
    """

    def __init__(
        self,
        stream: TokenStream,
        vocabulary: Vocabulary,
        stages: Sequence[Stage],
        *,
        seed: int,
        next_sentence: bool = False,
        kept_rate: float = 0.1,
        random_rate: float = 0.1,
        order: DataOrder | EvenOrder | None = None,
    ) -> None:
        if next_sentence and min(stage.sequences for stage in stages) < 2:
            raise UserError("batch.sequences: next-sentence prediction needs 2 rows or more.")
        lengths = [_text_tokens(stage, next_sentence=next_sentence) for stage in stages]
        if min(lengths) < 4:
            raise UserError("batch.sequence_length: rows need room for at least 4 tokens of text.")
        self.stages = tuple(stages)
        self._next_sentence = next_sentence
        self._masked_below = _at_most(1.0 - kept_rate - random_rate)
        self._replaced_below = _at_most(1.0 - kept_rate)
        self._stream, self._vocabulary, self._lengths = stream, vocabulary, lengths
        # Of each stage: its first step, and the tokens consumed before it.
        consumed = [s.steps * s.sequences * n for s, n in zip(stages, lengths, strict=True)]
        self._first_steps = [0, *accumulate(stage.steps for stage in stages[:-1])]
        self._cursors = [0, *accumulate(consumed[:-1])]
        self._order = order or DataOrder(len(stream), max(lengths), seed)
        self._keys = {purpose: derive_key(seed, purpose) for purpose in ("mask", "pair", "cut")}
        self._special = np.zeros(vocabulary.size, dtype=bool)
        self._special[list(vocabulary.special)] = True
        self._ordinary: I64 = np.flatnonzero(~self._special[: vocabulary.tokenizer_size])
        # (first step, one after the last, their rows). One attribute, as other threads may read it.
        self._made: tuple[int, int, Batch | None] = (0, 0, None)

    def locate(self, step: int) -> tuple[int, int]:
        """(stage index, tokens consumed before this step). Past the end the last stage goes on."""
        index = bisect(self._first_steps, step) - 1
        steps = step - self._first_steps[index]
        consumed = steps * self.stages[index].sequences * self._lengths[index]
        return index, self._cursors[index] + consumed

    def masked_rows(self, step: int) -> tuple[int, int]:
        """(rows, masked positions) of a whole step over all ranks: what losses are divided by."""
        index, _ = self.locate(step)
        rows = self.stages[index].sequences
        return rows, rows * self._masked(index)

    def _masked(self, index: int) -> int:
        """Masked positions in a row of a stage."""
        return max(1, round(self.stages[index].mask_rate * self._lengths[index]))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows that one rank sees at step `step`; together the ranks see each row once.

        Raises:
            UserError: the rows of this stage cannot be divided by the number of ranks.
        """
        index, _ = self.locate(step)
        stage, first = self.stages[index], self._first_steps[index]
        if stage.sequences % world_size:
            raise UserError(
                f"batch.sequences: {stage.sequences} rows cannot be shared equally by "
                f"{world_size} processes."
            )
        together = min(_CACHED_STEPS, _CACHED_TOKENS // (stage.sequences * stage.sequence_length))
        if world_size > 1 or together < 2:
            share = stage.sequences // world_size
            return self._rows(step, 1, rank * share, share)
        begin, end, made = self._made
        if made is None or not begin <= step < end:
            begin = step - (step - first) % together
            end = min([begin + together, *self._first_steps[index + 1 :]])
            made = self._rows(begin, end - begin, 0, stage.sequences)
            self._made = begin, end, made
        first_row = (step - begin) * stage.sequences
        # Cloned, so that who changes a batch changes only that.
        return made.rows(first_row, first_row + stage.sequences).each(torch.clone)

    def _rows(self, step: int, steps: int, first: int, share: int) -> Batch:
        """Rows first … first + share - 1 of a step; or all rows of several steps of one stage."""
        index, cursor = self.locate(step)
        length, rows = self._lengths[index], self.stages[index].sequences
        positions = cursor + np.arange(steps * rows, dtype=np.int64) * length
        mine = slice(first, first + steps * share)
        if self._next_sentence:
            ids, *labelled = self._pairs(positions, rows, length, mine)
        else:
            ids, labelled = self._single_rows(positions[mine], length), []
        columns, labels = self._mask(ids, positions[mine], self._masked(index))
        return Batch(*map(torch.from_numpy, (ids, columns, labels, *labelled)))

    def _single_rows(self, positions: I64, length: int) -> I64:
        rows = len(positions)
        ids = np.empty((rows, length + 2), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self._vocabulary.cls, self._vocabulary.sep
        text = self._stream.read_many(*self._order.segments(int(positions[0]), rows * length))
        ids[:, 1:-1] = text.reshape(rows, length)
        return ids

    def _pairs(self, positions: I64, rows: int, length: int, mine: slice) -> tuple[I64, I64, I64]:
        """The wanted ones of all rows of one or several steps, their token types and labels.

        Each row is a contiguous piece of text, cut in two where a sentence starts. Exactly half of
        a step's rows give up their second part for another's: they are ordered by the place of
        their cut and each takes the next one's, so that lengths nearly agree; where they do not,
        the part is read on or cut short. Every row is full whatever its label, and every second
        part starts with a sentence, so neither gives the label away.
        """
        text, cuts, places = self._cut_rows(positions, length)
        keys = random_bits(self._keys["pair"], positions, 1)
        donors = _donors(keys.reshape(-1, rows), cuts.reshape(-1, rows)).reshape(-1)

        text, cuts, donors = text[mine], cuts[mine], donors[mine]
        second = np.arange(length) >= cuts[:, None]
        is_random = donors >= 0
        wanted = places[donors[is_random]], length - cuts[is_random]
        taken = self._stream.read_many(*cyclic(*wanted, len(self._stream)))
        text[second & is_random[:, None]] = taken

        ids = np.empty((len(text), length + 3), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self._vocabulary.cls, self._vocabulary.sep
        ids[:, 1:-2] = text
        np.copyto(ids[:, 2:-1], text, where=second)  # moved one on, behind the first [SEP]
        ids[np.arange(len(text)), cuts + 1] = self._vocabulary.sep
        types = np.zeros(ids.shape, dtype=np.int64)
        types[:, 2:-1], types[:, -1] = second, 1
        return ids, types, is_random.astype(np.int64)

    def _cut_rows(self, positions: I64, length: int) -> tuple[TokenIds, I64, I64]:
        """The text (B, length) of consecutive rows, and where each is cut: in the row, the corpus.

        A row is cut before one of its sentences, drawn evenly; not before a document, for what
        follows there is no continuation, and not so that a part is shorter than `_LEAST_PART`. A
        row without such a place is cut in its middle half.
        """
        rows = len(positions)
        starts, lengths = self._order.segments(int(positions[0]), rows * length)
        text = self._stream.read_many(starts, lengths)
        offsets = np.cumsum(lengths) - lengths  # of the segments in the text
        found, owner = self._stream.sentence_starts_within(starts + 1, lengths - 1)
        inner = np.sort(found + (offsets - starts)[owner])
        least = min(_LEAST_PART, length // 4)
        places, goes_on = inner % length, text[inner - 1] != self._vocabulary.sep
        inner = inner[(least <= places) & (places <= length - least) & goes_on]
        draws = random_bits(self._keys["cut"], positions, 1)[:, 0]
        counts = np.bincount(inner // length, minlength=rows)
        cuts = (length // 4 + draws % np.uint64(max(1, length // 2))).astype(np.int64)
        some = counts > 0
        which = (draws[some] % counts[some].astype(np.uint64)).astype(np.int64)
        cuts[some] = inner[(np.cumsum(counts) - counts)[some] + which] % length
        flat = np.arange(rows) * length + cuts
        segment = np.searchsorted(offsets, flat, side="right") - 1
        return text.reshape(rows, length), cuts, flat + (starts - offsets)[segment]

    def _mask(self, ids: I64, positions: I64, masked: int) -> tuple[I64, I64]:
        """Mask `masked` tokens a row in place, but for those that become any token or are kept.

        Returns the columns (B, K) and the labels (B, K). Drawn by the rows' positions in the
        string of epochs, so every epoch draws anew and every rank draws the same.
        """
        rows, length = ids.shape
        keys = random_bits(self._keys["mask"], positions, length)
        keys[self._special[ids]] = MAX_KEY
        places = _lowest(keys, masked)
        flat = ids.reshape(-1)  # a view
        labels, drawn = flat[places], keys.reshape(-1)[places]
        draws = mix(drawn)  # the upper half decides what happens, the lower with what
        which = (draws & _LOWER_HALF) * np.uint64(len(self._ordinary)) >> _HALF
        other = self._ordinary[which.astype(np.int64)]
        replaced = np.where(draws <= self._replaced_below, other, labels)
        replaced[draws <= self._masked_below] = self._vocabulary.mask
        short = drawn == MAX_KEY  # in a row with too few maskable tokens
        flat[places] = np.where(short, labels, replaced)
        labels[short] = IGNORED
        return places - np.arange(0, rows * length, length)[:, None], labels


def _donors(keys: U64, cuts: I64) -> I64:
    """Of each step's rows (N, R): the row that gives its second part, of all N·R; -1 for none."""
    steps, rows = keys.shape
    chosen = np.argsort(keys, axis=1, kind="stable")[:, : rows // 2]
    order = np.argsort(np.take_along_axis(cuts, chosen, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, order, axis=1)
    givers = np.roll(chosen, -1, axis=1) if rows > 3 else (chosen + 1) % rows
    donors = np.full((steps, rows), -1)
    np.put_along_axis(donors, chosen, givers + np.arange(0, steps * rows, rows)[:, None], axis=1)
    return donors


def _lowest(keys: U64, count: int) -> I64:
    """Where each row's lowest keys (B, S) are: (B, count) indices into all B·S, ascending."""
    rows, length = keys.shape
    highest = np.partition(keys, count - 1, axis=1)[:, count - 1, None]
    places: I64 = np.flatnonzero(keys <= highest)
    if len(places) > rows * count:  # a row has to take from its equal keys: argpartition chooses
        columns = np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1)
        places = columns + np.arange(0, rows * length, length)[:, None]
    return places.reshape(rows, count)


def training_plan(recipe: Recipe, corpus: Corpus) -> BatchPlan:
    """The training batches of a recipe on a corpus, as a function of the step."""
    return BatchPlan(
        corpus.train,
        corpus.vocabulary,
        [recipe.stage(index) for index in range(len(recipe.stages))],
        seed=recipe.seed,
        next_sentence=recipe.objective.next_sentence,
        kept_rate=recipe.objective.kept_rate,
        random_rate=recipe.objective.random_rate,
    )


def _validation_rows(recipe: Recipe, corpus: Corpus) -> tuple[Stage, EvenOrder]:
    """What an evaluation reads, at the longest sequence length of any stage, and where."""
    shape = replace(
        recipe.stage(0),
        sequence_length=recipe.longest_sequence,
        mask_rate=recipe.evaluation.mask_rate,
    )
    length = _text_tokens(shape, next_sentence=recipe.objective.next_sentence)
    tokens = len(corpus.validation)
    rows = max(2, min(recipe.evaluation.sequences, tokens // length))
    return replace(shape, sequences=rows, steps=1), EvenOrder(tokens, length, rows)


def validation_batch(recipe: Recipe, corpus: Corpus) -> Batch:
    """The fixed validation rows of a recipe, masks included, as one batch.

    They are spread evenly over the validation side, so that each source counts by its share. The
    seed is not the recipe's: runs with different seeds are judged on the same masks.
    """
    shape, order = _validation_rows(recipe, corpus)
    plan = BatchPlan(
        corpus.validation,
        corpus.vocabulary,
        [shape],
        seed=derive_key(0, "evaluation"),
        next_sentence=recipe.objective.next_sentence,
        order=order,
    )
    return plan.batch(0)


def validation_entropy(recipe: Recipe, corpus: Corpus) -> float:
    """Entropy in nats of the validation rows' tokens: the loss of who knows their frequencies."""
    shape, order = _validation_rows(recipe, corpus)
    ids = corpus.validation.read_many(*order.segments(0, shape.sequences * order.chunk))
    counts = np.bincount(ids, minlength=corpus.vocabulary.size)
    counts[corpus.vocabulary.sep] = 0
    return entropy(counts)


def data_sentences(recipe: Recipe, corpus: Corpus) -> list[str]:
    """How often a run passes over the text and what it is judged on, with warnings."""
    train, held_out = corpus.manifest.train, corpus.manifest.validation
    passes = training_plan(recipe, corpus).locate(recipe.total_steps)[1] / train.tokens
    shape, _ = _validation_rows(recipe, corpus)
    found = [
        f"{recipe.total_steps:,} steps pass {passes:,.3g} times over {train.tokens:,} tokens; "
        f"validation reads {shape.sequences:,} rows of {shape.sequence_length} from "
        f"{counted(held_out.documents, 'document')} with {held_out.tokens:,} tokens."
    ]
    if passes > MANY_PASSES:
        found.append(
            f"Warning: {passes:,.0f} passes teach a text by heart. Take fewer steps or more text."
        )
    return found + corpus.manifest.warnings()
