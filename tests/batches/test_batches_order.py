"""No token is lost or repeated, and the order is the same in every version."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from batches_helpers import (
    joined,
    numbered,
    places,
    plan,
    same,
    seeds,
    shapes,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stackbert.batches import Batch, StageShape


@given(
    tokens=st.integers(1, 300),
    stages=st.lists(shapes, min_size=1, max_size=3),
    seed=seeds,
    shuffle=st.booleans(),
)
@example(tokens=1, stages=[StageShape(1, 1, 40, 0.15)], seed=0, shuffle=True)
@example(
    tokens=300,
    stages=[StageShape(2, 3, 10, 0.15), StageShape(2, 3, 40, 0.15)],
    seed=0,
    shuffle=True,
)
def test_each_token_of_an_epoch_is_seen_once_whatever_the_stages(tokens, stages, seed, shuffle):
    batches = plan(numbered(tokens), *stages, seed=seed, shuffle=shuffle)
    seen: list[int] = []
    step = 0
    while len(seen) < 3 * tokens or step <= sum(stage.steps for stage in stages):
        seen += places(batches.batch(step)).reshape(-1).tolist()
        step += 1
    for start in range(0, len(seen) - tokens + 1, tokens):
        assert sorted(seen[start : start + tokens]) == list(range(tokens))
    rest = seen[len(seen) - len(seen) % tokens :]
    assert len(set(rest)) == len(rest)


def test_no_token_is_lost_or_repeated_where_a_stage_ends():
    # 2 steps of 4 × 8 tokens and 3 of 2 × 30 are 244; the first epoch of 200 ends in the second.
    stages = StageShape(2, 4, 10, 0.15), StageShape(3, 2, 32, 0.15)
    batches = plan(numbered(200), *stages)
    shapes_seen = [batches.batch(step).input_ids.shape for step in range(7)]
    assert shapes_seen == [(4, 10)] * 2 + [(2, 32)] * 5
    assert [batches.locate(step) for step in (0, 1, 2, 4, 5)] == [
        (0, 0),
        (0, 32),
        (1, 64),
        (1, 184),
        (1, 244),  # past the end the last stage goes on
    ]
    seen = np.concatenate([places(batches.batch(step)).reshape(-1) for step in range(7)])
    assert sorted(seen[:200]) == list(range(200))
    assert len(set(seen[200:].tolist())) == 64 + 5 * 60 - 200


@given(tokens=st.integers(1, 300), shape=shapes, seed=seeds)
def test_with_one_sequence_length_a_row_is_one_piece_of_the_text(tokens, shape, seed):
    batches = plan(numbered(tokens), shape, seed=seed)
    for step in range(8):
        assert (np.diff(places(batches.batch(step))) % tokens == 1 % tokens).all()


def test_epochs_differ_in_their_order():
    batches = plan(numbered(1000), StageShape(1, 100, 12, 0.15))
    orders = [places(batches.batch(epoch)).reshape(-1).tolist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(1000)) for order in orders)


def test_the_order_differs_by_seed():
    stream, shape = numbered(1000), StageShape(1, 100, 12, 0.15)
    orders = {places(plan(stream, shape, seed=s).batch(0)).tobytes() for s in range(5)}
    assert len(orders) == 5


def test_an_evaluation_reads_the_corpus_in_its_own_order():
    batches = plan(numbered(1000), StageShape(1, 100, 12, 0.15), shuffle=False)
    assert places(batches.batch(0)).reshape(-1).tolist() == list(range(1000))


@given(
    tokens=st.integers(2, 150),
    shard=st.integers(1, 40),
    pairs=st.booleans(),
    stages=st.lists(
        shapes.map(lambda s: replace(s, rows=s.rows + 1, sequence_length=s.sequence_length + 1)),
        min_size=1,
        max_size=2,
    ),
    data=st.data(),
)
@settings(max_examples=30)
def test_rows_are_the_same_wherever_the_shards_are_cut(tokens, shard, pairs, stages, data):
    marks = st.lists(st.integers(0, tokens - 1), max_size=20)
    sentences, separators = data.draw(marks), data.draw(marks)
    whole, cut = (
        plan(
            numbered(tokens, shard=size, sentences=sentences, separators=separators),
            *stages,
            next_sentence=pairs,
        )
        for size in (None, shard)
    )
    assert all(same(whole.batch(step), cut.batch(step)) for step in range(6))


GOLDEN = {
    "rows": (False, [StageShape(9, 48, 12, 0.15)], "c3280db0ddba8c06"),
    "stages": (
        False,
        [StageShape(9, 48, 12, 0.15), StageShape(9, 6, 100, 0.3)],
        "9717a91717c0ff85",
    ),
    "pairs": (True, [StageShape(9, 40, 20, 0.15), StageShape(9, 8, 90, 0.3)], "6072fdd903a72d90"),
}


def digest(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for field in fields(batch):
            array = getattr(batch, field.name)
            if array is not None:
                assert array.dtype == np.int64
                found.update(array.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_batches_are_the_same_in_every_version(name):
    # A run started with one version must be resumed by the next on the same batches. Over 1,024
    # rows an epoch and more than one epoch, in one shard and in several, read on and at random.
    pairs, stages, expected = GOLDEN[name]
    tokens, steps = 15_000, 40
    for shard in (None, 4_000):
        stream = numbered(
            tokens,
            shard=shard,
            sentences=sorted({(11 * n + n * n % 7) % tokens for n in range(tokens // 11)}),
            separators=range(80, tokens, 81),
        )
        batches = plan(stream, *stages, seed=6, next_sentence=pairs)
        assert digest([batches.batch(step) for step in range(steps)]) == expected
        backwards = [batches.batch(step) for step in reversed(range(steps))]
        assert digest(backwards[::-1]) == expected
        shared = [[batches.batch(step, rank, 2) for rank in (0, 1)] for step in range(steps)]
        assert digest([joined(ranks) for ranks in shared]) == expected


@given(
    tokens=st.integers(1, 60),
    shard=st.integers(1, 40),
    data=st.data(),
)
def test_ranges_read_together_are_the_ranges_read_alone(tokens, shard, data):
    marks = data.draw(st.lists(st.integers(0, tokens - 1)))
    stream = numbered(tokens, shard=shard, sentences=marks)
    starts = np.array(data.draw(st.lists(st.integers(0, tokens), max_size=8)), dtype=np.int64)
    lengths = np.array(
        [data.draw(st.integers(0, tokens - start)) for start in starts], dtype=np.int64
    )
    alone = [stream.read(int(a), int(n)) for a, n in zip(starts, lengths, strict=True)]
    assert stream.read_many(starts, lengths).tolist() == [i for part in alone for i in part]
    found, owners = stream.sentence_starts_within(starts, lengths)
    every = sorted({0, *marks})
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        inside = [place for place in every if start <= place < start + length]
        assert found[owners == number].tolist() == inside


@pytest.mark.parametrize(("start", "length"), [(-1, 3), (-9, 2), (18, 3), (25, 1)])
def test_a_range_outside_the_corpus_is_an_error(start, length):
    stream = numbered(20, shard=7)
    for read in (stream.read_many, stream.sentence_starts_within):
        with pytest.raises(IndexError, match="split of 20 tokens"):
            read(np.array([3, start]), np.array([2, length]))
