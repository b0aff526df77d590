"""Masks: what, how often, with what. Sentence pairs: half are random, nothing tells the label."""

from collections import Counter

import numpy as np
import pytest
import torch
from batches_helpers import CLS, FIRST, MASK, SEP, numbered, plan, seeds, shape, shapes, unmasked
from hypothesis import given
from hypothesis import strategies as st

from stackbert.batches.batches import IGNORED, Batch, BatchPlan
from stackbert.corpus.store import TokenStream
from stackbert.corpus.tokenizer import Vocabulary


@given(stage=shapes, tokens=st.integers(1, 300), pairs=st.booleans(), seed=seeds)
def test_the_masked_count_is_exact_in_every_row_and_batch(stage, tokens, pairs, seed):
    batches = plan(numbered(tokens), stage, seed=seed, next_sentence=pairs)
    expected = max(1, round(stage.mask_rate * (stage.sequence_length - (3 if pairs else 2))))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.columns_BK.shape == batch.labels_BK.shape == (stage.sequences, expected)
        assert (batch.labels_BK != IGNORED).all()
        assert (torch.diff(batch.columns_BK) > 0).all()  # so no position twice
        assert batches.masked_rows(step) == (stage.sequences, stage.sequences * expected)


@pytest.mark.parametrize("pairs", [False, True])
def test_special_tokens_are_never_masked_nor_put_in(factbook_corpus, pairs):
    words, stage = factbook_corpus.vocabulary, shape(20, 32, 128, 0.3)
    made = BatchPlan(factbook_corpus.train, words, [stage], seed=1, next_sentence=pairs)
    in_rows = 0
    for batch in map(made.batch, range(20)):
        assert (batch.labels_BK >= 0).all()
        assert not np.isin(batch.labels_BK, words.special).any()
        original = unmasked(batch)
        special = torch.from_numpy(np.isin(original, words.special))
        assert torch.equal(batch.input_ids_BS[special], original[special])
        in_rows += int(special.sum()) - (3 if pairs else 2) * len(original)
        put = batch.input_ids_BS.gather(1, batch.columns_BK)
        assert not np.isin(put, [i for i in words.special if i != words.mask]).any()
    assert in_rows > 10  # documents that end inside a row


def test_replacements_stay_below_the_tokenizers_size():
    # The embedding is rounded up to a multiple of 64; ids beyond the tokenizer's do not exist.
    small = Vocabulary(640, FIRST + 100, 0, CLS, SEP, MASK, tuple(range(FIRST)))
    batches = BatchPlan(numbered(100), small, [shape(9, 50, 100, 0.6)], seed=0)
    assert max(int(batches.batch(step).input_ids_BS.max()) for step in range(9)) == FIRST + 99


def test_a_row_of_few_ordinary_tokens_masks_those_and_counts_no_others():
    stream = numbered(100, separators=[place for place in range(100) if place % 10])
    batch = plan(stream, shape(1, 5, 22, 0.5)).batch(0)
    assert batch.labels_BK.shape == (5, 10)
    assert ((batch.labels_BK != IGNORED).sum(1) == 2).all()  # every tenth of a row of 20
    ignored = batch.input_ids_BS.gather(1, batch.columns_BK)[batch.labels_BK == IGNORED]
    assert np.isin(ignored, (CLS, SEP)).all()


@pytest.mark.parametrize(
    ("shares", "kept", "replaced"),
    [
        ({}, 0.1, 0.1),
        ({"kept_rate": 0.0, "random_rate": 0.0}, 0.0, 0.0),
        ({"kept_rate": 0.5, "random_rate": 0.25}, 0.5, 0.25),
    ],
)
def test_masks_are_80_10_10_or_as_asked_and_any_token_may_be_put_in(shares, kept, replaced):
    tokens = 300
    batch = plan(numbered(tokens), shape(1, 5000, 66), **shares).batch(0)
    put, labels = batch.input_ids_BS.gather(1, batch.columns_BK), batch.labels_BK
    chance = replaced / tokens  # that a drawn token is the one that was there
    for found, share in ((put == MASK, 1 - kept - replaced), (put == labels, kept + chance)):
        noise = 5 * np.sqrt(share * (1 - share) / labels.numel())
        assert abs(found.double().mean() - share) <= noise
    drawn = put[(put != MASK) & (put != labels)] - FIRST
    counts = torch.bincount(drawn, minlength=tokens).double()
    squares = ((counts - counts.mean()) ** 2).sum() / max(1, counts.mean())
    assert abs(squares - tokens * bool(replaced)) <= 5 * np.sqrt(2 * tokens)


@given(stage=shapes, seed=seeds)
def test_labels_are_the_tokens_that_stood_there_and_the_others_stay(stage, seed):
    tokens = stage.sequences * (stage.sequence_length - 2)
    batch = plan(numbered(tokens), stage, seed=seed, evenly=True).batch(0)
    truth = torch.full(batch.input_ids_BS.shape, SEP)
    truth[:, 0] = CLS
    truth[:, 1:-1] = torch.arange(FIRST, FIRST + tokens).view(stage.sequences, -1)
    assert torch.equal(truth.gather(1, batch.columns_BK), batch.labels_BK)
    untouched = torch.ones(truth.shape, dtype=torch.bool).scatter(1, batch.columns_BK, False)
    assert torch.equal(batch.input_ids_BS[untouched], truth[untouched])


