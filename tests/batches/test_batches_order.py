"""Each token of an epoch is seen once, a batch is a pure function of its step; validation."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from batches_helpers import FIRST, joined, numbered, places, plan, same, seeds, shape, shapes
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

import stackbert as sb
from stackbert.batches.batches import IGNORED, data_sentences, validation_batch, validation_entropy
from stackbert.batches.order import EvenOrder
from stackbert.batches.randomness import Permutation, derive_key
from stackbert.errors import UserError


@given(
    tokens=st.integers(1, 300),
    stages=st.lists(shapes, min_size=1, max_size=3),
    seed=seeds,
)
@example(tokens=1, stages=[shape(1, 1, 40)], seed=0)
@example(tokens=300, stages=[shape(2, 3, 10), shape(2, 3, 40)], seed=0)
def test_each_token_of_an_epoch_is_seen_once_whatever_the_stages(tokens, stages, seed):
    batches = plan(numbered(tokens), *stages, seed=seed)
    seen: list[int] = []
    step = 0
    while len(seen) < 3 * tokens or step <= sum(stage.steps for stage in stages):
        seen += places(batches.batch(step)).flatten().tolist()
        step += 1
    for start in range(0, len(seen) - tokens + 1, tokens):
        assert sorted(seen[start : start + tokens]) == list(range(tokens))
    rest = seen[len(seen) - len(seen) % tokens :]
    assert len(set(rest)) == len(rest)


@given(tokens=st.integers(1, 300), stage=shapes, seed=seeds)
def test_with_one_sequence_length_a_row_is_one_piece_of_the_text(tokens, stage, seed):
    batches = plan(numbered(tokens), stage, seed=seed)
    for step in range(8):
        assert (torch.diff(places(batches.batch(step))) % tokens == 1 % tokens).all()


def test_the_order_differs_by_epoch_and_seed():
    stream, stage = numbered(1000), shape(1, 100, 12)
    orders = [places(plan(stream, stage).batch(epoch)).flatten().tolist() for epoch in range(4)]
    orders += [places(plan(stream, stage, seed=s).batch(0)).flatten().tolist() for s in range(1, 5)]
    assert len({tuple(order) for order in orders}) == 8
    assert all(sorted(order) == list(range(1000)) for order in orders)


@given(
    tokens=st.integers(8, 400),
    world_size=st.integers(1, 6),
    share=st.integers(1, 4),
    length=st.integers(7, 40),
    pairs=st.booleans(),
    step=st.integers(0, 50),
    seed=seeds,
)
def test_ranks_together_see_the_batch_of_one(tokens, world_size, share, length, pairs, step, seed):
    pairs = pairs and world_size * share > 1
    stream = numbered(tokens, sentences=range(0, tokens, 5), separators=range(30, tokens, 31))
    stage = shape(10, world_size * share, length, 0.2)
    batches = plan(stream, stage, seed=seed, next_sentence=pairs)
    parts = [batches.batch(step, rank, world_size) for rank in range(world_size)]
    assert all(len(part) == share for part in parts)
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
    stream = numbered(tokens, sentences=range(0, tokens, 5), separators=range(30, tokens, 31))
    some, one = (plan(stream, *stages, seed=seed, next_sentence=pairs) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackbert.batches.batches._CACHED_TOKENS", together)
        found = [some.batch(step) for step in steps]
        patch.setattr("stackbert.batches.batches._CACHED_TOKENS", 0)
        expected = [one.batch(step) for step in steps]
    assert all(map(same, found, expected))


def test_a_batch_uses_no_global_randomness_and_changing_it_changes_no_other():
    batches = plan(numbered(500), shape(5, 4, 34))
    before = batches.batch(1).input_ids_BS.clone()
    np.random.seed(12345)
    torch.manual_seed(12345)
    batches.batch(1).each(torch.Tensor.zero_)
    assert torch.equal(batches.batch(1).input_ids_BS, before)
    assert np.random.get_state()[1][0] == 12345


def test_micro_batches_and_evaluation_shares_are_the_rows_of_the_batch():
    batch = plan(numbered(500), shape(5, 5, 34), next_sentence=True).batch(2)
    assert same(joined([batch.rows(start, start + 2) for start in (0, 2, 4)]), batch)
    assert same(batch.to(torch.device("cpu")), batch)
    assert batch.share(0, 1) is batch
    shares = [batch.share(rank, 3) for rank in range(3)]
    whole = joined(shares)
    assert [len(share) for share in shares] == [2, 2, 2]
    assert same(whole.rows(0, 5), batch)
    assert (whole.labels_BK[5] == IGNORED).all()
    assert whole.is_random_B[5] == IGNORED


def test_what_cannot_be_batched_is_refused_with_the_recipe_s_field():
    with pytest.raises(UserError, match=r"batch\.sequences: 10 rows .* 4 processes"):
        plan(numbered(100), shape(1, 10, 12)).batch(0, 0, 4)
    with pytest.raises(UserError, match=r"batch\.sequence_length"):
        plan(numbered(100), shape(1, 2, 40), shape(1, 2, 6), next_sentence=True)
    with pytest.raises(UserError, match=r"batch\.sequences: next-sentence prediction needs"):
        plan(numbered(100), shape(1, 2, 20), shape(1, 1, 20), next_sentence=True)


keys = st.integers(0, 2**64 - 1)


def everything(size: int, key: int) -> list[int]:
    return Permutation(size, key)(np.arange(size)).tolist()


@given(size=st.integers(1, 3000), key=keys, data=st.data())
@example(size=4, key=2**64 - 1, data=None)
@example(size=2500, key=1, data=None)  # a square, and next to one
@example(size=2501, key=1, data=None)
def test_a_permutation_hits_every_place_once_whatever_else_is_asked(size, key, data):
    whole = everything(size, key)
    assert sorted(whole) == list(range(size))
    if data:
        asked = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
        found = Permutation(size, key)(np.array(asked, dtype=np.int64)).tolist()
        assert found == [whole[place] for place in asked]


@pytest.mark.parametrize("size", [3, 4])
def test_every_permutation_of_a_few_places_is_about_equally_likely(size):
    possible = math.factorial(size)
    orders = 30 * possible
    seen = Counter(tuple(everything(size, derive_key(7, key))) for key in range(orders))
    assert len(seen) == possible
    expected = orders / possible
    excess = sum((n - expected) ** 2 / expected for n in seen.values()) - (possible - 1)
    assert excess < 5 * np.sqrt(2 * (possible - 1))


@given(tokens=st.integers(1, 500), chunk=st.integers(1, 40), rows=st.integers(1, 9))
def test_rows_are_spread_evenly_and_share_no_token_where_there_are_enough(tokens, chunk, rows):
    starts, lengths = EvenOrder(tokens, chunk, rows).segments(0, rows * chunk)
    read = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    assert (len(read), read.max() < tokens) == (rows * chunk, True)
    first = read.reshape(rows, chunk)[:, 0]
    assert (np.abs(first - np.arange(rows) * tokens / rows) < 1).all()
    if rows * chunk <= tokens:
        assert len(set(read.tolist())) == len(read)


def test_the_last_source_is_judged_too_and_the_entropy_is_of_the_same_rows(factbook_corpus):
    stream = numbered(10_000)
    corpus = dataclasses.replace(factbook_corpus, validation=stream)
    vocabulary = dataclasses.replace(corpus.vocabulary, size=FIRST + 10_000)
    corpus = dataclasses.replace(corpus, vocabulary=vocabulary)
    recipe = sb.load_recipe("demo", ["evaluation.sequences=5"])
    rows = places(validation_batch(recipe, corpus))
    assert rows[:, 0].tolist() == [0, 2000, 4000, 6000, 8000]
    assert validation_entropy(recipe, corpus) == pytest.approx(np.log(rows.numel()))
    whole = factbook_corpus.validation.read(0, len(factbook_corpus.validation))
    expected = stats.entropy(np.bincount(whole[whole != factbook_corpus.vocabulary.sep]))
    assert validation_entropy(recipe, factbook_corpus) == pytest.approx(expected, rel=0.2)


def test_passes_and_a_small_held_out_side_are_said(factbook_corpus):
    shape = ["batch.sequences=10", "batch.sequence_length=102"]
    tokens = len(factbook_corpus.train)
    few = sb.load_recipe("demo", shape).scaled(tokens // 1000)
    said, *warnings = data_sentences(few, factbook_corpus)
    assert f"pass {few.total_steps * 1000 / tokens:,.3g} times over {tokens:,} tokens" in said
    assert [line.startswith("Warning: only") for line in warnings] == [True]
    many = data_sentences(few.scaled(30 * tokens // 1000), factbook_corpus)
    assert "Warning: 30 passes" in many[1]
