"""Each token of an epoch is in exactly one row: counted, on a text whose every token differs.

    python benchmarks/independent/epochs.py

Two ranks read five epochs in rows that change their length on the way. Masks are undone by the
labels, and the tokens between [CLS] and [SEP] are counted. Ends with 1 if a token was seen twice or
not at all in an epoch, or if two epochs have the same order.
"""

import sys

import numpy as np
import numpy.typing as npt

from stackbert.batches.batches import BatchPlan
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.recipe import Stage

SPECIAL, TOKENS, EPOCHS, RANKS = 5, 5003, 5, 2
STAGES = [Stage(1, 60, 12, 24, 0.15, "auto"), Stage(2, 9, 8, 33, 0.3, "auto")]
Ids = npt.NDArray[np.int64]


class Different:
    """Ids 5, 6, 7, … as a stream of tokens."""

    def __len__(self) -> int:
        return TOKENS

    def read_many(self, starts: Ids, lengths: Ids) -> Ids:
        """Several ranges, one after the other."""
        ranges = zip(starts.tolist(), lengths.tolist(), strict=True)
        return np.concatenate([np.arange(start, start + n) for start, n in ranges]) + SPECIAL


def main() -> None:
    """Read, count, and say it."""
    size, special = SPECIAL + TOKENS, tuple(range(SPECIAL))
    vocabulary = Vocabulary(
        size=size, tokenizer_size=size, pad=0, cls=2, sep=3, mask=4, special=special
    )
    plan = BatchPlan(Different(), vocabulary, STAGES, seed=7)  # type: ignore[arg-type]
    seen: list[Ids] = []
    step = 0
    while sum(map(len, seen)) < EPOCHS * TOKENS:
        for rank in range(RANKS):
            batch = plan.batch(step, rank, RANKS)
            rows = batch.input_ids_BS.scatter(1, batch.columns_BK, batch.labels_BK)
            seen.append(rows[:, 1:-1].flatten().numpy())
        step += 1
    epochs = np.concatenate(seen)[: EPOCHS * TOKENS].reshape(EPOCHS, TOKENS) - SPECIAL
    counts = np.stack([np.bincount(epoch, minlength=TOKENS) for epoch in epochs])
    orders = len({epoch.tobytes() for epoch in epochs})
    print(
        f"{step} steps, {EPOCHS} epochs of {TOKENS:,} tokens in {orders} orders: a token is seen "
        f"{counts.min()} to {counts.max()} times an epoch."
    )
    sys.exit(not (counts == 1).all() or orders < EPOCHS)


if __name__ == "__main__":
    main()