LONG = 6000
SENTENCES = sorted({(7 * n + n * n % 5) for n in range(LONG // 7)})
SEPARATORS = list(range(90, LONG, 97))


@pytest.fixture(scope="module")
def marked() -> TokenStream:
    """Sentences of 3 to 11 tokens, documents of 97."""
    return numbered(LONG, sentences=SENTENCES, separators=SEPARATORS)


def border_of(batch: Batch, row: int) -> int:
    """The first position of the second part."""
    return int(torch.nonzero(batch.token_types_BS[row])[0])


def parts_of(stream: TokenStream, batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """The places in the corpus of a row's two parts, which must each be one piece of it."""
    ids, border = unmasked(batch)[row].numpy(), border_of(batch, row)
    types = batch.token_types_BS[row].tolist()
    assert types == [0] * border + [1] * (len(ids) - border)
    assert (ids[0], ids[border - 1], ids[-1]) == (CLS, SEP, SEP)
    found = []
    for part in (ids[1 : border - 1], ids[border:-1]):
        known = int(np.flatnonzero(part != SEP)[0])
        start = (int(part[known]) - FIRST - known) % len(stream)
        where = [(start + n) % len(stream) for n in range(len(part))]
        assert part.tolist() == [int(stream.read(place, 1)[0]) for place in where]
        found.append(where)
    return found[0], found[1]


@given(rows=st.integers(2, 40), length=st.integers(30, 80), step=st.integers(0, 30), seed=seeds)
def test_exactly_half_of_the_pairs_are_random(marked, rows, length, step, seed):
    batch = plan(marked, shape(1, rows, length), seed=seed, next_sentence=True).batch(step)
    assert set(batch.is_random_B.tolist()) <= {0, 1}
    assert batch.is_random_B.sum() == rows // 2


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_true_pairs_go_on_and_random_pairs_come_from_elsewhere(marked, rows):
    # 12 × 16 rows of 40 are more than an epoch.
    batches = plan(marked, shape(1, rows, 43), next_sentence=True)
    starts = set(SENTENCES) | {place + 1 for place in SEPARATORS}
    documents = {place + 1 for place in SEPARATORS} | {0}
    kinds: Counter[bool] = Counter()
    for step in range(12):
        batch = batches.batch(step)
        rows_of = [parts_of(marked, batch, row) for row in range(rows)]
        for row, (a, b) in enumerate(rows_of):
            assert len(a) + len(b) == 40  # no row is padded, whatever its label
            assert b[0] in starts
            assert b[0] not in documents  # what follows a document's end is no continuation
            random = bool(batch.is_random_B[row])
            kinds[random] += 1
            assert (b[0] == (a[-1] + 1) % LONG) != random
            if random:  # from where another row of this batch is cut
                cuts = {(other[-1] + 1) % LONG for n, (other, _) in enumerate(rows_of) if n != row}
                assert b[0] in cuts
    assert kinds[True] == 12 * (rows // 2)


def cuts_of(stream: TokenStream, rows: int, length: int, steps: int, **options: bool) -> list[int]:
    batches = plan(stream, shape(1, rows, length), next_sentence=True, **options)
    made = [batches.batch(step) for step in range(steps)]
    return [border_of(batch, row) - 2 for batch in made for row in range(rows)]


def test_a_pair_is_cut_at_any_of_its_sentences_or_in_the_middle_half_of_one():
    # One row of 50 with sentences at four places, seen again and again.
    stream = numbered(100, sentences=[10, 20, 30, 40, 60, 70, 80, 90], separators=[49, 99])
    cuts = Counter(cuts_of(stream, 2, 53, 300, evenly=True))
    assert set(cuts) == {10, 20, 30, 40}
    assert min(cuts.values()) > 150 - 5 * np.sqrt(600 * 0.25 * 0.75)
    assert set(cuts_of(numbered(4000), 10, 43, 20)) == set(range(10, 30))


def test_no_part_of_a_pair_is_shorter_than_eight_tokens():
    # Sentences everywhere: before every token a row may be cut.
    stream = numbered(4000, sentences=range(4000))
    assert set(cuts_of(stream, 10, 43, 100)) == set(range(8, 33))
    assert set(cuts_of(stream, 10, 19, 100)) == set(range(4, 13)), "a quarter of a short row"


def test_the_label_cannot_be_told_from_the_lengths(marked):
    batches = plan(marked, shape(1, 40, 43), next_sentence=True)
    lengths: dict[int, list[int]] = {0: [], 1: []}
    for step in range(60):
        batch = batches.batch(step)
        for label, types in zip(batch.is_random_B.tolist(), batch.token_types_BS, strict=True):
            lengths[label].append(int(types.sum()))
    true, random = np.array(lengths[0]), np.array(lengths[1])
    spread = np.sqrt(true.var() / len(true) + random.var() / len(random))
    assert abs(true.mean() - random.mean()) < 5 * spread
