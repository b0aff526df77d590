"""Sentence pairs: half are random, the others go on, and all is new text."""

from collections import Counter

import numpy as np
import pytest
from batches_helpers import (
    CLS,
    FIRST,
    SEP,
    numbered,
    plan,
    seeds,
    unmasked,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.corpus.store import TokenStream

LONG = 6000
SENTENCES = sorted({(7 * n + n * n % 5) for n in range(LONG // 7)})
SEPARATORS = list(range(90, LONG, 97))


@pytest.fixture(scope="module")
def marked() -> TokenStream:
    """Sentences of 3 to 11 tokens, documents of 97."""
    return numbered(LONG, shard=700, sentences=SENTENCES, separators=SEPARATORS)


def parts_of(stream: TokenStream, batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """The places in the corpus of a row's two parts, which must each be one piece of it."""
    ids = unmasked(batch)[row]
    types = batch.token_types[row]
    length = len(ids)
    border = int(np.flatnonzero(types)[0])  # the first position of the second part
    assert types.tolist() == [0] * border + [1] * (length - border)
    assert (ids[0], ids[border - 1], ids[-1]) == (CLS, SEP, SEP)
    found = []
    for part in (ids[1 : border - 1], ids[border:-1]):
        assert len(part)
        known = int(np.flatnonzero(part != SEP)[0])
        start = (int(part[known]) - FIRST - known) % len(stream)
        where = [(start + n) % len(stream) for n in range(len(part))]
        assert part.tolist() == [int(stream.read(place, 1)[0]) for place in where]
        found.append(where)
    return found[0], found[1]


@given(rows=st.integers(2, 40), length=st.integers(30, 80), step=st.integers(0, 30), seed=seeds)
@settings(max_examples=50)
def test_exactly_half_of_the_pairs_are_random(marked, rows, length, step, seed):
    batch = plan(marked, StageShape(1, rows, length, 0.15), seed=seed, next_sentence=True).batch(
        step
    )
    assert set(batch.is_random.tolist()) <= {0, 1}
    assert batch.is_random.sum() == rows // 2


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_true_pairs_go_on_and_random_pairs_come_from_elsewhere(marked, rows):
    # 12 × 16 rows of 40 are more than an epoch.
    batches = plan(marked, StageShape(1, rows, 43, 0.15), next_sentence=True)
    starts = set(SENTENCES) | {place + 1 for place in SEPARATORS}
    documents = {place + 1 for place in SEPARATORS} | {0}
    kinds = Counter()
    for step in range(12):
        batch = batches.batch(step)
        assert (unmasked(batch) != 0).all()  # no row is padded, whatever its label
        rows_of = [parts_of(marked, batch, row) for row in range(rows)]
        for row, (a, b) in enumerate(rows_of):
            assert len(a) + len(b) == 40
            assert b[0] in starts
            assert b[0] not in documents  # what follows a document's end is no continuation
            random = bool(batch.is_random[row])
            kinds[random] += 1
            continues = b[0] == (a[-1] + 1) % LONG
            assert continues != random
            if random:  # from where another row of this batch is cut
                cuts = {(other[-1] + 1) % LONG for n, (other, _) in enumerate(rows_of) if n != row}
                assert b[0] in cuts
    assert kinds[True] == 12 * (rows // 2)


def test_every_true_pair_and_first_part_is_new_text(marked):
    batches = plan(marked, StageShape(1, 10, 43, 0.15), next_sentence=True)
    seen = []
    for step in range(LONG // 400):
        batch = batches.batch(step)
        for row in range(10):
            a, b = parts_of(marked, batch, row)
            # A random pair's own second part is what it gives away; another row shows it.
            seen += a if batch.is_random[row] else a + b
    assert len(seen) == len(set(seen))


def test_a_pair_is_cut_at_any_of_its_sentences():
    # One row of 50 with sentences at four places, seen again and again.
    stream = numbered(100, sentences=[10, 20, 30, 40, 60, 70, 80, 90], separators=[49, 99])
    batches = plan(stream, StageShape(1, 2, 53, 0.15), next_sentence=True, shuffle=False)
    cuts = Counter(
        int(np.flatnonzero(types)[0]) - 2
        for step in range(300)
        for types in batches.batch(step).token_types
    )
    assert set(cuts) == {10, 20, 30, 40}
    assert min(cuts.values()) > 150 - 5 * np.sqrt(600 * 0.25 * 0.75)


def test_a_row_within_one_sentence_is_cut_in_its_middle_half():
    batches = plan(numbered(4000), StageShape(1, 10, 43, 0.15), next_sentence=True)
    cuts = [
        int(np.flatnonzero(types)[0]) - 2
        for step in range(20)
        for types in batches.batch(step).token_types
    ]
    assert set(cuts) == set(range(10, 30))


def test_the_label_cannot_be_told_from_the_lengths(marked):
    batches = plan(marked, StageShape(1, 40, 43, 0.15), next_sentence=True)
    lengths = {0: [], 1: []}
    for step in range(60):
        batch = batches.batch(step)
        for label, types in zip(batch.is_random.tolist(), batch.token_types, strict=True):
            lengths[label].append(int(types.sum()))
    true, random = np.array(lengths[0]), np.array(lengths[1])
    spread = np.sqrt(true.var() / len(true) + random.var() / len(random))
    assert abs(true.mean() - random.mean()) < 5 * spread


def test_pairs_of_a_stage_with_shorter_rows_are_whole_too(marked):
    # Rows of 40 are cut from chunks of 97, so some run over from one chunk into another.
    stages = StageShape(20, 10, 43, 0.15), StageShape(5, 10, 100, 0.15)
    batches = plan(marked, *stages, next_sentence=True)
    starts = set(SENTENCES)
    for step in range(22):
        batch = batches.batch(step)
        ids = unmasked(batch)
        for row in np.flatnonzero(batch.is_random == 0):
            border = int(np.flatnonzero(batch.token_types[row])[0])
            assert int(ids[row, border]) - FIRST in starts
            if ids[row, border - 2] != SEP:
                assert ids[row, border] == ids[row, border - 2] + 1
        assert batch.is_random.sum() == 5


def test_real_pairs_follow_each_other_in_the_text(factbook_corpus, factbook_vocabulary):
    stream = factbook_corpus.train
    text = stream.read(0, len(stream)).astype(np.int64)
    sentences = np.setdiff1d(stream.sentence_starts(0, len(stream)), stream.document_starts)
    windows = np.lib.stride_tricks.sliding_window_view(text, 125)
    shape = StageShape(1, 16, 128, 0.15)
    batches = BatchPlan(stream, factbook_vocabulary, [shape], seed=0, next_sentence=True)
    true = 0
    for step in range(5):
        batch = batches.batch(step)
        ids = unmasked(batch)
        for row in np.flatnonzero(batch.is_random == 0):
            border = int(np.flatnonzero(batch.token_types[row])[0])
            whole = np.concatenate([ids[row, 1 : border - 1], ids[row, border:-1]])
            (start,) = np.flatnonzero((windows == whole).all(axis=1))
            inside = sentences[(sentences > start) & (sentences < start + 125)]
            assert start + border - 2 in inside or not len(inside)
            true += len(inside) > 0
    assert true > 20
