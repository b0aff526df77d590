"""A corpus of running numbers, whose batches show where every token is from."""

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from stackbert.batches.batches import IGNORED, Batch, BatchPlan
from stackbert.batches.order import EvenOrder
from stackbert.corpus.store import SENTENCES, TOKENS, TokenStream
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.recipe import Stage

CLS, SEP, MASK = 2, 3, 4
SPECIAL = (0, 1, CLS, SEP, MASK)
FIRST = len(SPECIAL)
"""Token number n of a numbered corpus has the id FIRST + n, so a batch shows where it is from."""


def numbered(
    tokens: int, *, sentences: Sequence[int] = (), separators: Sequence[int] = ()
) -> TokenStream:
    """A corpus on disk of running numbers, with separators at some places."""
    ids = np.arange(FIRST, FIRST + tokens, dtype=np.uint32)
    ids[list(separators)] = SEP
    starts = np.unique([0, *sentences, *(place + 1 for place in separators)]).astype(np.int64)
    starts = starts[starts < tokens]
    with tempfile.TemporaryDirectory() as name:
        for file, array in ((TOKENS, ids), (SENTENCES, starts)):
            array.tofile(Path(name) / file)
        return TokenStream(Path(name), "uint32")


def shape(steps: int, rows: int, length: int, mask_rate: float = 0.15) -> Stage:
    return Stage(2, steps, rows, length, mask_rate, "auto")


def plan(
    stream: TokenStream, *stages: Stage, seed: int = 0, evenly: bool = False, **options: Any
) -> BatchPlan:
    """With `evenly`, of the first stage's rows (without pairs) alone."""
    size = FIRST + len(stream)
    if evenly:
        length = stages[0].sequence_length - (3 if options.get("next_sentence") else 2)
        options["order"] = EvenOrder(len(stream), length, stages[0].sequences)
    vocabulary = Vocabulary(size, size, 0, CLS, SEP, MASK, SPECIAL)
    return BatchPlan(stream, vocabulary, stages, seed=seed, **options)


def unmasked(batch: Batch) -> torch.Tensor:
    """The rows as they were before the masks."""
    counts = batch.labels_BK != IGNORED
    rows = torch.nonzero(counts)[:, 0]
    ids = batch.input_ids_BS.clone()
    ids[rows, batch.columns_BK[counts]] = batch.labels_BK[counts]
    return ids


def places(batch: Batch) -> torch.Tensor:
    """Which token of a numbered corpus stands where in the rows; special tokens left out."""
    return unmasked(batch)[:, 1:-1] - FIRST


def tensors(batch: Batch) -> list[torch.Tensor]:
    found = [getattr(batch, field.name) for field in fields(Batch)]
    return [tensor for tensor in found if tensor is not None]


def same(a: Batch, b: Batch) -> bool:
    return all(map(torch.equal, tensors(a), tensors(b)))


def joined(parts: Sequence[Batch]) -> Batch:
    def join(field: str) -> torch.Tensor | None:
        found = [getattr(part, field) for part in parts]
        return None if found[0] is None else torch.cat(found)

    return Batch(*(join(field.name) for field in fields(Batch)))


shapes = st.builds(
    shape,
    steps=st.integers(1, 5),
    rows=st.integers(2, 6),
    length=st.integers(7, 40),
    mask_rate=st.floats(0.05, 0.6),
)
seeds = st.integers(0, 2**63 - 1)
