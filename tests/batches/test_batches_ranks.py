"""A batch is a pure function of its step, and is shared by ranks and micro-batches."""

import numpy as np
import pytest
from batches_helpers import (
    CLS,
    MASK,
    SEP,
    SPECIAL,
    joined,
    numbered,
    plan,
    same,
    seeds,
    shapes,
    unmasked,
)
from hypothesis import given
from hypothesis import strategies as st

from stackbert.batches import BatchPlan, StageShape
from stackbert.errors import UserError
from stackbert.vocabulary import Vocabulary


@given(
    tokens=st.integers(8, 400),
    ranks=st.integers(1, 6),
    share=st.integers(1, 4),
    length=st.integers(7, 40),
    pairs=st.booleans(),
    step=st.integers(0, 50),
    seed=seeds,
)
def test_the_ranks_together_see_the_batch_of_one(tokens, ranks, share, length, pairs, step, seed):
    pairs = pairs and ranks * share > 1
    stream = numbered(tokens, sentences=range(0, tokens, 5), separators=range(30, tokens, 31))
    shape = StageShape(10, ranks * share, length, 0.2)
    batches = plan(stream, shape, seed=seed, next_sentence=pairs)
    parts = [batches.batch(step, rank, ranks) for rank in range(ranks)]
    assert all(len(part.input_ids) == share for part in parts)
    assert same(joined(parts), batches.batch(step))


@given(
    tokens=st.integers(8, 400),
    stages=st.lists(shapes, min_size=1, max_size=3),
    pairs=st.booleans(),
    steps=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    together=st.integers(2, 2000),
    seed=seeds,
)
def test_steps_made_together_are_those_made_alone(tokens, stages, pairs, steps, together, seed):
    pairs = pairs and all(stage.rows > 1 and stage.sequence_length > 6 for stage in stages)
    stream = numbered(tokens, sentences=range(0, tokens, 5), separators=range(30, tokens, 31))
    some, one = (plan(stream, *stages, seed=seed, next_sentence=pairs) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackbert.batches._TOGETHER", together)
        found = [some.batch(step) for step in steps]
        patch.setattr("stackbert.batches._TOGETHER", 0)
        expected = [one.batch(step) for step in steps]
    assert all(map(same, found, expected))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_depends_on_its_step_alone(factbook_corpus, factbook_vocabulary, pairs):
    def make() -> BatchPlan:
        stages = [StageShape(5, 8, 32, 0.15), StageShape(5, 4, 64, 0.3)]
        return BatchPlan(
            factbook_corpus.train, factbook_vocabulary, stages, seed=3, next_sentence=pairs
        )

    forwards = make()
    state = np.random.get_state()[1].copy()
    first = {step: forwards.batch(step) for step in range(12)}
    assert np.array_equal(state, np.random.get_state()[1])
    np.random.seed(12345)
    fresh = make()
    assert all(same(fresh.batch(step), first[step]) for step in reversed(range(12)))


def test_changing_a_batch_changes_neither_the_corpus_nor_the_next():
    batches = plan(numbered(500), StageShape(5, 4, 34, 0.15))
    batch = batches.batch(1)
    before = unmasked(batch)
    batch.input_ids[:], batch.labels[:], batch.columns[:] = 0, 0, 0
    assert np.array_equal(unmasked(batches.batch(1)), before)


def test_micro_batches_are_the_rows_of_the_batch():
    stream = numbered(500, sentences=range(0, 500, 7))
    batch = plan(stream, StageShape(5, 5, 34, 0.15), next_sentence=True).batch(2)
    assert same(joined([batch.rows(start, start + 2) for start in (0, 2, 4)]), batch)
    rows, columns = np.divmod(batch.flat_positions, 34)
    assert np.array_equal(rows, np.repeat(np.arange(5), batch.columns.shape[1]))
    assert np.array_equal(columns, batch.columns.reshape(-1))


def test_rows_that_cannot_be_shared_equally_are_refused():
    batches = plan(numbered(100), StageShape(1, 10, 12, 0.15))
    with pytest.raises(UserError, match=r"batch\.sequences: 10 rows .* 4 processes"):
        batches.batch(0, 0, 4)


@pytest.mark.parametrize(("length", "pairs"), [(5, False), (6, True)])
def test_rows_too_short_for_text_are_refused(length, pairs):
    stages = StageShape(1, 2, length + 1, 0.15), StageShape(1, 2, length, 0.15)
    with pytest.raises(UserError, match=r"batch\.sequence_length"):
        plan(numbered(100), *stages, next_sentence=pairs)
    plan(numbered(100), stages[0], next_sentence=pairs)


def test_one_row_cannot_be_paired():
    stages = StageShape(1, 2, 20, 0.15), StageShape(1, 1, 20, 0.15)
    with pytest.raises(UserError, match=r"batch\.sequences: next-sentence prediction needs"):
        plan(numbered(100), *stages, next_sentence=True)
    plan(numbered(100), *stages)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="no tokens in this split"):
        plan(numbered(0), StageShape(1, 2, 20, 0.15))


def test_a_vocabulary_of_special_tokens_only_is_refused():
    nothing = Vocabulary(64, len(SPECIAL), 0, CLS, SEP, MASK, SPECIAL)
    with pytest.raises(UserError, match="special tokens only"):
        BatchPlan(numbered(10), nothing, [StageShape(1, 2, 20, 0.15)], seed=0)
