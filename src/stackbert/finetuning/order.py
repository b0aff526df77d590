"""Which training row comes when: a function of lengths, batch and seed, whatever the model.

So two models see the same rows in the same batches at the same step, also if their shapes, and with
them what they draw for dropout, differ. transformers' own grouping by length draws from the global
random state and goes through each group from the longest rows to the shortest; here the batches of
a group are shuffled.
"""

from collections.abc import Sequence

import numpy as np

from stackbert.randomness import I64, Permutation, derive_key

_BATCHES = 50
"""Of a group within which rows are sorted, as transformers has it."""


def row_order(
    lengths: Sequence[int], *, rows: int, batch: int, seed: int, group_by_length: bool
) -> I64:
    """The places of the rows, in the order in which they are trained on.

    Args:
        lengths: tokens of each row.
        rows: to train on in all; every row comes once before any comes twice, but for the groups
            at the seam.
        batch: rows of a step.
        seed: of the run.
        group_by_length: let rows of like length share a batch. Rows are shuffled, sorted within
            groups of up to 50 batches (a quarter of the data at most), and the batches of a group
            shuffled again.

    Returns:
        (rows,): numbers from 0 to len(lengths) - 1.
    """
    size = len(lengths)
    passes = range(-(-rows // size))
    order = np.concatenate([_shuffled(size, seed, "rows", each) for each in passes])[:rows]
    if not group_by_length:
        return order
    measured = np.asarray(lengths, dtype=np.int64)
    group = batch * max(1, min(_BATCHES, size // (4 * batch)))
    parts = []
    for number, start in enumerate(range(0, rows, group)):
        some = order[start : start + group]
        some = some[np.argsort(measured[some], kind="stable")]
        whole = len(some) // batch
        batches = some[: whole * batch].reshape(whole, batch)
        parts += [batches[_shuffled(whole, seed, "batches", number)].reshape(-1)]
        parts += [some[whole * batch :]]  # the run's last batch may be a short one
    return np.concatenate(parts)


def _shuffled(size: int, seed: int, what: str, number: int) -> I64:
    return Permutation(size, derive_key(seed, "finetuning", what, number))(np.arange(size))
