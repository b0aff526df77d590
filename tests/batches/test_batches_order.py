"""Each token of an epoch is seen once, and a batch is a pure function of its step."""

import numpy as np
import pytest
import torch
from batches_helpers import joined, numbered, places, plan, same, seeds, shape, shapes, tensors
from hypothesis import example, given
from hypothesis import strategies as st

from stackbert.batches.batches import IGNORED
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
def test_the_ranks_together_see_the_batch_of_one(
    tokens, world_size, share, length, pairs, step, seed
):
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
    for tensor in tensors(batches.batch(1)):
        tensor.zero_()
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
