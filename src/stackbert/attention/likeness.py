"""How alike the maps of two layers are: Jensen-Shannon divergence, heads matched best to best.

For two rows of attention p and q with the mean m = (p + q) / 2 the divergence is
H(m) - (H(p) + H(q)) / 2, here divided by ln 2: 0 for equal rows, 1 for rows without a common token.
That of two heads is the mean over the queries of all sentences; that of two layers the mean over
their heads, matched one to one so that it is smallest.

Every head is held against every other, on every row: that is why only some rows of a sentence are
kept, drawn at random. They are all that is kept of a model, so two models need never be in memory
together.

Shape letters: L layers, H heads, R rows of a sentence, S tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stackbert.attention.result import F32, F64, I64, Contrast, Likeness, SentenceMaps

ROWS = 16
"""Queries kept of a sentence at most."""
SENTENCES = 64
"""Sentences of which rows are kept: some 1,000 queries, whose mean divergence is steady to a few
thousandths."""
DEALS = 20
"""Times that the heads are dealt out to the layers at random."""
_TINY = 1e-30


@dataclass
class RowSample:
    """Some rows of the maps of some sentences of one model."""

    name: str
    seed: int
    sentences: int = SENTENCES
    """Those with a lower index are sampled."""
    rows: dict[int, F32] = field(default_factory=dict)
    """Index of a sentence → (L, H, R, S)."""

    def add(self, sentence: SentenceMaps) -> None:
        """Keep some rows of a sentence, or none if it is beyond those that are sampled."""
        if sentence.index >= self.sentences:
            return
        length = sentence.maps.shape[2]
        random = np.random.default_rng((self.seed, sentence.index))
        kept = np.sort(random.permutation(length)[:ROWS])
        rows = sentence.maps[:, :, kept]
        # Half precision leaves sums that differ from 1 by a hundredth.
        self.rows[sentence.index] = rows / rows.sum(axis=-1, keepdims=True)


def divergences(first: RowSample, second: RowSample) -> tuple[F64, int]:
    """Between every head of one model and every head of another, on the same rows.

    Args:
        first: rows of a model.
        second: rows of another, or `first` itself.

    Returns:
        ((La, Ha, Lb, Hb) from 0 to 1, queries compared).

    Raises:
        ValueError: there are no common sentences, or their lengths differ.
    """
    common = sorted(first.rows.keys() & second.rows.keys())
    if not common:
        raise ValueError("no sentence was sampled of both models")
    total: F64 | None = None
    queries = 0
    for index in common:
        one, other = first.rows[index], second.rows[index]
        if one.shape[2:] != other.shape[2:]:
            raise ValueError(f"sentence {index} has other tokens for the second model")
        sums = _divergence_sums(
            torch.from_numpy(one).flatten(0, 1), torch.from_numpy(other).flatten(0, 1)
        ).numpy()
        total = sums if total is None else total + sums
        queries += one.shape[2]
    assert total is not None
    shape = (*first.rows[common[0]].shape[:2], *second.rows[common[0]].shape[:2])
    return np.clip(total / queries / math.log(2), 0.0, 1.0).reshape(shape), queries


def _divergence_sums(p: Tensor, q: Tensor) -> Tensor:
    """(A, R, S) and (B, R, S) to (A, B): divergences in nats, summed over the rows.

    With m = p + q, not halved, a row's is ln 2 + (Σ p ln p + Σ q ln q - Σ m ln m) / 2.
    """
    same, rows = p.data_ptr() == q.data_ptr(), p.size(1)
    p, q = p.flatten(1) + _TINY, q.flatten(1) + _TINY  # so that no logarithm is of 0
    # Written into again and again: fresh memory for every product takes a third of the time.
    sums, logs = torch.empty_like(q), torch.empty_like(q)
    mixed = torch.zeros(len(p), len(q), dtype=torch.float64)
    for head in range(len(p)):
        start = head if same else 0
        x, log = sums[start:], logs[start:]
        torch.add(p[head], q[start:], out=x)
        mixed[head, start:] = torch.log(x, out=log).mul_(x).sum(1)
    if same:
        mixed = mixed.triu() + mixed.triu(1).T
    p_self, q_self = ((x.log() * x).sum(1).double() for x in (p, q))
    return rows * math.log(2) + (p_self[:, None] + q_self - mixed) / 2


def match(heads: F64) -> tuple[F64, F64, I64]:
    """Match the heads of every two layers one to one, so that their mean divergence is smallest.

    Args:
        heads: (La, Ha, Lb, Hb).

    Returns:
        `divergence`, `random_pairs` and `matching` of `Likeness`.
    """
    from scipy.optimize import linear_sum_assignment

    layers, _, others, _ = heads.shape
    divergence = np.zeros((layers, others))
    matching = np.full((layers, others, heads.shape[1]), -1)
    for one in range(layers):
        for other in range(others):
            block = heads[one, :, other]
            rows, columns = linear_sum_assignment(block)
            divergence[one, other] = block[rows, columns].mean()
            matching[one, other, rows] = columns
    return divergence, heads.mean(axis=(1, 3)), matching


def likeness(first: RowSample, second: RowSample) -> Likeness:
    """How alike every two layers of two models (or of one) are."""
    heads, rows = divergences(first, second)
    divergence, random_pairs, matching = match(heads)
    return Likeness(
        first=first.name,
        second=second.name,
        sentences=len(first.rows.keys() & second.rows.keys()),
        rows=rows,
        heads=heads,
        divergence=divergence,
        random_pairs=random_pairs,
        matching=matching,
    )


def top_and_bottom(
    own: Likeness, to_untrained: Likeness, untrained: Likeness, *, seed: int = 0
) -> Contrast | None:
    """Layers of a model's top half held against those of its bottom half.

    Args:
        own: the model with itself.
        to_untrained: the model with an untrained one of the same config.
        untrained: the untrained one with itself.
        seed: of dealing.

    Returns:
        The contrast, `untrained` being against the untrained model's bottom half: what fresh
        layers would have been. None for a single layer, which has no halves.
    """
    depth, heads = own.heads.shape[:2]
    if depth < 2:
        return None
    halves = np.ix_(range(depth - depth // 2, depth), range(depth // 2))
    flat = own.heads.reshape((depth * heads,) * 2)

    def deal(random: np.random.Generator) -> F64:
        order = random.permutation(depth * heads)
        dealt: F64 = flat[np.ix_(order, order)].reshape(own.heads.shape)
        return dealt[depth - depth // 2 :, :, : depth // 2]

    return _contrast(
        own.divergence[halves],
        own.random_pairs[halves],
        to_untrained.divergence[halves],
        deal,
        seed,
        untrained_alike=float(untrained.divergence[halves].min(axis=1).mean()),
    )


def shallow_and_deep(between: Likeness, deep_to_untrained: Likeness, *, seed: int = 0) -> Contrast:
    """Layers of the deeper model held against those of the shallower.

    Args:
        between: the two models; of equal depth, the second counts as the deeper.
        deep_to_untrained: the deeper model with an untrained one.
        seed: of dealing.
    """
    heads, divergence, pairs = between.heads, between.divergence, between.random_pairs
    if heads.shape[0] <= heads.shape[2]:
        heads, divergence, pairs = heads.transpose(2, 3, 0, 1), divergence.T, pairs.T
    flat = heads.reshape(heads.shape[0] * heads.shape[1], -1)

    def deal(random: np.random.Generator) -> F64:
        rows, columns = (random.permutation(size) for size in flat.shape)
        return flat[np.ix_(rows, columns)].reshape(heads.shape)

    return _contrast(divergence, pairs, deep_to_untrained.divergence, deal, seed)


def _contrast(
    divergence: F64,
    random_pairs: F64,
    to_untrained: F64,
    deal: Callable[[np.random.Generator], F64],
    seed: int,
    untrained_alike: float | None = None,
) -> Contrast:
    """Of layers (rows) against others (columns); `deal` gives their heads, dealt out anew."""
    random = np.random.default_rng(seed)
    rows, best = np.arange(len(divergence)), divergence.argmin(axis=1)
    return Contrast(
        matched=float(divergence[rows, best].mean()),
        all_pairs=float(divergence.mean()),
        random_pairs=float(random_pairs[rows, best].mean()),
        dealt=float(np.mean([match(deal(random))[0].min(axis=1).mean() for _ in range(DEALS)])),
        untrained=float(to_untrained.min(axis=1).mean()),
        untrained_alike=untrained_alike,
    )
