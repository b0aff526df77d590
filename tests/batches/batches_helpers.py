"""A corpus of running numbers, whose batches show where every token is from."""

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.corpus.manifest import Shard, Split, shard_files
from stackbert.corpus.store import TokenStream
from stackbert.randomness import I64
from stackbert.vocabulary import Vocabulary

CLS, SEP, MASK = 2, 3, 4
SPECIAL = (0, 1, CLS, SEP, MASK)
FIRST = len(SPECIAL)
"""Token number n of a numbered corpus has the id FIRST + n, so a batch shows where it is from."""


def numbered(
    tokens: int,
    *,
    shard: int | None = None,
    sentences: Sequence[int] = (),
    separators: Sequence[int] = (),
) -> TokenStream:
    """A corpus on disk of running numbers, with separators at some places."""
    ids = np.arange(FIRST, FIRST + tokens, dtype=np.uint32)
    ids[list(separators)] = SEP
    documents = np.array([0, *(place + 1 for place in separators)])
    starts = {
        "documents": documents[documents < tokens],
        "sentences": np.unique([*documents[documents < tokens], *sentences]),
    }
    shards = []
    with tempfile.TemporaryDirectory() as folder:
        for number, low in enumerate(range(0, tokens, shard or max(1, tokens))):
            high = min(tokens, low + (shard or tokens))
            parts = {"tokens": ids[low:high]} | {
                part: found[(low <= found) & (found < high)] - low for part, found in starts.items()
            }
            for part, array in parts.items():
                np.save(Path(folder) / shard_files(number)[part], array)
            lengths = {part: len(array) for part, array in parts.items()}
            shards.append(Shard(number=number, sha256={}, **lengths))
        split = Split(tokens, 0, 0, 0, 0.0, tuple(shards))
        stream = TokenStream(Path(folder), split)
        stream.sentence_starts(0, tokens)  # open every file while it is there
    return stream


def vocabulary(tokens: int) -> Vocabulary:
    return Vocabulary(FIRST + tokens, FIRST + tokens, 0, CLS, SEP, MASK, SPECIAL)


def plan(stream: TokenStream, *stages: StageShape, seed: int = 0, **options: bool) -> BatchPlan:
    return BatchPlan(stream, vocabulary(len(stream)), stages, seed=seed, **options)


def unmasked(batch: Batch) -> I64:
    """The rows as they were before the masks."""
    ids = batch.input_ids.copy()
    counts = batch.labels != -100
    rows = np.nonzero(counts)[0]
    ids[rows, batch.columns[counts]] = batch.labels[counts]
    return ids


def places(batch: Batch) -> I64:
    """Which token of a numbered corpus stands where in the rows; special tokens left out."""
    return unmasked(batch)[:, 1:-1] - FIRST


def same(a: Batch, b: Batch) -> bool:
    names = [field.name for field in fields(Batch)]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def joined(parts: Sequence[Batch]) -> Batch:
    def join(field: str) -> I64 | None:
        arrays = [getattr(part, field) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Batch(*(join(field.name) for field in fields(Batch)))


shapes = st.builds(
    StageShape,
    steps=st.integers(1, 5),
    rows=st.integers(1, 6),
    sequence_length=st.integers(6, 40),
    mask_rate=st.floats(0.05, 0.6),
)
seeds = st.integers(0, 2**63 - 1)
