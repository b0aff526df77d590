"""What is masked, how often and with what."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from batches_helpers import (
    CLS,
    FIRST,
    MASK,
    SEP,
    SPECIAL,
    numbered,
    places,
    plan,
    same,
    seeds,
    shapes,
    unmasked,
)
from hypothesis import given
from hypothesis import strategies as st

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.vocabulary import Vocabulary


@given(shape=shapes, tokens=st.integers(1, 300), pairs=st.booleans(), seed=seeds)
def test_the_masked_count_is_exact_in_every_row_and_batch(shape, tokens, pairs, seed):
    shape = replace(shape, rows=shape.rows + 1, sequence_length=shape.sequence_length + 1)
    batches = plan(numbered(tokens), shape, seed=seed, next_sentence=pairs)
    expected = max(1, round(shape.mask_rate * (shape.sequence_length - (3 if pairs else 2))))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.columns.shape == batch.labels.shape == (shape.rows, expected)
        assert (batch.labels != -100).all()
        assert (np.diff(batch.columns, axis=1) > 0).all()  # so no position twice
        assert batches.masked_rows(step) == (shape.rows, shape.rows * expected)


def test_each_stage_masks_at_its_own_rate():
    stages = StageShape(2, 3, 42, 0.1), StageShape(2, 3, 42, 0.5)
    batches = plan(numbered(500), *stages)
    assert [batches.batch(step).columns.shape[1] for step in range(5)] == [4, 4, 20, 20, 20]


def factbook_batches(corpus, words, *, pairs=False, steps=60) -> list[Batch]:
    shape = StageShape(steps, 32, 128, 0.3)
    batches = BatchPlan(corpus.train, words, [shape], seed=1, next_sentence=pairs)
    return [batches.batch(step) for step in range(steps)]


@pytest.mark.parametrize("pairs", [False, True])
def test_special_tokens_are_never_masked(factbook_corpus, factbook_vocabulary, pairs):
    in_rows = 0
    for batch in factbook_batches(factbook_corpus, factbook_vocabulary, pairs=pairs, steps=20):
        assert (batch.labels >= 0).all()
        assert not np.isin(batch.labels, factbook_vocabulary.special).any()
        original = unmasked(batch)
        special = np.isin(original, factbook_vocabulary.special)
        assert np.array_equal(batch.input_ids[special], original[special])
        in_rows += special.sum() - (3 if pairs else 2) * len(original)
    assert in_rows > 10  # documents that end inside a row


def test_special_tokens_are_never_put_in(factbook_corpus, factbook_vocabulary):
    words = factbook_vocabulary
    for batch in factbook_batches(factbook_corpus, words, steps=20):
        put = np.take_along_axis(batch.input_ids, batch.columns, axis=1)
        assert not np.isin(put, [i for i in words.special if i != words.mask]).any()
        assert put.max() < words.tokenizer_size


def test_replacements_stay_below_the_tokenizers_size():
    # The embedding is rounded up to a multiple of 64; ids beyond the tokenizer's do not exist.
    small = Vocabulary(640, FIRST + 100, 0, CLS, SEP, MASK, SPECIAL)
    batches = BatchPlan(numbered(100), small, [StageShape(9, 50, 100, 0.6)], seed=0)
    ids = np.concatenate([batches.batch(step).input_ids for step in range(9)])
    assert ids.max() < FIRST + 100


def test_a_row_of_few_ordinary_tokens_masks_those_and_counts_no_others():
    stream = numbered(100, separators=[place for place in range(100) if place % 10])
    batch = plan(stream, StageShape(1, 5, 22, 0.5)).batch(0)
    assert batch.labels.shape == (5, 10)
    assert ((batch.labels != -100).sum(axis=1) == 2).all()  # every tenth of a row of 20
    ignored = np.take_along_axis(batch.input_ids, batch.columns, axis=1)[batch.labels == -100]
    assert np.isin(ignored, (CLS, SEP)).all()


def test_masks_are_80_10_10(factbook_corpus, factbook_vocabulary):
    words = factbook_vocabulary
    batches = factbook_batches(factbook_corpus, words)
    labels = np.concatenate([batch.labels.reshape(-1) for batch in batches])
    put = np.concatenate([b.input_ids.reshape(-1)[b.flat_positions] for b in batches])
    ordinary = words.tokenizer_size - len(words.special)
    masked, kept = put == words.mask, put == labels
    n = len(labels)
    assert n > 70_000
    for found, share in (
        (masked, 0.8),
        (kept, 0.1 + 0.1 / ordinary),  # a drawn token may be the one that was there
        (~masked & ~kept, 0.1 - 0.1 / ordinary),
    ):
        assert abs(found.sum() - n * share) < 5 * np.sqrt(n * share * (1 - share))
    drawn = Counter(put[~masked & ~kept].tolist())
    mean = (~masked & ~kept).sum() / ordinary
    squares = sum(
        (drawn[i] - mean) ** 2 / mean for i in range(words.tokenizer_size) if i not in words.special
    )
    assert abs(squares - ordinary) < 5 * np.sqrt(2 * ordinary)


def test_every_position_of_a_row_is_masked_equally_often():
    batches = plan(numbered(5000), StageShape(40, 100, 52, 0.2))
    counts = sum(
        np.bincount(batches.batch(step).columns.reshape(-1), minlength=52) for step in range(40)
    )
    assert counts[0] == counts[-1] == 0
    expected = 40 * 100 * 10 / 50
    assert np.abs(counts[1:-1] - expected).max() < 5 * np.sqrt(expected)


@given(shape=shapes, seed=seeds)
def test_labels_are_the_tokens_that_stood_there_and_the_others_stay(shape, seed):
    tokens = shape.rows * (shape.sequence_length - 2)
    batch = plan(numbered(tokens), shape, seed=seed, shuffle=False).batch(0)
    truth = np.full(batch.input_ids.shape, SEP)
    truth[:, 0] = CLS
    truth[:, 1:-1] = np.arange(FIRST, FIRST + tokens).reshape(shape.rows, -1)
    assert np.array_equal(np.take_along_axis(truth, batch.columns, axis=1), batch.labels)
    untouched = np.ones(truth.shape, dtype=bool)
    np.put_along_axis(untouched, batch.columns, False, axis=1)
    assert np.array_equal(batch.input_ids[untouched], truth[untouched])


def test_masks_are_drawn_anew_in_every_epoch():
    # One row is the corpus, so the same text comes back at every step.
    batches = plan(numbered(100), StageShape(1, 1, 102, 0.15))
    columns = {batches.batch(epoch).columns.tobytes() for epoch in range(20)}
    assert len(columns) == 20
    assert all(np.array_equal(places(batches.batch(e))[0], np.arange(100)) for e in range(20))


def test_masks_differ_by_seed_and_are_the_same_for_the_same():
    stream, shape = numbered(100), StageShape(1, 1, 102, 0.15)
    one, again, other = (plan(stream, shape, seed=seed).batch(0) for seed in (1, 1, 2))
    assert same(one, again)
    assert not np.array_equal(one.columns, other.columns)
